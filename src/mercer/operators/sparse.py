"""Sparse: a matrix with few entries. What a kernel of compact support makes of scattered points."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy.sparse import eye_array
from scipy.sparse.linalg import splu
from torch import Tensor

from mercer.assemble import Request, rule
from mercer.claims import LINEAR, NO_CLAIMS, Claim, Claims
from mercer.errors import NotPositiveDefiniteError, ShapeError, StructureError
from mercer.kernel import Kernel
from mercer.operator import Cost, Operator
from mercer.operators.pattern import Pattern, at_places, product
from mercer.operators.solvable import (
    ENTRY_RATE,
    FIRST_CALL,
    MORE_COLUMNS,
    POINT_RATE,
    SPARSE_RATE,
    TREE_RATE,
    Shift,
    Solvable,
    System,
    answer,
    as_shift,
    columns,
    implicit_solve,
)
from mercer.operators.speed import call_seconds
from mercer.operators.support import PIECE, Support, found_support
from mercer.solver import Solution

LEAST = 2**18  # entries of a kernel matrix from which the search for neighbours is worth thinking of
MOST_COLUMNS = 16  # coordinates up to which a k-d tree finds neighbours faster than looking at all
EVEN, ANY = "MMD_AT_PLUS_A", "COLAMD"  # SuperLU's orders for symmetric matrices and for others
INVERTED = 256  # columns of the inverse at once, in the gradient of logdet


class Sparse(Solvable):
    """A matrix given by its entries: values[e] at (rows[e], cols[e]); a place that occurs twice holds the sum.

    values: `... e`. rows, cols: `e`, integers. shape: (n, m). `Sparse.within(kernel, x, y)`: a kernel of compact
    support, or sums, products, factors, warps of such; a k-d tree finds the entries, kept while nothing changes.
    Solve: a sparse LU factor in float64 (scipy's SuperLU). logdet: from the same factor, A symmetric psd; its gradient
    takes a solve for each column of the inverse.
    Cost: 2 e c flops for a product; memory 20 e bytes, with a kernel 96 e bytes while the entries are found.
    Raises: ShapeError, IndexError for places outside.
    """

    def __init__(self, values: Tensor, rows: Tensor, cols: Tensor, shape: tuple[int, int], claims: Claims = NO_CLAIMS):
        n, m = shape
        if values.shape[-1:] != rows.shape or rows.shape != cols.shape:
            raise ShapeError(
                f"Sparse: {tuple(values.shape)} values at {tuple(rows.shape)} x {tuple(cols.shape)} places"
            )
        for name, at, size in (("row", rows, n), ("column", cols, m)):
            if len(at) and not 0 <= int(at.min()) <= int(at.max()) < size:
                raise IndexError(f"Sparse: a {name} is outside 0 ... {size - 1}")
        pattern, order = Pattern.sorted(rows, cols, n, m)
        self._set(
            lambda: (pattern, values[..., order]), (*values.shape[:-1], n, m), values.dtype, values.device, claims
        )
        self._entries = float(len(rows))

    def _set(
        self,
        parts: Callable[[], tuple[Pattern, Tensor]],
        shape: tuple[int, ...],
        dtype: torch.dtype,
        device: torch.device,
        claims: Claims,
    ) -> None:
        self.parts, self._entries = parts, 0.0
        self._of: tuple[Kernel, Support, Tensor, Tensor] | None = None
        self.shape, self.dtype, self.device, self.claims = torch.Size(shape), dtype, device, claims

    @classmethod
    def within(cls, kernel: Kernel, x: Tensor, y: Tensor | None = None) -> Sparse:
        """A kernel made of compact ones on points `n d` and `m d` (default x). Raises StructureError for any other."""
        support = found_support(kernel)
        if support is None or x.ndim != 2:
            raise StructureError(
                "Sparse.within takes kernels that are zero beyond a distance or made of such, and n d points: "
                f"got {kernel!r} on {tuple(x.shape)}"
            )
        return cls._within(kernel, support, x, x if y is None else y)

    @classmethod
    def _within(cls, kernel: Kernel, support: Support, x: Tensor, y: Tensor) -> Sparse:
        made = cls.__new__(cls)
        claims = kernel.claims if y is x else NO_CLAIMS
        made._set(lambda: support.entries(x, y), (len(x), len(y)), x.dtype, x.device, claims)
        made._of, made._entries = (kernel, support, x, y), support.expected(x, y)
        return made

    def matmul(self, v: Tensor) -> Tensor:
        pattern, values = self.parts()
        return product(pattern, values, v)

    @property
    def mT(self) -> Sparse:
        if self._of is not None and Claim.SYMMETRIC in self._of[0].claims:
            kernel, support, x, y = self._of
            return self if x is y else Sparse._within(kernel, support, y, x)
        pattern, values = self.parts()
        return Sparse(values, pattern.cols, pattern.rows, (pattern.m, pattern.n), self.claims)

    def cost(self, rhs: int = 1) -> Cost:
        batch = max(math.prod(self.shape[:-2]), 1)
        work = 2.0 * batch * self._entries * rhs
        seconds = call_seconds() + batch * self._entries * (1 + MORE_COLUMNS * (rhs - 1)) / SPARSE_RATE
        if self._of is None:
            return Cost(0, work, 20.0 * self._entries, 0.0, seconds)
        d, size = self._of[2].shape[-1], self.dtype.itemsize
        made, each = self._entries * (30 + 2 * d), self._entries / ENTRY_RATE
        memory = 96.0 * self._entries + min(self._entries, PIECE) * (4 * d + 12) * size
        tree = self._entries / TREE_RATE + sum(self.shape) / POINT_RATE
        return Cost(made, work, memory, tree + each + FIRST_CALL, seconds)

    def dense(self) -> Tensor:
        self._fits()
        pattern, values = self.parts()
        n, m = self.shape[-2:]
        flat = values.new_zeros(*values.shape[:-1], n * m)
        return flat.index_add(-1, pattern.rows * m + pattern.cols, values).reshape(*values.shape[:-1], n, m)

    def diagonal(self) -> Tensor:
        pattern, values = self.parts()
        on = (pattern.rows == pattern.cols).nonzero().squeeze(-1)
        empty = values.new_zeros(*values.shape[:-1], min(self.shape[-2:]))
        return empty.index_add(-1, pattern.rows[on], values[..., on])

    def stabilised(self) -> Operator:
        if self._of is not None and Claim.POSITIVE not in self._of[0].claims:
            raise StructureError(f"{self._of[0]!r} may be negative, so its rows cannot be normalised")
        return self

    def tril(self) -> Sparse:
        pattern, values = self.parts()
        on = (pattern.rows >= pattern.cols).nonzero().squeeze(-1)
        return Sparse(values[..., on], pattern.rows[on], pattern.cols[on], (pattern.n, pattern.m))

    def _select(self, rows: Tensor, cols: Tensor) -> Operator:
        same = len(rows) == len(cols) and bool((rows == cols).all())
        keeps = self.claims & (LINEAR | {Claim.UNIT_DIAGONAL}) if same else NO_CLAIMS
        if self._of is not None:
            kernel, support, x, y = self._of
            made = Sparse._within(kernel, support, x[rows], y[cols])
            made.claims = keeps
            return made
        pattern, values = self.parts()
        numbered = pattern.csr(np.arange(1, len(pattern.rows) + 1))  # which value is where, a place never being 0
        part = numbered[rows.cpu().numpy()][:, cols.cpu().numpy()].tocoo()
        places = [torch.from_numpy(np.asarray(p, dtype=np.int64)) for p in (part.data - 1, part.row, part.col)]
        at, r, c = (p.to(self.device) for p in places)
        return Sparse(values[..., at], r, c, (len(rows), len(cols)), keeps)

    def solve(self, b: Tensor, shift: Shift = 0.0) -> Solution:
        """(A + shift I)^-1 b by a sparse LU factor. Raises NotPositiveDefiniteError for a singular matrix."""
        wide, s = columns(self, b), as_shift(self, shift)
        if not wide.numel():
            return answer(self, wide, b, s)
        pattern, values = self.parts()
        order = EVEN if Claim.SYMMETRIC in self.claims else ANY
        system = System(functools.partial(solve_pattern, pattern, order), functools.partial(times, pattern))
        return answer(self, implicit_solve(system, wide, values, s), b, s)

    def logdet(self, shift: Shift = 0.0) -> Tensor:
        """log det (A + shift I). Raises StructureError unless A claims symmetric, NotPositiveDefiniteError."""
        if self.shape[-1] != self.shape[-2] or Claim.SYMMETRIC not in self.claims:
            raise StructureError("Sparse.logdet needs a square matrix that claims to be symmetric")
        pattern, values = self.parts()
        return _LogDet.apply(pattern, values, as_shift(self, shift)) if self.shape[-1] else values.sum(-1)


def _factor(pattern: Pattern, values: Tensor, shift: float, order: str) -> Any:
    """SuperLU's factor in the given order of columns; without pivoting where that keeps symmetry or triangles."""
    matrix = pattern.csr(values.detach().cpu().double().numpy()) + shift * eye_array(pattern.n, format="csr")
    pivot = None if order == ANY else 0.0
    try:
        return splu(matrix.tocsc(), permc_spec=order, diag_pivot_thresh=pivot, options={"SymmetricMode": order == EVEN})
    except RuntimeError as error:
        raise NotPositiveDefiniteError(f"the sparse matrix is singular ({error}); add a shift", 0.0) from error


def solve_pattern(pattern: Pattern, order: str, transposed: bool, b: Tensor, tensors: tuple[Tensor, ...]) -> Tensor:
    """(A + shift I)^-1 b for a `System` whose tensors are the values and the shift."""
    values, shift = tensors
    batch = torch.broadcast_shapes(values.shape[:-1], b.shape[:-2])
    many = values.expand(*batch, values.shape[-1]).reshape(math.prod(batch), values.shape[-1])
    right = b.detach().expand(*batch, *b.shape[-2:]).reshape(math.prod(batch), *b.shape[-2:])
    found = []
    for value, rhs in zip(many, right, strict=True):
        lu = _factor(pattern, value, float(shift.detach()), order)
        x = lu.solve(rhs.cpu().double().contiguous().numpy(), "T" if transposed else "N")
        found.append(torch.from_numpy(x))
    return torch.stack(found).reshape(*batch, *b.shape[-2:]).to(b)


def times(pattern: Pattern, transposed: bool, x: Tensor, tensors: tuple[Tensor, ...]) -> Tensor:
    """(A + shift I) x for the same."""
    values, shift = tensors
    return product(pattern, values, x, transposed) + shift * x


class _LogDet(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pattern: Pattern, values: Tensor, shift: Tensor) -> Tensor:
        ctx.pattern = pattern
        ctx.save_for_backward(values, shift)
        found = []
        for value in values.detach().reshape(math.prod(values.shape[:-1]), values.shape[-1]):
            pivots = _factor(pattern, value, float(shift.detach()), EVEN).U.diagonal()
            if not pivots.min() > 0:
                least = float(pivots.min())
                raise NotPositiveDefiniteError(f"a pivot of the sparse factor is {least:.3g}; add a shift", least)
            found.append(float(np.log(pivots).sum()))
        return torch.tensor(found, dtype=torch.float64).reshape(values.shape[:-1]).to(values)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[None, Tensor, Tensor]:
        values, shift = ctx.saved_tensors
        pattern, n = ctx.pattern, ctx.pattern.n
        system = System(functools.partial(solve_pattern, pattern, EVEN), functools.partial(times, pattern))
        entries, trace = torch.zeros_like(values), torch.zeros_like(g)
        for start in range(0, n, INVERTED):
            at = torch.arange(start, min(start + INVERTED, n), device=values.device)
            unit = torch.zeros(n, len(at), dtype=values.dtype, device=values.device)
            unit[at, at - start] = 1
            inverse = implicit_solve(system, unit, values, shift)
            entries = entries + at_places(pattern, inverse, unit)
            trace = trace + inverse[..., at, at - start].sum(-1)
        return None, g.unsqueeze(-1) * entries, (g * trace).sum()


@rule
def compact(request: Request) -> Operator | None:
    """A kernel made of compact ones on scattered points of few columns, where most pairs are out of reach."""
    kernel, x, y = request.kernel, request.x.points, request.y.points
    if x.ndim != 2 or y.ndim != 2 or x.dtype not in (torch.float32, torch.float64):
        return None
    support = found_support(kernel)
    if support is None:
        return None
    if len(x) * len(y) < LEAST:
        request.decline("Sparse", f"nothing to gain below {LEAST:,} entries")
        return None
    if x.shape[-1] > MOST_COLUMNS:
        request.decline("Sparse", f"neighbours are searched in up to {MOST_COLUMNS} columns, these points have more")
        return None
    return Sparse._within(kernel, support, x, x if request.square else y)
