"""Pivots: a kernel matrix through a few of its columns, offered where a tolerance is given, with its measured error."""

from __future__ import annotations

import math
import time

import torch
from torch import Tensor

from mercer.assemble import Request, rule
from mercer.budget import memory_budget
from mercer.claims import PSD, Claim
from mercer.feature import FeatureMap
from mercer.kernel import Kernel
from mercer.operator import FLOPS_PER_SECOND, Cost, Operator
from mercer.operators.fused import Fused, fusible
from mercer.operators.kept import Kept
from mercer.operators.pivoted import pivoted_cholesky
from mercer.operators.tiled import Tiled

LEAST, MOST = 200, 2000  # rows below which nothing is gained; the largest rank that is tried
FIRST, GROWTH = 32, 3  # the first rank, and how much larger the next; its error must fall by as much


class Pivots(Operator):
    """K(x, x) ~ K_nr K_rr^-1 K_rn, r pivots of the points: psd, never above K, exact at the pivots.

    x: n d, pivots: r row numbers. error: the largest |entry| of K - this, measured when the pivots were chosen,
    relative to the largest diagonal. Products follow the kernel's parameters and carry their gradients; the error is
    that of the parameters at the time. Cost: rank columns of K and n r^2 flops once; 4 n r flops each product; n r
    numbers. Source [harbrecht2012, alg. 1].
    """

    def __init__(self, kernel: Kernel, x: Tensor, pivots: Tensor, error: float):
        self.kernel, self.x, self.pivots, self.error, self.setup = kernel, x, pivots, error, 0.0
        self.shape, self.dtype, self.device = torch.Size((len(x), len(x))), x.dtype, x.device
        self.claims, self._kept = PSD, Kept()

    def factor(self) -> Tensor:
        """F: n r, with F F^T this operator."""
        return self._kept.get(self.kernel, self._make, self.x)

    def _make(self) -> Tensor:
        some = self.x[self.pivots]
        middle = self.kernel.block(some, some).double()
        ridge = len(some) * torch.finfo(self.dtype).eps * middle.diagonal().mean().detach()
        lower = torch.linalg.cholesky(middle + ridge * torch.eye(len(some), dtype=torch.float64, device=self.device))
        return torch.linalg.solve_triangular(lower, self.kernel.block(some, self.x).double(), upper=False).mT.to(
            self.dtype
        )

    def matmul(self, v: Tensor) -> Tensor:
        f = self.factor()
        return f @ (f.mT @ v)

    @property
    def mT(self) -> Operator:
        return self

    def diagonal(self) -> Tensor:
        return self.factor().square().sum(-1)

    def cost(self, rhs: int = 1) -> Cost:
        n, r = len(self.x), len(self.pivots)
        work = 4.0 * n * r * rhs
        return Cost(1.0 * n * r * r, work, 2.0 * n * r * 8, self.setup, work / FLOPS_PER_SECOND)


@rule
def pivots(request: Request) -> Operator | None:
    """Only where a tolerance is given: partial Cholesky until no entry is wrong by more."""
    kernel, x, tolerance = request.kernel, request.x.points, request.tolerance
    if tolerance is None or isinstance(kernel, FeatureMap):
        return None
    why = _unfit(request)
    if why is not None:
        request.decline("Pivots", why)
        return None
    start = time.perf_counter()
    with torch.no_grad():
        tiled = Tiled(kernel, x, x, kernel.claims)
        k = Fused(tiled) if fusible(kernel, x) else tiled
        diagonal, most = k.diagonal(), min(len(x) // 4, MOST, int(memory_budget() // (32 * len(x))))
        rank, error, before = min(FIRST, most), math.inf, math.inf
        while rank >= 1:
            factor, chosen = pivoted_cholesky(k, rank)
            left = (diagonal - factor.square().sum(-1)).clamp_min(0)  # bounds every entry of what is left, as it is psd
            error = float(left.max() / diagonal.max()) + factor.shape[1] * torch.finfo(x.dtype).eps
            if error <= tolerance or rank >= most or error > before / GROWTH:
                break  # found, no room for more, or so slow that it will not be worth it
            rank, before = min(GROWTH * rank, most), error
    if error > tolerance:
        request.decline("Pivots", f"no low rank: the error is {error:.0e} at {rank} of {len(x):,} columns")
        return None
    found = Pivots(kernel, x, chosen, error)
    with torch.no_grad():  # what is used is measured: its small shift of K_rr leaves a little more
        left = (diagonal - found.diagonal()).max() / diagonal.max()
    found.error = float(left) + len(chosen) * torch.finfo(x.dtype).eps
    found.setup = time.perf_counter() - start
    if found.error <= tolerance:
        return found
    request.decline("Pivots", f"the error that was measured, {found.error:.0e}, is above the tolerance")
    return None


def _unfit(request: Request) -> str | None:
    """Why columns are not even tried."""
    x = request.x.points
    if not request.square or x.ndim != 2:
        return "only for one set of points on both sides, without a batch"
    if len(x) < LEAST:
        return f"nothing to gain below {LEAST} rows"
    if Claim.PSD not in request.kernel.claims:
        return "the kernel does not claim to be psd"
    return None if x.dtype in (torch.float32, torch.float64) else f"not for {x.dtype}"
