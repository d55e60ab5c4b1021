"""BlockToeplitz: Toeplitz along every axis of a grid. What a stationary kernel makes of it, separable or not."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mercer.assemble import Request, rule
from mercer.budget import memory_budget
from mercer.claims import NO_CLAIMS, Claim, Claims
from mercer.domain import Grid
from mercer.errors import NotPositiveDefiniteError, ShapeError, StructureError
from mercer.feature import FeatureMap
from mercer.kernel import Kernel
from mercer.operator import Cost
from mercer.operators.kept import Kept
from mercer.operators.levinson import bounded, iterate, nearest_circulant
from mercer.operators.solvable import (
    FIRST_CALL,
    LAG_RATE,
    Shift,
    Solvable,
    System,
    again,
    answer,
    as_shift,
    columns,
    implicit_solve,
    transformable,
)
from mercer.operators.speed import call_seconds, fft_seconds
from mercer.operators.toeplitz import DTYPES, PIECE, lines, tiled
from mercer.operators.transform import fft_flops, fft_length
from mercer.solver import Solution

DIRECT = 4096  # points up to which logdet factors the matrix

Sizes = tuple[int, ...]


def _embedded(lags: Tensor, rows: Sizes, cols: Sizes) -> Tensor:
    """The spectrum of the circulant embedding, one axis after the other."""
    for axis, (n, m) in zip(range(-len(rows), 0), zip(rows, cols, strict=True), strict=True):
        size = list(lags.shape)
        size[axis] = fft_length(n + m - 1) - (n + m - 1)
        lags = torch.cat([lags.narrow(axis, m - 1, n), lags.new_zeros(size), lags.narrow(axis, 0, m - 1)], axis)
    return torch.fft.rfftn(lags, dim=tuple(range(-len(rows), 0)))


def _convolve(spectrum: Tensor, v: Tensor, rows: Sizes, cols: Sizes) -> Tensor:
    """... m c -> ... n c."""
    axes = tuple(range(-len(rows), 0))
    if not v.numel():  # some FFT libraries refuse to transform nothing
        batch = torch.broadcast_shapes(spectrum.shape[: spectrum.ndim - len(rows)], v.shape[:-2])
        return v.new_zeros(*batch, math.prod(rows), v.shape[-1])
    lengths = [fft_length(n + m - 1) for n, m in zip(rows, cols, strict=True)]
    grid = v.mT.reshape(*v.shape[:-2], v.shape[-1], *cols)
    moved = torch.fft.rfftn(grid, lengths, axes) * spectrum.unsqueeze(-len(rows) - 1)
    out = torch.fft.irfftn(moved, lengths, axes)
    for axis, n in zip(axes, rows, strict=True):
        out = out.narrow(axis, 0, n)
    return out.reshape(*out.shape[: -len(rows)], -1).mT


class BlockToeplitz(Solvable):
    """A[(i, j, ...), (k, l, ...)] = lags[i - k, j - l, ...]: Toeplitz along every axis of a grid, applied by FFT.

    lags: `... n1+m1-1, n2+m2-1, ...`, along each axis lag -(m-1) first. rows, cols: (n1, n2, ...), (m1, m2, ...), the
    grids of the points, the last axis running fastest. claims: symmetric, psd, where it is.
    `BlockToeplitz.on(kernel, x, y)` is a stationary kernel, separable or not, on grids of equal steps.
    Solve: conjugate gradients with a circulant preconditioner along every axis [chan1988], A symmetric psd.
    logdet: of the matrix itself, up to 4,096 points. Cost: three FFTs over the doubled grid a column.
    Error: eps log2(n + m) |A| |v|, by norms. Raises: ShapeError, StructureError.
    """

    def __init__(self, lags: Tensor, rows: Sequence[int], cols: Sequence[int], claims: Claims = NO_CLAIMS):
        wanted = tuple(n + m - 1 for n, m in zip(rows, cols, strict=True))
        if not rows or min(*rows, *cols) < 1 or tuple(lags.shape[-len(rows) :]) != wanted:
            raise ShapeError(
                f"lags have shape {tuple(lags.shape)}; grids {tuple(rows)} and {tuple(cols)} need {wanted}"
            )
        batch = lags.shape[: lags.ndim - len(rows)]
        self._set(lambda: lags, tuple(rows), tuple(cols), batch, lags.dtype, lags.device, claims)

    def _set(
        self,
        lags: Callable[[], Tensor],
        rows: Sizes,
        cols: Sizes,
        batch: Sequence[int],
        dtype: torch.dtype,
        device: torch.device,
        claims: Claims,
        spectrum: Callable[[], Tensor] | None = None,
    ) -> BlockToeplitz:
        transformable("BlockToeplitz", dtype)
        self.lags, self.rows, self.cols, self._spectrum = lags, rows, cols, spectrum
        self.shape = torch.Size([*batch, math.prod(rows), math.prod(cols)])
        self.dtype, self.device, self.claims = dtype, device, claims
        return self

    @classmethod
    def on(cls, kernel: Kernel, x: Grid, y: Grid | None = None) -> BlockToeplitz:
        """A stationary kernel on grids. Raises StructureError when it is not, or when the steps differ."""
        other = x if y is None else y
        if Claim.STATIONARY not in kernel.claims or [a.step for a in x.axes] != [b.step for b in other.axes]:
            raise StructureError(
                f"{kernel!r} on these grids is not Toeplitz: expected a stationary kernel, equal steps"
            )
        kept, dtype = Kept(), x.axes[0].dtype

        def lags() -> Tensor:
            axes = [
                (a.start - b.start) + a.step * torch.arange(1 - b.count, a.count, dtype=torch.float64)
                for a, b in zip(x.axes, other.axes, strict=True)
            ]
            at = torch.cartesian_prod(*axes).reshape(-1, len(axes)).to(dtype)
            run = again(lambda piece: kernel.block(piece, torch.zeros_like(at[:1]))[..., 0], *kernel.parameters())
            return torch.cat([run(piece) for piece in at.split(PIECE)]).reshape([len(axis) for axis in axes])

        def spectrum() -> Tensor:
            return kept.get(kernel, lambda: _embedded(lags(), x.sizes, other.sizes))

        claims, made = kernel.claims if other is x else NO_CLAIMS, cls.__new__(cls)
        made.pairs = lambda: tiled(kernel, x, other)
        return made._set(lags, x.sizes, other.sizes, (), dtype, torch.device("cpu"), claims, spectrum)

    def _lengths(self) -> list[int]:
        return [fft_length(n + m - 1) for n, m in zip(self.rows, self.cols, strict=True)]

    def matmul(self, v: Tensor) -> Tensor:
        symbol = _embedded(self.lags(), self.rows, self.cols) if self._spectrum is None else self._spectrum()
        batch = math.prod(torch.broadcast_shapes(self.shape[:-2], v.shape[:-2]))
        width = max(memory_budget() // 2 // (5 * math.prod(self._lengths()) * max(batch, 1) * self.dtype.itemsize), 1)
        if width >= v.shape[-1]:
            return _convolve(symbol, v, self.rows, self.cols)
        run = again(_convolve, symbol, v)
        return torch.cat([run(symbol, piece, self.rows, self.cols) for piece in v.split(width, -1)], -1)

    @property
    def mT(self) -> BlockToeplitz:
        if Claim.SYMMETRIC in self.claims:
            return self
        axes = tuple(range(-len(self.rows), 0))
        made, pairs = BlockToeplitz.__new__(BlockToeplitz), self.pairs
        made.pairs = None if pairs is None else lambda: pairs().mT
        flipped, batch = lambda: self.lags().flip(axes), self.shape[:-2]
        return made._set(flipped, self.cols, self.rows, batch, self.dtype, self.device, self.claims)

    def cost(self, rhs: int = 1) -> Cost:
        batch, points = max(math.prod(self.shape[:-2]), 1), math.prod(self._lengths())
        once, passing = batch * fft_flops(points), 4.0 * batch * rhs * points
        work, values = 2 * rhs * once, batch * points if self._spectrum is not None else 0
        most = max(memory_budget() // 2, 5 * batch * points * self.dtype.itemsize)
        memory = min(5 * batch * points * rhs * self.dtype.itemsize, most) + 4.0 * batch * points * self.dtype.itemsize
        first = FIRST_CALL + values / LAG_RATE + fft_seconds(once, 0, self.dtype)
        seconds = call_seconds() + fft_seconds(work, passing, self.dtype)
        return Cost(30.0 * values + once, work + passing, memory, first, seconds)

    def dense(self) -> Tensor:
        self._fits()
        found = self.lags()
        first = found.ndim - len(self.cols)
        for axis, m in enumerate(self.cols):  # windows of lags are rows from right to left: no index of n m places
            found = found.unfold(first + axis, m, 1)
        return found.flip(tuple(range(-len(self.cols), 0))).reshape(self.shape)

    def diagonal(self) -> Tensor:
        if self.rows != self.cols:
            return super().diagonal()
        middle = self.lags().reshape(*self.shape[:-2], -1)
        at = middle.shape[-1] // 2  # lag 0 is in the middle of an odd number along every axis
        return middle[..., at : at + 1].expand(self.shape[:-1])

    def solve(self, b: Tensor, shift: Shift = 0.0) -> Solution:
        """(A + shift I)^-1 b by conjugate gradients. Raises StructureError unless A claims symmetric and psd."""
        wide, s = columns(self, b), as_shift(self, shift)
        if not {Claim.SYMMETRIC, Claim.PSD} <= self.claims or self.rows != self.cols:
            raise StructureError("BlockToeplitz.solve needs a matrix that claims to be symmetric and psd")
        rows, steps, axes = self.rows, [0], tuple(range(-len(self.rows), 0))

        def run(transposed: bool, rhs: Tensor, tensors: tuple[Tensor, ...]) -> Tensor:
            lags, far = (t.detach().double().cpu() for t in tensors)
            near = lags
            for axis, n in zip(axes, rows, strict=True):
                near = nearest_circulant(near, n, axis)
            spectrum = bounded(torch.fft.rfftn(near, dim=axes).real + far).unsqueeze(-len(rows) - 1)
            symbol = _embedded(lags, rows, rows)

            def precondition(r: Tensor) -> Tensor:
                grid = r.mT.reshape(*r.shape[:-2], r.shape[-1], *rows)
                out = torch.fft.irfftn(torch.fft.rfftn(grid, dim=axes) / spectrum, list(rows), axes)
                return out.flatten(-len(rows)).mT

            batch = torch.broadcast_shapes(self.shape[:-2], rhs.shape[:-2])
            right = rhs.detach().double().cpu().expand(*batch, *rhs.shape[-2:])
            x, steps[0] = iterate(lambda p: _convolve(symbol, p, rows, rows) + far * p, precondition, right)
            return x.to(rhs)

        def product(transposed: bool, x: Tensor, tensors: tuple[Tensor, ...]) -> Tensor:
            return _convolve(_embedded(tensors[0], rows, rows), x, rows, rows) + tensors[1] * x

        x = implicit_solve(System(run, product), wide, self.lags(), s)
        return answer(self, x, b, s, steps[0])

    def logdet(self, shift: Shift = 0.0) -> Tensor:
        """log det (A + shift I). Raises StructureError above 4,096 points, where linalg.logdet estimates it."""
        if self.rows != self.cols or self.shape[-1] > DIRECT:
            raise StructureError(
                f"BlockToeplitz.logdet is exact for square matrices of up to {DIRECT} rows; linalg.logdet"
            )
        eye = torch.eye(self.shape[-1], dtype=self.dtype, device=self.device)
        sign, value = torch.linalg.slogdet(self.dense() + as_shift(self, shift) * eye)
        if not bool((sign > 0).all()):
            raise NotPositiveDefiniteError("the determinant is not positive; add a larger shift", 0.0)
        return value


@rule
def on_grids(request: Request) -> BlockToeplitz | None:
    """A stationary kernel on grids of equal steps."""
    kernel, axes, others = request.kernel, lines(request.x), lines(request.y)
    if len(axes) < 2 or len(axes) != len(others) or isinstance(kernel, FeatureMap):
        return None
    if [a.step for a in axes] != [b.step for b in others] or {a.dtype for a in (*axes, *others)} - {axes[0].dtype}:
        request.decline("BlockToeplitz", "the grids of both sides differ in steps or precision")
        return None
    if (
        Claim.STATIONARY not in kernel.claims
        or axes[0].dtype not in DTYPES
        or not all(a.count for a in (*axes, *others))
    ):
        return None
    x = Grid(*axes)
    return BlockToeplitz.on(kernel, x, None if request.square else Grid(*others))
