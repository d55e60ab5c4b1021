"""Variational Gaussian processes against exact ones, formulas typed from the papers and brute-force integrals."""

from __future__ import annotations

import copy
import itertools
import math
import pickle
import re
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from scipy import integrate, optimize, stats
from sklearn.datasets import load_iris, make_moons
from sklearn.gaussian_process import GaussianProcessRegressor as PeerProcess
from sklearn.gaussian_process.kernels import RBF, ConstantKernel
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import train_test_split
from sklearn.utils.estimator_checks import parametrize_with_checks

from mercer.budget import memory
from mercer.errors import (
    ConvergenceWarning,
    DataError,
    MemoryBudgetError,
    OutlierWarning,
    ShapeError,
    StructureError,
)
from mercer.kernels import Constant, Gaussian, Matern, Riesz
from mercer.learn import VariationalGaussianProcess, VariationalGaussianProcessClassifier, sparse
from mercer.learn.ascend import Course, _Whole
from mercer.learn.inducing import Inducing, Posterior, Seen, Sums, settle, sums
from mercer.learn.likelihoods import Bernoulli, GaussianNoise, Observation, Poisson, StudentNoise
from mercer.learn.tune import Clock
from tests.peak import peak_bytes

MODELS = {
    "gaussian": GaussianNoise(0.3), "student_t": StudentNoise(0.3, 4.0), "poisson": Poisson(), "bernoulli": Bernoulli()
}  # fmt: skip
DENSITY = {  # log p(y | f), from scipy
    "gaussian": lambda y, f: stats.norm.logpdf(y, f, math.sqrt(0.3)),
    "student_t": lambda y, f: stats.t.logpdf(y, 4, f, math.sqrt(0.3)),
    "poisson": lambda y, f: stats.poisson.logpmf(y, np.exp(f)),
    "bernoulli": lambda y, f: stats.norm.logcdf(y * f),
}
SEEN = {"gaussian": [0.7, -1.2], "student_t": [0.4, -3.0], "poisson": [4.0, 0.0], "bernoulli": [1.0, -1.0]}


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def problem(n: int = 60, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = rng(seed)
    x = random.uniform(-2, 2, size=(n, 2))
    return x, np.sin(2 * x[:, 0]) * x[:, 1] + 0.2 * random.normal(size=n)


def gram(x: np.ndarray, z: np.ndarray, lengthscale: np.ndarray, variance: float) -> np.ndarray:
    return variance * np.exp(-(((x[:, None] - z[None]) / lengthscale) ** 2).sum(-1) / 2)


SCALES = np.array([1.2, 0.7])


def kernel() -> Any:
    return Gaussian(torch.tensor(SCALES)).scale(1.7)


@parametrize_with_checks(
    [
        VariationalGaussianProcess(landmarks=8, time_budget=0.01),
        VariationalGaussianProcessClassifier(landmarks=8, time_budget=0.01),
    ]
)
def test_scikit_learn_checks(estimator: Any, check: Any) -> None:
    check(estimator)


def test_with_every_row_a_landmark_it_is_the_exact_process() -> None:
    x, y = problem()
    mine = VariationalGaussianProcess(kernel(), noise=0.05, landmarks=x, learn=False).fit(x, y)
    theirs = PeerProcess(ConstantKernel(1.7) * RBF(SCALES), alpha=0.05, optimizer=None).fit(x, y)
    new = rng(1).uniform(-2.5, 2.5, size=(40, 2))
    for found, wanted in zip(mine.predict(new, return_std=True), theirs.predict(new, return_std=True), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-9)
    assert mine.bound_ == pytest.approx(theirs.log_marginal_likelihood(theirs.kernel_.theta), abs=1e-8)
    mean, deviation = theirs.predict(new, return_std=True)
    density = stats.norm.logpdf(0.3, mean, np.sqrt(deviation**2 + 0.05))
    np.testing.assert_allclose(mine.log_predictive_density(new, np.full(40, 0.3)), density, atol=1e-8)


def test_bound_is_the_collapsed_one_of_titsias() -> None:
    """log N(y | 0, Q + s I) - tr(K - Q) / (2 s), Q = K_nm K_mm^-1 K_mn, in dense matrices; two outputs add."""
    x, y = problem()
    both = np.stack([y, y[::-1] * 2], 1)
    z = rng(3).uniform(-2, 2, size=(12, 2))
    mine = VariationalGaussianProcess(kernel(), noise=0.05, landmarks=z, learn=False).fit(x, both)
    cross = gram(x, z, SCALES, 1.7)
    middle = gram(z, z, SCALES, 1.7)
    q = cross @ np.linalg.solve(middle, cross.T)
    value = -60 * 2 * (1.7 / 0.1) + 2 * np.trace(q) / 0.1
    covariance = q + 0.05 * np.eye(60)
    value += sum(stats.multivariate_normal(np.zeros(60), covariance).logpdf(c) for c in both.T)
    assert mine.bound_ == pytest.approx(value, rel=1e-8)
    new = rng(1).uniform(-2, 2, size=(9, 2))
    inner = np.linalg.inv(middle + cross.T @ cross / 0.05)  # Titsias' optimal q, eq. 10
    wanted = gram(new, z, SCALES, 1.7) @ inner @ cross.T @ both / 0.05
    np.testing.assert_allclose(mine.predict(new), wanted, atol=1e-8)


def test_the_bound_is_below_the_evidence_and_rises_with_landmarks() -> None:
    x, y = problem()
    exact = stats.multivariate_normal(np.zeros(60), gram(x, x, SCALES, 1.7) + 0.05 * np.eye(60)).logpdf(y)
    fits = [VariationalGaussianProcess(kernel(), noise=0.05, landmarks=x[:m], learn=False) for m in (2, 5, 20, 40, 60)]
    bounds = [fit.fit(x, y).bound_ for fit in fits]
    assert all(a < b for a, b in itertools.pairwise(bounds))
    assert bounds[-2] < exact and bounds[-1] == pytest.approx(exact, abs=1e-8)


def build(name: str, x: torch.Tensor, z: torch.Tensor, outputs: int = 1) -> Inducing:
    observed = copy.deepcopy(MODELS[name]).requires_grad_(True)
    return Inducing(kernel(), z, observed, torch.full((outputs,), 0.2, dtype=torch.float64), 0.0)


@pytest.mark.parametrize("name", MODELS)
def test_gradients_by_finite_differences(name: str) -> None:
    """Kernel, noise and landmarks; q is at its best at every point, so this is the slope of the profiled bound."""
    x = torch.tensor(problem(15)[0])
    y = torch.tensor([SEEN[name][i % 2] for i in range(15)], dtype=torch.float64)[:, None]
    model = build(name, x, x[:4] + 0.1)
    target = _Whole(model, Posterior.prior(4, 1), x, y, Course(Clock.of(None), 1.0))
    theta = target.theta()
    slope = target.evaluate()[1]
    assert len(theta) == 3 + 8 + (name in ("gaussian", "student_t"))
    for i in range(len(theta)):
        values = []
        for step in (1e-5, -1e-5):
            moved = theta.copy()
            moved[i] += step
            target.move(moved)
            values.append(target.evaluate()[0])
        assert (values[0] - values[1]) / 2e-5 == pytest.approx(slope[i], rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("name", ["student_t", "poisson", "bernoulli", "gaussian"])
def test_two_points_by_brute_force(name: str) -> None:
    """The best Gaussian q of two values found by a general optimiser, its expectations by adaptive integrals."""
    x, y = np.array([[0.0, 0.0], [0.5, 0.2]]), np.array(SEEN[name])
    prior = gram(x, x, SCALES, 1.7)
    at = np.linspace(-9, 9, 4001)
    weight = stats.norm.pdf(at) * (at[1] - at[0])

    def loss(theta: np.ndarray) -> float:
        mean, root = theta[:2], np.array([[math.exp(theta[2]), 0], [theta[3], math.exp(theta[4])]])
        s = root @ root.T
        spread = np.sqrt(np.diag(s))
        expected = sum(weight @ DENSITY[name](y[i], mean[i] + 0.2 + spread[i] * at) for i in (0, 1))
        inner = np.linalg.solve(prior, s)
        divergence = np.trace(inner) + mean @ np.linalg.solve(prior, mean) - 2 - np.linalg.slogdet(inner)[1]
        return 0.5 * divergence - expected

    best = optimize.minimize(loss, np.zeros(5), method="BFGS", options={"gtol": 1e-7})
    model = build(name, torch.tensor(x), torch.tensor(x))
    with torch.no_grad():
        seen = model.see(torch.tensor(x), torch.tensor(y)[:, None], model.lower())
        found = settle(model, Posterior.prior(2, 1), lambda: [seen], 200, 1e-13)
        mean, variance = model.latent(found.q, seen)
    # a quadrature of 40 nodes is exact to 1e-5 for the tails of Student's t, to rounding for the others
    close = 2e-3 if name == "student_t" else 1e-5
    assert found.bound == pytest.approx(-best.fun, abs=close)
    np.testing.assert_allclose(mean[:, 0] - 0.2, best.x[:2], atol=close)
    spread = [math.exp(best.x[2]) ** 2, best.x[3] ** 2 + math.exp(best.x[4]) ** 2]
    np.testing.assert_allclose(variance[:, 0], spread, atol=close)

    half = np.linalg.cholesky(prior)
    f = 0.2 + np.stack(np.meshgrid(at[::10], at[::10], indexing="ij"), -1) @ half.T  # the true posterior on a grid
    density = np.outer(weight[::10], weight[::10]) * 100
    density *= np.exp(DENSITY[name](y[0], f[..., 0]) + DENSITY[name](y[1], f[..., 1]))
    assert found.bound <= math.log(density.sum()) + 1e-6
    truth = (density[..., None] * f).sum((0, 1)) / density.sum()
    np.testing.assert_allclose(mean[:, 0], truth, atol=1e-5 if name == "gaussian" else 0.12)


@pytest.mark.parametrize("name", MODELS)
def test_predictive_densities_moments_and_quantiles_by_integration(name: str) -> None:
    model: Observation = MODELS[name].requires_grad_(False)
    for mean, variance, y in ((0.3, 0.5, SEEN[name][0]), (-1.0, 2.0, SEEN[name][1]), (1.5, 1e-4, SEEN[name][0])):
        wide = math.sqrt(variance)
        ends = (mean - 10 * wide, mean + 10 * wide)

        def against(value: Any, mean: float = mean, wide: float = wide, ends: Any = ends) -> float:
            return integrate.quad(
                lambda f: value(f) * stats.norm.pdf(f, mean, wide), *ends, epsabs=1e-12, limit=200, points=[mean]
            )[0]

        m, v, t = (torch.full((1, 1), float(value), dtype=torch.float64) for value in (mean, variance, y))
        density = against(lambda f, y=y: np.exp(DENSITY[name](y, f)))
        assert float(model.log_predictive(t, m, v)) == pytest.approx(math.log(density), abs=1e-7)
        wanted = against(lambda f, y=y: DENSITY[name](y, f))
        assert float(model.expected(t, m, v)) == pytest.approx(wanted, abs=2e-3 if name == "student_t" else 1e-6)
        of = {"poisson": np.exp, "bernoulli": stats.norm.cdf}.get(name, lambda f: f)
        centre, deviation = model.moments(m, v)
        first = against(of)
        assert float(centre) == pytest.approx(first, rel=1e-6)
        assert float(deviation) == pytest.approx(
            math.sqrt(against(lambda f, c=first, of=of: (of(f) - c) ** 2)), rel=1e-5
        )
        for p in (0.05, 0.9):
            found = float(model.quantile(p, m.numpy(), v.numpy())[0, 0])
            if name == "poisson":
                below = [against(lambda f, k=k: stats.poisson.cdf(k, np.exp(f))) for k in (found - 1, found)]
                assert below[0] < p <= below[1]
            elif name == "bernoulli":
                assert found == (1.0 if float(centre) >= 1 - p else -1.0)
            else:
                cdf = stats.norm(0, math.sqrt(0.3)).cdf if name == "gaussian" else stats.t(4, 0, math.sqrt(0.3)).cdf
                assert against(lambda f, q=found, cdf=cdf: cdf(q - f)) == pytest.approx(p, abs=1e-6)


def test_a_step_keeps_the_covariance_definite_where_log_p_is_not_concave() -> None:
    q = Posterior.prior(3, 1)
    bad = Sums(0.0, torch.zeros(3, 1, dtype=torch.float64), -5 * torch.eye(3, dtype=torch.float64)[None], 0.0)
    assert q.moved(bad, 1.0, True) is None
    new = q.moved(bad, 1.0, False)
    assert new is not None  # I - 5 I + 25 I / 2
    torch.testing.assert_close(new.root @ new.root.mT, 8.5 * torch.eye(3, dtype=torch.float64)[None])


def test_divergence_by_the_formula() -> None:
    root = torch.tensor([[[2.0, 0.0], [0.3, 0.8]], [[0.5, 0.0], [-1.0, 3.0]]], dtype=torch.float64)
    mean = torch.tensor([[0.3, 1.0], [-0.7, 0.1]], dtype=torch.float64)
    p, q = torch.distributions.MultivariateNormal(torch.zeros(2, dtype=torch.float64), torch.eye(2).double()), []
    for c in (0, 1):
        q.append(torch.distributions.MultivariateNormal(mean[:, c], precision_matrix=root[c] @ root[c].T))
    wanted = sum(float(torch.distributions.kl_divergence(each, p)) for each in q)
    assert Posterior(mean, root).divergence() == pytest.approx(wanted, rel=1e-12)


def test_sums_over_blocks_are_those_of_all_rows() -> None:
    x = torch.tensor(problem(30)[0])
    y = torch.tensor(rng(2).poisson(2.0, size=(30, 2)).astype(float))
    model = build("poisson", x, x[:6], 2)
    with torch.no_grad():
        lower = model.lower()
        q = settle(model, Posterior.prior(6, 2), lambda: [model.see(x, y, lower)], 3, 0.0).q
        whole = sums(model, q, [model.see(x, y, lower)])
        parts = sums(model, q, [model.see(x[a : a + 7], y[a : a + 7], lower) for a in range(0, 30, 7)])
        twice = sums(model, q, [model.see(x, y, lower, 2.0)])
    assert parts.bound == pytest.approx(whole.bound, rel=1e-12)
    torch.testing.assert_close(parts.bend, whole.bend)
    torch.testing.assert_close(parts.slope, whole.slope)
    assert twice.expected == pytest.approx(2 * whole.expected, rel=1e-12)
    torch.testing.assert_close(twice.slope, 2 * whole.slope)


def simulated(name: str, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = rng(5)
    x = random.uniform(-3, 3, size=(n, 1))
    f = np.sin(2 * x[:, 0])
    if name == "poisson":
        return x, random.poisson(np.exp(1 + f)).astype(float), np.exp(1 + f)
    noise = 0.3 * (random.standard_t(4, n) if name == "student_t" else random.normal(size=n))
    return x, 50 + 7 * (f + noise), 50 + 7 * f


@pytest.mark.parametrize("name", ["gaussian", "student_t", "poisson"])
def test_intervals_cover_and_the_mean_is_found(name: str) -> None:
    x, y, truth = simulated(name, 1900)
    model = VariationalGaussianProcess(Matern(2.5, 1.0).scale(1.0), name, landmarks=15, random_state=0)
    model.fit(x[:400], y[:400])
    low, high = model.predict_interval(x[400:], 0.9)
    cover = ((low <= y[400:]) & (y[400:] <= high)).mean()
    # 1,500 rows: one standard error is 0.8 %; a count's interval holds more than its chance, as counts are whole
    assert 0.87 < cover < (0.97 if name == "poisson" else 0.93)
    error = np.sqrt(np.mean((model.predict(x[400:]) - truth[400:]) ** 2))
    # about 12 free numbers learned from 400 counts of variance 3.4: 0.32 counts, a seventh of the signal
    assert error < (0.22 if name == "poisson" else 0.15) * truth.std()
    grid = np.arange(60.0) if name == "poisson" else np.linspace(-150, 250, 4001)
    density = np.exp(model.log_predictive_density(np.full((len(grid), 1), 0.3), grid))
    assert density.sum() * (grid[1] - grid[0]) == pytest.approx(1, abs=1e-3)  # the tails beyond hold less
    assert model.history_[-1] == model.bound_ and model.history_[-1] > model.history_[0]
    if name != "poisson":  # 0.3 of the signal's scale, squared, in units of what y was divided by
        assert math.sqrt(model.noise_) * model.target_.scale[0] == pytest.approx(2.1, rel=0.12)


def test_heavy_tails_beat_normal_ones_where_there_are_outliers() -> None:
    x, y, truth = simulated("gaussian", 300)
    y[::10] += 150 * np.where(rng(1).random(30) < 0.5, -1, 1)
    error = {}
    for name in ("gaussian", "student_t"):
        model = VariationalGaussianProcess(Matern(2.5, 1.0).scale(1.0), name, landmarks=12, random_state=0).fit(x, y)
        error[name] = np.sqrt(np.mean((model.predict(x) - truth) ** 2))
    assert error["student_t"] < 0.4 * error["gaussian"]


@pytest.mark.parametrize("name", ["gaussian", "poisson"])
def test_batches_come_near_all_rows_at_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y, _ = simulated(name, 300)
    start = VariationalGaussianProcess(
        Matern(2.5, 1.0).scale(1.0), name, landmarks=12, batch_size=75, epochs=30, tolerance=1e-3, random_state=0
    ).fit(x, y)
    monkeypatch.setattr(sparse, "WHOLE", 100)
    batches = VariationalGaussianProcess(**start.get_params()).fit(x, y)
    assert batches.plan_.steps > 6 and "of 75 rows each" in batches.plan_.sentence
    assert abs(start.bound_ - batches.bound_) < 0.02 * 300  # nats for each row
    assert abs(batches.history_[-2] - batches.bound_) < 0.15 * 300  # what batches say of all rows
    wanted, deviation = start.predict(x, return_std=True)
    assert (np.abs(batches.predict(x) - wanted) < 0.5 * deviation).all()  # well inside what the data leave open
    with monkeypatch.context() as fewer:
        fewer.setattr(sparse, "MOVES", 0)
        if name == "poisson":
            with pytest.warns(ConvergenceWarning, match="nats for each row"):
                VariationalGaussianProcess(**{**start.get_params(), "epochs": 1}).fit(x, y)


def test_memory_maps_are_streamed(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    n = 30_000
    x = rng().uniform(-1, 1, size=(n, 40))
    y = x[:, 0] + 0.1 * rng(1).normal(size=n)
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    model = VariationalGaussianProcess(
        Matern(2.5, 6.0), noise=0.1, landmarks=x[:20], learn=False, standardize=False, random_state=0
    )
    peak = peak_bytes(lambda: model.fit(mapped, y))
    assert peak < 0.5 * x.nbytes
    there = VariationalGaussianProcess(**model.get_params()).fit(x, y)
    np.testing.assert_array_equal(model.predict(x[:10]), there.predict(x[:10]))
    broken = x.copy()
    broken[25_000, 3] = np.nan
    with pytest.raises(DataError, match="row 25000, column 3"):
        model.fit(broken, y)


def test_work_stays_in_the_memory_budget_or_says_what_fits() -> None:
    x, y = problem(300)
    with memory("1M"):
        model = VariationalGaussianProcess(landmarks=60, batch_size=1000, epochs=1, random_state=0)
        model.fit(x, y)
    assert 1 < int(re.findall(r"of (\d+) rows each", model.plan_.sentence)[0]) < 300
    assert model.plan_.memory <= 2**20
    with memory("1M"), pytest.raises(MemoryBudgetError, match="landmarks fit"):
        VariationalGaussianProcess(kernel(), landmarks=x, learn=False).fit(x, y)


def test_interruption_and_time_keep_what_was_learned() -> None:
    x, y = problem(200)

    def stop(what: str, value: float) -> None:
        if what == "evidence lower bound":
            raise KeyboardInterrupt

    model = VariationalGaussianProcess(landmarks=10, progress=stop, random_state=0).fit(x, y)
    assert model.plan_.interrupted and "interrupted" in model.plan_.sentence
    assert model.score(x, y) > 0.2 and len(model.history_) == 2  # where it began, with q at its best
    short = VariationalGaussianProcess(landmarks=10, time_budget=1e-3, random_state=0).fit(x, y)
    assert "give more time" in short.plan_.sentence and np.isfinite(short.bound_)


def test_labels_of_two_and_three_classes() -> None:
    x, y = make_moons(240, noise=0.25, random_state=0)
    a, b, ya, yb = train_test_split(x, np.where(y == 1, "up", "down"), test_size=0.5, random_state=0)
    model = VariationalGaussianProcessClassifier(landmarks=10, random_state=0).fit(a, ya)
    chances = model.predict_proba(b)
    line = LogisticRegression().fit(a, ya)
    assert log_loss(yb, chances) < 0.75 * log_loss(yb, line.predict_proba(b))
    assert (model.predict(b) == model.classes_[chances.argmax(1)]).all() and model.score(b, yb) > 0.9
    np.testing.assert_allclose(model.log_predictive_density(b, yb).mean(), -log_loss(yb, chances), rtol=1e-10)
    a, b, ya, yb = train_test_split(*load_iris(return_X_y=True), test_size=0.5, random_state=0)
    model = VariationalGaussianProcessClassifier(landmarks=6, random_state=0).fit(a, ya)
    np.testing.assert_allclose(model.predict_proba(b).sum(1), 1)
    assert model.score(b, yb) > 0.9
    with pytest.raises(DataError, match="label 7"):
        model.log_predictive_density(b[:1], [7])


def test_containers_and_copies() -> None:
    x, y = problem()
    both = np.stack([y, 3 * y + 1], 1)
    model = VariationalGaussianProcess(landmarks=10, random_state=0).fit(torch.tensor(x), torch.tensor(both))
    given = model.predict(torch.tensor(x))
    assert isinstance(given, torch.Tensor) and given.shape == (60, 2)
    # the second output is the first in other units
    torch.testing.assert_close(given[:, 1], 3 * given[:, 0] + 1, rtol=1e-6, atol=1e-6)
    again = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(again.predict(x), model.predict(x))
    density = model.log_predictive_density(x, both)
    assert density.shape == (60,)
    same = VariationalGaussianProcess(landmarks=10, random_state=0).fit(x, both)
    np.testing.assert_array_equal(same.predict(x), model.predict(x))
    flat = VariationalGaussianProcess(landmarks=5).fit(x, np.ones(60))
    np.testing.assert_allclose(flat.predict(x), 1, atol=1e-6)


def test_columns_in_other_units_change_nothing() -> None:
    x, y = problem(80)
    one = VariationalGaussianProcess(landmarks=15, random_state=0).fit(x, y).predict(x)
    other = (
        VariationalGaussianProcess(landmarks=15, random_state=0).fit(1e5 + 1e3 * x, 40 * y - 7).predict(1e5 + 1e3 * x)
    )
    np.testing.assert_allclose(other, 40 * one - 7, atol=1e-3)


def test_landmarks_at_one_place_get_jitter_that_is_said() -> None:
    x, y = problem()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        twins = VariationalGaussianProcess(kernel(), noise=0.05, landmarks=x[[0, 0, 0, 5]], learn=False).fit(x, y)
    assert twins.plan_.jitter > 0
    alone = VariationalGaussianProcess(kernel(), noise=0.05, landmarks=x[[0, 5]], learn=False).fit(x, y)
    assert twins.bound_ == pytest.approx(alone.bound_, rel=1e-6)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"likelihood": "normal"}, ValueError, "gaussian, student_t, poisson, bernoulli"),
        ({"likelihood": "bernoulli"}, ValueError, "VariationalGaussianProcessClassifier"),
        ({"likelihood": "poisson"}, DataError, "takes counts"),
        ({"likelihood": "student_t", "dof": 2.0}, ValueError, "dof is 2.0"),
        ({"landmarks": 0}, ValueError, "landmarks is 0"),
        ({"landmarks": np.zeros((3, 5))}, ShapeError, "points m 2"),
        ({"landmarks": np.full((3, 2), np.nan)}, DataError, "landmarks hold NaN"),
        ({"batch_size": 0}, ValueError, "batch_size is 0"),
        ({"epochs": 1.5}, ValueError, "epochs is 1.5"),
        ({"noise": -1.0}, ValueError, "noise is -1.0"),
        ({"time_budget": 0}, ValueError, "time_budget is 0"),
        ({"tolerance": -1}, ValueError, "tolerance is -1"),
        ({"kernel": "rbf"}, TypeError, "kernel is str"),
        ({"kernel": Riesz(1.0)}, StructureError, "psd"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    x, y = problem(20)
    with pytest.raises(error, match=message):
        VariationalGaussianProcess(**arguments, learn=False).fit(x, y)


def test_what_is_asked_of_a_fit_is_checked() -> None:
    x, y = problem(20)
    model = VariationalGaussianProcess(Constant(1.0), learn=False, noise=1.0, landmarks=1).fit(x, y)
    assert float(model.predict(x)[0]) == pytest.approx(y.sum() / 21, rel=1e-12)  # f is one number ~ N(0, 1)
    for coverage in (0.0, 1.0):
        with pytest.raises(ValueError, match="coverage"):
            model.predict_interval(x, coverage)
    with pytest.raises(ShapeError, match="y has shape"):
        model.log_predictive_density(x, np.zeros((20, 2)))
    assert Seen(torch.zeros(1, 1), torch.zeros(1), torch.zeros(1, 1)).weight == 1.0


def test_one_value_far_out_is_clipped_and_said() -> None:
    random = np.random.default_rng(0)
    x = random.normal(size=(300, 2))
    y = np.sin(x[:, 0]) + 0.1 * random.normal(size=300)
    wrong = y.copy()
    wrong[3] = 1e12
    with pytest.warns(OutlierWarning, match=r"1e\+12 at row 3"):
        model = VariationalGaussianProcess(landmarks=30, random_state=0).fit(x[:200], wrong[:200])
    assert model.score(x[200:], y[200:]) > 0.9
    heavy = VariationalGaussianProcess(likelihood="student_t", landmarks=30, random_state=0).fit(x[:200], wrong[:200])
    assert heavy.score(x[200:], y[200:]) > 0.9
