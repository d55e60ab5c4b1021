"""Tasks whose latent functions interact: against quadrature, loops typed from the definition, and the linear model."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from scipy import integrate, optimize

from mercer.errors import StructureError
from mercer.kernels import Gaussian, Matern
from mercer.learn import MultitaskGaussianProcess, tasks
from mercer.learn.crossed import Crossed
from mercer.learn.tasks import Tasks, TasksLikelihood


def smoothing(t: float, lengthscale: float) -> float:
    """g whose convolution with itself is exp(-t^2 / (2 lengthscale^2))."""
    return (2 / math.pi) ** 0.25 / math.sqrt(lengthscale) * math.exp(-((t / lengthscale) ** 2))


def model(root: list[float], terms: int = 3, interact: bool = True) -> Tasks:
    g = torch.Generator().manual_seed(3)
    kernels = [Gaussian(0.7).scale(1.4), Gaussian([0.3, 0.6]), Gaussian(1.5)][:terms]
    w = torch.randn(terms, 3, 2, generator=g, dtype=torch.float64)
    own = 0.1 + torch.rand(terms, 3, generator=g, dtype=torch.float64)
    found = Tasks(kernels, w, own, torch.tensor([0.1, 0.2, 0.05], dtype=torch.float64), interact)
    if interact:
        found.root.data.copy_(torch.tensor(root, dtype=torch.float64))
    return found


ROOT = [0.8, -1.2, 2.0]


def by_hand(tasks: Tasks, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """sum_pq C_pq k_pq (W_p W_q^T)_ij and the own terms, entry by entry, in numpy."""
    lower = np.array([[1, 0, 0], [0.8, 1, 0], [-1.2, 2.0, 1]])
    lower /= np.sqrt((lower**2).sum(1, keepdims=True))
    c, w, own = lower @ lower.T, tasks.weights.detach().numpy(), tasks.log_own.detach().exp().numpy()
    scales, variance = np.array([[0.7, 0.7], [0.3, 0.6], [1.5, 1.5]]), np.array([1.4, 1.0, 1.0])
    found = np.zeros((len(x), 3, len(y), 3))
    for a, u in enumerate(x):
        for b, v in enumerate(y):
            for p in range(3):
                for q in range(3):
                    square = scales[p] ** 2 + scales[q] ** 2
                    k = np.prod(np.sqrt(2 * scales[p] * scales[q] / square)) * math.sqrt(variance[p] * variance[q])
                    k *= math.exp(-(((u - v) ** 2) / square).sum())
                    found[a, :, b] += c[p, q] * k * (w[p] @ w[q].T) + (p == q) * k * np.diag(own[p])
    return found.reshape(3 * len(x), 3 * len(y))


def points(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, 2))


def labelled(x: np.ndarray) -> torch.Tensor:
    return torch.tensor(np.concatenate([np.repeat(x, 3, 0), np.tile(np.arange(3.0), len(x))[:, None]], 1))


def test_the_cross_term_is_the_convolution_of_the_roots() -> None:
    for a, b, t in ((1.3, 0.5, 0.0), (1.3, 0.5, 0.7), (0.4, 0.4, -0.3)):
        wanted, _ = integrate.quad(lambda z, a=a, b=b, t=t: smoothing(t - z, a) * smoothing(z, b), -12, 12)
        k = Crossed(Gaussian(a).scale(2.0), Gaussian(b).scale(3.0))
        x, y = (torch.tensor([[v]], dtype=torch.float64) for v in (t, 0.0))
        assert k.block(x, y).item() == pytest.approx(math.sqrt(6) * wanted, abs=1e-9)
        assert k.diagonal(x).item() == pytest.approx(k.block(x, x).item(), abs=1e-14)


def test_covariances_are_those_of_the_definition_and_psd() -> None:
    x, y = points(7), points(5, 1)
    k = model(ROOT)
    found = k.block(labelled(x), labelled(y)).detach().numpy()
    np.testing.assert_allclose(found, by_hand(k, x, y), rtol=0, atol=1e-12)
    entries = k.gram(torch.tensor(x), torch.arange(7).repeat_interleave(3), torch.arange(3).repeat(7)).detach()
    np.testing.assert_allclose(entries, by_hand(k, x, x), rtol=0, atol=1e-12)
    for root in (ROOT, [50.0, -50.0, 50.0]):  # terms wholly one
        whole = model(root).block(labelled(points(40)), labelled(points(40))).detach()
        assert torch.linalg.eigvalsh(whole)[0] > -1e-12 * 120


def test_without_interaction_it_is_the_linear_model_of_coregionalisation() -> None:
    x = labelled(points(9))
    linear, mine = model([], interact=False), model([0.0, 0.0, 0.0])
    torch.testing.assert_close(mine.block(x, x), linear.block(x, x), rtol=0, atol=0)
    y = torch.tensor(np.random.default_rng(5).normal(size=(9, 3)))
    values = [TasksLikelihood(m, [(torch.tensor(points(9)), y)]).evaluate()[0] for m in (linear, mine)]
    assert values[0] == pytest.approx(values[1], abs=1e-10)


@pytest.mark.parametrize("how", ["cholesky", "cg"])
def test_predictions_are_those_of_one_large_gaussian(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x, new, random = points(30), points(6, 4), np.random.default_rng(2)
    y = random.normal(size=(30, 3))
    y[random.random(y.shape) < 0.3] = np.nan
    if how == "cg":
        monkeypatch.setattr(tasks, "EXACT_ROWS", 20)
    made = MultitaskGaussianProcess(Gaussian(), terms=3, interactions=True, learn=False, standardize=False).fit(x, y)
    made._tasks = model(ROOT).requires_grad_(False)
    made._solve(torch.tensor(x), torch.tensor(y))
    assert made._how == how
    seen, noise = ~np.isnan(y).ravel(), np.tile([0.1, 0.2, 0.05], 30)
    a = by_hand(made._tasks, x, x)[seen][:, seen] + np.diag(noise[seen])
    cross = by_hand(made._tasks, x, new)[seen]
    mean, spread = made.predict(new, return_std=True)
    np.testing.assert_allclose(mean.ravel(), cross.T @ np.linalg.solve(a, y.ravel()[seen]), rtol=0, atol=1e-7)
    left = np.diag(by_hand(made._tasks, new, new) - cross.T @ np.linalg.solve(a, cross))
    np.testing.assert_allclose(spread.ravel(), np.sqrt(left), rtol=1e-3 if how == "cg" else 1e-8)


def test_the_gradient_is_the_slope() -> None:
    x = points(12)
    y = torch.tensor(np.random.default_rng(5).normal(size=(12, 3)))
    target = TasksLikelihood(model(ROOT), [(torch.tensor(x), y)])
    theta = target.theta.copy()
    slope = target.evaluate(theta)[1]
    wanted = optimize.approx_fprime(theta, lambda at: target.evaluate(at, gradient=False)[0], 1e-6)
    np.testing.assert_allclose(slope, wanted, atol=2e-4)  # of differences of step 1e-6
    names = [name for name, _ in target.named]
    assert "root" in names and "root" not in [name for name, _ in model([], interact=False).named_parameters()]


def filtered(seed: int, n: int = 100) -> tuple[np.ndarray, np.ndarray]:
    """x and the values of two tasks: one white noise through a wide and through a narrow filter."""
    random = np.random.default_rng(seed)
    x = np.sort(random.uniform(0, 10, (n, 1)), 0)
    square = (x - x.T) ** 2

    def k(a: float, b: float) -> np.ndarray:
        return math.sqrt(2 * a * b / (a * a + b * b)) * np.exp(-square / (a * a + b * b))

    whole = np.block([[k(1, 1), k(1, 0.4)], [k(0.4, 1), k(0.4, 0.4)]]) + 1e-9 * np.eye(2 * n)
    return x, (np.linalg.cholesky(whole) @ random.normal(size=2 * n)).reshape(2, n).T


def test_tasks_that_interact_are_predicted_better_than_by_the_linear_model() -> None:
    """The wide task is unseen on the right half; there its error is less on every draw, by a fifth on average."""
    errors = []
    for seed in range(4):
        x, f = filtered(seed)
        y = f + 0.1 * np.random.default_rng(seed + 50).normal(size=f.shape)
        y[50:, 0] = np.nan
        start: list[Any] = [Gaussian(0.8), Gaussian(0.4)]
        pair = [
            MultitaskGaussianProcess(start, terms=2, interactions=how, standardize=True, random_state=0).fit(x, y)
            for how in (False, True)
        ]
        errors.append([np.sqrt(np.mean((m.predict(x)[50:, 0] - f[50:, 0]) ** 2)) for m in pair])
        assert pair[0].interactions_[0, 1] == 0 and abs(pair[1].interactions_[0, 1]) > 0.9
        assert len(pair[1].kernels_) == 3 and pair[1].coregionalisation_.shape == (3, 2, 2)
    linear, mine = np.array(errors).T
    assert (mine < linear).all() and mine.mean() < 0.8 * linear.mean(), errors


def test_copies_answer_alike_and_what_cannot_interact_is_said() -> None:
    x = points(20)
    y = np.random.default_rng(0).normal(size=(20, 2))
    fit = MultitaskGaussianProcess(terms=2, interactions=True, random_state=0).fit(x, y)
    assert all(isinstance(k, Gaussian) for k in fit.kernels_[:2])
    saved = MultitaskGaussianProcess.from_state(*fit.get_state())
    for other in (copy.deepcopy(fit), pickle.loads(pickle.dumps(fit)), saved):
        np.testing.assert_array_equal(other.predict(x), fit.predict(x))
    with pytest.raises(StructureError, match="Gaussian kernels"):
        MultitaskGaussianProcess(Matern(), terms=2, interactions=True).fit(x, y)
    with pytest.raises(ValueError, match="terms is 1"):
        MultitaskGaussianProcess(interactions=True).fit(x, y)
