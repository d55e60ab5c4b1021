"""Toeplitz: constant along diagonals, applied by FFT. What a stationary kernel makes of evenly spaced points."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from mercer.assemble import Request, rule
from mercer.budget import memory_budget
from mercer.claims import LINEAR, NO_CLAIMS, Claim, Claims
from mercer.domain import Domain, Grid, Line
from mercer.errors import StructureError
from mercer.feature import FeatureMap
from mercer.kernel import Kernel
from mercer.operator import Cost, Operator
from mercer.operators.kept import Kept
from mercer.operators.levinson import logdet, solve
from mercer.operators.solvable import (
    FIRST_CALL,
    LAG_RATE,
    Shift,
    Solvable,
    again,
    answer,
    as_shift,
    columns,
    transformable,
)
from mercer.operators.speed import call_seconds, fft_seconds
from mercer.operators.tiled import KERNEL_FLOPS, Tiled
from mercer.operators.transform import convolve, embedded, fft_flops, fft_length
from mercer.solver import Solution

DTYPES = (torch.float32, torch.float64)
PIECE = 2**16  # lags whose kernel values are made at once


class _Lags:
    """The kernel at every lag of two lines, read when it is asked for; its spectrum is kept while nothing changes."""

    def __init__(self, kernel: Kernel, x: Line, y: Line):
        self.kernel, self.x, self.y, self.kept = kernel, x, y, Kept()
        self.mirrored = x is y and Claim.SYMMETRIC in kernel.claims

    def values(self) -> Tensor:
        """k at lag -(m-1) ... n-1, from half of them where the kernel is symmetric."""
        first = 0 if self.mirrored else 1 - self.y.count
        steps = torch.arange(first, max(self.x.count, first), dtype=torch.float64)
        at = ((self.x.start - self.y.start) + self.x.step * steps).to(self.x.dtype)[:, None]
        origin = torch.zeros(1, 1, dtype=self.x.dtype)
        found = torch.cat([self.kernel.block(piece, origin)[..., 0] for piece in at.split(PIECE)] or [at[:, 0]], -1)
        return torch.cat([found[..., 1:].flip(-1), found], -1) if self.mirrored else found

    def spectrum(self) -> Tensor:
        n, m = self.x.count, self.y.count
        return self.kept.get(self.kernel, lambda: embedded(self.values(), n, m))


class Toeplitz(Solvable):
    """A[i, j] = column[i - j] for i >= j and row[j - i] for i < j: constant along diagonals, applied by FFT.

    column: `... n`. row: `... m`, its first entry ignored as in scipy; None: symmetric. claims: psd, where it is.
    `Toeplitz.on(kernel, x, y)` is a stationary kernel on two lines of equal step.
    Solve: Levinson up to 2,048 rows and where A is not symmetric (n^2 flops a column; LU where a leading block is
    singular and memory allows), beyond that conjugate gradients with a circulant preconditioner [chan1988].
    logdet: Levinson-Durbin [golub2013, alg. 4.7.1], n^2 flops.
    Cost: three FFTs of n + m numbers a column, O(n + m) numbers at a time.
    Error: eps log2(n + m) |A| |v|, by norms: small results beside large ones carry the error of the large ones.
    Raises: TypeError unless float32 or float64. Source [golub2013, sec. 4.7-4.8].
    """

    def __init__(self, column: Tensor, row: Tensor | None = None, claims: Claims = NO_CLAIMS):
        if row is None:
            claims, row = claims | {Claim.SYMMETRIC}, column
        batch = torch.broadcast_shapes(column.shape[:-1], row.shape[:-1])
        n, m = column.shape[-1], row.shape[-1]
        parts = (row[..., 1:].flip(-1).expand(*batch, max(m - 1, 0)), column.expand(*batch, n))
        lags = torch.cat(parts, -1)
        self._set(lambda: lags, (*batch, n, m), column.dtype, column.device, claims)

    def _set(
        self,
        lags: Callable[[], Tensor],
        shape: tuple[int, ...],
        dtype: torch.dtype,
        device: torch.device,
        claims: Claims,
        spectrum: Callable[[], Tensor] | None = None,
        make: float = 0.0,
    ) -> Toeplitz:
        transformable("Toeplitz", dtype)
        self.lags, self._spectrum, self._make = lags, spectrum, make
        self.shape, self.dtype, self.device, self.claims = torch.Size(shape), dtype, device, claims
        return self

    @classmethod
    def on(cls, kernel: Kernel, x: Line, y: Line | None = None) -> Toeplitz:
        """A stationary kernel on evenly spaced points. Raises StructureError when the steps differ."""
        other = x if y is None else y
        if Claim.STATIONARY not in kernel.claims or other.step != x.step:
            raise StructureError(f"{kernel!r} on steps of {x.step} and {other.step} is not Toeplitz")
        source = _Lags(kernel, x, other)
        make = float(x.count if source.mirrored else x.count + other.count)
        shape, claims = (x.count, other.count), kernel.claims if other is x else NO_CLAIMS
        made = cls.__new__(cls)
        made.pairs = lambda: tiled(kernel, x, other)
        return made._set(source.values, shape, x.dtype, torch.device("cpu"), claims, source.spectrum, make)

    def _like(
        self,
        lags: Callable[[], Tensor],
        n: int,
        m: int,
        pairs: Callable[[Operator], Operator],
        claims: Claims = NO_CLAIMS,
    ) -> Toeplitz:
        """A part of this matrix; pairs: the same part of another operator."""
        made, whole = Toeplitz.__new__(Toeplitz), self.pairs
        made.pairs = None if whole is None else lambda: pairs(whole())
        return made._set(lags, (*self.shape[:-2], n, m), self.dtype, self.device, claims, make=self._make)

    def _numbers(self) -> int:
        """Numbers alive at once while one column is multiplied."""
        return 4 * fft_length(sum(self.shape[-2:])) * max(math.prod(self.shape[:-2]), 1)

    def matmul(self, v: Tensor) -> Tensor:
        n, m = self.shape[-2:]
        if not n or not m:
            batch = torch.broadcast_shapes(self.shape[:-2], v.shape[:-2])
            return v.new_zeros(*batch, n, v.shape[-1])
        symbol = self._spectrum() if self._spectrum is not None else embedded(self.lags(), n, m)
        each = self._numbers() * max(math.prod(v.shape[:-2]), 1) * self.dtype.itemsize
        width = max(memory_budget() // 2 // each, 1)
        if width >= v.shape[-1]:
            return convolve(symbol, v, n)
        run = again(convolve, symbol, v)
        return torch.cat([run(symbol, piece, n) for piece in v.split(width, -1)], -1)

    @property
    def mT(self) -> Toeplitz:
        if Claim.SYMMETRIC in self.claims:
            return self
        n, m = self.shape[-2:]
        return self._like(lambda: self.lags().flip(-1), m, n, lambda whole: whole.mT)

    def cost(self, rhs: int = 1) -> Cost:
        batch, length = max(math.prod(self.shape[:-2]), 1), fft_length(sum(self.shape[-2:]))
        once, work = batch * fft_flops(length), 2.0 * batch * rhs * fft_flops(length)
        passing = 3.0 * batch * rhs * length
        make_seconds = self._make / LAG_RATE + fft_seconds(once, 0, self.dtype) + (FIRST_CALL if self._make else 0.0)
        numbers = min(self._numbers() * rhs, max(memory_budget() // 2 // self.dtype.itemsize, self._numbers()))
        memory = (numbers + 6.0 * batch * length) * self.dtype.itemsize
        make, seconds = KERNEL_FLOPS * self._make + once, call_seconds() + fft_seconds(work, passing, self.dtype)
        return Cost(make, work + passing, memory, make_seconds, seconds)

    def dense(self) -> Tensor:
        self._fits()
        n, m = self.shape[-2:]
        if not n or not m:
            return torch.zeros(self.shape, dtype=self.dtype, device=self.device)
        return self.lags().unfold(-1, m, 1).flip(-1)

    def diagonal(self) -> Tensor:
        k, m = min(self.shape[-2:]), self.shape[-1]
        return self.lags()[..., m - 1 : m].expand(*self.shape[:-2], k)

    def tril(self) -> Toeplitz:
        n, m = self.shape[-2:]

        def lower() -> Tensor:
            lags = self.lags()
            return torch.cat([torch.zeros_like(lags[..., : m - 1]), lags[..., m - 1 :]], -1) if m else lags

        return self._like(lower, n, m, lambda whole: whole.tril(), self.claims & {Claim.POSITIVE})

    def _select(self, rows: Tensor, cols: Tensor) -> Operator:
        n, m = len(rows), len(cols)
        runs = all(len(at) and bool((at.diff() == 1).all()) for at in (rows, cols))
        if not runs:
            return super()._select(rows, cols)
        first = int(rows[0]) - int(cols[-1]) + self.shape[-1] - 1  # a block of neighbours is Toeplitz again
        same = n == m and int(rows[0]) == int(cols[0])
        claims = self.claims & (LINEAR | {Claim.UNIT_DIAGONAL}) if same else NO_CLAIMS
        part = lambda whole: whole._select(rows, cols)  # noqa: E731
        return self._like(lambda: self.lags()[..., first : first + n + m - 1], n, m, part, claims)

    def _shifted(self, shift: Tensor) -> Tensor:
        lags, n = self.lags(), self.shape[-1]
        at = torch.zeros(lags.shape[-1], dtype=self.dtype, device=self.device)
        at[n - 1 : n] = 1
        return lags + shift * at

    def solve(self, b: Tensor, shift: Shift = 0.0) -> Solution:
        """(A + shift I)^-1 b. Symmetric A should be psd: where it is not, the residual says so."""
        wide, s = columns(self, b), as_shift(self, shift)
        if not wide.numel():
            return answer(self, wide, b, s)
        x, iterations = solve(self._shifted(s), wide, Claim.SYMMETRIC in self.claims)
        return answer(self, x, b, s, iterations)

    def logdet(self, shift: Shift = 0.0) -> Tensor:
        """log det (A + shift I). Raises StructureError unless A is symmetric, NotPositiveDefiniteError."""
        if Claim.SYMMETRIC not in self.claims:
            raise StructureError("Toeplitz.logdet needs a symmetric matrix: give no row")
        return logdet(self._shifted(as_shift(self, shift)))


def tiled(kernel: Kernel, x: Domain, y: Domain) -> Tiled:
    """The same kernel on the same points, entry by entry."""
    left = x.points
    return Tiled(kernel, left, left if y is x else y.points, kernel.claims if y is x else NO_CLAIMS)


def lines(domain: Domain) -> tuple[Line, ...]:
    """The evenly spaced axes of a domain, () where it has none."""
    if isinstance(domain, Line):
        return (domain,)
    return domain.axes if isinstance(domain, Grid) else ()


@rule
def evenly_spaced(request: Request) -> Operator | None:
    """A stationary kernel on evenly spaced points of equal step."""
    x, y = lines(request.x), lines(request.y)
    kernel = request.kernel
    if len(x) != 1 or len(y) != 1 or x[0].step != y[0].step or x[0].dtype not in DTYPES:
        return None
    if Claim.STATIONARY not in kernel.claims or isinstance(kernel, FeatureMap):
        return None
    return Toeplitz.on(kernel, x[0], x[0] if request.square else y[0])
