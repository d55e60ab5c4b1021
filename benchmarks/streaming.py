"""Learners of many rows: held-out error, seconds until it, and peak memory, against scikit-learn and GPyTorch.

python benchmarks/streaming.py [--rows 1000000] [--peers PYTHON] [--threads 2] [--only NAME]

Friedman's first function of ten columns with noise 1, float32, in a memory map that every contestant opens. Each runs
in a process of its own, one after the other; GPyTorch lives in an environment of its own, named by `--peers`. A line is
one contestant at one size: seconds of everything from reading to the fitted model, root mean square error of 20,000
rows that nobody saw (noise included: 1.000 is perfect), and the peak of the process above what it held before the fit.
The last column is its time as a multiple of that of the fastest line of mercer's that is at least as good.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path
from typing import Any

import numpy as np

from mercer.budget import free_memory

TEST = 20_000
COMMON = """
import json, resource, sys, time
import numpy as np
folder, threads, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
X, y = np.load(folder + "/x.npy", mmap_mode="r"), np.load(folder + "/y.npy")
new, true = np.load(folder + "/new.npy"), np.load(folder + "/true.npy")
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
def finish(fit):
    before, start = peak(), time.perf_counter()
    predict, note = fit()
    seconds = time.perf_counter() - start
    error = float(np.sqrt(np.mean((np.asarray(predict(new), dtype=float).ravel() - true) ** 2)))
    print(json.dumps({"seconds": seconds, "error": error, "memory": peak() - before, "note": note}))
"""
CONTESTANTS: dict[str, tuple[tuple[int, ...], str]] = {
    "EigenPro": ((500, 2000), """
        import torch; torch.set_num_threads(threads)
        from mercer.learn import EigenProRegressor
        def fit():
            model = EigenProRegressor(landmarks=size, epochs=5, random_state=0).fit(X, y)
            return model.predict, f"{model.epochs_} epochs, {model.stopped_}, batches of {model.batch_size_}"
        finish(fit)
    """),
    "Falkon": ((500, 2000), """
        import torch; torch.set_num_threads(threads)
        from mercer.learn import FalkonRegressor
        def fit():
            model = FalkonRegressor(landmarks=size, random_state=0).fit(X, y)
            return model.predict, f"{model.n_iter_} iterations"
        finish(fit)
    """),
    "Nystroem + Ridge": ((250, 500, 1000, 2000), """
        from threadpoolctl import threadpool_limits
        from sklearn.kernel_approximation import Nystroem
        from sklearn.linear_model import Ridge
        from sklearn.pipeline import make_pipeline
        threadpool_limits(threads)
        def fit():
            some = slice(0, 20_000)  # the rows are in no order; the width is chosen on a few, as a user would
            best = min((0.03, 0.1, 0.3, 1.0), key=lambda gamma: np.mean((make_pipeline(
                Nystroem(gamma=gamma, n_components=200, random_state=0), Ridge(1e-3)).fit(X[some], y[some]).predict(
                X[20_000:25_000]) - y[20_000:25_000]) ** 2))
            model = make_pipeline(Nystroem(gamma=best, n_components=size, random_state=0), Ridge(1e-3)).fit(X, y)
            return model.predict, f"gamma {best}"
        finish(fit)
    """),
    "SVGP": ((500,), """
        import torch, gpytorch; torch.set_num_threads(threads)
        torch.manual_seed(0)
        class Model(gpytorch.models.ApproximateGP):
            def __init__(self, z):
                q = gpytorch.variational.CholeskyVariationalDistribution(len(z))
                super().__init__(gpytorch.variational.VariationalStrategy(self, z, q, learn_inducing_locations=True))
                self.mean = gpytorch.means.ConstantMean()
                self.k = gpytorch.kernels.ScaleKernel(gpytorch.kernels.RBFKernel(ard_num_dims=z.shape[1]))
            def forward(self, x):
                return gpytorch.distributions.MultivariateNormal(self.mean(x), self.k(x))
        def fit():
            centre, scale = float(y.mean()), float(y.std())
            model, noise = Model(torch.from_numpy(X[:size].copy())), gpytorch.likelihoods.GaussianLikelihood()
            bound = gpytorch.mlls.VariationalELBO(noise, model, num_data=len(X))
            adam = torch.optim.Adam([*model.parameters(), *noise.parameters()], lr=0.01)
            for at in torch.randperm(len(X)).split(1024):
                at = np.sort(at.numpy())
                adam.zero_grad()
                target = torch.from_numpy(((y[at] - centre) / scale).astype(np.float32))
                (-bound(model(torch.from_numpy(X[at])), target)).backward()
                adam.step()
            model.eval()
            def predict(new):
                with torch.no_grad():
                    found = torch.cat([model(p).mean for p in torch.from_numpy(new).split(2000)]).numpy()
                return found * scale + centre
            return predict, "1 epoch"
        finish(fit)
    """),
}  # fmt: skip
OURS = ("EigenPro", "Falkon")


def write(folder: Path, rows: int) -> None:
    """The table, 100,000 rows at a time."""
    random = np.random.default_rng(0)

    def draw(n: int) -> tuple[np.ndarray, np.ndarray]:
        x = random.uniform(size=(n, 10)).astype(np.float32)
        y = 10 * np.sin(np.pi * x[:, 0] * x[:, 1]) + 20 * (x[:, 2] - 0.5) ** 2 + 10 * x[:, 3] + 5 * x[:, 4]
        return x, (y + random.normal(size=n)).astype(np.float32)

    table = np.lib.format.open_memmap(folder / "x.npy", "w+", np.float32, (rows, 10))
    target = np.empty(rows, dtype=np.float32)
    for start in range(0, rows, 100_000):
        part = slice(start, min(start + 100_000, rows))
        table[part], target[part] = draw(part.stop - part.start)
    table.flush()
    new, true = draw(TEST)
    for name, value in (("y", target), ("new", new), ("true", true)):
        np.save(folder / f"{name}.npy", value)


def run(name: str, size: int, folder: Path, python: str, threads: int) -> dict[str, Any] | None:
    """What a contestant says of itself; None where it cannot run."""
    need = (
        24 * len(np.load(folder / "y.npy", mmap_mode="r")) * size if name == "Nystroem + Ridge" else 0
    )  # features, their copy, what copies them
    if need > free_memory():
        print(f"{name} {size}: would need {need / 2**30:.0f} GiB", file=sys.stderr)
        return None
    script = COMMON + textwrap.dedent(CONTESTANTS[name][1])
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    environment = os.environ | dict.fromkeys(names, str(threads))
    command = [python if name == "SVGP" else sys.executable, "-c", script, str(folder), str(threads), str(size)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        print(
            f"{name}: {done.stderr.strip().splitlines()[-1] if done.stderr.strip() else 'no answer'}", file=sys.stderr
        )
        return None
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def main() -> None:
    """Run and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--peers", default=sys.executable)
    parser.add_argument("--only", nargs="*", default=list(CONTESTANTS))
    chosen = parser.parse_args()
    found: list[tuple[str, int, dict[str, Any]]] = []
    with tempfile.TemporaryDirectory() as place:
        write(Path(place), chosen.rows)
        for name in chosen.only:
            for size in CONTESTANTS[name][0]:
                result = run(name, size, Path(place), chosen.peers, chosen.threads)
                if result is not None:
                    found.append((name, size, result))
                    print(f"{name:<18}{size:>6}  {json.dumps(result)}", file=sys.stderr, flush=True)
    print(f"{chosen.rows:,} rows, 10 columns, {chosen.threads} threads; error: root mean square of {TEST:,} new rows")
    print(f"{'':<18}{'size':>6}{'error':>9}{'seconds':>9}{'MiB':>8}{'as good':>9}  ")
    for name, size, r in found:
        good = [o["seconds"] for n, _, o in found if n in OURS and o["error"] <= r["error"] * (1 + 1e-3)]
        ratio = f"{r['seconds'] / min(good):.1f}x" if good and name not in OURS else ""
        print(f"{name:<18}{size:>6}{r['error']:>9.4f}{r['seconds']:>9.1f}{r['memory']:>8.0f}{ratio:>9}  {r['note']}")


if __name__ == "__main__":
    main()
