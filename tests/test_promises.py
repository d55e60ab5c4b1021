"""What every learner promises: the same fit again, an end in time or at Ctrl-C that is said, answers in any units."""

from __future__ import annotations

import inspect
import itertools
import time
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.base import ClassifierMixin, RegressorMixin

import mercer.learn as learn_room
from mercer.errors import ConvergenceWarning
from mercer.kernels import Gaussian
from mercer.learn import plan as planning
from mercer.learn import tune

SMALL: dict[str, dict[str, Any]] = {
    "EigenProClassifier": {"epochs": 4, "landmarks": 20},
    "EigenProRegressor": {"epochs": 4, "landmarks": 20},
    "FalkonClassifier": {"landmarks": 20},
    "FalkonRegressor": {"landmarks": 20},
    "KernelKMeans": {"n_clusters": 2},
    "KernelSpectralClustering": {"n_clusters": 2},
    "LatentVecchiaProcess": {"neighbours": 4},
    "NeighbourRidge": {"neighbours": 5},
    "RecursiveFeatureClassifier": {"iterations": 2},
    "RecursiveFeatureMachine": {"iterations": 2},
    "TransformedKernelClassifier": {"kernel": Gaussian(1.0)},
    "TransformedKernelRidge": {"kernel": Gaussian(1.0)},
    "VariationalGaussianProcess": {"landmarks": 8},
    "VariationalGaussianProcessClassifier": {"landmarks": 8},
    "VecchiaGaussianProcess": {"neighbours": 5},
}
LEARNERS = [
    name
    for name in learn_room.__all__
    if inspect.isclass(getattr(learn_room, name)) and hasattr(getattr(learn_room, name), "get_params")
]
NUMBERS = [n for n in LEARNERS if issubclass(getattr(learn_room, n), RegressorMixin)]
STILL = {"learn": False, "standardize": True}
HELD: dict[str, dict[str, Any]] = {  # where learning takes seconds, or a kernel was given
    "GaussianProcessRegressor": STILL, "LatentVecchiaProcess": STILL, "SpectralRegressor": STILL,
    "TransformedKernelRidge": {"standardize": True},
}  # fmt: skip


def takes(name: str, argument: str) -> bool:
    return argument in getattr(learn_room, name)().get_params()


def make(name: str, **more: Any) -> Any:
    seed = {"random_state": 0} if takes(name, "random_state") else {}
    return getattr(learn_room, name)(**seed, **SMALL.get(name, {}), **more)


def table(name: str) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    x = random.normal(size=(40, 2))
    y = np.sin(2 * x[:, 0]) + 0.3 * x[:, 1] + 0.1 * random.normal(size=40)
    return x, ((y > 0).astype(int) if issubclass(getattr(learn_room, name), ClassifierMixin) else y)


def answers(model: Any, x: np.ndarray) -> np.ndarray:
    found = []
    for how in ("predict", "predict_proba", "predict_interval", "transform", "decision_function", "score_samples"):
        if hasattr(model, how):
            got = getattr(model, how)(x)
            found += [np.asarray(part, dtype=np.float64).ravel() for part in (got if isinstance(got, tuple) else [got])]
    return np.concatenate(found)


def fitted(model: Any, x: np.ndarray, y: np.ndarray) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return model.fit(x, y)


@pytest.fixture
def erratic(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every look at a clock finds half a minute gone."""
    ticks = itertools.count(0.0, 30.0)
    for clock in ("perf_counter", "monotonic", "time", "process_time"):
        monkeypatch.setattr(time, clock, lambda: next(ticks))


@pytest.fixture
def grows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Learning begins with few of few rows and goes on with more, as it does with many."""
    for name, rows in (("SMALL", 12), ("FIRST", 20), ("LAST", 35)):
        monkeypatch.setattr(tune, name, rows)


@pytest.mark.parametrize("name", LEARNERS)
def test_without_a_budget_no_clock_decides(name: str, grows: None, request: pytest.FixtureRequest) -> None:
    x, y = table(name)
    calm = answers(fitted(make(name), x, y), x) if hasattr(make(name), "fit") else None
    request.getfixturevalue("erratic")
    hurried = answers(fitted(make(name), x, y), x)
    assert calm is not None and len(calm)
    np.testing.assert_array_equal(hurried, calm)


def test_without_a_budget_the_algorithm_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def slow() -> planning.Speed:
        return planning.Speed(1e3, 1e3, 1e3, 1e3)

    assert planning.choose(20_000, None, slow) == planning.choose(20_000)
    assert planning.choose(20_000, 15.0, slow) != planning.choose(20_000)


def test_work_is_counted_where_no_seconds_were_given() -> None:
    """Of very many columns fewer steps are taken, and always as many; all get the promised ones."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, 4, generator=generator, dtype=torch.float64)
    y = (3 * x[:, :1]).sin() + 0.3 * x[:, 1:2].square()
    few, many = (
        tune.learn([Gaussian(torch.full((4,), 2.0))], 0.1, x, y, clock, generator).steps
        for clock in (tune.Clock.of(None, 1e-4), tune.Clock.of(None))
    )
    assert few == tune.PROMISED < many
    assert tune.Clock(None, 0.0, counted=41.0).over() and not tune.Clock(None, 0.0, counted=41.0).late()


class Impatient:
    """Presses Ctrl-C at the first sign of progress."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, what: str, value: float) -> None:
        self.calls += 1
        if self.calls == 1:
            raise KeyboardInterrupt

    def __deepcopy__(self, memo: dict) -> Impatient:
        return self


def said(model: Any) -> bool:
    plan = getattr(model, "plan_", "")
    told = "interrupted" in (plan if isinstance(plan, str) else plan.sentence)
    return told or getattr(model, "stopped_", "") == "interrupted"


@pytest.mark.parametrize("name", [n for n in LEARNERS if takes(n, "progress")])
def test_ctrl_c_while_learning_keeps_the_best_and_is_said(name: str) -> None:
    x, y = table(name)
    press = Impatient()
    model = fitted(make(name, progress=press), x, y)
    assert press.calls and said(model) and np.isfinite(model.predict(x)).all()
    assert not said(fitted(make(name), x, y))


@pytest.mark.parametrize("name", [n for n in LEARNERS if takes(n, "time_budget")])
def test_a_budget_that_is_gone_still_gives_a_model(name: str, request: pytest.FixtureRequest) -> None:
    x, y = table(name)
    request.getfixturevalue("erratic")
    model = fitted(make(name, time_budget=1.0), x, y)
    assert np.isfinite(model.predict(x)).all()
    if hasattr(model, "stopped_") and "Falkon" not in name and "EigenPro" not in name:
        assert model.stopped_ == "time"


def test_a_latent_process_says_what_it_missed(erratic: None) -> None:
    x, y = table("LatentVecchiaProcess")
    with pytest.warns(ConvergenceWarning, match="LatentVecchiaProcess stopped by time_budget before its bound"):
        make("LatentVecchiaProcess", time_budget=1.0, learn=False).fit(x, y)


@pytest.mark.parametrize("rounds", [0, 1, 3])
def test_ctrl_c_in_the_rounds_of_a_latent_process(rounds: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = table("LatentVecchiaProcess")
    arguments = {"learn": False, "likelihood": "student_t"}
    kind, calls = learn_room.latent.DoubleKL, itertools.count()
    usual = kind._round

    def stopped(self: Any, *given: Any) -> Any:
        if next(calls) == rounds:
            raise KeyboardInterrupt
        return usual(self, *given)

    best = make("LatentVecchiaProcess", **arguments).fit(x, y)
    monkeypatch.setattr(kind, "_round", stopped)
    model = make("LatentVecchiaProcess", **arguments).fit(x, y)
    assert said(model) and model.stopped_ == "interrupted" and model.bound_ < best.bound_
    assert np.corrcoef(model.predict(x), best.predict(x))[0, 1] > 0.9


@pytest.mark.parametrize("name", ["EigenProRegressor", "FalkonRegressor", "FalkonClassifier", "EigenProClassifier"])
def test_a_kernel_that_was_interrupted_is_not_kept_in_a_checkpoint(name: str, tmp_path: Any) -> None:
    x, y = table(name)
    file = tmp_path / "fit"
    fitted(make(name, progress=Impatient(), checkpoint=file), x, y)
    assert not file.exists()
    again, whole = (fitted(make(name, checkpoint=place), x, y) for place in (file, None))
    assert file.exists()
    np.testing.assert_allclose(answers(again, x), answers(whole, x), rtol=1e-6, atol=1e-9)


def test_a_descent_that_still_fell_says_so() -> None:
    x, y = table("EigenProRegressor")
    kind = learn_room.EigenProRegressor
    with pytest.warns(ConvergenceWarning, match="EigenProRegressor stopped by epochs after 2 .* raise epochs") as seen:
        kind(Gaussian(1.0), 20, epochs=2, learn=False, batch_size=10, random_state=0).fit(x, y)
    assert seen[0].message.iterations == 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kind(Gaussian(1.0), 20, epochs=60, learn=False, random_state=0).fit(x, y)


@pytest.mark.parametrize("power", [-664, 664])  # 1e-200, 1e200: their squares are no numbers
@pytest.mark.parametrize("name", NUMBERS)
def test_answers_come_in_the_units_of_y(name: str, power: int, usual: dict[str, Any]) -> None:
    """Powers of two change no digit, so learning takes the same steps."""
    x, y = table(name)
    if name not in usual:
        usual[name] = fitted(make(name, **HELD.get(name, {})), x, y)
    model = fitted(make(name, **HELD.get(name, {})), x, y * 2.0**power)
    np.testing.assert_allclose(model.predict(x) / 2.0**power, usual[name].predict(x), rtol=1e-9, atol=1e-9)
    if hasattr(model, "predict_interval"):
        for found, wanted in zip(model.predict_interval(x), usual[name].predict_interval(x), strict=True):
            np.testing.assert_allclose(found / 2.0**power, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("power", [-664, 664])
@pytest.mark.parametrize("name", [n for n in NUMBERS if takes(n, "standardize")])
def test_units_of_columns_do_not_matter(name: str, power: int, usual: dict[str, Any]) -> None:
    x, y = table(name)
    if name not in usual:
        usual[name] = fitted(make(name, **HELD.get(name, {})), x, y)
    scaled = x * np.array([2.0**power, 1.0])
    model = fitted(make(name, **HELD.get(name, {})), scaled, y)
    np.testing.assert_allclose(model.predict(scaled), usual[name].predict(x), rtol=1e-9, atol=1e-9)


@pytest.fixture(scope="module")
def usual() -> dict[str, Any]:
    """Fits in the usual units."""
    return {}
