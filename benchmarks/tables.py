"""Seven tables through `mercer fit` and LightGBM's default: error on held-out rows, coverage of intervals, seconds.

python benchmarks/tables.py [names ...] [--seconds 60] [--draws 5] [--randhie FILE.csv]

diabetes (442 patients), randhie (20,190 visits to doctors; from statsmodels where it is installed, or a CSV file of
it), mixed (20,000 rows with categories, dates and gaps), friedman1, friedman2, friedman3 (2,000 rows each, noise as in
Breiman's paper) and photo (27,328 of 273,280 pixels; three colours). Small tables are drawn anew several times. Both
learn from the same rows, on 2 threads; neither is told anything but the target. The error is the root mean square on
the held-out rows over that of the mean; the interval is of 90 %. Seconds are those of the whole command, starting
Python and writing the report included, and for LightGBM of fitting alone.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

os.environ |= {"OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "2"}

import numpy as np
import pandas as pd
from lightgbm import LGBMRegressor
from sklearn.datasets import load_diabetes, load_sample_image, make_friedman1, make_friedman2, make_friedman3
from table import mixed_table

HELD = 0.25  # of the rows
SMALL = {"diabetes", "friedman1", "friedman2", "friedman3"}
Table = tuple[pd.DataFrame, list[str]]


def _frame(x: np.ndarray, y: np.ndarray) -> Table:
    return pd.DataFrame({f"x{i}": x[:, i] for i in range(x.shape[1])}).assign(y=y), ["y"]


def diabetes(draw: int) -> Table:
    return load_diabetes(as_frame=True, scaled=False).frame, ["target"]


def randhie(draw: int) -> Table:
    if RANDHIE is not None:
        return pd.read_csv(RANDHIE), ["mdvis"]
    if importlib.util.find_spec("statsmodels") is None:
        raise SystemExit("randhie comes with statsmodels: install that, or name a CSV file of it by --randhie")
    return importlib.import_module("statsmodels.api").datasets.randhie.load_pandas().data, ["mdvis"]


def mixed(draw: int) -> Table:
    return mixed_table(20_000, draw), ["y"]


def friedman1(draw: int) -> Table:
    return _frame(*make_friedman1(2000, 10, noise=1.0, random_state=draw))


def friedman2(draw: int) -> Table:
    return _frame(*make_friedman2(2000, noise=125.0, random_state=draw))


def friedman3(draw: int) -> Table:
    return _frame(*make_friedman3(2000, noise=0.1, random_state=draw))


def photo(draw: int) -> Table:
    image = load_sample_image("china.jpg").astype(np.float64)
    row, column = np.divmod(np.arange(image.shape[0] * image.shape[1]), image.shape[1])
    colours = image.reshape(-1, 3)
    names = ["red", "green", "blue"]
    return pd.DataFrame({"column": column, "row": row} | {c: colours[:, i] for i, c in enumerate(names)}), names


TABLES: dict[str, Callable[[int], Table]] = {
    f.__name__: f for f in (diabetes, randhie, mixed, friedman1, friedman2, friedman3, photo)
}
RANDHIE: Path | None = None


def error(true: np.ndarray, found: np.ndarray, centre: np.ndarray) -> float:
    """Root mean square over that of the training mean; over several targets, the mean of these."""
    return float((np.sqrt(((true - found) ** 2).mean(0)) / np.sqrt(((true - centre) ** 2).mean(0))).mean())


def ours(
    train: pd.DataFrame, test: pd.DataFrame, names: Sequence[str], seconds: float
) -> tuple[np.ndarray, float, float]:
    """(predictions of the held-out rows, share that the intervals held, seconds of `mercer fit`)."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        train.to_parquet(folder / "train.parquet")
        test.drop(columns=list(names)).to_parquet(folder / "test.parquet")
        mercer = [sys.executable, "-m", "mercer.app"]
        targets = [part for name in names for part in ("--target", name)]
        start = time.perf_counter()
        fit = [
            *mercer,
            "fit",
            str(folder / "train.parquet"),
            *targets,
            "--task",
            "regression",
            "--out",
            str(folder / "m"),
        ]
        subprocess.run([*fit, "--time", f"{seconds:g}s", "--json"], check=True, stdout=subprocess.PIPE)
        took = time.perf_counter() - start
        predict = [
            *mercer,
            "predict",
            str(folder / "m"),
            str(folder / "test.parquet"),
            "--out",
            str(folder / "p.parquet"),
        ]
        subprocess.run(predict, check=True, stdout=subprocess.PIPE)
        found = pd.read_parquet(folder / "p.parquet")
    held = []
    for name in names:
        low, high = found[f"{name}_lower"].to_numpy(), found[f"{name}_upper"].to_numpy()
        held.append(((low <= test[name]) & (test[name] <= high)).mean())
    return found[list(names)].to_numpy(), float(np.mean(held)), took


def lightgbm(train: pd.DataFrame, test: pd.DataFrame, names: Sequence[str]) -> tuple[np.ndarray, float]:
    """(predictions, seconds): defaults; text as its own categories, dates as numbers."""
    both = pd.concat([train, test]).drop(columns=list(names))
    for column in both:
        if both[column].dtype.kind == "M":
            both[column] = (both[column] - pd.Timestamp(0)) / pd.Timedelta(days=1)
        elif both[column].dtype.kind not in "iufb":
            both[column] = both[column].astype("category")
    x, z = both.iloc[: len(train)], both.iloc[len(train) :]
    start = time.perf_counter()
    found = [LGBMRegressor(verbose=-1, n_jobs=2).fit(x, train[name]).predict(z) for name in names]
    return np.stack(found, 1), time.perf_counter() - start


def split(frame: pd.DataFrame, name: str, draw: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    order = np.random.default_rng(draw).permutation(len(frame))
    held = int((0.9 if name == "photo" else HELD) * len(frame))
    return frame.iloc[order[held:]].reset_index(drop=True), frame.iloc[order[:held]].reset_index(drop=True)


def main() -> None:
    global RANDHIE
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", metavar="name", help=", ".join(TABLES))
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--randhie", type=Path)
    args = parser.parse_args()
    if unknown := set(args.names) - set(TABLES):
        parser.error(f"no table is named {', '.join(sorted(unknown))}; there are {', '.join(TABLES)}")
    RANDHIE = args.randhie
    print(f"{'':10}{'draws':>6}{'mercer':>9}{'LightGBM':>10}{'held':>8}{'seconds':>9}{'LightGBM':>10}", flush=True)
    rows = []
    for name in args.names or TABLES:
        found = []
        for draw in range(args.draws if name in SMALL else 1):
            frame, targets = TABLES[name](draw)
            train, test = split(frame, name, draw)
            true, centre = test[targets].to_numpy(), train[targets].to_numpy().mean(0)
            mine, held, took = ours(train, test, targets, args.seconds)
            other, peer = lightgbm(train, test, targets)
            found.append((error(true, mine, centre), error(true, other, centre), held, took, peer))
        a, b, held, took, peer = np.mean(found, 0)
        rows.append({"name": name, "mercer": a, "lightgbm": b, "held": held})
        print(f"{name:10}{len(found):>6}{a:>9.4f}{b:>10.4f}{held:>8.1%}{took:>9.1f}{peer:>10.1f}", flush=True)
    better = sum(r["mercer"] < 0.99 * r["lightgbm"] for r in rows)
    no_worse = sum(r["mercer"] <= 1.01 * r["lightgbm"] for r in rows)
    print(f"better by 1 % or more on {better} of {len(rows)}, no worse by 1 % on {no_worse}")
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
