"""Every public estimator goes to plain JSON and plain arrays and comes back with the same answers, bit by bit."""

from __future__ import annotations

import inspect
import io
import json
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.base import clone, is_classifier
from sklearn.exceptions import NotFittedError

from mercer import learn
from mercer.errors import ConvergenceWarning, DataError, StructureError
from mercer.kernels import Gaussian, Matern
from mercer.learn import state as saving

N, D = 60, 4
GIVEN: dict[str, Any] = {"learn": False, "random_state": 0, "landmarks": 12, "epochs": 2, "neighbours": 5}
SLOW: dict[str, dict[str, Any]] = {  # what keeps a fit short
    "RecursiveFeatureMachine": {"iterations": 2}, "RecursiveFeatureClassifier": {"iterations": 2, "alpha": 0.1},
    "KernelClassifier": {"kernel": Gaussian(1.5)}, "SpectralRegressor": {"filter": "gradient_flow"},
    "FalkonRegressor": {"validation_fraction": 0.3}, "FalkonClassifier": {"validation_fraction": 0.3},
    "EigenProRegressor": {"validation_fraction": 0.3, "landmarks": None},
    "EigenProClassifier": {"validation_fraction": 0.3, "landmarks": None},
    "KernelPCA": {"fit_inverse_transform": True}, "KernelSVC": {"probability": True},
    "KernelKMeans": {"n_clusters": 3}, "KernelSpectralClustering": {"n_clusters": 3},
    "MultitaskGaussianProcess": {"terms": 1},
    "PolyharmonicCascadeRegressor": {"nodes": 12, "packages": 2},
    "PolyharmonicCascadeClassifier": {"nodes": 12, "packages": 2},
}  # fmt: skip
MORE: dict[str, tuple[str, dict[str, Any]]] = {  # other ways through the same classes
    "process by landmarks": ("GaussianProcessRegressor", {"method": "landmarks"}),
    "process by CG": ("GaussianProcessRegressor", {"method": "cg"}),
    "counts": ("VariationalGaussianProcess", {"likelihood": "poisson"}),
    "latent outliers": ("LatentVecchiaProcess", {"likelihood": "student_t", "dof": 5.0}),
    "latent labels": ("LatentVecchiaProcess", {"likelihood": "bernoulli"}),
    "several terms": ("MultitaskGaussianProcess", {"terms": 2}),
    "mean novelty": ("KernelNovelty", {"method": "mean"}),
    "principal pairs": ("TransformedKernelRidge", {"rank": 10}),
    "robust components": ("KernelPCA", {"loss": "huber", "max_iter": 2000, "tolerance": 1e-4}),
    "landmarks of squares": ("EigenProClassifier", {"loss": "squared", "validation_fraction": 0.3}),
    "nothing held out": ("EigenProRegressor", {"validation_fraction": None}),
    "a sum of kernels": ("KernelRidge", {"kernel": Gaussian([0.3, 0.7]).on([0, 1]) + Matern(1.5, 0.77)}),
}  # fmt: skip
CASES = {**{name: (name, {}) for name in learn.__all__ if inspect.isclass(getattr(learn, name))}, **MORE}
ANSWERS = (
    "predict", "predict_interval", "predict_proba", "decision_function", "transform", "score_samples", "p_values",
    "predict_latent", "modes",
)  # fmt: skip
NOT_KEPT = {"left_out_"}  # what training rows were predicted as by fits without them
TABLE = {  # methods whose predictions need every row that they were fitted on
    "EigenProClassifier", "EigenProRegressor", "GaussianProcessRegressor", "InterpolatedClassifier", "KernelClassifier",
    "KernelKMeans", "KernelMeanClassifier", "KernelNovelty", "KernelPCA", "KernelRidge", "KernelSmootherClassifier",
    "KernelSmootherRegressor", "KernelSpectralClustering", "LatentVecchiaProcess", "LocalConformal",
    "MultitaskGaussianProcess", "NeighbourRidge", "RecursiveFeatureClassifier", "RecursiveFeatureMachine",
    "SpectralRegressor", "TransformedKernelClassifier", "TransformedKernelRidge", "VecchiaGaussianProcess",
}  # fmt: skip


def problem(name: str, options: dict[str, Any]) -> tuple[np.ndarray, np.ndarray | None]:
    random = np.random.default_rng(3)
    x = random.normal(size=(N, D))
    y = np.sin(2 * x[:, 0]) + x[:, 1] + 0.3 * random.normal(size=N)
    if is_classifier(getattr(learn, name)()):
        return x, np.array(["ash", "birch", "cedar"], dtype=object)[np.digitize(y, [-0.6, 0.6])]
    likelihood = options.get("likelihood")
    if name == "MultitaskGaussianProcess":
        both = np.stack([y, y**2], 1)
        if options.get("terms") == 2:
            both[3:9, 0] = np.nan
        return x, both
    if likelihood == "poisson":
        return x, np.round(np.exp(np.clip(y, -2, 2)))
    return x, (y > 0).astype(float) if likelihood == "bernoulli" else y


def fitted(case: str) -> Any:
    name, options = CASES[case]
    kind = getattr(learn, name)
    if kind is learn.LocalConformal:
        return kind().fit(*problem("KernelRidge", {}))
    x, y = problem(name, options)
    known = inspect.signature(kind).parameters
    given = {k: v for k, v in {**GIVEN, **SLOW.get(name, {}), **options}.items() if k in known}
    if "alpha" in known and name.startswith(("Falkon", "KernelRidge")):
        given["alpha"] = 0.1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # few epochs are enough here
        return kind(**given).fit(x, y)


MODELS: dict[str, Any] = {}


@pytest.fixture(params=list(CASES))
def model(request: pytest.FixtureRequest) -> Any:
    case = request.param
    if case not in MODELS:
        MODELS[case] = fitted(case)
    return MODELS[case]


def through_files(model: Any) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The state as it comes back from a JSON file and an npz file."""
    values, arrays = model.get_state()
    file = io.BytesIO()
    np.savez(file, **arrays)
    file.seek(0)
    with np.load(file, allow_pickle=False) as kept:
        return json.loads(json.dumps(values, allow_nan=False)), {name: kept[name] for name in kept.files}


def answers(model: Any) -> dict[str, Any]:
    """All that it says of new rows."""
    x = np.random.default_rng(4).normal(size=(11, D))
    if isinstance(model, learn.LocalConformal):
        return {"interval": model.interval(x[:, 0], x), "pit": model.pit(x[:, 0], x, x[:, 1])}
    found: dict[str, Any] = {}
    for name in ANSWERS:
        ask: Callable[..., Any] | None = getattr(model, name, None)
        if ask is None or (name == "predict_interval" and getattr(model, "validation_fraction", 1) is None):
            continue
        found[name] = ask(x)
        if "return_std" in inspect.signature(ask).parameters:
            found["deviation"] = ask(x, return_std=True)
    if hasattr(model, "sample_functions"):
        found["functions"] = model.sample_functions(2, random_state=1)(x)
    if hasattr(model, "inverse_transform") and model.fit_inverse_transform:
        found["back"] = model.inverse_transform(found["transform"])
    if hasattr(model, "log_predictive_density"):
        y = np.asarray(model.predict(x[:3]))
        found["density"] = model.log_predictive_density(x[:3], y if y.dtype == object else y.round(0))
    return found


def same(found: Any, wanted: Any) -> None:
    if isinstance(wanted, tuple):
        assert len(found) == len(wanted)
        for a, b in zip(found, wanted, strict=True):
            same(a, b)
        return
    assert np.asarray(found).dtype == np.asarray(wanted).dtype
    np.testing.assert_array_equal(found, wanted)


def test_the_cases_are_every_public_estimator() -> None:
    kinds = {name for name in learn.__all__ if inspect.isclass(getattr(learn, name))}
    assert kinds <= {name for name, _ in CASES.values()}
    assert all(issubclass(getattr(learn, name), saving.Saved) for name in kinds)


def test_a_state_answers_with_the_same_bits(model: Any) -> None:
    wanted = answers(model)
    assert wanted
    again = type(model).from_state(*through_files(model))
    found = answers(again)
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        same(found[name], value)
    second = again.get_state()
    assert second[0] == model.get_state()[0] and second[1].keys() == model.get_state()[1].keys()


def test_a_state_brings_back_attributes_and_arguments(model: Any) -> None:
    again = type(model).from_state(*through_files(model))
    public = {name for name in vars(model) if name.endswith("_") and not name.startswith("_")}
    assert public - {name for name in dir(again) if hasattr(again, name)} <= NOT_KEPT
    for name in inspect.signature(type(model)).parameters:
        mine, theirs = getattr(model, name), getattr(again, name)
        assert repr(mine) == repr(theirs), name


def test_pickles_and_clones(model: Any) -> None:
    wanted, found = answers(model), answers(pickle.loads(pickle.dumps(model)))
    for name, value in wanted.items():
        same(found[name], value)
    if not isinstance(model, learn.LocalConformal):
        fresh = clone(type(model).from_state(*model.get_state()))
        assert repr(fresh.get_params()) == repr(model.get_params())
        with pytest.raises(NotFittedError, match="not fitted"):
            fresh.get_state()


def test_who_keeps_the_table(model: Any) -> None:
    """A state holds as many rows as the table only where predictions are made from all of them."""
    arrays = {name: a for name, a in model.get_state()[1].items() if "conformal" not in name}
    rows = sum(len(a) for a in arrays.values() if a.ndim == 2 and a.shape[1] == D and a.dtype.kind == "f")
    few = isinstance(getattr(model, "landmarks", None), int)
    assert (rows >= N) == (type(model).__name__ in TABLE and not few)


def test_what_does_not_fit_is_named(model: Any) -> None:
    kind, (values, arrays) = type(model), through_files(model)
    for name, array in arrays.items():
        rest = {key: value for key, value in arrays.items() if key != name}
        with pytest.raises(DataError, match=f"'{name}' of the state is missing"):
            kind.from_state(values, rest)
        for wrong in (np.concatenate([array, array[:1]]), array[..., None], array.astype("S3")):
            if wrong.shape != array.shape or wrong.dtype != array.dtype:
                with pytest.raises(DataError, match=f"the array '{name}' is"):
                    kind.from_state(values, {**arrays, name: wrong})
    for name in values["fitted"]:
        if name in kind._names("_fitted"):
            rest = {key: value for key, value in values["fitted"].items() if key != name}
            with pytest.raises(DataError, match=f"lacks '{name}'"):
                kind.from_state({**values, "fitted": rest}, arrays)
    for name in values["parts"]:
        rest = {key: value for key, value in values["parts"].items() if key != name}
        with pytest.raises(DataError, match=rf"lacks the part '{name}'|belongs to no part"):
            kind.from_state({**values, "parts": rest}, arrays)


@pytest.fixture(scope="module")
def ridge() -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    return through_files(fitted("KernelRidge"))


def test_other_classes_newer_formats_and_strange_values_are_refused(ridge: Any) -> None:
    values, arrays = ridge
    read = learn.KernelRidge.from_state
    with pytest.raises(DataError, match="a state of KernelRidge, not of KernelPCA"):
        learn.KernelPCA.from_state(values, arrays)
    with pytest.raises(DataError, match=f"format {saving.FORMAT + 1}, and this mercer reads up to {saving.FORMAT}"):
        read({**values, "format": saving.FORMAT + 1}, arrays)
    for wrong in ({}, [], None, {**values, "format": "1"}, {k: v for k, v in values.items() if k != "class"}):
        with pytest.raises(DataError, match="no state of mercer"):
            read(wrong, arrays)
    with pytest.raises(DataError, match="'more' belongs to no part"):
        read(values, {**arrays, "more": np.zeros(2)})
    for key, name in (("fitted", "__class__"), ("fitted", "predict"), ("arguments", "progress"), ("arguments", "x")):
        with pytest.raises(DataError, match=f"holds '{name}'"):
            read({**values, key: {**values[key], name: 1}}, arrays)
    for plain in ({"record": "Popen", "fields": {}}, {"object": {"class": "eval"}}, {"code": 1}, {"same": "x"},
                  {"number": "1e999"}, {"record": "Plan", "fields": {"a": 1}}):  # fmt: skip
        with pytest.raises(DataError, match="plan"):
            read({**values, "fitted": {**values["fitted"], "plan_": plain}}, arrays)
    deep: Any = 1
    for _ in range(200):
        deep = [deep]
    with pytest.raises(DataError, match="deeper"):
        read({**values, "fitted": {**values["fitted"], "plan_": deep}}, arrays)


def test_numbers_of_a_kernel_must_be_those_that_it_names(ridge: Any) -> None:
    values, arrays = ridge
    name = next(key for key in arrays if key.startswith("kernel."))
    with pytest.raises(DataError, match=f"'{name}' does not hold the numbers"):
        learn.KernelRidge.from_state(values, {**arrays, name: arrays[name] + 1})


def test_code_is_refused_and_numbers_beyond_json_are_kept() -> None:
    x, y = problem("KernelRidge", {})
    warped = Gaussian(1.0).warp(torch.nn.Linear(D, 2).double())
    model = learn.KernelRidge(warped, 0.1, learn=False).fit(x, y)
    with pytest.raises(StructureError, match="code"):
        model.get_state()
    with pytest.warns(UserWarning, match="too few"):
        alarm = learn.KernelNovelty(false_alarms=0.001).fit(x)
    assert alarm.offset_ == -np.inf == learn.KernelNovelty.from_state(*through_files(alarm)).offset_
    own = learn.SpectralRegressor(filter=lambda s: 1 / (s + 0.01), learn=False).fit(x, y)
    again = learn.SpectralRegressor.from_state(*through_files(own))
    same(again.predict(x), own.predict(x))
    assert again.filter == "ridge"  # an argument that is code comes back as the default


def test_streams_go_on_after_they_were_saved() -> None:
    """partial_fit of what came back is partial_fit of what was saved."""
    x, y = problem("FalkonRegressor", {})
    for model in (
        learn.FalkonRegressor(Gaussian(1.0), 20, 0.1, learn=False, random_state=0).partial_fit(x[:40], y[:40]),
        learn.EigenProRegressor(Gaussian(1.0), 20, epochs=1, learn=False, random_state=0).fit(x[:40], y[:40]),
    ):
        again = type(model).from_state(*through_files(model))
        same(again.partial_fit(x[40:], y[40:]).predict(x), model.partial_fit(x[40:], y[40:]).predict(x))


def test_a_kernel_comes_back_to_the_last_bit() -> None:
    """The logarithm that is trained need not be the one of any lengthscale."""
    raw = torch.tensor(1 / 3000, dtype=torch.float64)
    assert raw.exp().log() != raw
    kernel = Gaussian(1.0)
    kernel.load_state_dict({"log_lengthscale": raw})
    x, y = problem("KernelRidge", {})
    again = learn.KernelRidge.from_state(*through_files(learn.KernelRidge(kernel, 0.1, learn=False).fit(x, y)))
    assert torch.equal(again.kernel_.state_dict()["log_lengthscale"], raw)


@pytest.mark.parametrize("name", ["FalkonRegressor", "EigenProRegressor"])
def test_what_a_fit_puts_off_is_made_before_it_is_saved(name: str) -> None:
    model = fitted(name)
    again = type(model).from_state(*through_files(model))
    same(again.predict_interval(np.ones((3, D))), model.predict_interval(np.ones((3, D))))
