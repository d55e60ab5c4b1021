"""learn: estimators against scikit-learn, brute force and dense algebra."""

from __future__ import annotations

import dataclasses
import json
import pickle
from typing import Any

import numpy as np
import pytest
import sklearn.gaussian_process as peer
import torch
from sklearn.base import clone
from sklearn.datasets import load_diabetes, make_friedman1, make_moons
from sklearn.gaussian_process.kernels import RBF, ConstantKernel
from sklearn.kernel_ridge import KernelRidge as PeerRidge
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import cross_val_score
from sklearn.utils.estimator_checks import parametrize_with_checks
from torch import nn

from mercer import kernels
from mercer.budget import memory
from mercer.errors import DataError, NotPositiveDefiniteError, ShapeError, StructureError
from mercer.kernels import Constant, Gaussian, Laplace, Linear, Matern, Riesz
from mercer.learn import GaussianProcessRegressor, KernelClassifier, KernelRidge, LocalConformal, NeighbourRidge
from mercer.learn.calibrate import Calibration
from mercer.learn.copies import Repeats
from mercer.learn.landmarks import falkon, normal
from mercer.learn.likelihood import Likelihood
from mercer.learn.plan import Plan, Speed, choose
from mercer.learn.refine import _better, refine
from mercer.learn.solve import FOLDS, exact, whole
from mercer.learn.spec import from_spec, to_spec
from mercer.learn.table import Scaler, Target
from mercer.learn.tune import Clock
from tests.peak import peak_bytes

REGRESSORS = [KernelRidge, GaussianProcessRegressor]
ALL = [*REGRESSORS, KernelClassifier]


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def problem(n: int = 60, d: int = 3, outputs: int = 1, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = rng(seed)
    x = random.normal(size=(n, d))
    y = np.stack([np.sin(x[:, 0] + c) * x[:, 1] + 0.1 * random.normal(size=n) for c in range(outputs)], 1)
    return x, y[:, 0] if outputs == 1 else y


def gram(x: np.ndarray, z: np.ndarray, lengthscale: float) -> np.ndarray:
    return np.exp(-((x[:, None] - z[None]) ** 2).sum(-1) / (2 * lengthscale**2))


@parametrize_with_checks([KernelRidge(), GaussianProcessRegressor(), KernelClassifier(), NeighbourRidge()])
def test_scikit_learn_checks(estimator: Any, check: Any) -> None:
    check(estimator)


@pytest.mark.parametrize("outputs", [1, 2])
def test_ridge_agrees_with_scikit_learn(outputs: int) -> None:
    x, y = problem(outputs=outputs)
    mine = KernelRidge(Gaussian(1.5), 0.1, learn=False).fit(x, y)
    theirs = PeerRidge(kernel="rbf", gamma=1 / (2 * 1.5**2), alpha=0.1).fit(x, y)
    new = rng(1).normal(size=(20, 3))
    np.testing.assert_allclose(mine.predict(new), theirs.predict(new), rtol=0, atol=1e-8)
    assert mine.predict(new).shape == theirs.predict(new).shape


def test_process_agrees_with_scikit_learn() -> None:
    x, y = problem(d=2)
    kernel = Gaussian(torch.tensor([1.2, 0.7], dtype=torch.float64)).scale(1.7)
    mine = GaussianProcessRegressor(kernel, 0.05, learn=False).fit(x, y)
    theirs = peer.GaussianProcessRegressor(ConstantKernel(1.7) * RBF([1.2, 0.7]), alpha=0.05, optimizer=None).fit(x, y)
    new = rng(1).normal(size=(15, 2))
    mean, deviation = mine.predict(new, return_std=True)
    wanted, spread = theirs.predict(new, return_std=True)
    np.testing.assert_allclose(mean, wanted, rtol=0, atol=1e-8)
    np.testing.assert_allclose(deviation, spread, rtol=0, atol=1e-8)
    value, slope = mine.log_marginal_likelihood(eval_gradient=True)
    other, gradient = theirs.log_marginal_likelihood(theirs.kernel_.theta, eval_gradient=True)
    assert value == pytest.approx(other, abs=1e-8)
    np.testing.assert_allclose(slope[:-1], gradient, rtol=1e-8, atol=1e-8)
    theta = mine.theta_
    step = 1e-5 * np.eye(len(theta))[-1]
    lml = mine.log_marginal_likelihood
    assert (lml(theta + step) - lml(theta - step)) / 2e-5 == pytest.approx(slope[-1], rel=1e-5)
    assert lml() == pytest.approx(value, abs=1e-12)  # asking elsewhere changed nothing


@pytest.mark.parametrize("profile", [True, False])
def test_likelihood_and_its_gradient_by_hand(profile: bool) -> None:
    x, y = problem(25, 2, 2)
    kernel = Matern(2.5, torch.tensor([0.9, 1.4]))
    target = Likelihood(kernel, 0.2, [(torch.tensor(x), torch.tensor(y))], profile)
    value, slope = target.evaluate()
    a = kernel.block(torch.tensor(x), torch.tensor(x)).detach().numpy() + 0.2 * np.eye(25)
    by_hand = 0.0
    for c in range(2):
        s = y[:, c] @ np.linalg.solve(a, y[:, c]) / 25 if profile else 1.0
        by_hand -= 0.5 * (y[:, c] @ np.linalg.solve(s * a, y[:, c]) + np.linalg.slogdet(2 * np.pi * s * a)[1])
    assert value == pytest.approx(by_hand, rel=1e-10)
    theta = target.theta
    for i in range(len(theta)):
        step = 1e-5 * np.eye(len(theta))[i]
        numeric = (target.evaluate(theta + step, False)[0] - target.evaluate(theta - step, False)[0]) / 2e-5
        assert slope[i] == pytest.approx(numeric, rel=1e-5, abs=1e-6)


def test_left_out_predictions_equal_refits() -> None:
    x, y = problem(25)
    fitted = exact(
        Gaussian(1.3), 0.2, torch.tensor(x), torch.tensor(y)[:, None], Plan("cholesky", 25), [], Clock.of(None)
    )
    for i in (0, 7, 24):
        keep = np.arange(25) != i
        refit = PeerRidge(kernel="rbf", gamma=1 / (2 * 1.3**2), alpha=0.2).fit(x[keep], y[keep])
        assert float(fitted.left_out[i]) == pytest.approx(float(refit.predict(x[[i]])[0]), abs=1e-10)


def folds_of(n: int, seed: int, skip: int = 0) -> np.ndarray:
    generator = torch.Generator().manual_seed(seed)
    if skip:
        torch.randperm(n, generator=generator)
    return (torch.randperm(n, generator=generator) % FOLDS).numpy()


def test_whole_kernel_by_cg_equals_dense_solves_and_refits() -> None:
    x, y = problem(300, 2, 2)
    points, target = torch.tensor(x), torch.tensor(y)
    plan = Plan("cg", 300, landmarks=60)
    fitted = whole(Gaussian(0.8), 0.1, points, target, plan, [], torch.Generator().manual_seed(3), Clock.of(None))
    k = gram(x, x, 0.8)
    direct = np.linalg.solve(k + 0.1 * np.eye(300), y)
    np.testing.assert_allclose(k @ fitted.weights.double().numpy(), k @ direct, atol=1e-2)
    fold = folds_of(300, 3)
    for f in (0, 3):
        keep, out = fold != f, fold == f
        refit = gram(x[out], x[keep], 0.8) @ np.linalg.solve(
            gram(x[keep], x[keep], 0.8) + 0.1 * np.eye(keep.sum()), y[keep]
        )
        np.testing.assert_allclose(fitted.left_out.numpy()[out], refit, atol=2e-2)
    assert fitted.plan.residual < 5e-3 and fitted.plan.iterations < 60


@pytest.mark.parametrize(("solve", "close"), [(normal, 1e-4), (falkon, 1e-2)])
def test_landmarks_equal_the_normal_equations_and_refits(solve: Any, close: float) -> None:
    x, y = problem(400, 2, 2)
    plan = Plan("nystrom", 400, landmarks=50)
    arguments = (torch.tensor(x), torch.tensor(y), plan, [], torch.Generator().manual_seed(3), Clock.of(None))
    fitted = solve(Gaussian(0.8), 0.1, *arguments)
    z = fitted.points.double().numpy()
    k, middle = gram(x, z, 0.8), gram(z, z, 0.8) + fitted.plan.jitter * np.eye(50)

    def dense(rows: np.ndarray) -> np.ndarray:
        return k @ np.linalg.solve(k[rows].T @ k[rows] + 0.1 * middle, k[rows].T @ y[rows])

    np.testing.assert_allclose(k @ fitted.weights.double().numpy(), dense(np.full(400, True)), atol=close)
    fold = folds_of(400, 3, skip=1)
    for f in (0, 3):
        np.testing.assert_allclose(fitted.left_out.numpy()[fold == f], dense(fold != f)[fold == f], atol=2 * close)
    assert fitted.plan.residual < 2e-2 and fitted.plan.iterations < 40


@pytest.mark.parametrize("solve", [normal, falkon, whole])
def test_the_noise_is_tuned_on_a_held_out_fold(solve: Any) -> None:
    x, y = problem(500, 2)
    arguments = (torch.tensor(x), torch.tensor(y)[:, None], Plan("cg", 500, landmarks=120), [1e-3, 1e2])
    found = solve(Gaussian(0.8), 10.0, *arguments, torch.Generator().manual_seed(0), Clock.of(None))
    assert found.noise == pytest.approx(1e-2)


def test_products_are_streamed_when_they_do_not_fit() -> None:
    x, y = problem(4000, 2)
    points, target = torch.tensor(x), torch.tensor(y)[:, None]
    generator = [torch.Generator().manual_seed(0) for _ in range(2)]
    plan = Plan("falkon", 4000, landmarks=100)
    stored = falkon(Matern(2.5, 1.5), 0.02, points, target, plan, [], generator[0], Clock.of(None))
    with memory("1M"):
        streamed = falkon(Matern(2.5, 1.5), 0.02, points, target, plan, [], generator[1], Clock.of(None))
    np.testing.assert_allclose(streamed.left_out, stored.left_out, atol=1e-2)


def test_plan_follows_rows_memory_and_seconds() -> None:
    with memory("8G"):
        assert choose(4000).algorithm == "cholesky"
        assert choose(15_000, speed=Speed(1e9, 1e10)).algorithm == "cg"
        assert choose(15_000, 2.0, Speed(1e9, 1e10)).algorithm == "nystrom"
        assert choose(10**6, speed=Speed(1e9, 1e10)).algorithm == "nystrom"
        assert choose(10**6, 20.0, Speed(1e9, 1e10)).landmarks <= choose(10**6, 200.0, Speed(1e9, 1e10)).landmarks
        assert choose(60_000, 60.0, Speed(1e9, 1e12, 1e10)).algorithm == "falkon"
    with memory("64M"):
        assert choose(4000).algorithm != "cholesky" and choose(4000).memory <= 2**26


@pytest.mark.parametrize("learner", REGRESSORS)
def test_learned_defaults_are_good(learner: Any) -> None:
    x, y = make_friedman1(700, 8, noise=1.0, random_state=0)
    model = learner(random_state=0).fit(x[:300], y[:300])
    assert model.score(x[300:], y[300:]) > 0.9  # the noise itself leaves 0.96
    scales = next(p for n, p in model.kernel_.named_parameters() if n.endswith("log_lengthscale")).detach()
    assert float(scales[5:].min()) > float(scales[[0, 1, 3]].max())  # columns 5, 6, 7 mean nothing


def test_diabetes_is_no_worse_than_the_linear_model() -> None:
    x, y = load_diabetes(return_X_y=True)
    mine = cross_val_score(KernelRidge(random_state=0), x, y, cv=4).mean()
    assert mine > cross_val_score(LinearRegression(), x, y, cv=4).mean() - 0.01


@pytest.mark.parametrize("learner", [*REGRESSORS, NeighbourRidge])
def test_intervals_cover_and_follow_the_noise(learner: Any) -> None:
    random = rng(0)
    x = random.uniform(-2, 2, size=(1600, 2))
    deviation = 0.1 + 0.5 * (x[:, 0] > 0)
    y = np.sin(2 * x[:, 1]) + deviation * random.normal(size=1600)
    model = learner(random_state=0).fit(x[:600], y[:600])
    low, high = model.predict_interval(x[600:], 0.9)
    inside, width = (low <= y[600:]) & (y[600:] <= high), high - low
    assert 0.87 < inside.mean() < 0.93
    noisy = x[600:, 0] > 0
    assert width[noisy].mean() > 2.5 * width[~noisy].mean()
    assert inside[noisy].mean() > 0.84 and inside[~noisy].mean() > 0.84
    narrow = model.predict_interval(x[600:], 0.5)
    assert 0.44 < ((narrow[0] <= y[600:]) & (y[600:] <= narrow[1])).mean() < 0.56
    with pytest.raises(ValueError, match="coverage"):
        model.predict_interval(x, 1.0)


def test_intervals_of_equal_noise_keep_one_width() -> None:
    random = rng(1)
    x, r = random.normal(size=(800, 3)), random.normal(size=800)
    low, high = LocalConformal().fit(x, r).interval(np.zeros(800), x, 0.9)
    width = high - low
    assert width.std() < 0.1 * width.mean() and width.mean() == pytest.approx(2 * 1.645, rel=0.1)


@pytest.mark.parametrize("seed", [369, 373, 375])
def test_the_local_scale_is_trusted_by_the_interval_score_at_ninety_percent(seed: int) -> None:
    """Two places whose bulks and tails differ: bands that cover half would trust another scale."""
    random = rng(seed)
    size, share = random.uniform(0.05, 3, 4), random.uniform(0.55, 0.97, 2)
    local, u = np.where(np.arange(400) % 2, 1.0, -1.0), random.random
    kinds = np.where(local > 0, np.where(u(400) < share[0], *size[:2]), np.where(u(400) < share[1], *size[2:]))
    wrong = kinds * random.normal(size=400)

    def score(trust: float, coverage: float) -> float:
        """Gneiting and Raftery's interval score of 90 % intervals, a loop over rows."""
        width = np.exp(trust * local)
        q = np.quantile(np.abs(wrong) / width, coverage)
        return sum(2 * q * w + 2 / 0.1 * max(abs(e) - q * w, 0) for e, w in zip(wrong, width, strict=True))

    best, other = (min((0.0, 0.5, 1.0), key=lambda trust: score(trust, c)) for c in (0.9, 0.5))
    found = LocalConformal()
    found._choose(local[:, None], wrong[:, None])
    assert best != other and found.shrink.tolist() == [best]


@pytest.mark.parametrize("seconds", ["x", -1, 0, float("nan")])
def test_a_time_budget_that_is_none_is_refused(seconds: Any) -> None:
    x, y = problem(20)
    with pytest.raises(ValueError, match="time_budget is .*expected a number > 0"):
        KernelRidge(time_budget=seconds).fit(x, y)
    with pytest.raises(DataError, match=r"one class only \(0\)"):
        KernelClassifier().fit(x, np.zeros(20))


def test_conformal_alone() -> None:
    random = rng(2)
    x = random.normal(size=(500, 2))
    r = np.exp(x[:, :1]) * random.normal(size=(500, 2)) * [1.0, 100.0]
    found = LocalConformal(random_state=0).fit(x, r)
    values, arrays = found.get_state()
    again = LocalConformal.from_state(json.loads(json.dumps(values)), arrays)
    new = random.normal(size=(2000, 2))
    truth = np.exp(new[:, :1]) * random.normal(size=(2000, 2)) * [1.0, 100.0]
    low, high = found.interval(np.zeros((2000, 2)), new, 0.9)
    np.testing.assert_array_equal(again.interval(np.zeros((2000, 2)), new, 0.9)[0], low)
    assert (np.abs(((low <= truth) & (truth <= high)).mean(0) - 0.9) < 0.03).all()
    pit = found.pit(np.zeros((2000, 2)), new, truth)
    assert np.abs(np.quantile(pit, [0.1, 0.5, 0.9]) - [0.1, 0.5, 0.9]).max() < 0.04
    few = LocalConformal().fit(x[:5], r[:5])
    assert np.isinf(few.interval(np.zeros((5, 2)), x[:5], 0.9)[1]).all()  # five rows cannot promise 90 %
    with pytest.raises(DataError, match="fit"):
        LocalConformal().spread(x)
    with pytest.raises(DataError, match="row 3"):
        LocalConformal().fit(x[:5], np.array([1, 1, 1, np.nan, 1]))
    for middle in (np.zeros((2, 5)), np.zeros(10), np.zeros((4, 2))):
        with pytest.raises(ShapeError, match="expected 5 x 2"):
            found.interval(middle, x[:5])
    with pytest.raises(ShapeError, match="expected n x 2"):
        found.interval(np.zeros((5, 2)), x[:5, :1])
    with pytest.raises(DataError, match="prediction holds NaN at row 0"):
        found.interval(np.full((5, 2), np.nan), x[:5])
    with pytest.raises(ShapeError, match="residuals"):
        LocalConformal().fit(x, r[:, :, None])


def test_probabilities_are_calibrated_and_better_than_a_line() -> None:
    x, y = make_moons(1500, noise=0.3, random_state=0)
    model = KernelClassifier(random_state=0).fit(x[:500], y[:500])
    p = model.predict_proba(x[500:])
    line = LogisticRegression().fit(x[:500], y[:500]).predict_proba(x[500:])
    assert log_loss(y[500:], p) < log_loss(y[500:], line) - 0.05
    place = np.minimum((10 * p[:, 1]).astype(int), 9)
    gaps = [abs(y[500:][place == i].mean() - p[place == i, 1].mean()) * (place == i).mean() for i in range(10)]
    assert np.nansum(gaps) < 0.05
    assert (model.predict(x) == model.classes_[model.predict_proba(x).argmax(1)]).all()


def test_calibration_recovers_the_map_that_made_the_labels() -> None:
    random = rng(0)
    scores = random.normal(size=(20_000, 3))
    logits = 2.5 * scores + np.array([0.0, 1.0, -1.0])
    codes = (logits + random.gumbel(size=logits.shape)).argmax(1)
    found = Calibration.fit(scores, codes)
    assert found.temperature == pytest.approx(2.5, rel=0.05)
    np.testing.assert_allclose(found.bias - found.bias[0], [0, 1, -1], atol=0.08)
    np.testing.assert_allclose(found(scores).sum(1), 1)


def test_many_classes_and_labels_of_any_kind() -> None:
    random = rng(0)
    centre = np.array([[0, 0], [4, 0], [0, 4]])
    codes = random.integers(0, 3, 300)
    x = centre[codes] + random.normal(size=(300, 2))
    names = np.array(["ash", "birch", "cedar"])[codes]
    model = KernelClassifier(random_state=0).fit(x, names)
    assert model.score(x, names) > 0.93 and list(model.classes_) == ["ash", "birch", "cedar"]
    assert model.predict_proba(x).shape == model.decision_function(x).shape == (300, 3)


@pytest.mark.parametrize("learner", [*ALL, NeighbourRidge])
def test_states_pickles_and_clones(learner: Any) -> None:
    x, y = problem(120)
    y = (y > 0).astype(int) if learner is KernelClassifier else y
    model = learner(random_state=0).fit(x, y)
    again = clone(model)
    assert not hasattr(again, "kernel_") and again.get_params() == model.get_params()
    values, arrays = model.get_state()
    assert all(isinstance(a, np.ndarray) for a in arrays.values())
    for copy in (pickle.loads(pickle.dumps(model)), learner.from_state(json.loads(json.dumps(values)), arrays)):
        np.testing.assert_allclose(copy.predict(x), model.predict(x), rtol=1e-12)
        assert repr(copy.kernel_) == repr(model.kernel_) and copy.plan_ == model.plan_
        if learner is KernelClassifier:
            np.testing.assert_allclose(copy.predict_proba(x), model.predict_proba(x), rtol=1e-12)
        else:
            np.testing.assert_allclose(copy.predict_interval(x), model.predict_interval(x), rtol=1e-10)
    if learner is GaussianProcessRegressor:
        loaded = learner.from_state(values, arrays)
        np.testing.assert_allclose(loaded.predict(x, True)[1], model.predict(x, True)[1], rtol=1e-10)
        with pytest.raises(StructureError, match="training targets"):
            loaded.log_marginal_likelihood()


@pytest.mark.parametrize("learner", [*REGRESSORS, NeighbourRidge])
def test_containers_and_outputs(learner: Any) -> None:
    pandas, polars = pytest.importorskip("pandas"), pytest.importorskip("polars")
    x, y = problem(80, outputs=2)
    wanted = learner(random_state=0).fit(x, y).predict(x)
    assert wanted.shape == (80, 2)
    names = ["a", "b", "c"]
    for frame in (pandas.DataFrame(x, columns=names), polars.DataFrame(x, schema=names)):
        model = learner(random_state=0).fit(frame, y)
        np.testing.assert_allclose(model.predict(frame), wanted, rtol=1e-10)
        assert list(model.feature_names_in_) == names
    tensor = torch.tensor(x, dtype=torch.float32)
    model = learner(random_state=0).fit(tensor, torch.tensor(y))
    found = model.predict(tensor)
    assert isinstance(found, torch.Tensor) and found.dtype == torch.float32
    np.testing.assert_allclose(found, wanted, atol=1e-3)
    assert isinstance(model.predict_interval(tensor)[0], torch.Tensor)


def test_a_kernel_given_is_cloned_and_learned() -> None:
    x, y = problem()
    kernel = Gaussian(5.0)
    model = KernelRidge(kernel, random_state=0).fit(x, y)
    assert float(kernel.lengthscale.detach()) == pytest.approx(5.0) and float(model.kernel_.lengthscale) < 4
    fixed = KernelRidge(kernel, 0.3, learn=False).fit(x, y)
    assert float(fixed.kernel_.lengthscale) == pytest.approx(5.0) and fixed.alpha_ == 0.3
    assert KernelRidge(kernel, 0.3).fit(x, y).alpha_ == 0.3
    assert (
        KernelRidge(random_state=3).fit(x, y).predict(x).tolist()
        == KernelRidge(random_state=3).fit(x, y).predict(x).tolist()
    )


def test_bad_arguments_are_named() -> None:
    x, y = problem()
    with pytest.raises(ValueError, match="alpha"):
        KernelRidge(alpha=-1.0).fit(x, y)
    with pytest.raises(ValueError, match="noise"):
        GaussianProcessRegressor(noise=0.0).fit(x, y)
    with pytest.raises(TypeError, match="kernel"):
        KernelRidge(kernel="rbf").fit(x, y)
    with pytest.raises(StructureError, match="psd"):
        KernelRidge(kernel=Riesz()).fit(x, y)


def test_interrupting_keeps_the_best_so_far() -> None:
    x, y = problem(200)
    seen = []

    def progress(what: str, value: float) -> None:
        seen.append(value)
        if len(seen) == 5:
            raise KeyboardInterrupt

    model = KernelRidge(random_state=0, progress=progress).fit(x, y)
    assert model.plan_.interrupted and "interrupted" in model.plan_.sentence and len(seen) == 5
    assert model.score(x, y) > 0.5


def test_seconds_are_kept_softly() -> None:
    x, y = problem(4000, 6)
    model = KernelRidge(random_state=0, time_budget=0.5).fit(x, y)
    assert model.score(x, y) > 0.5 and model.plan_.algorithm != "cholesky"  # the factor alone would take longer


def test_variance_is_zero_at_noiseless_rows_and_never_negative() -> None:
    x = np.linspace(-3, 3, 40)[:, None]
    y = np.sin(x[:, 0])
    model = GaussianProcessRegressor(Gaussian(0.8), 1e-8, learn=False).fit(x, y)
    deviation = model.predict(np.concatenate([x, x + 10]), return_std=True)[1]
    assert (deviation[:40] < 1e-3).all() and deviation[-1] == pytest.approx(1.0, rel=1e-3)
    model._roots = [1.1 * torch.eye(40, dtype=torch.float64) * 1e-3]  # a factor of another matrix
    with pytest.raises(NotPositiveDefiniteError, match="variance"):
        model.predict(x, return_std=True)


def test_process_beyond_the_factor_agrees_with_the_exact_one() -> None:
    x, y = problem(700, 2)
    kernel = Gaussian(1.0).scale(1.5)
    whole_one = GaussianProcessRegressor(kernel, 0.05, learn=False).fit(x, y)
    with memory("8M"):
        parted = GaussianProcessRegressor(kernel, 0.05, learn=False, random_state=0).fit(x, y)
    assert parted.plan_.algorithm == "nystrom" and parted.plan_.landmarks < 700
    new = rng(5).normal(size=(50, 2))
    (mean, deviation), (about, spread) = whole_one.predict(new, True), parted.predict(new, True)
    np.testing.assert_allclose(about, mean, atol=0.03)
    np.testing.assert_allclose(spread, deviation, atol=0.03)


@pytest.mark.parametrize(
    "kernel",
    [
        Gaussian(torch.tensor([1.0, 2.0])),
        Matern(1.5, 0.7).scale(2.0) + Linear() * 0.3,
        Laplace(2.0).on([1]) * Gaussian().on([0, 1]),
        Constant(2.0) + Gaussian(0.5),
        kernels.RationalQuadratic(),
        kernels.Periodic(),
        kernels.Polynomial(3),
    ],
    ids=repr,
)
def test_kernels_as_plain_data(kernel: Any) -> None:
    again = from_spec(json.loads(json.dumps(to_spec(kernel))))
    x = torch.tensor(rng().normal(size=(9, 2)))
    assert repr(again) == repr(kernel)
    torch.testing.assert_close(again.block(x, x), kernel.block(x, x), rtol=1e-14, atol=0)


@pytest.mark.parametrize(
    "spec",
    [
        None,
        {"name": "os.system", "arguments": {}},
        {"name": "Gaussian", "arguments": {"lengthscale": float("nan")}},
        {"name": "Gaussian", "arguments": {"lengthscale": -1.0}},
        {"name": "Gaussian", "arguments": {"width": 1.0}},
        {"name": "Gaussian"},
        {"name": "Columns", "columns": ["0"], "of": {"name": "Gaussian", "arguments": {"lengthscale": 1.0}}},
        {"name": "Kernel", "arguments": {}},
    ],
)
def test_strange_specs_are_refused(spec: Any) -> None:
    with pytest.raises(StructureError):
        from_spec(spec)


def test_code_is_not_saved() -> None:
    with pytest.raises(StructureError, match="module"):
        to_spec(Gaussian().warp(nn.Linear(2, 2)))

    class Mine(Gaussian):  # type: ignore[misc]
        pass

    with pytest.raises(StructureError, match="not one of mercer's"):
        to_spec(Mine())


def test_scaler_is_monotone_robust_and_keeps_constants() -> None:
    random = rng()
    column = np.concatenate([random.normal(size=997) * 3 + 50, [1e9, -1e9, 1e5]])
    table = np.stack([column, np.full(1000, 4.0), random.integers(0, 2, 1000)], 1)
    z = Scaler.fit(table)(table).numpy()
    order = np.argsort(column)
    assert (np.diff(z[order, 0]) >= 0).all() and np.abs(z[:, 0]).max() < 30
    assert np.std(z[:997, 0]) == pytest.approx(1, rel=0.1)
    assert (z[:, 1] == 0).all() and set(z[:, 2]) <= {-2.0, 0.0, 2.0}


def test_target_goes_there_and_back() -> None:
    y = 1e12 + 1e9 * rng().normal(size=(50, 2))
    scale, scaled = Target.fit(y)
    np.testing.assert_allclose(scale.back(scaled.numpy()), y, rtol=1e-12)
    assert float(scaled.mean()) == pytest.approx(0, abs=1e-9) and float(scaled.std()) == pytest.approx(1, rel=0.02)


def test_a_flag_that_says_nothing_does_not_set_rows_apart() -> None:
    """Forty flagged rows of four hundred: a kernel that isolates them is traded for one that shares what is known."""
    random = rng(3)
    x = np.stack([random.uniform(-2, 2, 400), np.where(random.uniform(size=400) < 0.1, 1.0, -1.0)], 1)
    y = np.sin(4 * x[:, 0]) + 0.1 * random.normal(size=400)
    apart = Laplace([1.0, 0.05])
    table, target = torch.tensor(x), torch.tensor((y - y.mean()) / y.std())[:, None]
    judge = KernelRidge()._judge
    kernel, noise = refine(apart, 0.05, table, target, judge, Clock.of(None), 1e-6, flags_only=True)
    assert noise == 0.05
    assert kernel.lengthscale[1] > 3 * apart.lengthscale[1] and torch.equal(kernel.lengthscale[0], apart.lengthscale[0])
    same, _ = refine(Laplace([1.0, 2.0]), 0.05, table[:, :1].expand(-1, 2), target, judge, Clock.of(None), 1e-6, True)
    assert torch.allclose(same.lengthscale, Laplace([1.0, 2.0]).lengthscale)


@pytest.mark.parametrize("learner", [*REGRESSORS, KernelClassifier])
def test_a_table_copied_four_times_teaches_what_it_taught_once(learner: Any) -> None:
    """Copies would predict each other: left-out errors and likelihood would praise a model without noise."""
    x, clean = problem(150, 3, seed=4)
    y = clean + 0.4 * rng(5).normal(size=150)
    y = (y > 0).astype(int) if learner is KernelClassifier else y
    plain, copied = (learner(random_state=0).fit(np.tile(x, (k, 1)), np.tile(y, k)) for k in (1, 4))
    new = rng(6).normal(size=(300, 3))
    guess = [m.predict_proba(new) if learner is KernelClassifier else m.predict(new) for m in (plain, copied)]
    assert float(np.square(guess[0] - guess[1]).mean()) < 0.01 * float(guess[0].var())
    if learner is not KernelClassifier:
        width = [np.subtract(*m.predict_interval(new, 0.9)[::-1]).mean() for m in (plain, copied)]
        assert width[1] == pytest.approx(width[0], rel=0.15)


@pytest.mark.parametrize(
    ("x", "places"),
    [
        (np.tile(rng(0).normal(size=(100, 2)), (3, 1)), 100),
        (np.repeat(rng(0).normal(size=(300, 1)), 3, 0), 300),
        (np.tile(rng(0).permutation(125_000)[:300, None] // [2500, 50, 1] % 50, (2, 1)), 300),
        (rng(0).normal(size=(60, 3))[rng(2).integers(0, 60, 900)], 60),  # a design, measured again
        (rng(0).normal(size=(900, 2)), None),
        (rng(0).integers(0, 4, size=(900, 3)), None),  # categories
        (rng(0).integers(0, 2, size=(900, 6)), None),  # logic
        (np.repeat([[1.0], [2.0], [5.0], [9.0]], 50, 0), None),  # four doses
    ],
)
def test_places_seen_again_are_told_from_columns_of_few_values(x: np.ndarray, places: int | None) -> None:
    table = torch.tensor(x, dtype=torch.float64)
    found = Repeats.of(table)
    if places is None:
        assert found is None
        return
    assert found is not None and len(found.sizes) == places == len(np.unique(x, axis=0))
    y = torch.tensor(rng(3).normal(size=(len(x), 2)))
    alike = (table[:, None] == table).all(2).double()  # means by a dense loop over equal rows
    assert torch.allclose(found.means(y)[torch.from_numpy(found.place)], alike @ y / alike.sum(1, keepdim=True))
    assert torch.equal(table[found.picked][found.place], table)


def twice(n: int = 60) -> tuple[torch.Tensor, torch.Tensor, Repeats]:
    """Rows of which places have one to four."""
    places = torch.tensor(rng(0).normal(size=(n, 2)))
    x = places[torch.tensor(np.repeat(np.arange(n), 1 + np.arange(n) % 4))]
    y = torch.tensor(rng(1).normal(size=(len(x), 2))) + x[:, :1] ** 2
    found = Repeats.of(x)
    assert found is not None
    return x, y, found


@pytest.mark.parametrize("run", [exact, whole, normal, falkon])
def test_means_with_shares_of_the_noise_are_the_fit_of_all_rows(run: Any) -> None:
    """And leaving out a mean leaves out the block of its rows: (A^-1)_BB^-1 (A^-1 y)_B, from all of A."""
    x, y, twins = twice()
    kernel, noise = Matern(2.5, 1.5), 0.3
    a = kernel.block(x, x) + noise * torch.eye(len(x), dtype=torch.float64)
    wanted = y - noise * torch.linalg.solve(a, y)  # K (K + noise I)^-1 y
    places, means, shares = x[twins.picked], twins.means(y), twins.shares(noise, noise)
    plan, generator = choose(len(places)), torch.Generator().manual_seed(0)
    plan = dataclasses.replace(plan, landmarks=len(places))
    extra = (Clock.of(None),) if run is exact else (generator, Clock.of(None))
    found = run(kernel, noise, places, means, plan, [], *extra, shares)
    fitted = kernel.block(places, found.points.double()) @ found.weights.double()
    torch.testing.assert_close(fitted[twins.place], wanted, atol=1e-9 if run is exact else 0.02, rtol=0)
    if run is exact:
        inverse = a.inverse()
        for g in (1, 6, 11):
            block = torch.from_numpy(np.flatnonzero(twins.place == g))
            residual = torch.linalg.solve(inverse[block][:, block], (inverse @ y)[block])
            torch.testing.assert_close(y[block] - found.left_out[g], residual)


@pytest.mark.parametrize("learner", REGRESSORS)
def test_landmarks_and_their_blocks_stay_within_the_memory(learner: Any) -> None:
    """A Gaussian process took 3,000 landmarks whatever the budget."""
    x, y = problem(1600, 10)
    model = learner(Matern(2.5, 3.0), 0.1, learn=False, random_state=0)
    with memory("40M"):
        peak = peak_bytes(lambda: model.fit(x, y))
    assert learner is KernelRidge or 0 < model.plan_.landmarks <= (40 * 2**20 / 96) ** 0.5
    assert peak < 40 * 2**20


def test_the_likelihood_of_twins_is_that_of_all_rows() -> None:
    x, y, _ = twice()
    kernel = Gaussian(1.3)
    model = GaussianProcessRegressor(kernel, 0.3, learn=False, standardize=False).fit(x.numpy(), y.numpy())
    a = kernel.block(x, x).detach() + 0.3 * torch.eye(len(x), dtype=torch.float64)
    normal_law = torch.distributions.MultivariateNormal(torch.zeros(len(x), dtype=torch.float64), a)
    assert model.log_marginal_likelihood() == pytest.approx(float(normal_law.log_prob(y.mT).sum()), rel=1e-9)
    theta, step = model.theta_, 1e-5
    each = [model.log_marginal_likelihood(theta + e) for e in (np.array([0, step]), np.array([0, -step]))]
    slope = model.log_marginal_likelihood(theta, eval_gradient=True)[1]
    assert slope[-1] == pytest.approx((each[0] - each[1]) / (2 * step), rel=1e-5)


@pytest.mark.parametrize("learner", [*REGRESSORS, NeighbourRidge])
def test_a_row_measured_three_times_is_one_place_for_the_bands(learner: Any) -> None:
    """Noise of 0.5 for the place and 0.05 for each measurement: bands of 90 % held 13 % of rows at new places."""
    x = np.repeat(rng(0).normal(size=(300, 2)), 3, 0)
    new = rng(1).normal(size=(2000, 2))
    y = x[:, 0] ** 2 + x[:, 1] + np.repeat(0.5 * rng(2).normal(size=300), 3) + 0.05 * rng(3).normal(size=900)
    true = new[:, 0] ** 2 + new[:, 1] + 0.5 * rng(4).normal(size=2000)
    model = learner(random_state=0).fit(x, y)
    low, high = model.predict_interval(new)
    assert 0.85 < ((low <= true) & (true <= high)).mean() < 0.95
    assert model.score(new, true) > (0.86 if learner is NeighbourRidge else 0.9)


def test_a_table_without_noise_is_fitted_to_its_last_digits() -> None:
    """With a floor of 1e-6 the error was 0.005, and stretched lengthscales varied from fit to fit."""
    x, new = rng(0).normal(size=(200, 2)), rng(1).normal(size=(2000, 2))
    y, true = (np.round(z[:, 0] + z[:, 1] ** 2, 4) for z in (x, new))
    model = KernelRidge(random_state=0).fit(x, y)
    assert float(np.median(np.abs(model.predict(new) - true))) < 3e-4
    low, high = model.predict_interval(new, 0.9)
    assert 0.85 < ((low <= true) & (true <= high)).mean() < 0.96


def test_a_few_hard_rows_do_not_choose_the_kernel() -> None:
    usual, hard = torch.full((100,), 1.0), torch.full((100,), 1.05)
    hard[0] = -20.0  # the mean is less, thanks to one row
    assert float(hard.mean()) < 0.99 and not _better(hard, usual)
    assert _better(0.98 * usual, usual) and not _better(0.995 * usual, usual)


def test_iterations_that_go_astray_give_way_to_a_direct_solution() -> None:
    x = rng(0).normal(size=(5200, 4))
    y = x[:, 0] + x[:, 1] ** 2 + np.sin(2 * x[:, 2]) * x[:, 3]
    kernel = Gaussian([11.0, 2.3, 1.1, 5.9])
    model = KernelRidge(kernel, 1e-6, learn=False, random_state=0).fit(x[:5100], y[:5100])
    assert model.score(x[5100:], y[5100:]) > 0.999


@pytest.mark.parametrize("solve", [normal, falkon, whole])
def test_noise_that_would_be_learned_by_heart_is_seen_in_rows_held_out(solve: Any) -> None:
    """On rows that it has seen the least noise level is the best; on the fold left out the middle one is."""
    x, _ = problem(200, 2)
    y = np.sin(x[:, 0]) + rng(1).normal(size=200)
    fold, k, levels = folds_of(200, 0, skip=solve is not whole), gram(x, x, 0.8), [0.02, 2.0, 200.0]
    keep, errors = fold != 0, {}
    for level in levels:
        f = k[:, keep] @ np.linalg.solve(k[keep][:, keep] + level * np.eye(keep.sum()), y[keep])
        errors[level] = [np.square(f - y)[rows].mean() for rows in (keep, ~keep)]
    assert min(errors, key=lambda level: errors[level][0]) == 0.02
    assert min(errors, key=lambda level: errors[level][1]) == 2.0
    arguments = (torch.tensor(x), torch.tensor(y)[:, None], Plan("cg", 200, landmarks=200), [1e-2, 1e2])
    found = solve(Gaussian(0.8), 2.0, *arguments, torch.Generator().manual_seed(0), Clock.of(None))
    assert found.noise == pytest.approx(2.0)
