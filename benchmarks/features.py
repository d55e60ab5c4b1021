"""What feature learning brings: one lengthscale a column, a learned metric and trees on the same rows, in one run.

python benchmarks/features.py [rows] [seconds]: R2 on unseen rows and seconds of each fit, 2 threads. The multi-index
task depends on four directions of three columns each, of twenty; eight columns mean nothing.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from lightgbm import LGBMRegressor
from sklearn.datasets import load_diabetes, make_friedman1

from mercer.learn import KernelRidge, RecursiveFeatureMachine
from mercer.learn import metric as learned

Table = tuple[np.ndarray, np.ndarray]
NEW = 5000


def multi_index(n: int, noise: float = 0.5) -> Table:
    """sin(2a) cos(b) + |c| + [d > 0] + noise: a, b, c, d of unit variance, each the sum of three of twenty columns."""
    r = np.random.default_rng(0)
    x = r.normal(size=(n, 20))
    a, b, c, d = (x[:, 3 * k : 3 * k + 3].sum(1) / 3**0.5 for k in range(4))
    return x, np.sin(2 * a) * np.cos(b) + np.abs(c) + (d > 0) + noise * r.normal(size=n)


def rotated(n: int) -> Table:
    """Friedman's first function of ten columns that were turned in space."""
    x, y = make_friedman1(n, 10, noise=1.0, random_state=0)
    return x @ np.linalg.qr(np.random.default_rng(1).normal(size=(10, 10)))[0], y


def friedman(n: int) -> Table:
    """Friedman's first function: its columns are the directions."""
    return make_friedman1(n, 10, noise=1.0, random_state=0)


def diabetes(n: int) -> Table:
    """442 rows in an order of their own: the last 110 are unseen."""
    x, y = load_diabetes(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(y))
    return x[order], y[order]


@contextmanager
def columns_only() -> Iterator[None]:
    """Inside, learners keep one lengthscale for each column."""
    usual, learned.LEAST_ROWS = learned.LEAST_ROWS, sys.maxsize
    try:
        yield
    finally:
        learned.LEAST_ROWS = usual


def timed(model: Any, x: np.ndarray, y: np.ndarray) -> float:
    """Seconds of a fit."""
    start = time.perf_counter()
    model.fit(x, y)
    return time.perf_counter() - start


def metrics(rows: int, seconds: float) -> None:
    """One line for each table and learner."""
    print(f"{'':<14}{'':<16}{'rows':>8}{'R2':>9}{'s':>8}")
    for make in (multi_index, rotated, friedman, diabetes):
        x, y = make(rows + NEW)
        n = min(rows, 3 * len(y) // 4)
        plain, default = (KernelRidge(time_budget=seconds, random_state=0) for _ in range(2))
        machine = RecursiveFeatureMachine(iterations=6, time_budget=seconds, random_state=0)
        trees = LGBMRegressor(n_estimators=1000, num_leaves=31, learning_rate=0.05, n_jobs=2, verbose=-1)
        for name, model in (("columns", plain), ("default", default), ("RFM", machine), ("LightGBM", trees)):
            if model is plain:
                with columns_only():
                    took = timed(model, x[:n], y[:n])
            else:
                took = timed(model, x[:n], y[:n])
            print(f"{make.__name__:<14}{name:<16}{n:>8,}{model.score(x[n:], y[n:]):>9.4f}{took:>8.1f}", flush=True)
            if hasattr(model, "plan_"):
                print(f"{'':<14}{model.plan_.sentence}")


def main(rows: int, seconds: float) -> None:
    """The table."""
    torch.set_num_threads(2)
    metrics(rows, seconds)


if __name__ == "__main__":
    arguments = [float(v) for v in sys.argv[1:]]
    main(int(arguments[0]) if arguments else 20_000, arguments[1] if len(arguments) > 1 else 60.0)
