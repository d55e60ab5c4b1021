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
from mercer.errors import ShapeError, StructureError
from mercer.feature import FeatureMap
from mercer.operator import Cost, Operator
from mercer.operators.kept import Kept

CHUNK = 128  # rows of the causal product handled by one masked block
COPIES = 4  # arrays of the size of the features alive at once while they are made


class Factor:
    """The rows of a factor `... n r`: a tensor, or the features of points, computed when they are asked for.

    of, index: chosen rows of another factor, whose kept features then serve this one too.
    """

    def __init__(
        self,
        values: Tensor | None,
        features: Callable[[Tensor], Tensor] | None = None,
        phi: FeatureMap | None = None,
        points: Tensor | None = None,
        of: Factor | None = None,
        index: Tensor | None = None,
    ):
        self._values, self._features, self._phi, self._points = values, features, phi, points
        self._of, self._index, self._kept = of, index, Kept()
        like = cast(Tensor, points if values is None else values)
        rank = like.shape[-1] if phi is None else phi.rank
        self.shape, self.dtype, self.device = torch.Size([*like.shape[:-1], rank]), like.dtype, like.device

    @classmethod
    def of(cls, phi: FeatureMap, points: Tensor, log: bool = False) -> Factor:
        """The features of points, or their logarithms."""
        wanted = getattr(phi, "d", points.shape[-1])  # maps that were drawn for some d say so
        if points.shape[-1] != wanted:
            raise ShapeError(f"{type(phi).__name__} was drawn for d = {wanted} columns, x.d is {points.shape[-1]}")
        return cls(None, phi.log_features if log else phi.features, phi, points)

    @property
    def lazy(self) -> bool:
        return self._values is None

    @property
    def may_vanish(self) -> bool:
        """Whether these are features of a map that promises no positive sums."""
        return self._phi is not None and Claim.POSITIVE not in self._phi.claims

    @property
    def height(self) -> int:
        """Rows whose features, with what is alive while they are made, take an eighth of the memory budget."""
        row = COPIES * self.dtype.itemsize * self.shape[-1] * max(math.prod(self.shape[:-2]), 1)
        return max(memory_budget() // (8 * row), 1)

    def make_flops(self) -> float:
        return self.shape.numel() * (2.0 * cast(Tensor, self._points).shape[-1] + 10) if self.lazy else 0.0

    def all(self) -> Tensor:
        """Every row, kept until the map or the points change where no gradient is wanted."""
        if self._values is not None:
            return self._values
        if self._of is not None and fits(self._of):
            return self._of.all()[..., self._index, :]
        points, features = cast(Tensor, self._points), cast(Callable[[Tensor], Tensor], self._features)
        return self._kept.get(cast(FeatureMap, self._phi), lambda: features(points), points)

    def rows(self, index: slice) -> Tensor:
        if self._values is not None:
            return self._values[..., index, :]
        return cast(Callable[[Tensor], Tensor], self._features)(cast(Tensor, self._points)[..., index, :])

    def exp(self) -> Factor:
        """The factor of which this one holds the logarithms."""
        if self._values is not None:
            return Factor(self._values.exp())
        return Factor.of(cast(FeatureMap, self._phi), cast(Tensor, self._points))

    def select(self, index: Tensor) -> Factor:
        """The factor of the chosen rows, as lazy as this one."""
        if self._values is not None:
            return Factor(self._values[..., index, :])
        points = cast(Tensor, self._points)[..., index, :]
        return Factor(None, self._features, self._phi, points, of=self, index=index)


def fits(*factors: Factor) -> bool:
    """Whether the features of all the rows may be in memory at once."""
    numbers = sum(f.shape.numel() * f.dtype.itemsize for f in set(factors) if f.lazy)
    return COPIES * numbers <= memory_budget() // 2


def piecewise(fn: Callable[..., Tensor], *args: Any) -> Tensor:
    """fn(*args) whose intermediate values are computed again for the gradient instead of being stored."""
    if not torch.is_grad_enabled():
        return fn(*args)
    return cast(Tensor, checkpoint(fn, *args, use_reentrant=False, preserve_rng_state=False))


def at_once(fn: Callable[..., Tensor], *args: Any) -> Tensor:
    return fn(*args)


def blocks(n: int, high: int) -> list[slice]:
    return [slice(i, min(i + high, n)) for i in range(0, n, high)]


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
    def factors(self) -> tuple[Factor, Factor]:
        return self._left, self._right

    def _ready(self) -> tuple[Factor, Factor, Callable[..., Tensor]]:
        """The factors, with their rows in memory if those fit, and how to run a function of some of their rows."""
        left, right = self._left, self._right
        if left.lazy or right.lazy:
            if not fits(left, right):
                return left, right, piecewise
            left = Factor(left.all())
            right = left if self._right is self._left else Factor(self._right.all())
        return left, right, at_once

    def stabilised(self) -> Operator:
        if self._left.may_vanish:
            raise StructureError("a kernel that may be negative has rows that cannot be normalised; use a positive one")
        return self

    def matmul(self, v: Tensor) -> Tensor:
        left, right, run = self._ready()
        if self.causal:
            return self._running(left, right, run, v)
        if run is at_once:
            return left.all() @ (right.all().mT @ v)
        state = right_sum(right, run, v, blocks(right.shape[-2], right.height))
        rows = [run(lambda u, h=h: left.rows(h) @ u, state) for h in blocks(left.shape[-2], left.height)]
        return torch.cat(rows, -2) if rows else left.rows(slice(0)) @ state

    def _running(self, left: Factor, right: Factor, run: Callable[..., Tensor], v: Tensor) -> Tensor:
        """Linear attention with a running state: the past enters through the r x c sum of right_j v_j^T."""
        n, m = self.shape[-2:]
        batch = torch.broadcast_shapes(self.shape[:-2], v.shape[:-2])
        state, pieces = v.new_zeros(*batch, self.rank, v.shape[-1]), []

        def within(here: slice, state: Tensor, values: Tensor) -> Tensor:
            rows = left.rows(here)
            return rows @ state + (rows @ right.rows(here).mT).tril() @ values

        for here in blocks(n, min(CHUNK, left.height)):
            if here.start >= m:
                pieces.append(run(lambda u, h=here: left.rows(h) @ u, state))
                continue
            pieces.append(run(within, here, state, v[..., here, :]))
            state = state + right_sum(right, run, v, [here])
        return torch.cat(pieces, -2) if pieces else v.new_zeros(*batch, 0, v.shape[-1])

    def _running_back(self, v: Tensor) -> Tensor:
        """The transpose of the causal map: row j collects the rows i >= j, with a running state from the end."""
        left, right, run = self._ready()
        n, m = self.shape[-2:]
        batch = torch.broadcast_shapes(self.shape[:-2], v.shape[:-2])
        state, pieces = v.new_zeros(*batch, self.rank, v.shape[-1]), []

        def within(here: slice, state: Tensor, values: Tensor) -> Tensor:
            rows = right.rows(slice(here.start, min(here.stop, m)))
            return rows @ state + (left.rows(slice(here.start, min(here.stop, n))) @ rows.mT).tril().mT @ values

        for here in reversed(blocks(max(n, m), min(CHUNK, left.height))):
            values = v[..., here, :]
            if here.start < m:
                pieces.append(run(within, here, state, values))
            if here.start < n:
                state = state + right_sum(left, run, v, [here])
        return torch.cat(pieces[::-1], -2) if pieces else v.new_zeros(*batch, 0, v.shape[-1])

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
        factors = {f for f in (self._left, self._right) if f.lazy}
        make = sum(f.make_flops() for f in factors)
        held = COPIES * self.dtype.itemsize * sum(f.shape.numel() for f in factors)
        if fits(*factors):
            return Cost(make, work, memory + held)
        piece = max(min(f.height, f.shape[-2]) * f.shape.numel() / max(f.shape[-2], 1) for f in factors)
        return Cost(0, work + make, memory + COPIES * self.dtype.itemsize * piece)

    def dense(self) -> Tensor:
        """The matrix itself, `... n m`. Raises MemoryBudgetError when it does not fit the memory budget."""
        self._fits()
        left, right, run = self._ready()
        if run is at_once:
            matrix = left.all() @ right.all().mT
        else:
            rows = []
            for i in blocks(left.shape[-2], left.height):
                columns = blocks(right.shape[-2], right.height)
                rows.append(torch.cat([run(lambda i, j: left.rows(i) @ right.rows(j).mT, i, j) for j in columns], -1))
            matrix = torch.cat(rows, -2)
        return matrix.tril() if self.causal else matrix

    def diagonal(self) -> Tensor:
        k = min(self.shape[-2:])
        left, right, run = self._ready()

        def part(here: slice) -> Tensor:
            rows = left.rows(here)
            return (rows * (rows if right is left else right.rows(here))).sum(-1)

        whole = slice(0, k)
        return torch.cat([run(part, here) for here in blocks(k, left.height) or [whole]], -1)

    def tril(self) -> Operator:
        return LowRank(self._left, self._right, NO_CLAIMS, causal=True)

    def _select(self, rows: Tensor, cols: Tensor) -> Operator:
        if self.causal:
            return super()._select(rows, cols)
        return LowRank(self._left.select(rows), self._right.select(cols))


def right_sum(right: Factor, run: Callable[..., Tensor], v: Tensor, where: list[slice]) -> Tensor:
    """The sum of right_j v_j^T over blocks of rows: ... r c."""
    total = None
    for here in where:
        part = run(lambda u, h=here: right.rows(h).mT @ u, v[..., here, :])
        total = part if total is None else total + part
    return right.rows(slice(0)).mT @ v[..., :0, :] if total is None else total


class _Flipped(Operator):
    """The transpose of a causal low-rank map."""

    def __init__(self, of: LowRank):
        self.of = of
        self.shape = torch.Size([*of.shape[:-2], of.shape[-1], of.shape[-2]])
        self.dtype, self.device = of.dtype, of.device

    def matmul(self, v: Tensor) -> Tensor:
        return self.of._running_back(v)

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
    left = Factor.of(phi, request.x.points)
    right = left if request.square else Factor.of(phi, request.y.points)
    return LowRank(left, right, PSD if request.square else NO_CLAIMS)
