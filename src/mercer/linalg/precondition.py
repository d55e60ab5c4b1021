"""Preconditioners for K + noise I: a low-rank piece of K by rows, inverted by Woodbury."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from mercer.budget import memory_budget
from mercer.errors import MemoryBudgetError, NotPositiveDefiniteError, StructureError
from mercer.linalg.woodbury import Woodbury
from mercer.operator import Operator
from mercer.operators.pivoted import pivoted_cholesky, rows
from mercer.operators.shifted import Shifted

WIDTH = 2**13  # columns of a factor that are solved for at once
BLOCK = 64  # rows made at once; pivots drawn at once when they are drawn at random


class Preconditioner(ABC):
    """prepare(K + noise I) -> an operator close to its inverse."""

    @abstractmethod
    def factor(self, k: Operator) -> Tensor:
        """F: n r with F F^T close to K, from rows and the diagonal of K alone."""

    def prepare(self, a: Operator) -> Woodbury:
        """(F F^T + noise I)^-1. Raises StructureError when `a` is not K + noise I with noise > 0."""
        if not isinstance(a, Shifted):
            raise StructureError(
                f"{type(self).__name__} needs Shifted(K, noise), got {a!r}; CG alone takes any operator"
            )
        # a float32 factor times vectors in float64: what the sums cancel is far above the shift
        return Woodbury(self.factor(a.of), a.shift, torch.float64)


class PivotedCholesky(Preconditioner):
    """Partial Cholesky of K: at each step the row with the largest remaining diagonal (or one drawn by it).

    rank: >= 1. random: draw pivots with probability proportional to the remaining diagonal, which avoids outliers.
    Cost: rank rows of K and n rank^2 flops; memory n rank. Error: K - F F^T is psd up to rounding, its trace is what
    remains; where K is exhausted in its dtype F has fewer columns. Source [harbrecht2012, alg. 1], [chen2025, alg. 1].
    """

    def __init__(self, rank: int = 100, random: bool = False, generator: torch.Generator | None = None):
        if rank < 1:
            raise ValueError(f"PivotedCholesky.rank is {rank}; expected at least 1")
        self.rank, self.random, self.generator = rank, random, generator

    def factor(self, k: Operator) -> Tensor:
        _fits(type(self).__name__, k, self.rank)
        return pivoted_cholesky(k, self.rank, self.random, self.generator, block=BLOCK)[0]


class NystromPreconditioner(Preconditioner):
    """K_nm K_mm^-1 K_mn from `rank` rows of K, drawn uniformly without replacement.

    rank: >= 1. Cost: rank rows of K and n rank^2 flops in float64; memory n rank in the dtype of K.
    Error: K - F F^T is psd; it falls with the eigenvalues of K beyond the rank. A zero K has a zero F.
    Raises NotPositiveDefiniteError when the rows are not those of a psd matrix, MemoryBudgetError.
    Source [frangella2023], [williams2001].
    """

    def __init__(self, rank: int = 500, generator: torch.Generator | None = None):
        if rank < 1:
            raise ValueError(f"NystromPreconditioner.rank is {rank}; expected at least 1")
        self.rank, self.generator = rank, generator

    @torch.no_grad()
    def factor(self, k: Operator) -> Tensor:
        n = k.shape[-1]
        _fits(type(self).__name__, k, self.rank)
        chosen = torch.randperm(n, generator=self.generator)[: min(self.rank, n)]
        part = torch.empty(len(chosen), n, dtype=k.dtype, device=k.device)
        for start in range(0, len(chosen), BLOCK):  # never a second copy of all rows
            part[start : start + BLOCK] = rows(k, chosen[start : start + BLOCK])
        middle = part[:, chosen].to(torch.float64)
        # the shift keeps the factor of a nearly singular block bounded; a preconditioner may be a little wrong
        eps = torch.finfo(k.dtype).eps * len(chosen)
        scale = float(middle.diagonal().mean()) if len(chosen) else 0.0
        if scale == 0 and not bool(middle.any()):
            return torch.zeros_like(part).mT
        middle.diagonal().add_(eps * scale)
        lower, info = torch.linalg.cholesky_ex(middle)
        if info:
            smallest = float(torch.linalg.eigvalsh(middle)[0]) if bool(torch.isfinite(middle).all()) else math.nan
            raise NotPositiveDefiniteError(
                f"NystromPreconditioner: K at {len(chosen)} of its rows has the eigenvalue {smallest:.3g}, its mean "
                f"diagonal is {scale:.3g}, so K is not psd in {k.dtype}; check the kernel, or use float64",
                smallest,
            )
        for start in range(0, n, WIDTH):  # in place and in float64: the block's small eigenvalues magnify rounding
            piece = part[:, start : start + WIDTH].to(torch.float64)
            part[:, start : start + WIDTH] = torch.linalg.solve_triangular(lower, piece, upper=False).to(part.dtype)
        return part.mT


def _fits(name: str, k: Operator, rank: int) -> None:
    """Raise MemoryBudgetError when n rank numbers do not fit the memory budget."""
    n, budget = k.shape[-1], memory_budget()
    need = n * min(rank, n) * k.dtype.itemsize
    if need > budget:
        most = budget // (n * k.dtype.itemsize)
        raise MemoryBudgetError(
            f"{name}: rank {rank} at n = {n} takes {need / 2**30:.2f} GiB, the memory budget is {budget / 2**30:.2f} "
            f"GiB; take a rank of at most {most}, or raise the budget with mercer.memory(...)"
        )
