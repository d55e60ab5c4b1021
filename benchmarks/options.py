"""What `learn.explain` predicts against what fits take: seconds and peak memory of a dozen, each in its own process.

python benchmarks/options.py [part of a learner's name ...]

Seconds are those of the processor over the threads, so that other programs do not count. Memory is the largest size of
the process less its size before the fit, freed blocks given back at once.
"""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import torch

from mercer import learn
from mercer.budget import mib
from mercer.learn.options import options
from mercer.learn.plan import span

THREADS, SECONDS = 2, 300.0
CASES = [
    ("KernelRidge", 1500, 8, 1, "regression", {}),
    ("KernelRidge", 4000, 8, 1, "regression", {}),
    ("GaussianProcessRegressor", 8000, 8, 1, "regression", {}),
    ("FalkonRegressor", 20_000, 8, 1, "regression", {}),
    ("FalkonRegressor", 200_000, 10, 1, "regression", {}),
    ("EigenProRegressor", 20_000, 8, 1, "regression", {"landmarks": 1000}),
    ("EigenProRegressor", 5000, 8, 1, "regression", {"landmarks": None}),
    ("VariationalGaussianProcess", 3000, 8, 1, "regression", {}),
    ("VariationalGaussianProcess", 20_000, 8, 1, "regression", {}),
    ("VecchiaGaussianProcess", 3000, 2, 1, "regression", {}),
    ("VecchiaGaussianProcess", 30_000, 2, 1, "regression", {}),
    ("LatentVecchiaProcess", 1500, 2, 1, "regression", {}),
    ("NeighbourRidge", 20_000, 2, 1, "regression", {}),
    ("SpectralRegressor", 10_000, 8, 1, "regression", {}),
    ("RecursiveFeatureMachine", 4000, 8, 1, "regression", {}),
    ("MultitaskGaussianProcess", 1500, 4, 3, "regression", {}),
    ("TransformedKernelRidge", 1500, 5, 1, "regression", {}),
    ("TransformedKernelRidge", 6000, 5, 1, "regression", {}),
    ("KernelClassifier", 1000, 8, 2, "classification", {}),
    ("KernelClassifier", 4000, 8, 4, "classification", {}),
    ("FalkonClassifier", 20_000, 8, 2, "classification", {}),
    ("EigenProClassifier", 20_000, 8, 3, "classification", {"landmarks": 1000}),
    ("KernelSVC", 3000, 8, 2, "classification", {}),
    ("KernelSVC", 20_000, 8, 2, "classification", {}),
    ("KernelMeanClassifier", 20_000, 8, 2, "classification", {}),
    ("VariationalGaussianProcessClassifier", 2000, 8, 2, "classification", {}),
    ("VariationalGaussianProcessClassifier", 10_000, 8, 2, "classification", {}),
    ("RecursiveFeatureClassifier", 3000, 8, 2, "classification", {}),
    ("KernelPCA", 5000, 8, 2, "unsupervised", {}),
    ("KernelKMeans", 5000, 8, 8, "unsupervised", {}),
    ("KernelSpectralClustering", 3000, 8, 8, "unsupervised", {}),
    ("KernelNovelty", 3000, 8, 1, "unsupervised", {}),
    ("KernelNovelty", 50_000, 8, 1, "unsupervised", {}),
]  # fmt: skip


def table(n: int, d: int, outputs: int, task: str) -> tuple[np.ndarray, np.ndarray]:
    """Rows and what to learn: a wave, a product of two columns, noise."""
    r = np.random.default_rng(0)
    x = r.normal(size=(n, d))
    wave = np.sin(1.5 * x[:, 0]) + x[:, 1] * x[:, min(2, d - 1)]
    if task == "classification":
        score = wave + 0.3 * r.normal(size=n)
        return x, np.digitize(score, np.quantile(score, np.arange(1, outputs) / outputs))
    y = wave[:, None] + 0.3 * r.normal(size=(n, outputs))
    return x, y[:, 0] if outputs == 1 else y


def size(key: str) -> int:
    """Bytes of this process by that name of the system's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def one(name: str, n: int, d: int, outputs: int, task: str, given: dict) -> dict[str, float]:
    """Fit once, after a small fit that loads code."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(THREADS)
    kind = getattr(learn, name)
    known = inspect.signature(kind).parameters
    count = {"unsupervised": {"n_components": outputs, "n_clusters": outputs}}.get(task, {})
    more = {key: value for key, value in {**given, **count, "random_state": 0}.items() if key in known}
    timed = "time_budget" in known
    x, y = table(80, d, outputs, task)
    kind(**more, **({"time_budget": 1.0} if timed else {})).fit(x, y)
    x, y = table(n, d, outputs, task)
    Path("/proc/self/clear_refs").write_text("5")
    before, start, wall = size("VmRSS"), time.process_time(), time.perf_counter()
    model = kind(**more, **({"time_budget": SECONDS} if timed else {})).fit(x, y)
    if hasattr(model, "predict_interval"):
        model.predict_interval(x[:10])
    took = (time.process_time() - start) / THREADS
    return {"seconds": took, "wall": time.perf_counter() - wall, "memory": size("VmHWM") - before}


def measured(case: tuple) -> dict[str, float]:
    """The same in a process of its own."""
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "1048576", "OMP_NUM_THREADS": str(THREADS)}
    command = [sys.executable, __file__, "--one", json.dumps(case)]
    said = subprocess.run(command, capture_output=True, text=True, env=environment, check=True).stdout
    return json.loads(said.splitlines()[-1])


def main(wanted: list[str]) -> None:
    """The table, the worst ratio of each column at its end."""
    torch.set_num_threads(THREADS)
    head = f"{'learner':<38}{'n':>8}{'d':>4}{'y':>3}   {'time':>8}{'fit':>8}{'ratio':>7}"
    print(f"{head}   {'memory':>10}{'fit':>10}{'ratio':>7}")
    worst = [1.0, 1.0]
    for case in CASES:
        name, n, d, outputs, task, given = case
        if wanted and not any(part in name for part in wanted):
            continue
        found = [o for o in options(n, d, outputs, task=task, seconds=SECONDS) if o.learner == name]
        if "landmarks" in given:
            found = [o for o in found if ("streamed" in o.how) == (given["landmarks"] is not None)]
        said = next((o for o in found if o.chosen), found[-1 if name == "KernelNovelty" and n > 5000 else 0])
        if name == "GaussianProcessRegressor":
            said = next(o for o in found if "cg" not in o.how)
        if name == "KernelNovelty":
            said = next(o for o in found if "mean" not in o.how)
        fit = measured(case)
        ratios = [said.seconds / fit["seconds"], said.memory / fit["memory"]]
        worst = [max(w, r, 1 / r) for w, r in zip(worst, ratios, strict=True)]
        times = f"{span(said.seconds):>8}{span(fit['seconds']):>8}{ratios[0]:>7.2f}"
        room = f"{mib(said.memory):>10}{mib(fit['memory']):>10}{ratios[1]:>7.2f}"
        print(f"{name:<38}{n:>8,}{d:>4}{outputs:>3}   {times}   {room}", flush=True)
    print(f"farthest apart: a factor of {worst[0]:.2f} in seconds, {worst[1]:.2f} in memory")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        print(json.dumps(one(*json.loads(sys.argv[2]))))
    else:
        main(sys.argv[1:])
