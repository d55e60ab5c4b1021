"""Spectral algorithms and unlabelled rows: rates against the theory, accuracy against scikit-learn, seconds.

python benchmarks/spectral.py [--threads 2] [--draws 10]

1. The loss at the best level against n, slopes in a log-log plot, for random points on the circle: ridge saturates.
2. Two moons (600 rows) and digits (1,000 rows) with one and three labels for each class. No learner sees the labels it
   is judged by; with so few labels nothing is chosen either, every learner has its defaults.
3. Seconds of all levels of a filter by one decomposition against scikit-learn's KernelRidge once for each level.
"""

from __future__ import annotations

import argparse
import math
import time
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits, make_moons
from sklearn.kernel_ridge import KernelRidge
from sklearn.semi_supervised import LabelSpreading

from mercer.claims import PSD
from mercer.kernel import Kernel
from mercer.kernels import Gaussian
from mercer.learn import SpectralRegressor, TransformedKernelClassifier, filters, spectra

MODES = np.arange(1, 2001)


class Circle(Kernel):
    """2 sum_l cos(2 pi l (x - y)) / l^2: eigenvalues l^-2 on the circle."""

    claims = PSD

    def block(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        u = (x - y.mT).remainder(1.0)
        return 2 * math.pi**2 * (u * u - u + 1 / 6)


def risks(h: filters.Filter, n: int, power: float, draws: int) -> float:
    """Mean squared error at the best level, for c_l^2 = l^-power in random phases and noise 1 at random points."""
    levels, total = np.geomspace(1e-5, 1.0, 50).tolist(), np.zeros(50)
    for seed in range(draws):
        random = np.random.default_rng(seed)
        phase, x = random.uniform(0, 2 * np.pi, len(MODES)), random.uniform(size=(n, 1))
        grid = np.arange(1000)[:, None] / 1000

        def f(at: np.ndarray, phase: np.ndarray = phase) -> np.ndarray:
            few = MODES[:300]
            return math.sqrt(2) * np.cos(2 * np.pi * at * few + phase[:300]) @ few ** (-power / 2)

        y = torch.from_numpy(f(x) + random.normal(size=n))[:, None]
        points = torch.from_numpy(x)
        kernel, weight = Circle(), torch.full((n,), 1 / n, dtype=torch.float64)
        pairs = spectra.every_pair(kernel.block(points, points), y, weight)
        across = kernel.block(torch.from_numpy(grid), points) @ pairs.turn
        found = pairs.seen(across, h, levels)[..., 0].numpy()
        total += np.square(found - f(grid)).mean(1)
    return float((total / draws).min())


def rates(draws: int) -> None:
    sizes = (100, 200, 400, 800, 1600)
    print("1. slope of the log risk at the best level, independent points on the circle, lambda_l = l^-2, noise 1")
    for name, power, wanted in (
        ("ridge", 9.0, -4 / 5), ("gradient_flow", 9.0, -8 / 9), ("cutoff", 9.0, -8 / 9),
        ("ridge", 1.8, -0.8 / 1.8), ("ridge", 2.6, -1.6 / 2.6),
    ):  # fmt: skip
        found = [risks(filters.FILTERS[name], n, power, draws) for n in sizes]
        slope = np.polyfit(np.log(sizes), np.log(found), 1)[0]
        print(f"   {name:14s} c_l^2 = l^-{power:<4g} slope {slope:6.3f}   limit {wanted:6.3f}", flush=True)


def few_labels(draws: int) -> None:
    print("2. accuracy on the unlabelled rows (mean, worst of the draws)")
    digits = load_digits(return_X_y=True)
    learners: dict[str, Any] = {
        "inverse Laplacian": TransformedKernelClassifier(),
        "fourth power": TransformedKernelClassifier(transformation="power"),
        "no transformation (ridge)": TransformedKernelClassifier(strength=0.0),
        "LabelSpreading, defaults": LabelSpreading(),
        "LabelSpreading, 7 neighbours": LabelSpreading(kernel="knn", n_neighbors=7),
    }
    for table, per in (("moons", 1), ("moons", 3), ("digits", 1), ("digits", 3)):
        scores: dict[str, list[float]] = {name: [] for name in learners}
        for seed in range(draws):
            random = np.random.default_rng(seed)
            rows = random.permutation(len(digits[0]))[:1000]
            moons = make_moons(600, noise=0.1, random_state=seed)
            x, y = moons if table == "moons" else (digits[0][rows] / 16, digits[1][rows])
            labels = np.full(len(y), -1)
            for c in np.unique(y):
                labels[random.choice(np.flatnonzero(y == c), per, replace=False)] = c
            for name, learner in learners.items():
                ours = isinstance(learner, TransformedKernelClassifier)
                model = learner.set_params(standardize=table == "moons") if ours else learner
                model.fit(x, labels)
                scores[name].append(float((model.transduction_ == y)[labels < 0].mean()))
        for name, values in scores.items():
            print(
                f"   {table:7s} {per} for each class   {name:30s} {np.mean(values):.3f}  {min(values):.3f}", flush=True
            )


def seconds(n: int = 2000) -> None:
    random = np.random.default_rng(0)
    x = random.normal(size=(n, 5))
    y = np.sin(2 * x[:, 0]) * x[:, 1] + 0.3 * random.normal(size=n)
    print(f"3. {n:,} rows, d = 5, 61 levels")
    for name in ("ridge", "gradient_flow"):
        start = time.perf_counter()
        model = SpectralRegressor(Gaussian(1.5), name, learn=False).fit(x, y)
        used = time.perf_counter() - start
        print(f"   mercer {name:14s} {used:6.1f} s for all levels and intervals, level {model.level_:.2g}", flush=True)
    start = time.perf_counter()
    KernelRidge(kernel="rbf", gamma=1 / (2 * 1.5**2), alpha=1.0).fit(x, y)
    print(f"   scikit-learn KernelRidge {time.perf_counter() - start:.1f} s for one level, without left-out rows")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--draws", type=int, default=10)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    rates(given.draws)
    few_labels(given.draws)
    seconds()


if __name__ == "__main__":
    main()
