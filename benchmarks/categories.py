"""Categories as a Hamming kernel, times a kernel of the numbers, against the encodings that `mercer fit` uses.

python benchmarks/categories.py [--rows 500 2000] [--draws 3] [--seconds 20]: R2 on 3,000 unseen rows and seconds of a
fit, mean over draws, 2 threads. "few levels": Friedman's first function with two of its columns cut into 6 levels each,
named at random. "many levels": the same with the strongest column cut into 200. "shops": the mixed table of table.py,
columns of 60 and of 5 levels, gaps and dates. "only levels": six columns of five levels, effects of levels and of
pairs, and no number. LightGBM with categories of its own is run beside them where it is installed. The last column is
the gain of the Hamming kernel with its standard error over rows and draws: what a default would have to stand on.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import sys
import time
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "2"}

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from sklearn.datasets import make_friedman1
from table import mixed_table

from mercer.app.frame import TableEncoder, training_frame
from mercer.kernel import Kernel
from mercer.kernels import Hamming, Matern
from mercer.learn import KernelRidge

NEW = 3000  # unseen rows
Sides = tuple[np.ndarray, np.ndarray]


def named(values: np.ndarray, levels: int, random: np.random.Generator) -> list[str]:
    """Quantiles of a column as words in no order."""
    places = np.searchsorted(np.quantile(values, np.arange(1, levels) / levels), values)
    words = random.permutation(levels)
    return [f"level {words[place]}" for place in places]


def friedman(n: int, draw: int, levels: dict[int, int]) -> pd.DataFrame:
    """Friedman's first function of ten columns, some of them cut into levels."""
    random = np.random.default_rng(draw)
    x, y = make_friedman1(n, 10, noise=1.0, random_state=draw)
    columns: dict[str, Any] = {f"x{i}": x[:, i] for i in range(10)}
    columns |= {f"x{i}": named(x[:, i], many, random) for i, many in levels.items()}
    return pd.DataFrame(columns | {"y": y})


def few_levels(n: int, draw: int) -> pd.DataFrame:
    return friedman(n, draw, {0: 6, 3: 6})


def many_levels(n: int, draw: int) -> pd.DataFrame:
    return friedman(n, draw, {3: 200})


def shops(n: int, draw: int) -> pd.DataFrame:
    return mixed_table(n, draw)


def only_levels(n: int, draw: int) -> pd.DataFrame:
    """Six columns of five levels, effects of levels and of pairs of levels."""
    random = np.random.default_rng(draw)
    codes = random.integers(0, 5, (n, 6))
    effect, pair = random.normal(size=(6, 5)), random.normal(size=(5, 5))
    y = effect[np.arange(6), codes].sum(1) + pair[codes[:, 0], codes[:, 1]] + 0.5 * random.normal(size=n)
    return pd.DataFrame({f"c{i}": [f"level {v}" for v in column] for i, column in enumerate(codes.T)} | {"y": y})


TABLES = {"few levels": few_levels, "many levels": many_levels, "shops": shops, "only levels": only_levels}


def encoded(first: pd.DataFrame, second: pd.DataFrame, y: np.ndarray) -> tuple[Sides, Sides]:
    """(what `mercer fit` sees of both tables, the part of it that is not of categories)."""
    seen, new = (training_frame(pa.Table.from_pandas(t), [])[0] for t in (first, second))
    encoder, x = TableEncoder.fit(seen, ((y - y.mean()) / y.std())[:, None], 0)
    sides = x, encoder.encode(new)
    numbers = [i for i, column in enumerate(seen.columns) if column.kind != "text"]
    kept = np.isin(encoder.sources(), numbers)
    return sides, (sides[0][:, kept], sides[1][:, kept])


def hamming(levels: int, numbers: int) -> Kernel:
    """One lengthscale for each column of categories, and one for each coordinate of the numbers, learned together."""
    found: Kernel = Hamming(torch.full((levels,), float(levels))).on(list(range(levels)))
    if numbers:
        scales = torch.full((numbers,), numbers**0.5, dtype=torch.float64)
        found = found * Matern(2.5, scales).on(list(range(levels, levels + numbers)))
    return found


def ways(table: pd.DataFrame, rows: int, seconds: float) -> dict[str, tuple[np.ndarray, float]]:
    """(squared errors of unseen rows, seconds) of each way to use the categories."""
    y = table.pop("y").to_numpy()
    first, second = table.iloc[:rows], table.iloc[rows:]
    text = [c for c in table if table[c].dtype.kind not in "ifbM"]
    sides, numbers = encoded(first, second, y[:rows])
    codes = np.stack([pd.factorize(table[c].fillna(""))[0] for c in text], 1).astype(np.float64)
    both = np.hstack([codes[:rows], numbers[0]]), np.hstack([codes[rows:], numbers[1]])
    kernel = hamming(len(text), numbers[0].shape[1])
    models: dict[str, tuple[Any, Any, Any]] = {
        "encoded": (KernelRidge(time_budget=seconds, random_state=0), *sides),
        "Hamming": (KernelRidge(kernel, time_budget=seconds, random_state=0), *both),
    }
    if importlib.util.find_spec("lightgbm") is not None:
        trees = importlib.import_module("lightgbm").LGBMRegressor(verbose=-1, n_jobs=2)
        kinds = table.assign(**{c: table[c].astype("category") for c in text})
        for c in kinds.select_dtypes("datetime"):
            kinds[c] = kinds[c].astype("int64")
        models["LightGBM"] = trees, kinds.iloc[:rows], kinds.iloc[rows:]
    found = {}
    for name, (model, seen, new) in models.items():
        start = time.perf_counter()
        model.fit(seen, y[:rows])
        found[name] = np.square(y[rows:] - model.predict(new)) / y[rows:].var(), time.perf_counter() - start
    return found


def main(sizes: list[int], draws: int, seconds: float) -> None:
    """A line for each table, number of rows and way."""
    torch.set_num_threads(2)
    sys.stdout.write(f"{'table':<13}{'rows':>7}  {'way':<10}{'R2':>8}{'s':>7}   gain over encodings\n")
    for name, make in TABLES.items():
        for rows in sizes:
            runs = [ways(make(rows + NEW, draw), rows, seconds) for draw in range(draws)]
            usual = np.concatenate([run["encoded"][0] for run in runs])
            for way in runs[0]:
                errors, took = np.concatenate([run[way][0] for run in runs]), np.mean([run[way][1] for run in runs])
                line = f"{name:<13}{rows:>7,}  {way:<10}{1 - errors.mean():>8.4f}{took:>7.1f}"
                if way != "encoded":
                    gain = np.array([(run["encoded"][0] - run[way][0]).mean() for run in runs])
                    each = usual - errors
                    unsure = max(each.std() / np.sqrt(len(each)), gain.std() / np.sqrt(max(draws - 1, 1)))
                    line += f"   {each.mean():+.4f} +- {unsure:.4f}"
                sys.stdout.write(line + "\n")
                sys.stdout.flush()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[500, 2000])
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=20.0)
    given = parser.parse_args()
    main(given.rows, given.draws, given.seconds)
