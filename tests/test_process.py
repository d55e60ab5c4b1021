"""Gaussian processes: scikit-learn, GPyTorch's numbers, dense algebra; sampled likelihoods, drawn functions, tasks."""

from __future__ import annotations

import json
import math
import pickle
from typing import Any

import numpy as np
import pytest
import sklearn.gaussian_process as peer
import sklearn.gaussian_process.kernels as pk
import torch
from sklearn.utils.estimator_checks import parametrize_with_checks
from torch import Tensor

from mercer.budget import memory, memory_budget
from mercer.errors import ConvergenceWarning, DataError, MemoryBudgetError, ShapeError, StructureError
from mercer.features import Fourier
from mercer.kernels import Gaussian, Kernel, Linear, Matern, Polynomial, RationalQuadratic
from mercer.learn import GaussianProcessRegressor, MultitaskGaussianProcess, multitask, process, stochastic, tasks
from mercer.learn.likelihood import Likelihood
from mercer.learn.pathwise import prior_draws
from mercer.learn.stochastic import StochasticLikelihood, Whole
from mercer.learn.tasks import Separable, Tasks, TasksLikelihood
from mercer.operators import Dense, Kronecker


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def wide(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def bend() -> torch.nn.Module:
    """Fixed: what is drawn from a global seed differs from run to run."""
    layer = torch.nn.Linear(2, 1, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(wide(0.5, -0.3))
        layer.bias.fill_(0.2)
    return layer


def problem(n: int = 60, d: int = 2, outputs: int = 1, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = rng(seed)
    x = random.normal(size=(n, d))
    y = np.stack([np.sin(x[:, 0] + c) * x[:, -1] + 0.1 * random.normal(size=n) for c in range(outputs)], 1)
    return x, y[:, 0] if outputs == 1 else y


# each: mercer's kernel, scikit-learn's, and where mercer's parameters stand in scikit-learn's theta
PAIRS = [
    (Gaussian(wide(1.2, 0.7)).scale(1.7), pk.ConstantKernel(1.7) * pk.RBF([1.2, 0.7]), [0, 1, 2]),
    (Matern(0.5, wide(0.9, 2.0)), pk.Matern([0.9, 2.0], nu=0.5), [0, 1]),
    (Matern(1.5, 0.8).scale(0.6), pk.ConstantKernel(0.6) * pk.Matern(0.8, nu=1.5), [0, 1]),
    (Matern(2.5, wide(0.5, 3.0)).scale(2.0), pk.ConstantKernel(2.0) * pk.Matern([0.5, 3.0], nu=2.5), [0, 1, 2]),
    (
        Gaussian(2.0).scale(1.5) + Matern(1.5, wide(0.4, 0.9)).scale(0.3),
        pk.ConstantKernel(1.5) * pk.RBF(2.0) + pk.ConstantKernel(0.3) * pk.Matern([0.4, 0.9], nu=1.5),
        [0, 1, 2, 3, 4],
    ),
]  # fmt: skip


@pytest.mark.parametrize("outputs", [1, 2])
@pytest.mark.parametrize(("kernel", "theirs", "order"), PAIRS, ids=lambda v: type(v).__name__)
def test_exact_processes_equal_those_of_scikit_learn(kernel: Kernel, theirs: Any, order: Any, outputs: int) -> None:
    x, y = problem(50, outputs=outputs)
    new = rng(1).normal(size=(12, 2))
    mine = GaussianProcessRegressor(kernel, 0.05, learn=False).fit(x, y)
    other = peer.GaussianProcessRegressor(theirs, alpha=0.05, optimizer=None).fit(x, y)
    close = {"rtol": 0, "atol": 1e-8}
    for ask in ("return_std", "return_cov"):
        (mean, spread), (wanted, theirs_) = mine.predict(new, **{ask: True}), other.predict(new, **{ask: True})
        np.testing.assert_allclose(mean, wanted, **close)
        assert spread.shape == theirs_.shape or ask == "return_std"
        np.testing.assert_allclose(spread, theirs_, **close)
    noisy = peer.GaussianProcessRegressor(theirs + pk.WhiteKernel(0.05), alpha=0, optimizer=None).fit(x, y)
    value, slope = mine.log_marginal_likelihood(eval_gradient=True)
    wanted, gradient = noisy.log_marginal_likelihood(noisy.kernel_.theta, eval_gradient=True)
    assert value == pytest.approx(wanted, abs=1e-8)
    np.testing.assert_allclose(slope, gradient[[*order, -1]], rtol=1e-8, atol=1e-8)
    assert mine.log_marginal_likelihood(return_error=True)[1] == 0
    moved = mine.theta_ + 0.3
    assert mine.log_marginal_likelihood(moved) == pytest.approx(
        noisy.log_marginal_likelihood(noisy.kernel_.theta + 0.3), abs=1e-8
    )


# GPyTorch 1.14's ExactGP in float64 by Cholesky on the points below: value, gradient in the logarithms of variance,
# lengthscales and noise, posterior mean, variance, and covariance of the first two new points
GPYTORCH = {
    "matern": (
        -9.704534363044626,
        [-4.222455295415415, 4.124418944213536, 3.766438922876452, -0.6925293234426876],
        [0.24428792725279727, -0.5212551699373285, 0.21244358887804088],
        [0.05978299393132369, 0.11202151734224786, 1.4436251524608825],
        0.005792188126831244,
    ),
    "gaussian": (
        -7.143287613756142,
        [-3.394609471736043, 4.525218923521314, 4.521235540721395, -1.4703666941054596],
        [0.25244747128396694, -0.5129619502669855, 0.094887662453765],
        [0.03400142140807172, 0.04033223172828215, 1.223723268628195],
        0.0015002015534593127,
    ),
}


@pytest.mark.parametrize("name", GPYTORCH)
def test_exact_processes_equal_the_numbers_of_gpytorch(name: str) -> None:
    i = np.arange(12.0)
    x = np.stack([np.sin(i), np.cos(1.7 * i)], 1)
    y = np.sin(2 * x[:, 0]) + 0.3 * x[:, 1]
    new = np.array([[0.1, 0.2], [-0.5, 0.9], [2.0, -1.0]])
    scales = wide(0.8, 1.3)
    kernel = (Matern(2.5, scales) if name == "matern" else Gaussian(scales)).scale(1.7)
    value, gradient, mean, variance, between = GPYTORCH[name]
    mine = GaussianProcessRegressor(kernel, 0.04, learn=False).fit(x, y)
    found, slope = mine.log_marginal_likelihood(eval_gradient=True)
    assert found == pytest.approx(value, abs=1e-8)
    np.testing.assert_allclose(slope, gradient, atol=1e-8)
    middle, cov = mine.predict(new, return_cov=True)
    np.testing.assert_allclose(middle, mean, atol=1e-8)
    np.testing.assert_allclose(np.diag(cov), variance, atol=1e-8)
    assert cov[0, 1] == pytest.approx(between, abs=1e-8)


CASES = [
    (kernel, noise, seed)
    for seed, (kernel, noise) in enumerate(
        [
            (lambda: Gaussian(0.7).scale(1.5), 0.1),
            (lambda: Matern(2.5, wide(0.7, 1.5)), 0.05),
            (lambda: Matern(0.5, 0.6).scale(2.0), 0.3),
            (lambda: RationalQuadratic(), 0.02),
            (lambda: Matern(1.5, 2.0) + Linear() * 0.5, 0.05),
        ]
        * 2
    )
]


def test_sampled_likelihoods_are_within_their_standard_errors_of_the_dense_ones() -> None:
    """24 values and 76 slopes: at least 90 % within three standard errors, and these are not idle."""
    inside, sizes = [], []
    for make, noise, seed in CASES:
        x, y = problem(220, outputs=2, seed=seed)
        part = (torch.tensor(x), torch.tensor(y))
        for profile in (True, False) if seed < 2 else (False,):
            value, slope = Likelihood(make(), noise, [part], profile).evaluate()
            target = StochasticLikelihood(make(), noise, [part], profile, rank=40, seed=seed, spread=True)
            found, gradient = target.evaluate()
            inside += [abs(found - value) < 3 * target.error + 1e-6]
            inside += list(np.abs(gradient - slope) < 3 * target.errors + 1e-6)
            sizes += list(target.errors / np.abs(slope).max())
    assert len(inside) > 45 and np.mean(inside) >= 0.9
    assert max(sizes) < 0.5 and np.median(sizes) < 0.05


def test_the_part_of_a_sampled_likelihood_that_is_not_random_is_exact() -> None:
    """With the same signs the difference between two y is that of the dense formula, gradient too."""
    x, y = problem(200, outputs=2)
    parts = [(torch.tensor(x), torch.tensor(v)) for v in (y, 0.5 * y[:, ::-1].copy())]
    kernel = Matern(2.5, wide(0.7, 1.5)).scale(1.3)
    kinds = {"dense": Likelihood, "sampled": StochasticLikelihood}
    found = {name: [kind(kernel, 0.05, [part], False).evaluate() for part in parts] for name, kind in kinds.items()}
    (a, b), (c, d) = found["dense"], found["sampled"]
    assert c[0] - d[0] == pytest.approx(a[0] - b[0], abs=1e-6)
    np.testing.assert_allclose(c[1] - d[1], a[1] - b[1], rtol=1e-6, atol=1e-6)


def test_sampled_likelihoods_count_independent_parts_and_shares_of_noise() -> None:
    x, y = problem(160)
    points, target = torch.tensor(x), torch.tensor(y)[:, None]
    share, beside = torch.rand(160, dtype=torch.float64) + 0.5, 0.1 * torch.rand(160, dtype=torch.float64)
    parts = [tuple(v[at] for v in (points, target, share, beside)) for at in (slice(0, 90), slice(90, 160))]
    value, slope = Likelihood(Gaussian(0.9), 0.1, parts, False).evaluate()
    found = StochasticLikelihood(Gaussian(0.9), 0.1, parts, False, probes=64, rank=60, spread=True)
    about, gradient = found.evaluate()
    assert abs(about - value) < 3 * found.error < 0.1 * abs(value)
    assert (np.abs(gradient - slope) < 4 * found.errors).all()
    with pytest.raises(ValueError, match="probes is 9"):
        StochasticLikelihood(Gaussian(), 0.1, parts, probes=9)


@pytest.mark.parametrize("twins", [False, True])
def test_conjugate_gradients_predict_as_the_factor_does(twins: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = problem(300, outputs=2)
    if twins:
        x[200:260] = x[:60]
    new = np.concatenate([rng(5).normal(size=(30, 2)), x[:5], [[50.0, 50.0]]])
    kernel = Matern(2.5, wide(1.0, 1.5)).scale(1.5)
    exact = GaussianProcessRegressor(kernel, 0.05, learn=False).fit(x, y)
    mine = GaussianProcessRegressor(kernel, 0.05, learn=False, method="cg", random_state=0).fit(x, y)
    assert mine.plan_.algorithm == "cg" and exact.plan_.algorithm == "cholesky" and (mine._shares is not None) == twins
    (mean, spread), (wanted, deviation) = mine.predict(new, return_std=True), exact.predict(new, return_std=True)
    np.testing.assert_allclose(mean, wanted, atol=1e-7)  # a residual of 1e-8 of y, over the noise
    variance, true = spread**2, deviation**2
    assert (variance > true * (1 - 1e-6)).all() and (variance < true * 1.0011).all()
    cov = mine.predict(new, return_cov=True)[1]
    np.testing.assert_allclose(cov, exact.predict(new, return_cov=True)[1], atol=1e-3 * float(variance.max()))
    np.testing.assert_allclose(np.diagonal(cov).T, variance, rtol=1e-6, atol=1e-9)  # of the second order too
    values, arrays = json.loads(json.dumps(mine.get_state()[0])), mine.get_state()[1]
    for again in (GaussianProcessRegressor.from_state(values, arrays), pickle.loads(pickle.dumps(mine))):
        for a, b in zip(again.predict(new, return_std=True), (mean, spread), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-9)
    few = mine.sample_functions(20, random_state=0)(new)
    monkeypatch.setattr(stochastic, "COPIES", memory_budget() // (8 * 300 * 7))  # seven columns at a time
    assert 2 < mine._engine(1).columns < 20
    np.testing.assert_allclose(mine.predict(new, return_std=True)[1], spread, rtol=6e-4)
    np.testing.assert_allclose(mine.sample_functions(20, random_state=0)(new), few, rtol=0, atol=1e-5)
    value, slope, error, errors = mine.log_marginal_likelihood(eval_gradient=True, return_error=True)
    wanted, gradient = exact.log_marginal_likelihood(eval_gradient=True)
    assert abs(value - wanted) < 4 * error + 1e-6
    assert (np.abs(slope - gradient) < 4.5 * errors + 1e-6).all()


def test_variances_by_iterations_are_bounded_from_both_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    x, _ = problem(300)
    points, new = torch.tensor(x), torch.tensor(rng(1).normal(size=(25, 2)))
    kernel, noise = Gaussian(0.5), torch.full((300,), 0.05, dtype=torch.float64)
    whole = Whole.of(kernel, points, noise, rank=30)
    k, cross = kernel.block(points, points).detach(), kernel.block(points, new).detach()
    true = 1 - (cross * torch.linalg.solve(k + torch.diag(noise), cross)).sum(0)
    for loose in (0.5, 0.05, 1e-3):
        monkeypatch.setattr(stochastic, "ACCURACY", loose)
        monkeypatch.setattr(stochastic, "FIRST", min(loose, 0.3))
        z, r, left = whole.explained(cross, torch.ones(25, dtype=torch.float64))
        over = 1 - (z * (cross + r)).sum(0) - true
        assert (over > -1e-9).all() and (over <= left + 1e-9).all() and (left < 1.01 * loose * true).all()
    monkeypatch.setattr(stochastic, "ROUNDS", 1)
    monkeypatch.setattr(stochastic, "FIRST", 0.9)
    monkeypatch.setattr(stochastic, "ACCURACY", 1e-6)
    with pytest.warns(ConvergenceWarning, match="variances may be too large by up to"):
        whole.explained(cross, torch.ones(25, dtype=torch.float64))


def test_the_method_is_the_callers_word(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = problem(300)
    for method, algorithm in (("exact", "cholesky"), ("cg", "cg"), ("landmarks", "nystrom"), (None, "cholesky")):
        model = GaussianProcessRegressor(Gaussian(), 0.05, learn=False, method=method).fit(x, y)
        assert model.plan_.algorithm == algorithm and "300" in model.plan_.sentence
    with memory("1M"), pytest.raises(MemoryBudgetError, match='take method="cg" or "landmarks"'):
        GaussianProcessRegressor(Gaussian(), 0.05, learn=False, method="exact").fit(x, y)
    with pytest.raises(ValueError, match="method is 'fast'; expected one of"):
        GaussianProcessRegressor(method="fast").fit(x, y)
    with pytest.raises(ValueError, match="both True"):
        model.predict(x, return_std=True, return_cov=True)


def test_conjugate_gradients_learn_from_all_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """What few rows taught is where learning from all rows begins, and their likelihood rises."""
    x, y = problem(240)
    monkeypatch.setattr(process, "STEPS", 6)
    monkeypatch.setattr(process.KernelRegressor, "_learned", lambda *_: (Matern(2.5, 6.0).scale(1.0), 0.5))
    found = []
    for last in (240, 239):  # rows up to which the dense likelihood saw them all
        monkeypatch.setattr(process, "LAST", last)
        model = GaussianProcessRegressor(Matern(2.5, 6.0), method="cg", random_state=0).fit(x, y)
        found.append(Likelihood(model.kernel_, model.noise_, [model._data], False).evaluate(gradient=False)[0])
    assert found[1] > found[0] + 100


def covariance_error(values: np.ndarray, mean: np.ndarray, cov: np.ndarray) -> tuple[float, float]:
    """The largest deviations of sampled means and covariances, in their standard errors; values: n count."""
    count = values.shape[1]
    size = np.sqrt(np.diag(cov) / count) + 1e-9
    spread = np.sqrt((np.outer(np.diag(cov), np.diag(cov)) + cov**2) / count) + 1e-9
    return np.abs((values.mean(1) - mean) / size).max(), np.abs((np.cov(values) - cov) / spread).max()


@pytest.mark.parametrize(
    ("kernel", "method"),
    [
        (Matern(2.5, wide(1.0, 1.5)).scale(1.5), None),
        (Matern(2.5, wide(1.0, 1.5)).scale(1.5), "cg"),
        (Gaussian(1.0), "landmarks"),
        (Polynomial(2).scale(0.3), None),
        ((Gaussian(0.7) + Linear()).scale(0.5), None),
        (Gaussian(0.7).on([0]) + Matern(1.5).warp(bend()), None),
    ],
)
def test_drawn_functions_have_the_moments_of_the_posterior(kernel: Kernel, method: str | None) -> None:
    """6 standard errors: the frequencies that draws share widen the tails; 5.2 was the worst of 100 runs."""
    x, y = problem(80)
    new = np.concatenate([rng(1).normal(size=(15, 2)), x[:3], [[4.0, 4.0]]])
    model = GaussianProcessRegressor(kernel, 0.05, learn=False, method=method, random_state=0).fit(x, y)
    drawn = model.sample_functions(2000, random_state=3)
    values = drawn(new)
    mean, cov = model.predict(new, return_cov=True)
    off = covariance_error(values, mean, cov)
    assert values.shape == (19, 2000) and max(off) < 6, off
    np.testing.assert_allclose(drawn(new[5:8]), values[5:8], atol=1e-9)  # the same functions
    again = model.sample_functions(2000, random_state=3)
    np.testing.assert_array_equal(again(new), values)
    assert np.abs(model.sample_functions(3, random_state=4)(new) - values[:, :3]).max() > 0.01


def test_drawn_functions_of_several_outputs_in_units_of_y_and_with_gradients() -> None:
    x, y = problem(60, outputs=2)
    y = y * [10.0, 0.1] + [100.0, -5.0]
    x = 50 + 8 * x
    x[0] = [200.0, 0.0]  # a tail that the scale of columns presses together
    model = GaussianProcessRegressor(noise=0.05, standardize=True, learn=False).fit(x, y)
    drawn = model.sample_functions(800, random_state=0, frequencies=100)
    new = np.concatenate([50 + 8 * rng(1).normal(size=(5, 2)), [[180.0, 40.0]]])
    values, (mean, cov) = drawn(new), model.predict(new, return_cov=True)
    assert values.shape == (6, 2, 800)
    for c in range(2):
        assert max(covariance_error(values[:, c], mean[:, c], cov[..., c])) < 4.5
    few = model.sample_functions(2, random_state=0, frequencies=50)
    point = torch.tensor(new, requires_grad=True)
    torch.testing.assert_close(few(point).detach(), torch.tensor(few(new)), rtol=0, atol=1e-9)
    assert torch.autograd.gradcheck(lambda p: few(p), (point,), eps=1e-5, atol=1e-4)


def test_draws_without_a_spectrum_are_remembered_and_have_no_gradient() -> None:
    x, y = problem(30)
    model = GaussianProcessRegressor(Polynomial(3), 0.1, learn=False).fit(x, y)
    drawn = model.sample_functions(3, random_state=0)
    first = drawn(x[:4])
    drawn(rng(3).normal(size=(6, 2)))
    np.testing.assert_allclose(drawn(x[[2, 2, 0]]), first[[2, 2, 0]], rtol=0, atol=1e-12)
    with pytest.raises(StructureError, match="no spectrum"):
        drawn(torch.tensor(x[:2], requires_grad=True))
    with memory("5M"), pytest.raises(MemoryBudgetError, match="by Cholesky needs"):
        drawn(rng(4).normal(size=(450, 2)))
    with pytest.raises(ValueError, match="count is 0"):
        model.sample_functions(0)
    features = Fourier(Gaussian(), 2, 40, torch.Generator().manual_seed(0))
    points = torch.tensor(x)
    found = prior_draws(features, 2, 4000, 10, torch.Generator().manual_seed(1))(points).detach().numpy()
    assert covariance_error(found, np.zeros(30), features.block(points, points).detach().numpy())[1] < 5


def model_of(terms: int, count: int = 3, seed: int = 0) -> Tasks:
    g = torch.Generator().manual_seed(seed)
    kernels: list[Kernel] = [Matern(2.5, wide(0.7, 1.2)), Gaussian(0.4)]
    weights = torch.randn(terms, count, 2, generator=g, dtype=torch.float64)
    own = torch.rand(terms, count, generator=g, dtype=torch.float64) + 0.1
    return Tasks(kernels[:terms], weights, own, torch.rand(count, generator=g, dtype=torch.float64) + 0.1)


def by_hand(model: Tasks, x: Tensor, z: Tensor) -> Tensor:
    """The prior covariance between all (row of x, task) and (row of z, task), a loop over tasks."""
    count = model.weights.shape[1]
    blocks = []
    for i in range(count):
        line = []
        for j in range(count):
            total = torch.zeros(len(x), len(z), dtype=torch.float64)
            for q, k in enumerate(model.kernels):
                b = (model.weights[q, i] * model.weights[q, j]).sum()
                total = total + (b + (model.log_own[q, i].exp() if i == j else 0)) * k.block(x, z)
            line.append(total)
        blocks.append(torch.stack(line, -1))
    return torch.stack(blocks, 1).reshape(len(x) * count, len(z) * count)


@pytest.mark.parametrize("gaps", [False, True])
@pytest.mark.parametrize("terms", [1, 2])
def test_the_likelihood_of_tasks_is_that_of_one_large_gaussian(terms: int, gaps: bool) -> None:
    model, g = model_of(terms), torch.Generator().manual_seed(1)
    x, y = (torch.randn(14, d, generator=g, dtype=torch.float64) for d in (2, 3))
    if gaps:
        y[::3, 1] = math.nan
        y[1, :2] = math.nan
    assert tasks.algorithm(model, y) == ("kronecker" if terms == 1 and not gaps else "cholesky")
    value, slope = TasksLikelihood(model, [(x, y)]).evaluate()
    seen = ~y.flatten().isnan()
    a = by_hand(model, x, x)[seen][:, seen] + torch.diag(model.log_noise.exp().repeat(14)[seen])
    wanted = torch.distributions.MultivariateNormal(torch.zeros(len(a), dtype=torch.float64), a)
    exact = wanted.log_prob(y.flatten()[seen])
    gradient = torch.cat([v.flatten() for v in torch.autograd.grad(exact, list(model.parameters()))])
    assert value == pytest.approx(exact.item(), abs=1e-8)
    np.testing.assert_allclose(slope[:-1], gradient, atol=1e-8)
    points = torch.cat([x.repeat_interleave(3, 0), torch.arange(3.0).repeat(14)[:, None].double()], 1)
    torch.testing.assert_close(model.block(points, points), by_hand(model, x, x), rtol=0, atol=1e-12)


def test_eigenvectors_of_rows_and_tasks_solve_as_the_kronecker_operator_does() -> None:
    g = torch.Generator().manual_seed(0)
    k = Gaussian(0.8).block(*[torch.randn(9, 2, generator=g, dtype=torch.float64)] * 2).detach()
    b = torch.randn(4, 4, generator=g, dtype=torch.float64)
    b = b @ b.mT
    y = torch.randn(9, 4, generator=g, dtype=torch.float64)
    claims = Gaussian().claims
    whole, mine = Kronecker(Dense(k, claims), Dense(b, claims)), Separable(k, b)
    torch.testing.assert_close(mine.solve(y).flatten(), whole.solve(y.flatten(), 1.0).value, rtol=0, atol=1e-10)
    assert mine.logdet() == pytest.approx(float(whole.logdet(1.0)), abs=1e-10)


@pytest.mark.parametrize("how", ["kronecker", "cholesky", "cg", "terms"])
def test_predictions_for_tasks_are_those_of_one_large_gaussian(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    random = rng(2)
    x, y, new = random.normal(size=(40, 2)), random.normal(size=(40, 3)), random.normal(size=(7, 2))
    if how in ("cholesky", "cg"):
        y[random.random(y.shape) < 0.3] = np.nan
    if how == "cg":
        monkeypatch.setattr(tasks, "EXACT_ROWS", 20)
    kernel = [Matern(2.5, wide(0.7, 1.2)), Gaussian(0.4)][: 2 if how == "terms" else 1]
    options: dict[str, Any] = {"terms": len(kernel), "learn": False, "standardize": False, "random_state": 0}
    model = MultitaskGaussianProcess(kernel, 0.2, **options).fit(x, y)
    assert model._how == ("cholesky" if how == "terms" else how)
    points, far, target = torch.tensor(x), torch.tensor(new), torch.tensor(y).flatten()
    noise = wide(0.2, 0.4, 0.05)
    model._tasks.log_noise.copy_(noise.log())
    model.noise_ = noise.numpy()
    model._solve(points, torch.tensor(y))
    mean, spread = model.predict(new, return_std=True)
    seen = ~target.isnan()
    with torch.no_grad():
        a = by_hand(model._tasks, points, points)[seen][:, seen] + torch.diag(noise.repeat(40)[seen])
        cross = by_hand(model._tasks, points, far)[seen]
        wanted = cross.mT @ torch.linalg.solve(a, target[seen])
        cov = by_hand(model._tasks, far, far) - cross.mT @ torch.linalg.solve(a, cross)
    np.testing.assert_allclose(mean.flatten(), wanted, atol=1e-7 if how == "cg" else 1e-8)
    true = cov.diagonal().sqrt().numpy()
    np.testing.assert_allclose(spread.flatten(), true, rtol=6e-4 if how == "cg" else 0, atol=1e-8)
    low, high = model.predict_interval(new, 0.9)
    np.testing.assert_allclose(
        (high - low).flatten() / 2, 1.6448536269514722 * np.sqrt(true**2 + noise.repeat(7).numpy()), rtol=1e-3
    )


def related(seed: int, n: int = 100, length: float = 6.0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """x, f, y of three tasks drawn from the model, and the correlation of the tasks."""
    random = rng(seed)
    x = np.sort(random.uniform(0, length, (n, 1)), 0)
    mix = np.array([[1.0, 0.0], [0.9, 0.45], [-0.9, 0.3]])
    smooth = np.linalg.cholesky(np.exp(-((x - x.T) ** 2) / 2) + 1e-9 * np.eye(n)) @ random.normal(size=(n, 2))
    f, cov = smooth @ mix.T, mix @ mix.T
    return x, f, f + 0.1 * random.normal(size=f.shape), cov / np.sqrt(np.outer(np.diag(cov), np.diag(cov)))


def test_the_correlation_of_tasks_is_recovered_and_helps_where_rows_are_few() -> None:
    """8 of 100 rows of one task: less than half the error that it has alone, over five draws of the model."""
    mine, alone = [], []
    for seed in range(5):
        x, f, y, _ = related(seed)
        kept = rng(seed).permutation(len(x))[:8]
        y[np.setdiff1d(np.arange(len(x)), kept), 1] = np.nan
        model = MultitaskGaussianProcess(random_state=0).fit(x, y)
        single = GaussianProcessRegressor(Matern(2.5).scale(1.0), random_state=0).fit(x[kept], y[kept, 1])
        mine.append(np.sqrt(np.mean((model.predict(x)[:, 1] - f[:, 1]) ** 2)))
        alone.append(np.sqrt(np.mean((single.predict(x) - f[:, 1]) ** 2)))
        assert model.noise_[0] == pytest.approx(0.01, rel=0.5)
    assert np.mean(mine) < 0.5 * np.mean(alone), (mine, alone)
    x, _, y, correlation = related(0, 150, 40.0)  # forty lengthscales tell what six do not
    assert np.abs(MultitaskGaussianProcess(random_state=0).fit(x, y).correlation_ - correlation).max() < 0.15


def test_tasks_beyond_the_factor_are_learned_by_products(monkeypatch: pytest.MonkeyPatch) -> None:
    x, _, y, _ = related(1, 60)
    y[::2, 0] = np.nan
    target = torch.tensor(y)
    model = Tasks([Gaussian(1.0)], torch.ones(1, 3, 1).double(), 0.3 * torch.ones(1, 3).double(), wide(0.1, 0.1, 0.1))
    exact = TasksLikelihood(model, [(torch.tensor(x), target)]).evaluate()
    monkeypatch.setattr(tasks, "EXACT_ROWS", 20)
    other = TasksLikelihood(model, [(torch.tensor(x), target)])
    other.sampler.probes, other.sampler.rank = 64, 60
    value, slope = other.evaluate()
    assert value == pytest.approx(exact[0], abs=0.02 * abs(exact[0]))
    np.testing.assert_allclose(slope, exact[1], atol=0.05 * np.abs(exact[1]).max())


def test_what_tasks_cannot_be_learned_from_is_said() -> None:
    x, _, y, _ = related(0, 30)
    fit = MultitaskGaussianProcess(learn=False).fit
    y[3, 1] = np.inf
    with pytest.raises(DataError, match="infinity at row 3, column 1"):
        fit(x, y)
    y[:, 1] = np.nan
    with pytest.raises(DataError, match="task 1 of y was never observed"):
        fit(x, y)
    with pytest.raises(ShapeError, match="3 axes"):
        fit(x, y[:, :, None])
    for options, words in (
        ({"terms": 0}, "terms is 0"),
        ({"rank": 1.5}, "rank is 1.5"),
        ({"noise": -1}, "noise is -1"),
    ):
        with pytest.raises(ValueError, match=words):
            MultitaskGaussianProcess(**options).fit(x, y)
    with pytest.raises(ValueError, match="holds 1 kernels, terms is 2"):
        MultitaskGaussianProcess([Gaussian()], terms=2).fit(x, y)


def test_rarely_seen_tasks_keep_their_rows_while_learning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multitask, "ENTRIES", 40)
    x, _, y, _ = related(0, 120)
    y[10:, 2] = np.nan
    model = MultitaskGaussianProcess(learn=False).fit(x, y)
    some = model._some(torch.tensor(y), torch.Generator().manual_seed(0))
    assert (~some.isnan()).sum(0).tolist() == [15, 15, 10]
    assert torch.equal(some[~some.isnan()], torch.tensor(y)[~some.isnan()])


@parametrize_with_checks([MultitaskGaussianProcess(learn=False), GaussianProcessRegressor(method="cg", learn=False)])
def test_scikit_learn_checks(estimator: Any, check: Any) -> None:
    check(estimator)
