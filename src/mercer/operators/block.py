"""Block: a matrix of operators."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from mercer.claims import NO_CLAIMS, Claims
from mercer.errors import ShapeError
from mercer.operator import Cost, Operator


class Block(Operator):
    """[[A, B], [C, D]]: operators in rows and columns, None where a block is zero.

    rows: a list of equally long lists; every row and every column of blocks holds at least one operator, and the
    operators of a row agree in their number of rows, those of a column in their number of columns.
    claims: what is known of the whole, such as symmetric; nothing is inferred.
    Cost: the sum of the parts. Raises: ShapeError where the blocks do not fit together, TypeError for mixed dtypes.
    """

    def __init__(self, rows: Sequence[Sequence[Operator | None]], claims: Claims = NO_CLAIMS):
        if not rows or not rows[0] or len({len(row) for row in rows}) > 1:
            raise ShapeError(f"Block takes rows of equal length, got lengths {[len(row) for row in rows]}")
        self.rows = [list(row) for row in rows]
        self.heights = [_size("row", i, row, -2) for i, row in enumerate(self.rows)]
        self.widths = [_size("column", j, col, -1) for j, col in enumerate(zip(*self.rows, strict=True))]
        parts = [part for row in self.rows for part in row if part is not None]
        if len({part.dtype for part in parts}) > 1:
            raise TypeError(f"the blocks are {', '.join(sorted({str(p.dtype) for p in parts}))}; convert them to one")
        batch = torch.broadcast_shapes(*[part.shape[:-2] for part in parts])
        self.shape = torch.Size([*batch, sum(self.heights), sum(self.widths)])
        self.dtype, self.device, self.claims = parts[0].dtype, parts[0].device, claims

    def matmul(self, v: Tensor) -> Tensor:
        pieces, batch = v.split(self.widths, -2), torch.broadcast_shapes(self.shape[:-2], v.shape[:-2])
        strips = []
        for height, row in zip(self.heights, self.rows, strict=True):
            total = v.new_zeros(*batch, height, v.shape[-1])
            for part, piece in zip(row, pieces, strict=True):
                if part is not None:
                    total = total + part.matmul(piece)
            strips.append(total)
        return torch.cat(strips, -2)

    @property
    def mT(self) -> Block:
        columns = zip(*self.rows, strict=True)
        return Block([[None if part is None else part.mT for part in column] for column in columns], self.claims)

    def cost(self, rhs: int = 1) -> Cost:
        parts = [part.cost(rhs) for row in self.rows for part in row if part is not None]
        extra = Cost(0, 0, 2.0 * sum(self.shape[-2:]) * rhs * self.dtype.itemsize)
        return functools.reduce(lambda a, b: a + b, parts, extra)

    def dense(self) -> Tensor:
        self._fits()
        strips = []
        for height, row in zip(self.heights, self.rows, strict=True):
            found = []
            for width, part in zip(self.widths, row, strict=True):
                block = (
                    torch.zeros(height, width, dtype=self.dtype, device=self.device) if part is None else part.dense()
                )
                found.append(block.expand(*self.shape[:-2], height, width))
            strips.append(torch.cat(found, -1))
        return torch.cat(strips, -2)

    def diagonal(self) -> Tensor:
        if self.heights != self.widths:
            return super().diagonal()
        zeros = torch.zeros(self.shape[-1], dtype=self.dtype, device=self.device).split(self.heights)
        found = [zeros[i] if (part := row[i]) is None else part.diagonal() for i, row in enumerate(self.rows)]
        return torch.cat([piece.expand(*self.shape[:-2], len(zeros[i])) for i, piece in enumerate(found)], -1)

    def tril(self) -> Operator:
        if self.heights != self.widths:
            return super().tril()
        kept = [
            [part if j < i else part.tril() if j == i and part is not None else None for j, part in enumerate(row)]
            for i, row in enumerate(self.rows)
        ]
        if any(kept[i][i] is None for i in range(len(kept))):  # a row or column of zeros would have no size
            return super().tril()
        return Block(kept)


def _size(axis: str, at: int, parts: Sequence[Operator | None], side: int) -> int:
    sizes = {part.shape[side] for part in parts if part is not None}
    if len(sizes) != 1:
        found = f"sizes {sorted(sizes)}" if sizes else "no operator"
        raise ShapeError(f"{axis} {at} of the blocks has {found}; expected one size")
    return sizes.pop()
