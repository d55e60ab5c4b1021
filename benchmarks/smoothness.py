"""Smoothness of a target to a kernel, and the rate at which kernel classifiers learn it.

python benchmarks/smoothness.py [--threads 2] [--draws 20]

1. s as estimated from random rows, by the likelihood of all leading coefficients and by the published line through the
   first of them (several cuts), for known s, regression and labels: mean, deviation over draws.
2. Slope of the excess risk of the gradient-flow classifier against n: for the conditional chances that are hardest at
   each n the rate is s beta / (2 s beta + 2), the upper bound; one fixed chance is learned faster.
"""

from __future__ import annotations

import argparse
import math
import time
import warnings

import numpy as np
import torch

from mercer.claims import PSD
from mercer.compare import Smoothness, smoothness
from mercer.errors import MercerWarning
from mercer.kernel import Kernel
from mercer.learn import filters, spectra

HALF = np.arange(1, 2001) - 0.5
GRID = 4000  # places at which risks are taken


class Brownian(Kernel):
    """min(x, y) on [0, 1]: eigenvalues ((i - 1/2) pi)^-2, eigenfunctions sqrt(2) sin((i - 1/2) pi x)."""

    claims = PSD

    def block(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.minimum(x, y.mT)


class Circle(Kernel):
    """2 sum_l cos(2 pi l (x - y)) / l^2: eigenvalues l^-2 on the circle, each twice."""

    claims = PSD

    def block(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        u = (x - y.mT).remainder(1.0)
        return 2 * math.pi**2 * (u * u - u + 1 / 6)


def sample(s: float, n: int, seed: int, noise: float | None) -> tuple[torch.Tensor, torch.Tensor]:
    """(x `n 1`, y): f_i^2 = i^-(2 s + 1), s = its smoothness to Brownian; noise in deviations of f, None: labels."""
    random = np.random.default_rng(seed)
    x, signs = random.uniform(size=n), random.choice([-1.0, 1.0], len(HALF))
    f = math.sqrt(2) * np.sin(np.outer(x, HALF * np.pi)) @ (signs * HALF ** -(s + 0.5))
    if noise is None:
        f = 0.95 * f / np.abs(f).max()
        y = np.where(random.uniform(size=n) < (1 + f) / 2, 1.0, -1.0)
    else:
        y = f + noise * f.std() * random.normal(size=n)
    return torch.from_numpy(x)[:, None], torch.from_numpy(y)


def line(found: Smoothness, cut: int) -> float:
    """The published estimate: slopes of log squares and log eigenvalues against log i over the first `cut`."""
    index = np.log(np.arange(1, cut + 1))
    squares, values = found.coefficients[:cut].square().log().numpy(), found.eigenvalues[:cut].log().numpy()
    return float((-np.polyfit(index, squares, 1)[0] - 1) / -np.polyfit(index, values, 1)[0])


def estimates(draws: int) -> None:
    print(
        "1. estimated s, random rows on [0, 1]: mean +- deviation; lines through the first 5, 20 and 100 coefficients"
    )
    for s in (0.5, 1.0, 2.0):
        for noise in (0.05, 0.3, None):
            mine, lines, began = [], [], time.perf_counter()
            for seed in range(draws):
                found = smoothness(Brownian(), *sample(s, 1000, seed, noise))
                mine.append((found.value, found.error))
                lines.append([line(found, cut) for cut in (5, 20, 100)])
            value, told = np.mean(mine, 0)
            spread, seconds = np.std(mine, 0)[0], (time.perf_counter() - began) / draws
            theirs = "  ".join(
                f"{m:5.2f} +- {d:4.2f}" for m, d in zip(np.mean(lines, 0), np.std(lines, 0), strict=True)
            )
            what = "labels" if noise is None else f"noise {noise}"
            print(
                f"   s {s:3.1f} {what:10s} {value:5.2f} +- {spread:4.2f} (told {told:4.2f})"
                f"   lines {theirs}   {seconds:.1f} s"
            )


def excess(coefficients: np.ndarray, n: int, seed: int, levels: list[float]) -> np.ndarray:
    """Excess risk of the sign of gradient flow at each level; 2 eta - 1 = sum of c_l sqrt(2) cos(2 pi l x + phase)."""
    random = np.random.default_rng(seed)
    some = np.flatnonzero(coefficients)
    phase, x = random.uniform(0, 2 * np.pi, len(some)), random.uniform(size=(n, 1))
    grid = (np.arange(GRID)[:, None] + 0.5) / GRID

    def f(at: np.ndarray) -> np.ndarray:
        waves = np.cos(2 * np.pi * at * some + phase) @ coefficients[some]
        return np.clip(math.sqrt(2) * waves, -1, 1)

    y = torch.from_numpy(np.where(random.uniform(size=n) < (1 + f(x)) / 2, 1.0, -1.0))[:, None]
    points, weight = torch.from_numpy(x), torch.full((n,), 1 / n, dtype=torch.float64)
    pairs = spectra.every_pair(Circle().block(points, points), y, weight)
    across = Circle().block(torch.from_numpy(grid), points) @ pairs.turn
    found = pairs.seen(across, filters.gradient_flow, levels)[..., 0].numpy()
    truth = f(grid)
    return (np.abs(truth) * (np.sign(found) != np.sign(truth))).mean(1)


def slopes(s: float, modes: tuple[int, ...], draws: int) -> tuple[float, float]:
    """Of the log excess risk at the best level against log n = (2 s + 1) log m: the hard chances, and a fixed one."""
    sizes = [round(m ** (2 * s + 1)) for m in modes]
    fixed = np.concatenate([[0.0], np.arange(1.0, 301.0) ** -(s + 0.5)])
    fixed *= 0.3 / np.sqrt(np.square(fixed).sum())
    hard, one = [], []
    for m, n in zip(modes, sizes, strict=True):
        steep = np.zeros(2 * m)
        steep[m:] = 0.6 * m ** -(s + 0.5)  # sum of c^2 / lambda^s stays of order one
        levels = (np.geomspace(0.02, 5.0, 12) / m**2).tolist()
        hard.append(np.mean([excess(steep, n, seed, levels) for seed in range(draws)], 0).min())
        one.append(np.mean([excess(fixed, n, seed, levels) for seed in range(draws)], 0).min())
    fit = [float(np.polyfit(np.log(sizes), np.log(risk), 1)[0]) for risk in (hard, one)]
    return fit[0], fit[1]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--draws", type=int, default=20)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    warnings.simplefilter("ignore", MercerWarning)
    estimates(given.draws)
    print("2. slope of the excess risk of gradient flow at the best level, labels at random places of the circle")
    for s, modes in ((0.5, (8, 14, 22, 30, 40)), (1.0, (4, 6, 8, 10, 12))):
        hard, one = slopes(s, modes, given.draws)
        print(
            f"   s {s:3.1f}  hardest chances {hard:6.3f}   rate {-s / (2 * s + 1):6.3f}   one chance {one:6.3f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
