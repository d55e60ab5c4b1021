"""Dense: the matrix itself, formed once at its first use."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mercer.assemble import Request, rule
from mercer.claims import LINEAR, NO_CLAIMS, Claim, Claims
from mercer.operator import Cost, Operator
from mercer.operators.tiled import COPIES, KERNEL_FLOPS, TILE, Tiled

THIN = 32  # columns up to which a product is better taken transposed


class Dense(Operator):
    """A stored matrix `... n m`, or the promise of one that is formed at its first use.

    Cost: nothing to make for a given matrix; 2 n m flops and n m numbers each product.
    """

    def __init__(self, matrix: Tensor, claims: Claims = NO_CLAIMS):
        self._matrix: Tensor | None = matrix
        self._make: Callable[[], Tensor] | None = None
        self.shape, self.dtype, self.device, self.claims = matrix.shape, matrix.dtype, matrix.device, claims
        self.make_flops = 0.0

    @classmethod
    def deferred(cls, of: Tiled, make_flops: float) -> Dense:
        """The matrix of a tiled operator, formed when first needed and kept."""
        op = cls.__new__(cls)
        op._matrix, op._make, op.make_flops = None, of.dense, make_flops
        op.shape, op.dtype, op.device, op.claims = of.shape, of.dtype, of.device, of.claims
        return op

    @property
    def matrix(self) -> Tensor:
        if self._matrix is None:
            assert self._make is not None
            self._matrix = self._make()
        return self._matrix

    def matmul(self, v: Tensor) -> Tensor:
        if 1 < v.shape[-1] <= THIN:  # the same product, but BLAS runs it more than twice as fast in this order
            return (v.mT @ self.matrix.mT).mT
        return self.matrix @ v

    @property
    def mT(self) -> Operator:
        return Dense(self.matrix.mT, self.claims)

    def cost(self, rhs: int = 1) -> Cost:
        numbers = self.shape.numel()
        stored = numbers if self._make is None else numbers + COPIES * TILE
        return Cost(self.make_flops, 2.0 * numbers * rhs, stored * self.dtype.itemsize)

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
    if request.products < 2:
        return None
    kernel, x, y = request.kernel, request.x.points, request.y.points
    tiled = Tiled(kernel, x, x if request.square else y, kernel.claims if request.square else NO_CLAIMS)
    work = float(torch.Size(tiled.shape).numel()) * (2 * x.shape[-1] + KERNEL_FLOPS)
    return Dense.deferred(tiled, work)
