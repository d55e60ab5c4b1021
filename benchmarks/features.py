"""What feature learning brings: one lengthscale a column, a learned metric and trees on the same rows, in one run.

python benchmarks/features.py [rows] [seconds]: R2 on unseen rows and seconds of each fit, 2 threads. The multi-index
task depends on four directions of three columns each, of twenty; eight columns mean nothing. The second table compares
categories as a Hamming kernel, times a kernel of the numbers, with the encodings that `mercer fit` uses.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from lightgbm import LGBMRegressor
from sklearn.datasets import load_diabetes, make_friedman1
from table import mixed_table

from mercer.app.frame import TableEncoder, training_frame
from mercer.kernels import Hamming, Matern
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


def only_categories(n: int) -> pd.DataFrame:
    """Six columns of five levels, effects of levels and of pairs of levels."""
    r = np.random.default_rng(0)
    codes = r.integers(0, 5, (n, 6))
    effect, pair = r.normal(size=(6, 5)), r.normal(size=(5, 5))
    y = effect[np.arange(6), codes].sum(1) + pair[codes[:, 0], codes[:, 1]] + 0.5 * r.normal(size=n)
    return pd.DataFrame({f"c{i}": [f"level {v}" for v in column] for i, column in enumerate(codes.T)} | {"y": y})


def categories(rows: int, seconds: float) -> None:
    """Encoded, against codes under a Hamming kernel times a kernel of the other columns, both learned."""
    print(f"\n{'':<14}{'':<16}{'rows':>8}{'R2':>9}{'s':>8}")
    new = min(NEW, rows)
    for name, table in (("mixed", mixed_table(rows + new)), ("categories", only_categories(rows + new))):
        y, parts = table.pop("y").to_numpy(), (table.iloc[:rows], table.iloc[rows:])
        text = [c for c in table if table[c].dtype.kind not in "ifbM"]
        rest = [c for c in table if c not in text]
        first, _ = training_frame(pa.Table.from_pandas(parts[0]), [])
        second, _ = training_frame(pa.Table.from_pandas(parts[1]), [])
        encoder, x = TableEncoder.fit(first, (y[:rows, None] - y[:rows].mean()) / y[:rows].std(), 0)
        model = KernelRidge(time_budget=seconds, random_state=0)
        with columns_only():
            took = timed(model, x, y[:rows])
        found = model.score(encoder.encode(second), y[rows:])
        print(f"{name:<14}{'encoded':<16}{rows:>8,}{found:>9.4f}{took:>8.1f}", flush=True)
        codes = np.stack([pd.factorize(table[c].fillna(""))[0] for c in text], 1).astype(np.float64)
        kernel: Any = Hamming(torch.full((len(text),), float(len(text)))).on(list(range(len(text))))
        sides = [codes[:rows], codes[rows:]]
        if rest:
            sources = encoder.sources()
            kept = np.isin(sources, [i for i, c in enumerate(first.columns) if c.name in rest])
            numbers = x[:, kept], encoder.encode(second)[:, kept]
            sides = [np.hstack(pair) for pair in zip(sides, numbers, strict=True)]
            places = list(range(len(text), len(text) + int(kept.sum())))
            scales = torch.full((len(places),), len(places) ** 0.5, dtype=torch.float64)
            kernel = kernel * Matern(2.5, scales).on(places)
        own = KernelRidge(kernel, time_budget=seconds, random_state=0)
        took = timed(own, sides[0], y[:rows])
        print(f"{name:<14}{'Hamming':<16}{rows:>8,}{own.score(sides[1], y[rows:]):>9.4f}{took:>8.1f}", flush=True)


def main(rows: int, seconds: float) -> None:
    """Both tables."""
    torch.set_num_threads(2)
    metrics(rows, seconds)
    for some in (1000, min(rows, 5000)):
        categories(some, seconds)


if __name__ == "__main__":
    arguments = [float(v) for v in sys.argv[1:]]
    main(int(arguments[0]) if arguments else 20_000, arguments[1] if len(arguments) > 1 else 60.0)
