"""Peak memory of one product K(x, x) v and of its gradient, beside the size of the matrix that is never formed.

python benchmarks/memory.py [n] [d]
"""

from __future__ import annotations

import resource
import sys
import time

import torch

from mercer.kernels import Gaussian


def peak() -> int:
    """High-water mark of this process, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def main() -> None:
    n, d, threads = (int(a) for a in (*sys.argv[1:], *("200000", "10", "2")[len(sys.argv) - 1 :]))
    torch.set_num_threads(threads)
    g = torch.Generator().manual_seed(0)
    x, v = torch.randn(n, d, generator=g), torch.randn(n, 1, generator=g)
    kernel = Gaussian(d**0.5)
    with torch.no_grad():
        kernel(x[:3000]) @ v[:3000]  # code and thread pools are loaded before the count begins
    before = peak()
    print(f"n = m = {n:,}, d = {d}, float32; {threads} threads; the matrix: {n * n * 4 / 2**30:,.0f} GiB", flush=True)
    start = time.perf_counter()
    with torch.no_grad():
        out = kernel(x) @ v
    seconds = time.perf_counter() - start
    print(
        f"product:  {seconds:7.1f} s, {n * n / seconds / 1e9:.2f} G evaluations/s, {peak() - before} MiB above the data"
    )
    rows = torch.arange(0, n, n // 50)
    exact = torch.exp(-0.5 * torch.cdist(x[rows].double(), x.double()).square() / d) @ v.double()
    error = (out[rows] - exact).abs().max() / exact.abs().max()
    print(f"largest error on {len(rows)} rows: {error:.1e} of the largest value")
    m = n // 4
    x.requires_grad_()
    start = time.perf_counter()
    torch.autograd.grad((kernel(x[:m]) @ v[:m]).sum(), [x, kernel.log_lengthscale])
    print(f"gradient: {time.perf_counter() - start:7.1f} s at n = {m:,}, {peak() - before} MiB above the data")


if __name__ == "__main__":
    main()
