"""Conjugate gradients for a whole kernel matrix that is never formed: time, memory and the true residual.

python benchmarks/solvers.py [n] [rank] [noise] [seed] [nystrom|pivoted]     (defaults: 100000 1000 0.01 0 nystrom)

(K + noise I) x = y to a relative residual of 1e-6, K a Matern 5/2 kernel of lengthscale 0.3 on n points of the unit
cube, y a smooth function plus a little noise. Two ways: float32 products corrected by the float64 residual
(`Refined`), and all in float64. The true residual is taken in float64, from the formula, on 200 rows. Peak memory is
the high-water mark of the process so far, and that above what it was with its libraries loaded.
"""

from __future__ import annotations

import math
import resource
import sys
import time

import torch

from mercer.kernels import Matern
from mercer.linalg import CG, NystromPreconditioner, PivotedCholesky, Refined
from mercer.operators import Shifted

LENGTHSCALE, TOLERANCE = 0.3, 1e-6


def peak() -> int:
    """High-water mark of this process, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def true_residual(x: torch.Tensor, y: torch.Tensor, w: torch.Tensor, noise: float) -> float:
    """|y - (K + noise I) w| / |y| on 200 rows, by the formula of the kernel."""
    rows = torch.linspace(0, len(x) - 1, 200).long()
    total = noise * w[rows]
    for some in torch.arange(len(x)).split(20000):
        r = math.sqrt(5) / LENGTHSCALE * (x[rows, None] - x[None, some]).square().sum(-1).sqrt()
        total += ((1 + r + r * r / 3) * torch.exp(-r)) @ w[some]
    return float((y[rows] - total).norm() / y[rows].norm())


@torch.no_grad()
def main() -> None:
    given = [*sys.argv[1:], *("100000", "1000", "0.01", "0", "nystrom")[len(sys.argv) - 1 :]]
    n, rank, noise, seed = int(given[0]), int(given[1]), float(given[2]), int(given[3])
    g = torch.Generator().manual_seed(seed)
    x = torch.rand(n, 3, generator=g, dtype=torch.float64)
    y = (3 * x).sin().prod(1, keepdim=True) + x[:, :1] ** 2 + 0.1 * torch.randn(n, 1, generator=g, dtype=torch.float64)
    kernel = Matern(2.5, LENGTHSCALE)
    kernel(x[:2000]) @ y[:2000]
    before = peak()
    wide, narrow = (Shifted(kernel(points), noise) for points in (x, x.float()))
    threads, size = torch.get_num_threads(), n * n * 8 / 2**30
    print(f"n = {n:,}, d = 3, Matern(2.5, {LENGTHSCALE}), noise {noise:g}, {given[4]} rank {rank}, seed {seed}")
    print(f"  {threads} threads; {type(wide.of).__name__}; the matrix would take {size:,.1f} GiB")
    for name, a, columns in (("float64", wide, y), ("float32", narrow, y.float())):
        start = time.perf_counter()
        a.matmul(columns)
        print(f"  one product, {name}: {time.perf_counter() - start:.2f} s", flush=True)

    def inner(tolerance: float) -> CG:
        drawn = torch.Generator().manual_seed(seed)
        pivoted = given[4] == "pivoted"
        return CG(PivotedCholesky(rank, True, drawn) if pivoted else NystromPreconditioner(rank, drawn), tolerance)

    # the leaner way first: the peak only grows
    for name, solver in (
        ("Refined, float32 inside", Refined(inner(1e-3), narrow, TOLERANCE)),
        ("CG", inner(TOLERANCE)),
    ):
        start = time.perf_counter()
        state = solver.prepare(wide)
        made = time.perf_counter() - start
        found = solver.solve(state, y)
        seconds = time.perf_counter() - start
        exact = true_residual(x, y[:, 0], found.value[:, 0], noise)
        print(
            f"  {name:24} {found.iterations:4d} iterations, {seconds:7.1f} s ({made:.1f} s to prepare), residual "
            f"{found.residual:.2e}, true {exact:.2e}, converged {found.converged}; peak {peak()} MiB, "
            f"{peak() - before} above the start",
            flush=True,
        )
        del state, found


if __name__ == "__main__":
    main()
