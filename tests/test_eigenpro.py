"""EigenPro against direct solutions, scikit-learn and itself after being killed."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.utils.estimator_checks import parametrize_with_checks

from mercer.budget import memory
from mercer.errors import ConvergenceWarning, DataError, MercerWarning, ShapeError
from mercer.kernel import Kernel
from mercer.kernels import Gaussian, Laplace, Matern
from mercer.learn import EigenProClassifier, EigenProRegressor, KernelRidge, checkpoint, descent
from mercer.learn.checkpoint import Checkpoint
from mercer.learn.descent import Logistic, Squared
from mercer.learn.precondition import Apart, Own, Top, pace
from tests.peak import peak_bytes


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def problem(n: int, d: int = 3, noise: float = 0.3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = rng(seed)
    x = random.normal(size=(n, d))
    return x, np.sin(x[:, 0]) * x[:, 1] + noise * random.normal(size=n)


def gram(kernel: Kernel, x: np.ndarray, z: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return kernel.block(torch.from_numpy(x), torch.from_numpy(z)).numpy()


def gap(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


CHECKED = [
    EigenProRegressor(landmarks=30, epochs=6, learn=False),
    EigenProClassifier(epochs=5, learn=False),
]


@pytest.mark.filterwarnings("ignore:EigenPro.* stopped by epochs:mercer.errors.ConvergenceWarning")  # few are asked for
@parametrize_with_checks(CHECKED)
def test_scikit_learn_checks(estimator: Any, check: Any) -> None:
    check(estimator)


def test_all_rows_as_centres_reach_the_direct_solution() -> None:
    """K a = y, without a ridge, for two outputs in one run."""
    x, one = problem(300, noise=0.0)
    y = np.stack([one, np.cos(x[:, 2])], 1)
    kernel = Laplace(2.0)
    model = EigenProRegressor(kernel, rank=90, learn=False, validation_fraction=0, epochs=100, random_state=0).fit(x, y)
    new = rng(1).normal(size=(100, 3))
    wanted = gram(kernel, new, x) @ np.linalg.solve(gram(kernel, x, x), y)
    assert gap(model.predict(new), wanted) < 1e-4  # what moves by 1e-6 an epoch has some tens of that to go
    assert model.stopped_ == "converged" and model.epochs_ == len(model.history_) < 100


@pytest.mark.parametrize("direct", [True, False])
def test_landmarks_apart_reach_their_least_squares(direct: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """100 rows for each centre, noise that no model fits: plain stochastic steps would stay 5 % away."""
    if not direct:
        monkeypatch.setattr(Apart.__init__, "__defaults__", (0, 0))  # direct, batch
    x, y = problem(4000)
    z = rng(2).normal(size=(40, 3))
    kernel = Matern(1.5, 2.0)
    model = EigenProRegressor(
        kernel, z, rank=39, learn=False, validation_fraction=0, epochs=25, random_state=0
    ).fit(x, y)  # fmt: skip
    new = rng(1).normal(size=(100, 3))
    wanted = gram(kernel, new, z) @ np.linalg.lstsq(gram(kernel, x, z), y, rcond=None)[0]
    assert gap(model.predict(new), wanted) < 1e-3


def test_gradients_without_the_correction_keep_their_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the sums at an earlier model are good for."""
    x, y = problem(4000)
    z = rng(2).normal(size=(40, 3))
    far = []
    for known in (True, False):
        if not known:
            plain = descent.Descent._step

            def forget(self: Any, state: Any, batch: Any, step: Any = plain) -> None:
                state.known = False
                step(self, state, batch)

            monkeypatch.setattr(descent.Descent, "_step", forget)
        model = EigenProRegressor(
            Matern(1.5, 2.0), z, rank=39, learn=False, validation_fraction=0, epochs=8, random_state=0
        ).fit(x, y)  # fmt: skip
        k = gram(Matern(1.5, 2.0), x, z)
        far.append(gap(model.predict(x), k @ np.linalg.lstsq(k, y, rcond=None)[0]))
    assert far[0] < 0.1 * far[1]


@pytest.mark.parametrize("form", ["own", "direct", "close"])
def test_preconditioner_flattens_the_kernel(form: str) -> None:
    """The spectrum of the preconditioned kernel on the subsample: min(lambda, tail), by dense algebra."""
    x = torch.from_numpy(rng().normal(size=(120, 2))).float()
    kernel, generator = Matern(2.5, 1.5).requires_grad_(False), torch.Generator().manual_seed(0)
    steps: Own | Apart
    if form == "own":
        steps = Own(kernel, x, torch.arange(120), 20, generator)
    else:
        steps = Apart(kernel, x[:50], x, 20, generator, direct=100 if form == "direct" else 0)
    values = torch.linalg.eigvalsh(steps.gram(x)).flip(0) / 120
    torch.testing.assert_close(values[:21], torch.full((21,), steps.tail, dtype=torch.float64), rtol=1e-4, atol=0)
    assert values[21] < 0.999 * steps.tail
    if form == "own":
        plain = torch.linalg.eigvalsh(kernel.block(x.double(), x.double())).flip(0) / 120
        assert steps.tail == pytest.approx(float(plain[20]), rel=1e-8)


@pytest.mark.parametrize("form", ["own", "apart"])
def test_a_step_is_the_preconditioned_gradient(form: str) -> None:
    """The change of predictions: -scale * (preconditioned kernel) gradient, whatever way the weights take it."""
    x = torch.from_numpy(rng().normal(size=(90, 2))).float()
    kernel, generator = Matern(2.5, 1.5).requires_grad_(False), torch.Generator().manual_seed(0)
    rows, g = torch.arange(60, 75), torch.from_numpy(rng(1).normal(size=(15, 2)))
    batch = x[rows]
    if form == "own":
        steps: Own | Apart = Own(kernel, x, torch.arange(50), 10, generator)
        h = g
    else:
        steps = Apart(kernel, x[:30], x[:50], 10, generator)
        h = kernel.block(steps.points.double(), batch.double()) @ g
    w = torch.zeros(len(steps.points), 2, dtype=torch.float64)
    steps.move(w, batch, rows, h, 0.7)
    change = kernel.block(batch.double(), steps.points.double()) @ w
    torch.testing.assert_close(change, -0.7 * steps.gram(batch) @ g, rtol=1e-4, atol=1e-5)


def test_few_eigenpairs_are_the_largest() -> None:
    basis = torch.linalg.qr(torch.randn(1200, 1200, generator=torch.Generator().manual_seed(0), dtype=torch.float64))[0]
    values = 1200 * 0.8 ** torch.arange(1200, dtype=torch.float64)
    top = Top.of((basis * values) @ basis.mT, 15, torch.Generator().manual_seed(1))
    torch.testing.assert_close(top.values, values[:15] / 1200)
    assert top.tail == pytest.approx(0.8**15, rel=1e-6)
    torch.testing.assert_close((top.vectors * basis[:, :15]).sum(0).abs(), torch.ones(15, dtype=torch.float64))


def test_the_step_is_what_batches_bear() -> None:
    """Neighbours in a batch make its top eigenvalue larger, and the step smaller."""
    x = torch.from_numpy(rng().normal(size=(600, 2))).float()
    kernel = Laplace(1.0).requires_grad_(False)
    steps = Own(kernel, x, torch.arange(300), 50, torch.Generator().manual_seed(0))
    spread = pace(steps, x[300:], 600, 64, None, 512)
    twins = pace(steps, x[300:305].repeat_interleave(60, 0), 600, 64, None, 512)
    assert twins.step < 0.2 * spread.step
    for found, batch in ((spread, x[300:364]), (twins, x[300:305].repeat_interleave(13, 0)[:64])):
        assert found.step * float(torch.linalg.eigvalsh(steps.gram(batch))[-1]) / 64 < 2
    assert pace(steps, x[300:], 600, None, 0.5, 512).step == 0.5


@pytest.mark.parametrize("classes", [2, 3])
def test_gradients_of_the_losses(classes: int) -> None:
    c = 1 if classes == 2 else classes
    f = torch.from_numpy(rng().normal(size=(7, c))).requires_grad_(True)
    codes = torch.from_numpy(rng(1).integers(0, classes, 7))
    y = codes[:, None].double() if c == 1 else torch.eye(c, dtype=torch.float64)[codes]
    offset = torch.from_numpy(rng(2).normal(size=c))
    logits = f + offset
    full = torch.cat([torch.zeros_like(logits), logits], 1) if c == 1 else logits
    wanted = torch.nn.functional.cross_entropy(full, codes)
    loss = Logistic(offset)
    assert loss.value(f.detach(), y) == pytest.approx(float(wanted.detach()), rel=1e-12)
    torch.testing.assert_close(loss.gradient(f.detach(), y), 7 * torch.autograd.grad(wanted, f)[0])
    torch.testing.assert_close(Squared().gradient(f.detach(), y), f.detach() - y)


def test_logistic_descent_finds_the_likeliest_weights() -> None:
    """scikit-learn's unpenalised logistic regression on the kernel columns themselves."""
    x, f = problem(2500, 2, 0.0)
    labels = np.where(rng(3).uniform(size=2500) < 1 / (1 + np.exp(-2 * f)), "yes", "no")
    z = rng(2).normal(size=(12, 2))
    kernel = Gaussian(1.5)
    model = EigenProClassifier(
        kernel, z, rank=11, learn=False, validation_fraction=0, epochs=60, random_state=0
    ).fit(x, labels)  # fmt: skip
    columns = gram(kernel, x, z)
    values, vectors = np.linalg.eigh(gram(kernel, z, z))
    share = (labels == "yes").mean()
    white = np.concatenate([columns @ vectors / np.sqrt(values), np.ones((2500, 1))], 1)
    peer = LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-10, max_iter=3000).fit(white[:, :-1], labels)
    assert share == pytest.approx(0.5, abs=0.03)  # so that no intercept is as good as the offset
    wanted = peer.predict_proba(white[:, :-1])
    assert list(model.classes_) == ["no", "yes"]
    assert np.abs(model.predict_proba(x) - wanted).max() < 0.03
    assert np.abs(model.predict_proba(x) - wanted).mean() < 3e-3


def test_softmax_and_squared_probabilities_are_good() -> None:
    x, f = problem(1500, 2, 0.0)
    codes = np.digitize(f + 0.3 * rng(1).normal(size=1500), [-0.3, 0.3])
    for loss in ("log", "squared"):
        model = EigenProClassifier(Matern(2.5, 1.5), 100, loss=loss, learn=False, random_state=0).fit(
            x[:1000], codes[:1000]
        )
        p = model.predict_proba(x[1000:])
        np.testing.assert_allclose(p.sum(1), 1)
        assert -np.log(p[np.arange(500), codes[1000:]]).mean() < 0.85  # 1.1 knows nothing
        assert model.decision_function(x[:5]).shape == (5, 3)


def test_error_is_that_of_kernel_ridge() -> None:
    """Early stopping in place of a ridge tuned by left-out rows, the same kernel; 20,000 rows in benchmarks."""
    x, y = problem(1200, 4)
    new, _ = problem(500, 4, seed=9)
    true = np.sin(new[:, 0]) * new[:, 1]
    kernel = Matern(2.5, 3.0)
    ridge = KernelRidge(kernel, learn=False, random_state=0).fit(x, y)
    for landmarks in (None, 300):
        model = EigenProRegressor(kernel, landmarks, learn=False, random_state=0).fit(x, y)
        wrong = [np.sqrt(np.mean((m.predict(new) - true) ** 2) + 0.09) for m in (model, ridge)]
        assert wrong[0] < 1.05 * wrong[1]
        assert model.stopped_ in ("patience", "epochs", "converged")
        held = np.mean((model._scores(model._held[0]) - model._held[1].numpy()) ** 2)
        assert held == pytest.approx(min(h[1] for h in model.history_), rel=1e-3)  # float32 weights that cancel


def test_intervals_cover() -> None:
    x, y = problem(1500, 2)
    model = EigenProRegressor(Matern(2.5, 1.5), 80, learn=False, validation_fraction=0.3, random_state=0).fit(
        x[:1000], y[:1000]
    )
    low, high = model.predict_interval(x[1000:], 0.9)
    covered = ((low <= y[1000:]) & (y[1000:] <= high)).mean()
    assert abs(covered - 0.9) < 3 * np.sqrt(0.9 * 0.1 * (1 / 300 + 1 / 500))  # held-out rows, new rows
    bare = EigenProRegressor(Matern(2.5, 1.5), 80, learn=False, validation_fraction=0, epochs=1).fit(x, y)
    with pytest.raises(DataError, match="held-out rows: fit with a validation_fraction"):
        bare.predict_interval(x)


@pytest.mark.parametrize("kind", ["regressor", "classifier"])
def test_state_round_trip_and_torch(kind: str) -> None:
    x, y = problem(200, 2)
    model: Any
    if kind == "regressor":
        model = EigenProRegressor(Matern(2.5, 1.5), 30, standardize=True, learn=False, epochs=3, random_state=0).fit(
            x, y
        )
    else:
        model = EigenProClassifier(Matern(2.5, 1.5), 30, standardize=True, learn=False, epochs=3, random_state=0).fit(
            x, y > 0
        )
    again, copied = type(model).from_state(*model.get_state()), pickle.loads(pickle.dumps(model))
    ask = "predict_interval" if kind == "regressor" else "predict_proba"
    for other in (again, copied):
        np.testing.assert_array_equal(getattr(other, ask)(x), getattr(model, ask)(x))
    found = model.predict(torch.from_numpy(x).float())
    assert isinstance(found, torch.Tensor) == (kind == "regressor")


def test_partial_fit_goes_on() -> None:
    x, y = problem(2400, 2)
    new, _ = problem(500, 2, seed=5)
    true = np.sin(new[:, 0]) * new[:, 1]
    for landmarks in (None, 100):
        model = EigenProRegressor(Matern(2.5, 1.5), landmarks, learn=False, random_state=0)
        errors = []
        for start in range(0, 2400, 600):
            model.partial_fit(x[start : start + 600], y[start : start + 600])
            errors.append(np.mean((model.predict(new) - true) ** 2))
        assert errors[-1] < 0.03 and errors[-1] < 0.8 * errors[0], errors
        assert len(model._points) == (100 if landmarks else 2160)
        low, high = model.predict_interval(new)
        assert (low < high).all()
    with pytest.raises(DataError, match="1 outputs"):
        model.partial_fit(x, np.stack([y, y], 1))
    small = EigenProClassifier(Matern(2.5, 1.5), 50, learn=False).partial_fit(x[:20], [0, 1] * 10, classes=[0, 1, 2])
    small.partial_fit(x[:500], rng().integers(0, 3, 500))
    assert len(small._points) == 50 and small.predict_proba(x[:2]).shape == (2, 3)
    with pytest.raises(DataError, match="7"):
        small.partial_fit(x[:2], [0, 7])


def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    """torch's records and numpy's together, for a memory map of 30,000 and of 60,000 rows."""
    peaks = []
    for n in (30_000, 30_000, 60_000):  # the first one loads code; blocks of 20,000 rows are read
        x = np.lib.format.open_memmap(tmp_path / f"{n}.npy", "w+", np.float32, (n, 10))
        x[:] = rng().normal(size=(n, 10))
        y = np.asarray(x[:, 0] * x[:, 1], dtype=np.float32)
        model = EigenProRegressor(
            Gaussian(3.0), 100, learn=False, subsample=300, epochs=1, batch_size=1000, random_state=0
        )  # fmt: skip
        model._keep = lambda rows, seed: np.arange(len(rows)) >= 1000  # type: ignore[method-assign]
        model._intervals = lambda: None  # type: ignore[method-assign]
        tracemalloc.start()
        with memory("64M"):
            torches = peak_bytes(lambda m=model, a=x, b=y: m.fit(a, b))
        peaks.append(torches + tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[2] - peaks[1] < 10 * 30_000  # bytes for each row more: its place and its mask, a row of x has 40


def test_the_clock_and_the_user_stop_it(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = problem(2000, 2)
    model = EigenProRegressor(Matern(2.5, 1.5), 50, learn=False, time_budget=1e-6, random_state=0).fit(x, y)
    assert model.stopped_ == "time" and len(model.history_) == 1
    calls = []
    plain = descent.Descent._step

    def stop(self: Any, state: Any, batch: Any) -> None:
        calls.append(len(state.history))
        if len(state.history) == 2:
            raise KeyboardInterrupt
        plain(self, state, batch)

    monkeypatch.setattr(descent.Descent, "_step", stop)
    model = EigenProRegressor(Matern(2.5, 1.5), 50, learn=False, random_state=0).fit(x, y)
    assert model.stopped_ == "interrupted" and model.epochs_ == 2
    held = np.mean((model._scores(model._held[0]) - model._held[1].numpy()) ** 2)
    assert held == pytest.approx(min(h[1] for h in model.history_), rel=1e-3)  # float32 weights that cancel


def test_steps_that_are_too_long_are_halved() -> None:
    x, y = problem(1000, 2)
    good = EigenProRegressor(Matern(2.5, 1.5), 50, learn=False, random_state=0).fit(x, y)
    model = EigenProRegressor(
        Matern(2.5, 1.5), 50, step_size=30 * good.step_size_, learn=False, epochs=30, random_state=0
    ).fit(x, y)  # fmt: skip
    assert model.step_size_ < 8 * good.step_size_
    assert model.score(x, y) > good.score(x, y) - 0.1


class Killed(Exception):
    pass


@pytest.mark.filterwarnings("ignore:EigenPro.* stopped by epochs:mercer.errors.ConvergenceWarning")  # few are asked for
@pytest.mark.parametrize("kind", ["own", "apart", "log"])
def test_killed_fits_end_as_if_they_had_not_been(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed after k savings, for several k, also in the middle of epochs; learned kernels are kept as well."""
    monkeypatch.setattr(checkpoint, "EVERY", 0.0)
    x, y = problem(700, 2)
    target = y > 0 if kind == "log" else y
    chosen = {
        "kernel": Matern(2.5, 1.5), "landmarks": None if kind == "own" else 40, "epochs": 4, "batch_size": 120,
        "learn": kind == "apart", "random_state": None, "time_budget": None, "patience": 9,
    }  # fmt: skip
    make = EigenProClassifier if kind == "log" else EigenProRegressor
    file = tmp_path / "fit"
    plain = checkpoint.Checkpoint.save

    def run(stop: int | None) -> Any:
        count = 0

        def save(self: Any, *args: Any, **more: Any) -> None:
            nonlocal count
            plain(self, *args, **more)
            count += 1
            if count == stop:
                raise Killed

        monkeypatch.setattr(checkpoint.Checkpoint, "save", save)
        return make(checkpoint=file, **chosen).fit(x, target)  # type: ignore[arg-type]

    with pytest.raises(Killed):
        run(1)
    first = file.read_bytes()  # the kernel and the seed of this fit
    whole = run(None)
    for stops in ([1, 1, 1], [3, 7], [9], [12, 2]):
        file.write_bytes(first)
        for k in stops:
            with pytest.raises(Killed):
                run(k)
        again = run(None)
        np.testing.assert_allclose(again._weights, whole._weights, rtol=1e-9, atol=1e-12)
        assert [h[1] for h in again.history_] == pytest.approx([h[1] for h in whole.history_])
    chosen["epochs"] = 6  # more patience goes on, another argument is another fit
    assert run(None).epochs_ == 6
    chosen["batch_size"] = 121
    with pytest.raises(DataError, match="another fit"):
        run(None)


SCRIPT = """
import sys, torch
from mercer.kernels import Matern
from mercer.learn import EigenProRegressor, checkpoint
from tests.test_eigenpro import problem
torch.set_num_threads(1)
checkpoint.EVERY = 0.0
x, y = problem(3000, noise=0.0)
kernel = Matern(2.5, 1.5)
EigenProRegressor(kernel, 60, batch_size=30, learn=False, epochs=12, checkpoint=sys.argv[1], random_state=3).fit(x, y)
"""


def test_a_killed_process_goes_on(tmp_path: Path) -> None:
    """SIGKILL in the midst of it, then to the end."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    file = tmp_path / "fit"
    with subprocess.Popen([sys.executable, "-c", SCRIPT, str(file)], env=environment) as process:
        until = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < until:
            if file.exists():
                time.sleep(0.1)
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.01)
    assert process.returncode == -signal.SIGKILL
    kept = Checkpoint(file, json.loads(np.load(file)["values"].tobytes())["owner"]).load()
    assert kept is not None and kept[0]["epoch"] < 12  # it was in the midst of it
    x, y = problem(3000, noise=0.0)
    arguments = {"batch_size": 30, "learn": False, "epochs": 12, "random_state": 3}
    whole = EigenProRegressor(Matern(2.5, 1.5), 60, **arguments).fit(x, y)  # type: ignore[arg-type]
    again = EigenProRegressor(Matern(2.5, 1.5), 60, checkpoint=file, **arguments).fit(x, y)  # type: ignore[arg-type]
    np.testing.assert_allclose(again._weights, whole._weights, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"landmarks": 0}, "landmarks is 0"),
        ({"rank": -1}, "rank is -1"),
        ({"batch_size": 0.5}, "batch_size is 0.5"),
        ({"step_size": -1.0}, "step_size is -1.0"),
        ({"epochs": 0}, "epochs is 0"),
        ({"validation_fraction": 1.0}, "validation_fraction is 1.0"),
        ({"time_budget": -1.0}, "time_budget is -1.0"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], says: str) -> None:
    x, y = problem(50)
    with pytest.raises(ValueError, match=says):
        EigenProRegressor(**arguments).fit(x, y)


def test_bad_centres_and_labels_are_named() -> None:
    x, y = problem(50)
    with pytest.raises(ShapeError, match="landmarks has shape"):
        EigenProRegressor(Gaussian(1.0), np.zeros((4, 2)), learn=False).fit(x, y)
    with pytest.raises(ValueError, match="loss is 'hinge'"):
        EigenProClassifier(loss="hinge").fit(x, y > 0)
    with pytest.raises(DataError, match="one class only"):
        EigenProClassifier().fit(x, np.zeros(50))
    y[31] = np.nan
    with pytest.raises(DataError, match="y holds NaN at row 31"):
        EigenProRegressor(Gaussian(1.0), 5, learn=False).fit(x, y)


@pytest.mark.filterwarnings("ignore:EigenPro.* stopped by epochs:mercer.errors.ConvergenceWarning")  # few are asked for
@pytest.mark.parametrize("landmarks", [300, None])
def test_smooth_kernels_are_not_flattened_beyond_what_a_batch_bears(landmarks: int | None) -> None:
    """Hundreds of directions with a tiny tail leave eight steps an epoch nothing to do."""
    x = rng(1).normal(size=(4000, 3))
    f = np.sin(2 * x[:, 0]) * x[:, 1]
    y = f + 0.1 * rng(2).normal(size=4000)
    model = EigenProRegressor(Gaussian(1.0), landmarks, learn=False, epochs=5, random_state=0).fit(x[:3000], y[:3000])
    rest = f[3000:]
    assert 1 - np.mean((model.predict(x[3000:]) - rest) ** 2) / rest.var() > 0.93


def test_steps_that_diverge_are_said() -> None:
    x, y = problem(300, 2)
    with pytest.warns(ConvergenceWarning, match="diverged after .* give a smaller step_size"):
        EigenProRegressor(Matern(2.5, 1.5), 40, learn=False, step_size=1e9, random_state=0).fit(x, y)


def test_a_fit_goes_on_with_the_steps_it_began_with(tmp_path: Any) -> None:
    """The memory budget chooses on how many rows a step is measured, and so the step."""
    x, y = problem(1500, 2)
    given = {"kernel": Laplace(3.0), "landmarks": None, "learn": False, "random_state": 0, "step_size": None}
    with memory("1G"):
        whole = EigenProRegressor(**given, epochs=4).fit(x, y)
        file = tmp_path / "fit.npz"
        EigenProRegressor(**given, epochs=2, checkpoint=file).fit(x, y)
    (tmp_path / "again.npz").write_bytes(file.read_bytes())
    with memory("2G"):
        again = EigenProRegressor(**given, epochs=4, checkpoint=file).fit(x, y)
    assert again.step_size_ == whole.step_size_
    np.testing.assert_array_equal(again.predict(x), whole.predict(x))
    with memory("5M"), pytest.warns(MercerWarning, match="its steps are others"):
        EigenProRegressor(**given, epochs=4, checkpoint=tmp_path / "again.npz").fit(x, y)
    (tmp_path / "empty.npz").write_bytes(b"")
    with pytest.raises(DataError, match="is not one of mercer"):
        EigenProRegressor(**given, checkpoint=tmp_path / "empty.npz").fit(x, y)
