"""LowRank: left right^T, what a feature map makes of a kernel."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from mercer.assemble import Request, rule
from mercer.budget import memory_budget
from mercer.claims import NO_CLAIMS, PSD, Claim, Claims
from mercer.feature import FeatureMap
from mercer.operator import Cost, Operator
from mercer.operators.kept import Kept

CHUNK = 128  # rows of the causal product handled by one masked block
COPIES = 4  # arrays of the size of the features alive at once while they are made


class Factor:
    """The rows of a factor `... n r`: a tensor, or the features of points, computed when they are asked for."""

    def __init__(self, values: Tensor | None, phi: FeatureMap | None = None, points: Tensor | None = None):
        like = values if values is not None else cast(Tensor, points)
        rank = like.shape[-1] if phi is None else phi.rank
        self.shape, self.dtype, self.device = torch.Size([*like.shape[:-1], rank]), like.dtype, like.device
        self._values, self._phi, self._points, self._kept = values, phi, points, Kept()

    @property
    def lazy(self) -> bool:
        return self._phi is not None

    def _compute(self, points: Tensor) -> Tensor:
        return cast(FeatureMap, self._phi).features(points)

    def make_flops(self) -> float:
        return self.shape.numel() * (2.0 * cast(Tensor, self._points).shape[-1] + 10) if self.lazy else 0.0

    def all(self) -> Tensor:
        """Every row, kept until the map or the points change where no gradient is wanted."""
        if self._values is not None:
            return self._values
        points = cast(Tensor, self._points)
        return self._kept.get(cast(FeatureMap, self._phi), lambda: self._compute(points), points)

    def rows(self, index: slice | Tensor) -> Tensor:
        if self._values is not None:
            return self._values[..., index, :]
        return self._compute(cast(Tensor, self._points)[..., index, :])

    def select(self, index: Tensor) -> Factor:
        """The factor of the chosen rows, as lazy as this one."""
        if self._values is not None:
            return type(self)(self._values[..., index, :])
        return type(self)(None, self._phi, cast(Tensor, self._points)[..., index, :])


def height(factor: Factor) -> int:
    """Rows whose features, with what is alive while they are made, take an eighth of the memory budget."""
    return max(memory_budget() // (8 * COPIES * factor.dtype.itemsize * factor.shape[-1] * batch_of(factor)), 1)


def batch_of(factor: Factor) -> int:
    return max(math.prod(factor.shape[:-2]), 1)


def fits(*factors: Factor) -> bool:
    """Whether the features of all the rows may be in memory at once."""
    numbers = sum(f.shape.numel() * f.dtype.itemsize for f in factors if f.lazy)
    return COPIES * numbers <= memory_budget() // 2


def piecewise(fn: Callable[..., Tensor], *args: Any) -> Tensor:
    """fn(*args) whose intermediate values are computed again for the gradient instead of being stored."""
    if not torch.is_grad_enabled():
        return fn(*args)
    return cast(Tensor, checkpoint(fn, *args, use_reentrant=False, preserve_rng_state=False))


class LowRank(Operator):
    """left right^T with left: ... n r and right: ... m r, tensors or Factors (features, computed when needed).

    Cost: 2 (n + m) r flops each product and column. Features are kept between products where no gradient is wanted;
    those that do not fit half of the memory budget are made block by block in every product, never all at once.
    """

    def __init__(self, left: Tensor | Factor, right: Tensor | Factor, claims: Claims = NO_CLAIMS, causal: bool = False):
        self._left = left if isinstance(left, Factor) else Factor(left)
        self._right = self._left if right is left else right if isinstance(right, Factor) else Factor(right)
        self.causal, self.claims = causal, claims
        batch = torch.broadcast_shapes(self._left.shape[:-2], self._right.shape[:-2])
        self.shape = torch.Size([*batch, self._left.shape[-2], self._right.shape[-2]])
        self.dtype, self.device = self._left.dtype, self._left.device

    @property
    def rank(self) -> int:
        return self._left.shape[-1]

    @property
    def left(self) -> Tensor:
        """The left factor as a matrix, `... n r`."""
        return self._left.all()

    @property
    def right(self) -> Tensor:
        """The right factor as a matrix, `... m r`."""
        return self.left if self._right is self._left else self._right.all()

    def _ready(self) -> tuple[Factor, Factor]:
        """The factors with their rows in memory, if those fit; else as they are."""
        if self._whole():
            left = Factor(self._left.all())
            return left, left if self._right is self._left else Factor(self._right.all())
        return self._left, self._right

    def _whole(self) -> bool:
        return fits(self._left) if self._right is self._left else fits(self._left, self._right)

    def matmul(self, v: Tensor) -> Tensor:
        left, right = self._ready()
        if self.causal:
            return self._running(left, right, v)
        if not left.lazy and not right.lazy:
            return left.all() @ (right.all().mT @ v)
        state = v.new_zeros(*right.shape[:-2], self.rank, v.shape[-1])
        for i in range(0, right.shape[-2], high := height(right)):
            here = slice(i, i + high)
            state = state + piecewise(lambda u, here=here: right.rows(here).mT @ u, v[..., here, :])
        pieces = []
        for i in range(0, left.shape[-2], high := height(left)):
            pieces.append(piecewise(lambda u, here=slice(i, i + high): left.rows(here) @ u, state))
        return torch.cat(pieces, -2)

    def _running(self, left: Factor, right: Factor, v: Tensor) -> Tensor:
        """Linear attention with a running state: the past enters through the r x c sum of right_j v_j^T."""
        n, m = self.shape[-2:]
        batch = torch.broadcast_shapes(self.shape[:-2], v.shape[:-2])
        state = v.new_zeros(*batch, self.rank, v.shape[-1])
        pieces, high = [], CHUNK if not left.lazy else max(min(CHUNK, height(left)), 1)

        def row(here: slice, state: Tensor, values: Tensor) -> Tensor:
            rows = left.rows(here)
            return rows @ state + (rows @ right.rows(here).mT).tril() @ values

        for i in range(0, n, high):
            here = slice(i, i + high)
            values = v[..., here, :]
            if i >= m:
                pieces.append(piecewise(lambda u, here=here: left.rows(here) @ u, state))
                continue
            pieces.append(piecewise(row, here, state, values) if left.lazy else row(here, state, values))
            state = state + piecewise(lambda u, here=here: right.rows(here).mT @ u, values)
        return torch.cat(pieces, -2) if pieces else v.new_zeros(*batch, 0, v.shape[-1])

    @property
    def mT(self) -> Operator:
        if self.causal:
            return _Flipped(self)
        return LowRank(self._right, self._left, self.claims)

    def cost(self, rhs: int = 1) -> Cost:
        n, m = self.shape[-2:]
        batch = max(math.prod(self.shape[:-2]), 1)
        extra = CHUNK * (n + m) if self.causal else 0
        work = batch * (2.0 * (n + m) * self.rank + extra) * rhs
        memory = batch * self.dtype.itemsize * (self.rank * rhs + (CHUNK**2 if self.causal else 0))
        factors = [self._left] if self._right is self._left else [self._left, self._right]
        make = sum(f.make_flops() for f in factors)
        if not self._left.lazy or self._whole():
            made = sum(f.shape.numel() for f in factors if f.lazy)
            return Cost(make, work, memory + COPIES * made * self.dtype.itemsize)
        made = max(min(height(f), f.shape[-2]) * batch_of(f) for f in factors)
        return Cost(0, work + make, memory + COPIES * made * self.rank * self.dtype.itemsize)

    def diagonal(self) -> Tensor:
        k = min(self.shape[-2:])
        left, right = self._ready()
        high = height(left) if left.lazy else max(k, 1)

        def part(here: slice) -> Tensor:
            rows = left.rows(here)
            return (rows * (rows if right is left else right.rows(here))).sum(-1)

        blocks = [slice(i, min(i + high, k)) for i in range(0, max(k, 1), high)]
        return torch.cat([piecewise(part, here) if left.lazy else part(here) for here in blocks], -1)

    def tril(self) -> Operator:
        return LowRank(self._left, self._right, NO_CLAIMS, causal=True)

    def _select(self, rows: Tensor, cols: Tensor) -> Operator:
        if self.causal:
            return super()._select(rows, cols)
        return LowRank(self._left.select(rows), self._right.select(cols))


class _Flipped(Operator):
    """The transpose of a causal low-rank map: the same running sum, taken from the end."""

    def __init__(self, of: LowRank):
        self.of = of
        self.shape = torch.Size([*of.shape[:-2], of.shape[-1], of.shape[-2]])
        self.dtype, self.device = of.dtype, of.device

    def matmul(self, v: Tensor) -> Tensor:
        # row j of the transpose collects the rows i >= j; reversing both sides turns that into a causal product
        n, m = self.of.shape[-2:]
        size = max(n, m)
        pad = torch.nn.functional.pad
        left = pad(self.of.left, (0, 0, 0, size - n)).flip(-2)
        right = pad(self.of.right, (0, 0, 0, size - m)).flip(-2)
        out = LowRank(right, left, causal=True).matmul(pad(v, (0, 0, 0, size - n)).flip(-2))
        return out.flip(-2)[..., :m, :]

    @property
    def mT(self) -> Operator:
        return self.of

    def cost(self, rhs: int = 1) -> Cost:
        return self.of.cost(rhs)


@rule
def features(request: Request) -> Operator | None:
    """A feature map is its own low-rank factor (positive ones have an operator that works in log space)."""
    phi = request.kernel
    if not isinstance(phi, FeatureMap) or Claim.POSITIVE in phi.claims:
        return None
    left = Factor(None, phi, request.x.points)
    right = left if request.square else Factor(None, phi, request.y.points)
    return LowRank(left, right, PSD if request.square else NO_CLAIMS)
