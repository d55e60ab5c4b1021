"""Spectral algorithms: filters against direct solves, loops and matrix exponentials; rates against the theory."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch
from sklearn.utils.estimator_checks import parametrize_with_checks

from mercer.kernels import Gaussian
from mercer.learn import SpectralRegressor, filters, spectra

PLAIN = SpectralRegressor(Gaussian(1.0), "gradient_flow", learn=False)


@parametrize_with_checks([PLAIN])
def test_scikit_learn_checks(estimator: Any, check: Any) -> None:
    check(estimator)


def problem(n: int = 120, outputs: int = 1, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    x, new = random.normal(size=(n, 2)), random.normal(size=(30, 2))
    y = np.stack([np.sin(2 * x[:, 0] + c) * x[:, 1] + 0.2 * random.normal(size=n) for c in range(outputs)], 1)
    return x, y, new


def gram(x: np.ndarray, z: np.ndarray, lengthscale: float = 0.8) -> np.ndarray:
    return np.exp(-((x[:, None] - z[None]) ** 2).sum(-1) / (2 * lengthscale**2))


def fixed(filter: Any, level: float | None, solver: str | None = None) -> SpectralRegressor:
    return SpectralRegressor(Gaussian(0.8), filter, level, solver=solver, learn=False, random_state=0)


@pytest.mark.parametrize("outputs", [1, 2])
def test_every_filter_is_the_algorithm_it_names(outputs: int) -> None:
    """Direct solve, loops and scipy's matrix exponential, each on the kernel matrix typed out."""
    x, y, new = problem(outputs=outputs)
    n, k, across = len(x), gram(x, x), gram(new, x)
    top = float(np.linalg.eigvalsh(k / n)[-1])
    level = 2e-3

    def gap(filter: Any, weights: np.ndarray, given: float = level) -> float:
        found = fixed(filter, given).fit(x, y).predict(new).reshape(len(new), -1)
        return float(np.abs(found - across @ weights).max() / np.abs(across @ weights).max())

    assert gap("ridge", np.linalg.solve(k + n * level * np.eye(n), y)) < 5e-13
    once = np.linalg.solve(k + n * level * np.eye(n), y)
    assert gap("iterated_ridge", once + np.linalg.solve(k + n * level * np.eye(n), y - k @ once)) < 5e-13

    w = np.zeros_like(y)
    for _ in range(500):
        w += (y - k @ w) / (n * top)
    assert gap("landweber", w, top / 500) < 3e-10

    # w' = (y - K w) / n up to the time 1 / level, by the exponential of the augmented matrix: no inverse of K
    c = y.shape[1]
    system = np.zeros((n + c, n + c))
    system[:n, :n], system[:n, n:] = -k / n, y / n
    flow = scipy.linalg.expm(system / level)[:n, n:]
    assert gap("gradient_flow", flow) < 1e-10

    values, vectors = np.linalg.eigh(k / n)
    kept = values >= level
    assert gap("cutoff", vectors[:, kept] / (n * values[kept]) @ vectors[:, kept].T @ y) < 1e-10
    assert gap(lambda v, a: v / (v + a), once) < 5e-13
    assert gap(lambda v: v / (v + level), once) < 5e-13


@torch.no_grad()
@pytest.mark.parametrize(("steps", "tolerance"), [(20, 1e-6), (40, 5e-13)])
def test_lanczos_sees_a_filter_in_few_products(steps: int, tolerance: float) -> None:
    x, y, new = problem(400)
    k = gram(x, x)
    exact = gram(new, x) @ np.linalg.solve(k + 400 * 1e-2 * np.eye(400), y[:, 0])
    space = spectra._Krylov(
        Gaussian(0.8), torch.tensor(x), torch.tensor(y), torch.full((400,), 1 / 400).double(), torch.arange(400) % 4
    )
    for _ in range(steps):
        space.step()
    space.look()
    found = gram(new, x) @ space.weights(filters.ridge, 1e-2).numpy()[:, 0]
    assert np.abs(found - exact).max() < tolerance * np.abs(exact).max()
