"""Falkon's learners against dense algebra, scikit-learn, and fits that are cut off and taken up again."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.utils.estimator_checks import parametrize_with_checks

from mercer.budget import memory
from mercer.errors import ConvergenceWarning, DataError, MemoryBudgetError, MercerWarning, ShapeError
from mercer.kernels import Gaussian, Matern
from mercer.learn import FalkonClassifier, FalkonRegressor
from mercer.learn.checkpoint import Checkpoint
from mercer.learn.passes import Passes
from mercer.learn.rows import Rows
from mercer.learn.sums import Sums
from mercer.learn.table import Scaler
from tests.peak import peak_bytes

RANDOM_DRAWS = "landmarks and held-out rows are drawn, so that twice a row is not the same as twice its weight"
EXPECTED = {
    "check_sample_weight_equivalence_on_dense_data": RANDOM_DRAWS,
    "check_sample_weight_equivalence_on_sparse_data": RANDOM_DRAWS,
}


def problem(n: int = 600, d: int = 2, outputs: int = 2, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    x = random.normal(size=(n, d))
    y = np.stack([np.sin(x[:, 0] + c) * x[:, 1] + 0.1 * random.normal(size=n) for c in range(outputs)], 1)
    return x, y[:, 0] if outputs == 1 else y


def gram(x: np.ndarray, z: np.ndarray, lengthscale: float = 0.5) -> np.ndarray:
    return np.exp(-((x[:, None] - z[None]) ** 2).sum(-1) / (2 * lengthscale**2))


def features(x: np.ndarray, z: np.ndarray, jitter: float = 0.0) -> np.ndarray:
    """Nystrom features: inner products of them are k(x, z) (k(z, z) + jitter I)^-1 k(z, x)."""
    lower = np.linalg.cholesky(gram(z, z) + (jitter or 1e-13) * np.eye(len(z)))
    return np.linalg.solve(lower, gram(x, z).T).T


def direct(
    x: np.ndarray, y: np.ndarray, z: np.ndarray, alpha: float, new: np.ndarray, jitter: float = 0.0, w: Any = 1.0
):
    """Predictions of (K_mn D K_nm + alpha K_mm) w = K_mn D y, in the features that make K_mm the identity."""
    f = features(x, z, jitter)
    heavy = (w * f.T).T if np.ndim(w) else f
    return features(new, z, jitter) @ np.linalg.solve(f.T @ heavy + alpha * np.eye(len(z)), heavy.T @ y)


def given(**more: Any) -> dict[str, Any]:
    """Arguments that leave nothing to choose."""
    return {"alpha": 0.1, "learn": False, "validation_fraction": None, "random_state": 0, **more}


@pytest.mark.filterwarnings("ignore:partial_fit keeps the:mercer.errors.MercerWarning")  # few rows are its business
@parametrize_with_checks(
    [
        FalkonRegressor(landmarks=20, learn=False, tolerance=0.05),
        FalkonClassifier(landmarks=20, learn=False, tolerance=0.2),
    ],
    expected_failed_checks=lambda estimator: EXPECTED,
)
@pytest.mark.filterwarnings("ignore::mercer.errors.ConvergenceWarning")
def test_scikit_learn_checks(estimator: Any, check: Any) -> None:
    check(estimator)


@pytest.mark.parametrize("precision", ["double", "mixed"])
def test_the_direct_solution_is_reached(precision: str) -> None:
    x, y = problem()
    x = x.astype(np.float32).astype(np.float64)
    z = x[:60]
    model = FalkonRegressor(Gaussian(0.5), z, tolerance=1e-8, precision=precision, **given()).fit(x, y)
    assert model.stopped_ == "tolerance" and model.residual_ <= 1.0001e-8
    wanted = direct(x, y, z, 0.1, x, model.jitter_)
    np.testing.assert_allclose(model.predict(x), wanted, atol=1e-6 * np.abs(wanted).max())
    if precision == "double":  # in float32 the jitter shrinks directions in which the landmarks hardly differ
        plain = direct(x, y, z, 0.1, x)
        assert np.linalg.norm(model.predict(x) - plain) < 1e-5 * np.linalg.norm(plain)


@pytest.mark.parametrize("selection", ["uniform", "pivoted"])
def test_drawn_centres_are_rows_and_solve_their_own_equations(selection: str) -> None:
    x, y = problem(outputs=1)
    model = FalkonRegressor(Gaussian(0.5), 50, selection=selection, tolerance=1e-8, **given()).fit(x, y)
    z = model.landmarks_.numpy()
    assert z.shape == (50, 2) and all((np.abs(x - row).sum(1) == 0).any() for row in z)
    np.testing.assert_allclose(model.predict(x), direct(x, y, z, 0.1, x), atol=1e-5)
    again = FalkonRegressor(Gaussian(0.5), 50, selection=selection, tolerance=1e-8, **given()).fit(x, y)
    np.testing.assert_array_equal(again.landmarks_, z)


def test_pivots_explain_more_than_uniform_centres() -> None:
    x, y = problem(outputs=1)
    left = {}
    for selection in ("uniform", "pivoted"):
        z = FalkonRegressor(Gaussian(0.5), 60, selection=selection, **given()).fit(x, y).landmarks_.numpy()
        left[selection] = len(x) - np.square(features(x, z)).sum()
    assert left["pivoted"] < 0.7 * left["uniform"]


def test_weights_of_rows() -> None:
    x, y = problem(outputs=1)
    w = np.random.default_rng(1).uniform(0, 3, len(x))
    w[100:130] = 0
    model = FalkonRegressor(Gaussian(0.5), x[:50], tolerance=1e-8, **given()).fit(x, y, sample_weight=w)
    np.testing.assert_allclose(model.predict(x), direct(x, y, x[:50], 0.1, x, w=w), atol=1e-5)
    with pytest.raises(ShapeError, match="sample_weight has shape"):
        model.fit(x, y, sample_weight=w[:5])
    with pytest.raises(DataError, match="sample_weight: expected numbers >= 0"):
        model.fit(x, y, sample_weight=-w)


def test_rows_that_do_not_fit_are_read_again_and_the_model_is_the_same() -> None:
    x, y = problem(12_000)
    arguments = dict(landmarks=x[:30], tolerance=1e-8, precision="double", **given())
    stored = FalkonRegressor(Gaussian(0.5), **arguments).fit(x, y)
    with memory("1M"):
        rows = Rows(x, y)
        assert Passes(
            Gaussian(0.5), rows, np.ones(12_000, bool), Scaler.identity(2), stored.landmarks_, torch.from_numpy, None, 2
        ).kept is None  # fmt: skip
        streamed = FalkonRegressor(Gaussian(0.5), **arguments).fit(x, y)
    np.testing.assert_allclose(streamed.predict(x), stored.predict(x), atol=1e-6)


def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    peaks = []
    for n in (10_000, 30_000):
        table = np.lib.format.open_memmap(tmp_path / f"{n}.npy", "w+", np.float32, (n, 6))
        for start in range(0, n, 10_000):
            table[start : start + 10_000] = problem(10_000, 5, 1, start)[0] @ np.eye(5, 6)
            table[start : start + 10_000, 5] = np.sin(table[start : start + 10_000, 0])
        model = FalkonRegressor(Gaussian(2.0), table[:40, :5], max_iter=1, precision="mixed", **given())
        with memory("2M"), warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            peaks.append(peak_bytes(lambda table=table, model=model: model.fit(table[:, :5], table[:, 5])))
    assert peaks[1] < 1.2 * peaks[0] < 6e6


def test_penalties_are_chosen_in_one_solve_by_held_out_rows() -> None:
    x, y = problem(1500, outputs=1)
    model = FalkonRegressor(Gaussian(0.5), 60, learn=False, random_state=0, tolerance=1e-6, early_stopping=False)
    model.fit(x, y)
    tried = [float(f) * 0.1 for f in (1e-3, 1e-2, 0.1, 1.0, 10.0, 100.0)]
    assert model.alpha_ in tried and model.alpha_ < 1.0
    one = FalkonRegressor(Gaussian(0.5), 60, model.alpha_, learn=False, random_state=0, tolerance=1e-6)
    one.early_stopping = False
    np.testing.assert_allclose(one.fit(x, y).predict(x), model.predict(x), atol=1e-4)
    worse = FalkonRegressor(Gaussian(0.5), 60, 10.0, learn=False, random_state=0).fit(x, y)
    assert model.validation_error_ < worse.validation_error_


def test_held_out_rows_end_a_fit_that_would_learn_noise() -> None:
    random = np.random.default_rng(0)
    x = random.normal(size=(400, 2))
    y = np.sin(x[:, 0]) + random.normal(size=400)
    arguments = dict(kernel=Gaussian(0.3), landmarks=300, alpha=1e-6, learn=False, random_state=0, tolerance=1e-8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        early = FalkonRegressor(**arguments).fit(x, y)
        late = FalkonRegressor(**arguments, early_stopping=False).fit(x, y)
    assert early.stopped_ == "held-out"
    assert np.square(early._seen[1]).mean() == pytest.approx(
        early.validation_error_, rel=1e-6
    )  # the best is what is kept
    assert early.validation_error_ == min(line[2] for line in early.history_) < 0.9 * late.validation_error_


def test_what_missed_its_tolerance_says_so() -> None:
    x, y = problem()
    with pytest.warns(ConvergenceWarning, match="max_iter after 2 iterations") as caught:
        model = FalkonRegressor(Gaussian(0.5), 60, max_iter=2, **given()).fit(x, y)
    assert caught[0].message.residual == model.residual_ > 1e-4 and model.stopped_ == "iterations"
    w, z = model._weights.numpy(), model.landmarks_.numpy()
    f, k = features(x, z), gram(x, z)
    a = f.T @ (y - k @ w) - 0.1 * np.linalg.solve(np.linalg.cholesky(gram(z, z) + 1e-13 * np.eye(60)), gram(z, z) @ w)
    assert np.linalg.norm(a) > 0
    with pytest.warns(ConvergenceWarning, match="time_budget"):
        FalkonRegressor(Gaussian(0.5), 60, time_budget=1e-9, **given()).fit(x, y)


def test_an_interrupted_fit_keeps_the_best_so_far(caplog: pytest.LogCaptureFixture) -> None:
    x, y = problem(outputs=1)

    def stop(what: str, value: float) -> None:
        calls.append(value)
        if len(calls) == 4:
            raise KeyboardInterrupt

    calls: list[float] = []
    model = FalkonRegressor(Gaussian(0.5), 60, 0.1, learn=False, random_state=0, progress=stop).fit(x, y)
    assert model.stopped_ == "interrupted" and model.n_iter_ == 4 and "interrupted" in caplog.text
    assert model.validation_error_ == min(calls) and model.score(x, y) > 0.5
    calls.clear()
    labels = FalkonClassifier(Gaussian(0.5), 60, 0.1, learn=False, random_state=0, progress=stop).fit(x, y > 0)
    assert labels.stopped_ == "interrupted" and labels.score(x, y > 0) > 0.8


@pytest.mark.parametrize("classes", [2, 3])
def test_log_odds_equal_scikit_learn_on_nystrom_features(classes: int) -> None:
    x, y = problem()
    labels = np.array(["a", "b", "c"])[(y[:, 0] > 0).astype(int) + (y[:, 1] > 0.5) * (classes - 2)]
    z = x[:40]
    model = FalkonClassifier(Gaussian(0.5), z, tolerance=1e-7, **given()).fit(x, labels)
    assert model.stopped_ == "tolerance" and len(model.classes_) == classes
    peer = LogisticRegression(C=10.0, fit_intercept=False, tol=1e-10, max_iter=10_000)
    peer.fit(features(x, z), labels)
    new = problem(seed=5)[0]
    np.testing.assert_allclose(model.predict_proba(new), peer.predict_proba(features(new, z)), atol=1e-5)
    assert (model.predict(new) == peer.predict(features(new, z))).mean() > 0.995


def test_float32_products_find_the_same_log_odds_and_weights_count() -> None:
    x, y = problem(outputs=1)
    x, w = x.astype(np.float32).astype(np.float64), np.random.default_rng(1).integers(1, 4, len(x))
    arguments = dict(kernel=Gaussian(0.5), landmarks=x[:40], precision="mixed", tolerance=1e-5, **given())
    model = FalkonClassifier(**arguments).fit(x, y > 0, sample_weight=w)
    peer = LogisticRegression(C=10.0, fit_intercept=False, tol=1e-10, max_iter=10_000)
    peer.fit(features(x, x[:40], model.jitter_), y > 0, sample_weight=w)
    wanted = peer.predict_proba(features(x, x[:40], model.jitter_))
    np.testing.assert_allclose(model.predict_proba(x), wanted, atol=1e-4)
    with memory("128K"):
        streamed = FalkonClassifier(**arguments).fit(x, y > 0, sample_weight=w)
    np.testing.assert_allclose(streamed.predict_proba(x), wanted, atol=1e-4)


class Killed(BaseException):
    """Ends a fit as a signal would: nothing catches it."""


def cut_off(monkeypatch: pytest.MonkeyPatch, savings: int) -> None:
    """Keep every state, and die right after so many of them."""
    left = [savings]
    whole = Checkpoint.save

    def save(self: Checkpoint, values: Any, arrays: Any, *, now: bool = False) -> None:
        whole(self, values, arrays, now=True)
        left[0] -= 1
        if not left[0]:
            raise Killed

    monkeypatch.setattr(Checkpoint, "save", save)


@pytest.mark.parametrize("savings", [1, 2, 4, 7, 9])
@pytest.mark.parametrize("kind", ["levels", "cycles", "odds", "odds of a path"])
def test_a_fit_that_was_cut_off_ends_where_an_uninterrupted_one_does(
    kind: str, savings: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, y = problem(500, outputs=1)
    if kind.startswith("odds"):
        more = {"alpha": 0.01} if kind == "odds" else {}
        model: Any = FalkonClassifier(Gaussian(0.5), 40, learn=False, random_state=0, tolerance=1e-6, **more)
        y = (y > 0) + (x[:, 0] > 1)
    elif kind == "levels":
        model = FalkonRegressor(Gaussian(0.5), 40, learn=False, random_state=0, tolerance=1e-9)
    else:
        model = FalkonRegressor(Gaussian(0.5), 40, tolerance=1e-6, precision="mixed", **given())
    whole = clone(model).fit(x, y)
    model.checkpoint = tmp_path / "fit.npz"
    with monkeypatch.context() as patch:
        cut_off(patch, savings)
        with pytest.raises(Killed):
            clone(model).fit(x, y)
    found = clone(model).fit(x, y)
    np.testing.assert_allclose(found._weights, whole._weights, rtol=1e-9, atol=1e-12)
    assert (found.alpha_, found.n_iter_, found.stopped_) == (whole.alpha_, whole.n_iter_, whole.stopped_)
    assert [line[:2] for line in found.history_] == [pytest.approx(line[:2], rel=1e-6) for line in whole.history_]
    again = clone(model).fit(x, y)  # a finished file is only read
    np.testing.assert_allclose(again._weights, whole._weights, rtol=1e-9, atol=1e-12)


def test_a_learned_kernel_is_kept_with_a_fit_and_other_fits_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, y = problem(300, outputs=1)
    model = FalkonRegressor(landmarks=30, random_state=0, checkpoint=tmp_path / "fit.npz", time_budget=5)
    with monkeypatch.context() as patch:
        cut_off(patch, 3)
        with pytest.raises(Killed):
            clone(model).fit(x, y)
    monkeypatch.setattr("mercer.learn.task.begin", None)  # not asked again
    found = clone(model).fit(x, y)
    assert found.score(x, y) > 0.9
    with pytest.raises(DataError, match="belongs to another fit"):
        clone(model).fit(x, y + 1)
    with pytest.raises(DataError, match="belongs to another fit"):
        clone(model).set_params(landmarks=31).fit(x, y)


def test_more_patience_goes_on_from_the_same_file(tmp_path: Path) -> None:
    x, y = problem(outputs=1)
    arguments = given(landmarks=60, tolerance=1e-8, checkpoint=tmp_path / "fit.npz")
    with pytest.warns(ConvergenceWarning):
        FalkonRegressor(Gaussian(0.5), max_iter=3, **arguments).fit(x, y)
    model = FalkonRegressor(Gaussian(0.5), **arguments).fit(x, y)
    whole = FalkonRegressor(Gaussian(0.5), **{**arguments, "checkpoint": None}).fit(x, y)
    np.testing.assert_allclose(model._weights, whole._weights, rtol=1e-9)
    assert [line[0] for line in model.history_] == list(range(1, model.n_iter_ + 1))


def test_a_process_that_is_killed(tmp_path: Path) -> None:
    script = """
        import sys, time, numpy as np
        from mercer.kernels import Gaussian
        from mercer.learn import FalkonRegressor, checkpoint
        checkpoint.EVERY = 0.0
        random = np.random.default_rng(0)
        x = random.normal(size=(500, 2))
        FalkonRegressor(Gaussian(0.5), 40, 0.1, learn=False, random_state=0, tolerance=1e-9, checkpoint=sys.argv[1],
                        progress=lambda *_: (print("step", flush=True), time.sleep(0.1)), early_stopping=False,
                        ).fit(x, np.sin(x[:, 0]) * x[:, 1])
    """
    file = str(tmp_path / "fit.npz")
    command = [sys.executable, "-c", textwrap.dedent(script), file]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as victim:
        assert victim.stdout is not None
        for _ in range(4):
            victim.stdout.readline()
        victim.send_signal(signal.SIGKILL)
    assert victim.returncode == -signal.SIGKILL
    x = np.random.default_rng(0).normal(size=(500, 2))
    y = np.sin(x[:, 0]) * x[:, 1]
    model = FalkonRegressor(Gaussian(0.5), 40, 0.1, learn=False, random_state=0, tolerance=1e-9, early_stopping=False)
    taken: list[float] = []
    found = clone(model).set_params(checkpoint=file, progress=lambda what, value: taken.append(value)).fit(x, y)
    whole = model.fit(x, y)
    assert len(taken) < whole.n_iter_ == found.n_iter_
    np.testing.assert_allclose(found._weights, whole._weights, rtol=1e-9, atol=1e-12)


def test_any_split_of_the_rows_gives_the_same_sums() -> None:
    x, y = problem(700)
    w = np.random.default_rng(2).uniform(0, 2, 700)
    z = x[:40]

    def fitted(*cuts: int) -> FalkonRegressor:
        model = FalkonRegressor(Gaussian(0.5), z, 0.1, learn=False)
        for rows in np.split(np.arange(700), cuts):
            model.partial_fit(x[rows], y[rows], sample_weight=w[rows])
        return model

    whole = fitted()
    np.testing.assert_allclose(whole.predict(x), direct(x, y, z, 0.1, x, whole.jitter_, w), atol=1e-6)
    for cuts in ((1 + 300,), (2, 3, 4, 350), (100, 200, 300, 400, 500, 600)):
        np.testing.assert_allclose(fitted(*cuts).predict(x), whole.predict(x), rtol=0, atol=1e-8)
    once = FalkonRegressor(Gaussian(0.5), z, tolerance=1e-8, **given()).fit(x, y, sample_weight=w)
    np.testing.assert_allclose(whole.predict(x), once.predict(x), atol=1e-5)
    with pytest.warns(MercerWarning, match="not its rows"):
        once.partial_fit(x, y, sample_weight=w)
    np.testing.assert_allclose(whole.predict(x), once.predict(x), atol=1e-8)
    with pytest.raises(DataError, match="y has 1 outputs"):
        whole.partial_fit(x, y[:, 0])


def test_left_out_residuals_of_sums_equal_refits_and_intervals_cover() -> None:
    x, y = problem(60, outputs=1)
    model = FalkonRegressor(Gaussian(0.5), x[:20], 0.1, learn=False).partial_fit(x, y)
    where, wrong = model._seen
    for i in (0, 31):
        rows = np.arange(60) != i
        refit = direct(x[rows], y[rows], x[:20], 0.1, x[[i]])
        place = int(np.abs(where[:, :2] - model._common(x[[i]]).numpy()).sum(1).argmin())
        assert wrong[place, 0] == pytest.approx(y[i] - refit[0], abs=1e-6)
    x, y = problem(3000, outputs=1)
    for model in (
        FalkonRegressor(Gaussian(0.5), 60, 0.1, learn=False)
        .partial_fit(x[:400], y[:400])
        .partial_fit(x[400:800], y[400:800]),
        FalkonRegressor(Gaussian(0.5), 60, 0.1, learn=False, random_state=0, validation_fraction=0.4).fit(
            x[:800], y[:800]
        ),
    ):
        low, high = model.predict_interval(x[800:], 0.9)
        assert 0.86 < ((low <= y[800:]) & (y[800:] <= high)).mean() < 0.94
    with pytest.raises(DataError, match="intervals need held-out rows"):
        FalkonRegressor(Gaussian(0.5), 60, **given()).fit(x, y).predict_interval(x)


def test_a_kernel_is_learned_and_torch_comes_back() -> None:
    x, y = problem(900, outputs=1)
    model = FalkonRegressor(landmarks=100, random_state=0, time_budget=8).fit(
        torch.tensor(x[:600]), torch.tensor(y[:600])
    )
    out = model.predict(torch.tensor(x[600:], dtype=torch.float32))
    assert out.dtype == torch.float32 and model.score(x[600:], y[600:]) > 0.93
    labels = np.where(y > 0, "up", "down")
    chooser = FalkonClassifier(Matern(2.5, 2.0), landmarks=60, learn=False, random_state=0).fit(x[:600], labels[:600])
    p = chooser.predict_proba(x[600:])
    assert chooser.score(x[600:], labels[600:]) > 0.88
    assert -np.log(p[np.arange(300), (labels[600:] == "up").astype(int)]).mean() < 0.3
    assert chooser.decision_function(x).shape == (900,)


def test_bad_arguments_are_named() -> None:
    x, y = problem(50, outputs=1)
    for name, value in (
        ("alpha", 0), ("selection", "best"), ("precision", "half"), ("tolerance", None), ("validation_fraction", 1.0),
        ("time_budget", "x"), ("max_iter", 0), ("landmarks", 0),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=f"{name} is"):
            FalkonRegressor(Gaussian(0.5)).set_params(**{"learn": False, name: value}).fit(x, y)
    with pytest.raises(ShapeError, match="landmarks has shape"):
        FalkonRegressor(Gaussian(0.5), x[:, :1], **given()).fit(x, y)
    with pytest.raises(DataError, match="landmarks holds NaN"):
        FalkonRegressor(Gaussian(0.5), x[:5] * np.nan, **given()).fit(x, y)
    with pytest.raises(ValueError, match="alpha is None and learn=False"):
        FalkonRegressor(Gaussian(0.5), **given(alpha=None)).fit(x, y)
    with pytest.raises(DataError, match="y holds NaN at row 7"):
        FalkonRegressor(Gaussian(0.5), **given()).fit(x, np.where(np.arange(50) == 7, np.nan, y))
    with memory("20K"), pytest.raises(MemoryBudgetError, match="take at most"):
        FalkonRegressor(Gaussian(0.5), 40, **given()).fit(x, y)


def test_few_first_rows_give_few_centres_and_say_so():
    x, y = np.random.default_rng(0).normal(size=(20, 2)), np.arange(20.0)
    with pytest.warns(MercerWarning, match="keeps the 20 landmarks that its first rows gave, not 50"):
        FalkonRegressor(Gaussian(1.0), landmarks=50, learn=False).partial_fit(x, y)


def without(rows: Any, x: np.ndarray, y: np.ndarray, w: np.ndarray, alpha: float) -> np.ndarray:
    """y - f of each of the rows by a dense fit to all others, of which row j stands w[j] times."""
    wrong = []
    for i in rows:
        rest = np.repeat(np.arange(len(x)), np.where(np.arange(len(x)) == i, 0, w))
        wrong.append(y[i] - direct(x[rest], y[rest], x[:12], alpha, x[[i]], 1e-10)[0])
    return np.array(wrong)


def test_left_out_residuals_of_weighted_sums_equal_refits_to_repeated_rows() -> None:
    x, y = problem(40, outputs=1)
    w = np.arange(40) % 6
    points, values, weight = torch.tensor(x), torch.tensor(y)[:, None], torch.tensor(w)[:, None].double()
    middle = torch.tensor(gram(x[:12], x[:12]) + 1e-10 * np.eye(12))
    sums = Sums(Gaussian(0.5), points[:12], middle, 0.1, 1, 0)
    sums.add(points, values, weight)
    found = sums.left_out(points, values, weight, sums.solve())[:, 0]
    some = [0, 5, 10, 15, 22, 35]  # weights of 0 and 2 to 5, landmarks and others
    np.testing.assert_allclose(found[some], without(some, x, y, w, 0.1), atol=1e-8)


@pytest.mark.parametrize(("heavy", "level"), [("smooth", 1.0), ("noisy", 10.0)])
def test_the_level_of_sums_is_chosen_for_the_rows_that_weigh(heavy: str, level: float) -> None:
    """Smooth rows want a small level and noisy ones, elsewhere, a large one; without weights the choice is another."""
    x, y = problem(60, outputs=1)
    noisy = np.arange(60) % 2 == 1
    w = np.where(noisy == (heavy == "noisy"), 30, 1)
    x = 0.5 * x + 6.0 * noisy[:, None]
    y = np.where(noisy, np.random.default_rng(2).normal(size=60), gram(x, x[:12]) @ (3 * np.cos(2 * np.arange(12))))
    model = FalkonRegressor(Gaussian(0.5), x[:12], learn=False, random_state=0).partial_fit(x, y, sample_weight=w)
    levels = [0.1 * factor for factor in (1e-3, 1e-2, 0.1, 1.0, 10.0, 100.0)]
    squares = [np.square(without(range(60), x, y, w, tried)) for tried in levels]
    wanted, plain = (levels[int(np.argmin([each @ v for each in squares]))] for v in (w, np.ones(60)))
    assert wanted == pytest.approx(level) != plain
    assert model.alpha_ == pytest.approx(wanted)


def test_kept_left_out_residuals_are_drawn_anew_from_every_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    """One draw for all pieces would keep the same places of each: 8 of 40 here, not most of them."""
    monkeypatch.setattr("mercer.learn.sums.KEPT", 40)
    x, y = problem(200, outputs=1)
    model = FalkonRegressor(Gaussian(0.5), x[:12], 0.1, learn=False, random_state=0)
    for part in np.split(np.arange(200), 5):
        model.partial_fit(x[part], y[part])
    where = model._seen[0][:, :2]
    rows = np.abs(where[:, None] - model._common(x).numpy()).sum(2).argmin(1)
    assert len(set(rows)) == 40 and set(rows // 40) == set(range(5))
    assert len(set(rows % 40)) > 20
