"""Block: a matrix of operators."""

from __future__ import annotations

import functools
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate, pairwise

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
        heights = [_size("row", i, row, -2) for i, row in enumerate(rows)]
        widths = [_size("column", j, col, -1) for j, col in enumerate(zip(*rows, strict=True))]
        parts = [part for row in rows for part in row if part is not None]
        if len({part.dtype for part in parts}) > 1:
            raise TypeError(f"the blocks are {', '.join(sorted({str(p.dtype) for p in parts}))}; convert them to one")
        batch = torch.broadcast_shapes(*[part.shape[:-2] for part in parts])
        self._set(rows, heights, widths, batch, parts[0], claims)

    def _set(
        self,
        rows: Sequence[Sequence[Operator | None]],
        heights: list[int],
        widths: list[int],
        batch: Sequence[int],
        like: Operator,
        claims: Claims = NO_CLAIMS,
    ) -> Block:
        self.rows, self.heights, self.widths = [list(row) for row in rows], heights, widths
        self.shape = torch.Size([*batch, sum(heights), sum(widths)])
        self.dtype, self.device, self.claims = like.dtype, like.device, claims
        return self

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
        turned = [[None if p is None else p.mT for p in column] for column in zip(*self.rows, strict=True)]
        return Block.__new__(Block)._set(turned, self.widths, self.heights, self.shape[:-2], self, self.claims)

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
        tops, lefts = _starts(self.heights), _starts(self.widths)
        n, m = self.shape[-2:]
        cuts = sorted({*tops, *lefts, n, m})  # cut both axes at the same places, so that diagonal blocks are square
        strips: list[list[Operator | None]] = []
        for r0, r1 in _pairs(cuts, n):
            i = bisect_right(tops, r0) - 1
            strip: list[Operator | None] = []
            for c0, c1 in _pairs(cuts, m):
                j = bisect_right(lefts, c0) - 1
                whole = self.rows[i][j]
                if whole is None or c0 > r0:
                    strip.append(None)
                    continue
                rows, cols = torch.arange(r0 - tops[i], r1 - tops[i]), torch.arange(c0 - lefts[j], c1 - lefts[j])
                exact = (len(rows), len(cols)) == tuple(whole.shape[-2:])
                part = whole if exact else whole._select(rows, cols)
                strip.append(part.tril() if c0 == r0 else part)
            strips.append(strip)
        heights, widths = [b - a for a, b in _pairs(cuts, n)], [b - a for a, b in _pairs(cuts, m)]
        return Block.__new__(Block)._set(strips, heights, widths, self.shape[:-2], self)


def _starts(sizes: list[int]) -> list[int]:
    return [0, *accumulate(sizes[:-1])]


def _pairs(cuts: list[int], end: int) -> list[tuple[int, int]]:
    inside = [cut for cut in cuts if cut <= end]
    return [(a, b) for a, b in pairwise(inside) if b > a]


def _size(axis: str, at: int, parts: Sequence[Operator | None], side: int) -> int:
    sizes = {part.shape[side] for part in parts if part is not None}
    if len(sizes) != 1:
        found = f"sizes {sorted(sizes)}" if sizes else "no operator"
        raise ShapeError(f"{axis} {at} of the blocks has {found}; expected one size")
    return sizes.pop()
