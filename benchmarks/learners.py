"""Learners against their peers on tables: R2 or log loss, interval coverage and seconds, in one run.

python benchmarks/learners.py [rows]
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from lightgbm import LGBMClassifier, LGBMRegressor
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits, make_friedman1, make_moons
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mercer.learn import KernelClassifier, KernelRidge

Table = tuple[np.ndarray, np.ndarray]


def mixed(n: int) -> Table:
    """Numbers, counts, a flag and two indicators; interactions, a step; three columns mean nothing."""
    r = np.random.default_rng(0)
    x = r.normal(size=(n, 12))
    x[:, 3], x[:, 4], x[:, 5], x[:, 6] = (
        r.integers(0, 5, n),
        r.exponential(1, n),
        r.integers(0, 2, n),
        r.uniform(0, 1, n),
    )
    level = r.integers(0, 6, n)
    x[:, 7], x[:, 8] = level == 1, level == 4
    y = np.sin(2 * x[:, 0]) * x[:, 1] + 1.5 * (x[:, 2] > 0.5) + 0.4 * x[:, 3] + np.log1p(x[:, 4]) * x[:, 5]
    y += np.array([0, 1, -1, 0.5, 2, -0.5])[level] + 2 * np.abs(x[:, 6] - 0.4) * x[:, 0] + 0.3 * r.normal(size=n)
    return x, y


def steps(n: int) -> Table:
    """Steps and boxes, what trees are made for."""
    r = np.random.default_rng(0)
    x = r.uniform(-1, 1, (n, 12))
    y = np.floor(3 * x[:, 0]) + 2.0 * (x[:, 1] > 0) * (x[:, 2] > 0.2) + (x[:, 3] > x[:, 4]) + 0.5 * x[:, 5]
    return x, y + 0.3 * r.normal(size=n)


def friedman(n: int) -> Table:
    """Friedman's first function with two columns more than it uses, noise 1."""
    return make_friedman1(n, 12, noise=1.0, random_state=0)


def timed(model: Any, x: np.ndarray, y: np.ndarray) -> float:
    """Seconds of a fit."""
    start = time.perf_counter()
    model.fit(x, y)
    return time.perf_counter() - start


def regression(name: str, x: np.ndarray, y: np.ndarray, new: np.ndarray, true: np.ndarray) -> None:
    """One line for a regression table."""
    mine, trees, line = KernelRidge(random_state=0), LGBMRegressor(verbose=-1), LinearRegression()
    seconds, other, _ = (timed(model, x, y) for model in (mine, trees, line))
    low, high = mine.predict_interval(new)
    found = [model.score(new, true) for model in (mine, trees, line)]
    cover = float(((low <= true) & (true <= high)).mean())
    print(
        f"{name:<14}{len(x):>8,}{found[0]:>9.4f}{found[1]:>9.4f}{found[2]:>9.4f}{cover:>8.1%}{seconds:>8.1f}{other:>8.1f}"
    )
    print(f"{'':<14}{mine.plan_.sentence}")


def calibration_error(p: np.ndarray, y: np.ndarray) -> float:
    """Expected calibration error of the likeliest class, ten bins."""
    sure, right = p.max(1), p.argmax(1) == y
    place = np.minimum((10 * sure).astype(int), 9)
    bins = [place == i for i in range(10) if (place == i).any()]
    return float(sum(abs(right[b].mean() - sure[b].mean()) * b.mean() for b in bins))


def classification(name: str, x: np.ndarray, y: np.ndarray) -> None:
    """One line for each classifier."""
    a, b, ya, yb = train_test_split(x, y, test_size=0.4, random_state=0, stratify=y)
    line = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    for label, model in (
        ("mercer", KernelClassifier(random_state=0)),
        ("logistic", line),
        ("lightgbm", LGBMClassifier(verbose=-1)),
    ):
        seconds = timed(model, a, ya)
        p = model.predict_proba(b)
        error, loss = calibration_error(p, yb), log_loss(yb, p)
        print(f"{name:<14}{label:<10}{(p.argmax(1) == yb).mean():>9.4f}{loss:>9.4f}{error:>9.4f}{seconds:>8.1f}")


def main(rows: int) -> None:
    """Print both tables."""
    print(f"{'R2':<14}{'rows':>8}{'mercer':>9}{'lightgbm':>9}{'linear':>9}{'cover':>8}{'s':>8}{'s lgbm':>8}")
    makers: list[Callable[[int], Table]] = [mixed, steps, friedman]
    for make in makers:
        x, y = make(rows + 5000)
        regression(make.__name__, x[:rows], y[:rows], x[rows:], y[rows:])
    x, y = load_diabetes(return_X_y=True)
    a, b, ya, yb = train_test_split(x, y, test_size=0.3, random_state=0)
    regression("diabetes", a, ya, b, yb)
    print(f"\n{'':<14}{'':<10}{'accuracy':>9}{'log loss':>9}{'ECE':>9}{'s':>8}")
    tables = {"cancer": load_breast_cancer(return_X_y=True), "digits": load_digits(return_X_y=True)}
    for name, (x, y) in {**tables, "moons": make_moons(2000, noise=0.3, random_state=0)}.items():
        classification(name, x, y)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20_000)
