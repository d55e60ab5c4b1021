"""Dense: the matrix itself, formed once at its first use."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor

from mercer.assemble import Request, rule
from mercer.claims import LINEAR, NO_CLAIMS, Claim, Claims
from mercer.operator import Cost, Operator
from mercer.operators.fused import Fused, fusible
from mercer.operators.kept import Kept
from mercer.operators.speed import core_seconds, dense_seconds, fresh_seconds, tile_seconds
from mercer.operators.tiled import COPIES, KERNEL_FLOPS, TILE, Tiled

THIN = 32  # columns up to which a product is better taken transposed


class Dense(Operator):
    """A stored matrix `... n m`, or the promise of one that is formed at its first use.

    Cost: nothing to make for a given matrix; 2 n m flops and n m numbers each product.
    """

    def __init__(self, matrix: Tensor, claims: Claims = NO_CLAIMS):
        self._matrix: Tensor | None = matrix
        self._of: Tiled | None = None
        self._form: Callable[[], Tensor]
        self._kept = Kept()
        self.shape, self.dtype, self.device, self.claims = matrix.shape, matrix.dtype, matrix.device, claims
        self.make_flops = self.make_seconds = 0.0

    @classmethod
    def deferred(cls, of: Tiled | Fused, make_flops: float, make_seconds: float = 0.0) -> Dense:
        """The matrix of a tiled or fused operator, formed when first needed.

        It is kept until the points or the parameters change. Where a gradient is wanted it is formed for each
        product, as a kept matrix would tie all products to one graph.
        """
        op = cls.__new__(cls)
        op._matrix, op._kept, op.make_flops, op.make_seconds = None, Kept(), make_flops, make_seconds
        op._of, op._form = (of.tiled if isinstance(of, Fused) else of), of.dense
        op.shape, op.dtype, op.device, op.claims = of.shape, of.dtype, of.device, of.claims
        return op

    @property
    def matrix(self) -> Tensor:
        if self._of is None:
            return cast(Tensor, self._matrix)
        of = self._of
        if torch.is_grad_enabled() and of.y.requires_grad:
            return of.dense()
        return self._kept.get(of.kernel, self._form, of.x, key=(id(of.y), of.y._version))

    def matmul(self, v: Tensor) -> Tensor:
        if 1 < v.shape[-1] <= THIN:  # the same product, but BLAS runs it more than twice as fast in this order
            return (v.mT @ self.matrix.mT).mT
        return self.matrix @ v

    @property
    def mT(self) -> Operator:
        return Dense(self.matrix.mT, self.claims)

    def cost(self, rhs: int = 1) -> Cost:
        numbers = self.shape.numel()
        stored = numbers if self._of is None else numbers + COPIES * TILE
        seconds = dense_seconds(numbers, rhs, self.dtype)
        return Cost(self.make_flops, 2.0 * numbers * rhs, stored * self.dtype.itemsize, self.make_seconds, seconds)

    def dense(self) -> Tensor:
        return self.matrix

    def diagonal(self) -> Tensor:
        return self.matrix.diagonal(dim1=-2, dim2=-1)

    def tril(self) -> Operator:
        return Dense(self.matrix.tril())

    def _select(self, rows: Tensor, cols: Tensor) -> Operator:
        same = len(rows) == len(cols) and bool((rows == cols).all())
        keeps = self.claims & (LINEAR | {Claim.UNIT_DIAGONAL}) if same else NO_CLAIMS
        return Dense(self.matrix[..., rows, :][..., cols], keeps)


@rule
def stored(request: Request) -> Operator | None:
    """The matrix, when it will be applied more than once."""
    kernel, x, y = request.kernel, request.x.points, request.y.points
    if request.products < 2 or x.dtype not in (torch.float32, torch.float64):
        return None
    tiled = Tiled(kernel, x, x if request.square else y, kernel.claims if request.square else NO_CLAIMS)
    pairs = float(torch.Size(tiled.shape).numel())
    work = pairs * (2 * x.shape[-1] + KERNEL_FLOPS)
    fresh = fresh_seconds(pairs, x.dtype)
    if fusible(kernel, x):
        seconds = core_seconds(kernel.program() or [], x, pairs, tiled.shape[-1], 1)
        return Dense.deferred(Fused(tiled), work, seconds + fresh)
    return Dense.deferred(tiled, work, tile_seconds(kernel, x, pairs, 0) + fresh)
