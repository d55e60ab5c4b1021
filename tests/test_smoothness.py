"""The smoothness estimator on targets of known smoothness, and the rate of a kernel classifier."""

from __future__ import annotations

import math
import sys
import warnings

import numpy as np
import pytest
import torch

from mercer.claims import PSD
from mercer.compare import smoothness
from mercer.errors import DataError, MercerWarning, ShapeError, StructureError
from mercer.kernel import Kernel
from mercer.kernels import Gaussian, Matern, Riesz
from mercer.learn import filters, spectra

HALF = np.arange(1, 2001) - 0.5


class Brownian(Kernel):
    """min(x, y) on [0, 1]: eigenvalues ((i - 1/2) pi)^-2, eigenfunctions sqrt(2) sin((i - 1/2) pi x)."""

    claims = PSD

    def block(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.minimum(x, y.mT)


class Circle(Kernel):
    """2 sum_l cos(2 pi l (x - y)) / l^2: eigenvalues l^-2, each twice."""

    claims = PSD

    def block(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        u = (x - y.mT).remainder(1.0)
        return 2 * math.pi**2 * (u * u - u + 1 / 6)


def sample(s: float, n: int, seed: int, noise: float | None) -> tuple[np.ndarray, np.ndarray, float]:
    """(x, y, the variance of the noise): f_i^2 = (i - 1/2)^-(2 s + 1); noise in deviations of f, None for labels."""
    random = np.random.default_rng(seed)
    x, signs = random.uniform(size=n), random.choice([-1.0, 1.0], len(HALF))
    f = math.sqrt(2) * np.sin(np.outer(x, HALF * np.pi)) @ (signs * HALF ** -(s + 0.5))
    if noise is not None:
        return x[:, None], f + noise * f.std() * random.normal(size=n), (noise * f.std()) ** 2
    f = 0.95 * f / np.abs(f).max()
    return x[:, None], np.where(random.uniform(size=n) < (1 + f) / 2, 1.0, -1.0), float((1 - f**2).mean())


@pytest.mark.parametrize(("s", "noise"), [(0.5, 0.05), (0.5, 0.3), (1.0, 0.3), (1.5, 0.03)])
def test_known_smoothness_is_recovered(s, noise) -> None:
    """The mean of six draws within 0.1, each within three of the errors that it names, noise where it shows."""
    found, wanted = [], []
    for seed in range(6):
        x, y, variance = sample(s, 600, seed, noise)
        found.append(smoothness(Brownian(), x, y))
        wanted.append(variance)
    assert np.mean([f.value for f in found]) == pytest.approx(s, abs=0.1)
    assert all(abs(f.value - s) < 3 * f.error for f in found)
    assert all(1.95 < f.decay < 2.2 for f in found)
    if (s, noise) == (1.0, 0.3):  # 40 of 60 coefficients are noise: 0.09 of it is the error of six draws
        assert np.mean([f.noise for f in found]) == pytest.approx(np.mean(wanted), rel=0.27)


def test_labels_show_the_smoothness_of_their_chances() -> None:
    found = [smoothness(Brownian(), *sample(0.5, 1200, seed, None)[:2]) for seed in range(4)]
    assert np.mean([f.value for f in found]) == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize(("nu", "path"), [(0.5, 0.5), (1.5, 0.5), (1.5, 1.5), (2.5, 1.5)])
def test_paths_of_matern_processes_in_matern_spaces(nu, path) -> None:
    """Coefficients of a path of order p fall as i^-(2 p + 1), eigenvalues of order nu as i^-(2 nu + 1)."""
    values = []
    for seed in range(5):
        g = torch.Generator().manual_seed(seed)
        x = torch.rand(500, 1, generator=g, dtype=torch.float64)
        cov = Matern(path, 0.3).block(x, x).detach() + 1e-8 * torch.eye(500)
        y = torch.linalg.cholesky(cov) @ torch.randn(500, generator=g, dtype=torch.float64)
        values.append(smoothness(Matern(nu, 0.3), x, y).value)
    assert np.mean(values) == pytest.approx(2 * path / (2 * nu + 1), abs=0.1)


def test_lanczos_gives_what_all_eigenpairs_give(monkeypatch) -> None:
    x, y, _ = sample(0.5, 400, 0, 0.1)
    whole = smoothness(Brownian(), x, y, rank=40)
    monkeypatch.setattr(sys.modules["mercer.compare.smoothness"], "SMALL", 100)
    part = smoothness(Brownian(), x, y, rank=40, generator=torch.Generator().manual_seed(0))
    assert part.value == pytest.approx(whole.value, abs=1e-4)
    assert torch.allclose(part.coefficients.abs(), whole.coefficients.abs(), atol=1e-5)
    k = np.minimum(x, x.T) / 400  # numpy's own pairs
    values, vectors = np.linalg.eigh(k)
    np.testing.assert_allclose(whole.eigenvalues, values[::-1][:40], rtol=1e-9)
    np.testing.assert_allclose(whole.coefficients.abs(), np.abs(vectors.T @ y)[::-1][:40] / 20, atol=1e-9)


def test_units_and_scale_of_the_kernel_do_not_matter() -> None:
    x, y, _ = sample(1.0, 300, 0, 0.1)
    once = smoothness(Brownian(), x, y)
    again = smoothness(Brownian() * 7.0, x, 1000 * y)
    assert again.value == pytest.approx(once.value, abs=1e-4)
    assert again.noise == pytest.approx(1e6 * once.noise, rel=1e-2)


def test_what_cannot_be_told_is_said() -> None:
    x, y, _ = sample(0.5, 200, 0, 0.1)
    random = np.random.default_rng(0)
    with pytest.warns(MercerWarning, match="rise above the noise; the standard error is"):
        smoothness(Brownian(), x, random.normal(size=200) + np.sin(x[:, 0] * np.pi / 2))
    with pytest.raises(StructureError, match="needs a psd kernel"):
        smoothness(Riesz(), x, y)
    with pytest.raises(ShapeError, match="expected n d and n"):
        smoothness(Brownian(), x, y[:-1])
    with pytest.raises(ShapeError, match="rank is 5 for 200 rows"):
        smoothness(Brownian(), x, y, rank=5)
    with pytest.raises(DataError, match="y is nan"):
        smoothness(Brownian(), x, np.where(np.arange(200) == 3, np.nan, y))
    with pytest.raises(DataError, match="eigenvalues or no coefficient"):
        smoothness(Gaussian(10.0), x, y)


def excess(m: int, s: float, columns: int, seed: int) -> float:
    """Excess risk of the sign of gradient flow at the best level, n = m^(2 s + 1) labels at random places.

    2 eta - 1 is made of the frequencies m to 2 m - 1 with f_l^2 = 0.36 m^-(2 s + 1): of one size in [H]^s, and just
    as large as the noise of n labels. So it is the hardest chance of that size.
    """
    n, random = round(m ** (2 * s + 1)), np.random.default_rng(seed)
    x, grid, some = random.uniform(size=(n, 1)), (np.arange(800)[:, None] + 0.5) / 800, np.arange(m, 2 * m)
    phase = random.uniform(0, 2 * np.pi, (len(some), columns))

    def f(at: np.ndarray) -> np.ndarray:
        waves = np.cos(2 * np.pi * at[..., None] * some[:, None] + phase).sum(1)
        return np.clip(math.sqrt(2) * 0.6 * m ** -(s + 0.5) * waves, -1, 1)

    y = np.where(random.uniform(size=(n, columns)) < (1 + f(x)) / 2, 1.0, -1.0)
    points, levels = torch.from_numpy(x), (np.geomspace(0.02, 5.0, 10) / m**2).tolist()
    weight = torch.full((n,), 1 / n, dtype=torch.float64)
    pairs = spectra.every_pair(Circle().block(points, points), torch.from_numpy(y), weight)
    across = Circle().block(torch.from_numpy(grid), points) @ pairs.turn
    guess = pairs.seen(across, filters.gradient_flow, levels).numpy()
    truth = f(grid)
    return float((np.abs(truth) * (np.sign(guess) != np.sign(truth))).mean((1, 2)).min())


def test_excess_risk_of_gradient_flow_falls_at_the_rate() -> None:
    """n^-(s beta / (2 s beta + 2)), beta = 2: the bound of the classifier, met where chances are hardest."""
    for s, modes in ((0.5, (8, 14, 20, 27)), (0.8, (6, 9, 12, 14))):
        sizes = [m ** (2 * s + 1) for m in modes]
        risks = [np.mean([excess(m, s, 16, seed) for seed in range(3)]) for m in modes]
        slope = float(np.polyfit(np.log(sizes), np.log(risks), 1)[0])
        assert slope == pytest.approx(-s / (2 * s + 1), abs=0.04), (s, slope)


def test_no_warning_where_much_is_known() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert smoothness(Brownian(), *sample(0.5, 400, 1, 0.05)[:2]).error < 0.2
