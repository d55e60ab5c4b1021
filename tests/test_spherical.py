"""Units of a network as inducing variables: against integrals over spheres, dense algebra and the exact evidence."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy import integrate, special, stats
from torch import nn

from mercer.errors import StructureError
from mercer.kernels import ArcCosine, Gaussian
from mercer.learn import VariationalGaussianProcess, VariationalGaussianProcessClassifier
from mercer.learn.spherical import SphericalFeatures

DEGREE = 6
RELU: Callable[[Any], Any] = lambda t: np.maximum(t, 0.0)  # noqa: E731


def soft(t: Any) -> Any:
    return np.log1p(np.exp(4 * t)) / 4


def angular(order: int, t: float) -> float:
    """The arc-cosine kernel of unit vectors, typed from Cho and Saul."""
    angle = math.acos(min(1.0, max(-1.0, t)))
    return (math.pi - angle if order == 0 else math.sin(angle) + (math.pi - angle) * math.cos(angle)) / math.pi


def series(activation: Callable[[Any], Any], order: int) -> tuple[list[float], list[float]]:
    """(a_n, lambda_n) on the sphere of three axes by adaptive quadrature; zero where the kernel has no such degree."""
    a, values = [], []
    for n in range(DEGREE + 1):
        p = special.legendre(n)
        kept = n == 1 or n % 2 == 0 if order else n == 0 or n % 2 == 1
        both = [
            integrate.quad(lambda t, f=f, p=p: 0.5 * float(f(t)) * p(t), -1, 1, points=[0], epsabs=1e-13)[0]
            for f in (activation, lambda t: angular(order, t))
        ]
        a.append(both[0] if kept else 0.0)
        values.append(both[1] if kept else 1.0)
    return a, values


def sphere(pole: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Points on the unit sphere and weights of the mean over it, the angle to the pole by Gauss-Legendre."""
    at, weight = np.polynomial.legendre.leggauss(40)
    theta, weight = (at + 1) * math.pi / 2, weight * math.pi / 2 * np.sin((at + 1) * math.pi / 2) / 2
    phi = np.arange(32) * 2 * math.pi / 32
    local = np.stack(
        [
            np.outer(np.sin(theta), np.cos(phi)),
            np.outer(np.sin(theta), np.sin(phi)),
            np.outer(np.cos(theta), 1 + 0 * phi),
        ]
    )
    q = np.linalg.qr(np.concatenate([pole[:, None], np.eye(3)[:, :2]], 1))[0]
    frame = np.stack([q[:, 1], q[:, 2], pole / np.linalg.norm(pole)], 1)
    return (frame @ local.reshape(3, -1)).T, np.repeat(weight, 32) / 32


@pytest.mark.parametrize(("name", "activation", "order"), [("relu", RELU, 1), ("softplus", soft, 1), ("relu", RELU, 0)])
def test_covariances_equal_integrals_over_the_sphere(name: str, activation: Any, order: int) -> None:
    """u is the mean of f(v) h(w . v) over the sphere, h with a_n / lambda_n for a_n: so are its covariances."""
    random = np.random.default_rng(0)
    w, x = random.normal(size=(4, 3)), random.normal(size=(3, 3))
    features, kernel = SphericalFeatures(4, 0, name, DEGREE), ArcCosine(order).scale(1.7)
    cross = features.cross(kernel, torch.tensor(w), torch.tensor(x)).detach().numpy()
    gram = features.gram(kernel, torch.tensor(w)).detach().numpy()
    a, values = series(activation, order)
    polynomials = [special.legendre(n) for n in range(DEGREE + 1)]
    unit = w / np.linalg.norm(w, axis=1, keepdims=True)
    size = sum((2 * n + 1) * a[n] ** 2 / values[n] for n in range(DEGREE + 1))

    def h(t: np.ndarray) -> np.ndarray:
        return sum((2 * n + 1) * a[n] / values[n] * polynomials[n](t) for n in range(DEGREE + 1)) / math.sqrt(size)

    for j, point in enumerate(x):
        v, weight = sphere(point)
        k = kernel.block(torch.tensor(v), torch.tensor(point[None])).detach().numpy()[:, 0]
        np.testing.assert_allclose(h(v @ unit.T).T @ (weight * k), cross[:, j], rtol=0, atol=1e-10)
    for j in range(4):
        v, weight = sphere(unit[j])
        seen = features.cross(kernel, torch.tensor(w), torch.tensor(v)).detach().numpy()
        np.testing.assert_allclose(seen @ (weight * h(v @ unit[j])), gram[:, j], rtol=0, atol=1e-10)
    assert gram.diagonal() == pytest.approx(1.7, abs=1e-12)


def test_a_feature_is_the_activation_where_the_series_is_long() -> None:
    """cov(u, f(x)) grows into |x| relu(w . x / |x|) times a constant: error below 1e-3 at degree 60 on the circle."""
    w, x = torch.tensor([[1.0, 0.5]]).double(), torch.randn(50, 2, generator=torch.Generator().manual_seed(0)).double()
    found = SphericalFeatures(1, 0, "relu", 60).cross(ArcCosine(1), w, x)[0]
    unit = torch.relu(x @ (w[0] / w[0].norm()))
    factor = float((found @ unit) / (unit @ unit))
    assert float((found / factor - unit).abs().max() / x.norm(dim=1).max()) < 1e-2
    assert float((found / factor - unit).square().mean().sqrt()) < 2e-3


def problem(n: int, d: int = 2, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    x = random.normal(size=(n, d))
    return x, np.sin(2 * x[:, 0]) + np.abs(x[:, 1]) + 0.2 * random.normal(size=n)


def test_the_bound_is_the_collapsed_one_of_the_joint_gaussian_and_below_the_evidence() -> None:
    x, y = problem(50)
    features = SphericalFeatures(6, 5, "softplus", 5)
    kernel = copy.deepcopy(features.kernel(2)).scale(1.3)
    options: dict[str, Any] = {"noise": 0.1, "learn": False, "standardize": False, "random_state": 0}
    model = VariationalGaussianProcess(kernel, landmarks=features, **options).fit(x, y)
    points, z = torch.tensor(x), torch.tensor(model.landmarks_)
    with torch.no_grad():
        middle, cross = features.gram(kernel, z).numpy(), features.cross(kernel, z, points).numpy()
        whole = kernel.block(points, points).numpy()
    q = cross.T @ np.linalg.solve(middle, cross)
    noisy = stats.multivariate_normal(np.zeros(50), q + 0.1 * np.eye(50)).logpdf(y)
    assert model.bound_ == pytest.approx(noisy - np.trace(whole - q) / 0.2, abs=1e-5)
    assert model.bound_ < stats.multivariate_normal(np.zeros(50), whole + 0.1 * np.eye(50)).logpdf(y)
    more = VariationalGaussianProcess(kernel, landmarks=SphericalFeatures(6, 0, "softplus", 5), **options).fit(x, y)
    assert np.linalg.eigvalsh(middle)[0] > 0 and more.landmarks_.shape == (6, 2)


def test_the_orthogonal_basis_raises_the_bound_at_equal_cost() -> None:
    """1,000 rows, 20 inducing variables: ten units and ten points have a bound above that of twenty units."""
    x, y = problem(1000)
    kernel = SphericalFeatures().kernel(2)
    for name in ("relu", "softplus"):
        bounds = [
            VariationalGaussianProcess(
                kernel, noise=0.05, landmarks=SphericalFeatures(20 - m, m, name, 8), learn=False, standardize=True,
                random_state=0,
            ).fit(x, y).bound_
            for m in (0, 10)
        ]  # fmt: skip
        assert bounds[1] > bounds[0] + 100, bounds


def test_it_learns_is_saved_and_says_what_it_cannot_do() -> None:
    x, y = problem(150)
    model = VariationalGaussianProcess(landmarks=SphericalFeatures(8, 8, "softplus", 5), random_state=0).fit(x, y)
    assert np.corrcoef(model.predict(x), y)[0, 1] > 0.9 and model.history_[-1] > model.history_[0]
    again = VariationalGaussianProcess.from_state(*model.get_state())
    np.testing.assert_array_equal(again.predict(x), model.predict(x))
    labels = VariationalGaussianProcessClassifier(landmarks=SphericalFeatures(6, 4, degree=4), random_state=0)
    assert labels.fit(x, y > 0.8).score(x, y > 0.8) > 0.8
    linear = nn.Linear(2, 3, dtype=torch.float64)
    fit = VariationalGaussianProcess(ArcCosine(0).warp(linear), landmarks=SphericalFeatures(5), learn=False)
    assert math.isfinite(fit.fit(x, y).bound_)
    with pytest.raises(StructureError, match="ArcCosine kernel"):
        VariationalGaussianProcess(Gaussian(), landmarks=SphericalFeatures(5), learn=False).fit(x, y)
    for arguments, words in (
        ({"count": 0}, "count is 0"),
        ({"degree": 0}, "degree is 0"),
        ({"points": -1}, "points is"),
    ):
        with pytest.raises(ValueError, match=words):
            SphericalFeatures(**arguments)
    with pytest.raises(ValueError, match="activation is 'tanh'; expected one of relu, softplus"):
        SphericalFeatures(activation="tanh")
