"""A 20,000-row mixed table through `mercer fit`: seconds, R2 beside LightGBM's on the same folds, measured coverage.

Run: python benchmarks/table.py [rows]. The table has numbers (some skewed), categories (few and many levels), dates,
true/false and missing values; the target is nonlinear with interactions and noise whose size varies.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd


def mixed_table(rows: int, seed: int = 0) -> pd.DataFrame:
    """The table; the best possible R2 is printed by `main` from its noise."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, 6))
    income = np.exp(10 + 0.6 * x[:, 0])
    shops = rng.choice(60, rows, p=rng.dirichlet(np.full(60, 2.0)))
    effect = rng.normal(size=60)
    colour = rng.integers(0, 5, rows)
    day = rng.integers(0, 900, rows)
    member = rng.random(rows) < 0.4
    signal = (
        2 * np.sin(1.5 * x[:, 1]) + x[:, 2] * x[:, 3] + np.where(member, 1.5 * x[:, 0], -0.5 * x[:, 0])
        + effect[shops] + np.array([0.0, 0.8, -0.6, 0.3, 1.2])[colour] + 0.8 * np.cos(2 * np.pi * day / 365.25)
        + 0.7 * np.maximum(x[:, 4], 0) * (colour == 1)
    )  # fmt: skip
    noise = rng.normal(size=rows) * (0.4 + 0.4 * np.abs(x[:, 1]))
    frame = pd.DataFrame({
        "income": income, "angle": x[:, 1], "left": x[:, 2], "right": x[:, 3], "dose": x[:, 4], "unused": x[:, 5],
        "shop": [f"shop {i:02d}" for i in shops], "colour": np.array(["red", "green", "blue", "grey", "black"])[colour],
        "member": member, "day": pd.Timestamp("2023-01-01") + pd.to_timedelta(day, unit="D"), "y": signal + noise,
    })  # fmt: skip
    for name, share in (("income", 0.1), ("dose", 0.05), ("colour", 0.03)):
        frame.loc[rng.random(rows) < share, name] = None
    frame.attrs["best"] = 1 - float(np.var(noise) / np.var(signal + noise))
    return frame


def main(rows: int) -> None:
    """Write the table, run the command, print the comparison."""
    with tempfile.TemporaryDirectory() as place:
        frame = mixed_table(rows)
        path, out = Path(place) / "table.parquet", Path(place) / "model"
        frame.to_parquet(path)
        start = time.perf_counter()
        command = [sys.executable, "-m", "mercer.app", "fit", str(path), "--target", "y", "--out", str(out), "--json"]
        found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
        seconds = time.perf_counter() - start
        target = found["targets"][0]
        sys.stdout.write(f"{rows:,} rows, {frame.shape[1] - 1} columns: {seconds:.1f} s with the report\n")
        for row in target["leaderboard"]:
            sys.stdout.write(f"  {row['name']:10} R2 {row['scores']['r2']:.4f}  ({row['seconds']:.1f} s)\n")
        sys.stdout.write(f"  best possible without the missing values: R2 {frame.attrs['best']:.4f}\n")
        sys.stdout.write(f"  90 % bands held {100 * target['coverage']['measured']:.1f} %\n")
        sys.stdout.write("\n".join(f"  {line}" for line in found["algorithms"]) + "\n")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20_000)
