"""Kernel products against KeOps, GPyTorch, scikit-learn and torch: seconds, rates, memory, error, share of the limit.

python benchmarks/engine.py [--peers PYTHON] [--threads 2] [--quick] [--json FILE]

Peers are optional and live in an environment of their own: `--peers` names its interpreter. Every contestant runs in a
process of its own (so that its peak memory is its own) on the same data, one after the other in this one run; the
median of several repeats counts. The limit is what the registers of this machine can do, measured by the same core:
fused multiply-adds, and exp2 with its sum; both take the same pipes, so the least time is the sum of both.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

SHAPES = ((1, 1), (3, 1), (10, 1), (30, 1), (100, 1), (784, 1), (3, 10), (10, 10))  # d, right-hand sides
ROWS = {1: 20_000, 3: 20_000, 10: 20_000, 30: 20_000, 100: 10_000, 784: 5_000}
LARGE = 200_000

COMMON = """
import json, os, resource, statistics, sys, time
import numpy as np
n, d, r, threads, backward, repeats = (int(a) for a in sys.argv[1:7])
random = np.random.default_rng(0)
x = (random.normal(size=(n, d)) / d**0.5).astype(np.float32)
y = (random.normal(size=(n, d)) / d**0.5).astype(np.float32)
v = random.normal(size=(n, r)).astype(np.float32)
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
def finish(run, warm):
    warm()  # loads code and thread pools, compiles where the contestant does
    before = peak()
    times = []
    out = run()
    for _ in range(repeats):
        start = time.perf_counter(); out = run(); times.append(time.perf_counter() - start)
    memory = peak() - before
    rows = np.arange(0, n, max(n // 40, 1))
    gap = ((x[rows, None].astype(float) - y[None].astype(float)) ** 2).sum(-1) if d * n < 2e6 else np.stack(
        [((row.astype(float) - y) ** 2).sum(-1) for row in x[rows]])
    exact = np.exp(-0.5 * gap) @ v.astype(float)
    error = float(np.abs(np.asarray(out)[rows] - exact).max() / np.abs(exact).max())
    print(json.dumps({"seconds": statistics.median(times), "memory": memory, "error": error}))
"""
CONTESTANTS = {
    "mercer": """
        import torch; torch.set_num_threads(threads)
        from mercer.kernels import Gaussian
        k, X, Y, V = Gaussian(1.0), torch.from_numpy(x), torch.from_numpy(y), torch.from_numpy(v)
        def product(X, Y, V):
            if not backward:
                with torch.no_grad():
                    return k(X, Y) @ V
            X = X.requires_grad_(); X.grad = None; k.zero_grad()
            out = k(X, Y) @ V
            out.sum().backward()
            return out.detach()
        finish(lambda: product(X, Y, V), lambda: product(X[:500].clone(), Y[:500], V[:500]))
    """,
    "mercer (tiles)": None,  # the same with MERCER_CORE=off
    "KeOps": """
        import torch; torch.set_num_threads(threads)
        from pykeops.torch import LazyTensor
        X, Y, V = torch.from_numpy(x), torch.from_numpy(y), torch.from_numpy(v)
        def product(X, Y, V):
            X = X.requires_grad_(bool(backward)); X.grad = None
            out = (-((LazyTensor(X[:, None, :]) - LazyTensor(Y[None, :, :])) ** 2).sum(-1) * 0.5).exp() @ V
            if backward: out.sum().backward()
            return out.detach()
        finish(lambda: product(X, Y, V), lambda: product(X[:500].clone(), Y[:500], V[:500]))
    """,
    "GPyTorch": """
        import torch, gpytorch; torch.set_num_threads(threads)
        k = gpytorch.kernels.RBFKernel(); k.lengthscale = 1.0
        X, Y, V = torch.from_numpy(x), torch.from_numpy(y), torch.from_numpy(v)
        def product(X, Y, V):
            X = X.requires_grad_(bool(backward)); X.grad = None
            with torch.set_grad_enabled(bool(backward)):
                out = k(X, Y) @ V
            if backward: out.sum().backward()
            return out.detach()
        finish(lambda: product(X, Y, V), lambda: product(X[:500].clone(), Y[:500], V[:500]))
    """,
    "scikit-learn": """
        from threadpoolctl import threadpool_limits
        from sklearn.metrics.pairwise import rbf_kernel
        threadpool_limits(threads)
        def product(x, y, v):
            step = max(60_000_000 // len(y), 1)  # 240 MB at a time
            return np.concatenate([rbf_kernel(x[i:i + step], y, gamma=0.5) @ v for i in range(0, len(x), step)])
        if backward: raise SystemExit("no gradients")
        finish(lambda: product(x, y, v), lambda: product(x[:500], y[:500], v[:500]))
    """,
    "torch": """
        import torch; torch.set_num_threads(threads)
        X, Y, V = torch.from_numpy(x), torch.from_numpy(y), torch.from_numpy(v)
        def product(X, Y, V):
            X = X.requires_grad_(bool(backward)); X.grad = None
            with torch.set_grad_enabled(bool(backward)):
                out = torch.exp(-0.5 * torch.cdist(X, Y) ** 2) @ V
            if backward: out.sum().backward()
            return out.detach()
        finish(lambda: product(X, Y, V), lambda: product(X[:500].clone(), Y[:500], V[:500]))
    """,
}
OURS = ("mercer", "mercer (tiles)")


def limits(threads: int) -> tuple[float, float] | None:
    """(G multiply-adds/s, G exp2/s) of the registers on `threads` threads; None without a compiled core."""
    script = """
import ctypes, sys, time
from concurrent.futures import ThreadPoolExecutor
from mercer.machine import core
c, threads = core(), int(sys.argv[1])
if c is None: raise SystemExit(1)
lanes = c.mercer_vector_bytes() // 4
many = 16 if lanes == 16 else 12
def rate(name, each, rounds):
    f = getattr(c, f"mercer_peak_{name}_float"); f.restype = ctypes.c_double; f.argtypes = [ctypes.c_int64]
    best = 0.0
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(5):
            start = time.perf_counter(); list(pool.map(f, [rounds] * threads))
            best = max(best, threads * rounds * each / (time.perf_counter() - start) / 1e9)
    return best
print(rate("fma", many * lanes, 4_000_000), rate("exp2", 512, 400_000))
"""
    done = subprocess.run([sys.executable, "-c", script, str(threads)], capture_output=True, text=True)
    return None if done.returncode else tuple(float(a) for a in done.stdout.split())  # type: ignore[return-value]


def run(name: str, python: str, case: tuple[int, ...], repeats: int) -> dict[str, Any] | None:
    """One contestant on one case (n, d, r, threads, backward), or None where it cannot."""
    body = textwrap.dedent(CONTESTANTS[name] or CONTESTANTS["mercer"] or "")
    threads = str(case[3])
    env = {**os.environ, "OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    if name == "mercer (tiles)":
        env["MERCER_CORE"] = "off"
    command = [python, "-W", "ignore", "-c", COMMON + body, *(str(int(a)) for a in case), str(repeats)]
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=3600)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    return json.loads(lines[-1]) if done.returncode == 0 and lines else None


def processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor()
    return next((line.split(":")[1].strip() for line in text.splitlines() if line.startswith("model name")), "unknown")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peers", default=sys.executable, help="the interpreter of the peers' environment")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="a tenth of the pairs, no large case")
    parser.add_argument("--products", action="store_true", help="no gradients")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    peak = limits(args.threads)
    print(f"{processor()}, {args.threads} threads, Gaussian, float32, x and y apart")
    if peak:
        print(f"registers: {peak[0]:.0f} G multiply-adds/s, {peak[1]:.1f} G exp2/s")
    cases = [
        (ROWS[d] // (3 if args.quick else 1), d, r, args.threads, back)
        for back in (0, 1)[: 1 if args.products else 2]
        for d, r in SHAPES
    ]
    cases += [] if args.quick else [(LARGE, d, 1, args.threads, 0) for d in (3, 10)]
    rows = []
    for case in cases:
        n, d, r, _, back = case
        print(f"\nn = m = {n:,}, d = {d}, {r} right-hand sides, {'with gradients to x' if back else 'product'}")
        print(f"{'':16}{'seconds':>10}{'G pairs/s':>11}{'MiB':>8}{'error':>9}{'mercer is':>12}{'of limit':>10}")
        found: dict[str, dict[str, Any] | None] = {}
        for name in CONTESTANTS:
            if n == LARGE and name not in OURS:
                continue
            python = sys.executable if name in OURS else args.peers
            found[name] = run(name, python, case, 1 if n == LARGE else args.repeats)
        ours = found["mercer"]
        for name, one in found.items():
            if one is None:
                print(f"{name:16}{'-':>10}")
                continue
            rate = n * n / one["seconds"] / 1e9
            share = ""
            if peak and not back and name == "mercer":
                share = f"{rate * ((d + r - 1) / peak[0] + 1 / peak[1]):.0%}"
            times = f"{one['seconds'] / ours['seconds']:.1f} x" if ours and name != "mercer" else ""
            numbers = f"{one['seconds']:>10.4f}{rate:>11.3f}{one['memory']:>8.0f}{one['error']:>9.0e}"
            print(f"{name:16}{numbers}{times:>12}{share:>10}", flush=True)
            rows.append({"n": n, "d": d, "r": r, "backward": back, "name": name, **one})
    if args.json:
        args.json.write_text(json.dumps({"processor": processor(), "limits": peak, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
