"""Precomputed: a kernel that is known by its matrix."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mercer.claims import PSD, Claim
from mercer.errors import DataError, ShapeError
from mercer.kernel import Kernel
from mercer.shapes import shapes

ROUNDING = 1e-10  # of the largest entry: what a matrix may differ from its transpose


class Precomputed(Kernel):
    """Kernel given by its matrix: k(i, j) = matrix[i, j], where points are row numbers 0 .. N - 1 (one column).

    One Gram serves any number of learners: fit them on row numbers, predict at those of other rows. It also stands for
    things that are no vectors (graphs, texts), compared elsewhere.
    matrix: N N, symmetric (checked) and psd (your word). `of(kernel, x)` forms it once, within the memory budget.
    Claims: symmetric, psd; positive and unit diagonal where the entries say so. Cost: N^2 numbers.
    Raises ShapeError, DataError naming an entry, or a point that is no row number.
    """

    matrix: Tensor

    def __init__(self, matrix: Any):
        super().__init__()
        k = torch.as_tensor(matrix).detach()
        k = k if k.is_floating_point() else k.to(torch.float64)
        if k.ndim != 2 or k.shape[0] != k.shape[1] or not len(k):
            raise ShapeError(f"Precomputed.matrix has shape {tuple(k.shape)}; expected N N, N >= 1")
        if not bool(torch.isfinite(k).all()):
            row, column = (~torch.isfinite(k)).nonzero()[0].tolist()
            raise DataError(f"Precomputed.matrix[{row}, {column}] is {float(k[row, column])}; expected finite numbers")
        gap = (k - k.mT).abs()
        if float(gap.max()) > ROUNDING * float(k.abs().max()) + 4 * torch.finfo(k.dtype).eps * float(k.abs().max()):
            row, column = divmod(int(gap.argmax()), len(k))
            pair = f"[{row}, {column}] is {float(k[row, column]):g}, [{column}, {row}] is {float(k[column, row]):g}"
            raise DataError(f"Precomputed.matrix is not symmetric: {pair}")
        self.register_buffer("matrix", k)
        found = set(PSD)
        if bool((k >= 0).all()):
            found.add(Claim.POSITIVE)
        if bool((k.diagonal() == 1).all()):
            found.add(Claim.UNIT_DIAGONAL)
        self.claims = frozenset(found)

    @classmethod
    def of(cls, kernel: Kernel, x: Any) -> Precomputed:
        """The Gram matrix of a kernel on x: N d, formed once. Raises MemoryBudgetError where it does not fit."""
        with torch.no_grad():
            found = kernel(torch.as_tensor(x)).dense()
            return cls((found + found.mT) / 2)

    def _rows(self, points: Tensor) -> Tensor:
        """Row numbers, `... n 1 -> ... n`."""
        if points.shape[-1] != 1:
            raise ShapeError(f"Precomputed takes row numbers as points, n 1; got {points.shape[-1]} columns")
        rows = points[..., 0].round().long()
        wrong = (points[..., 0] != rows) | (rows < 0) | (rows >= len(self.matrix))
        if bool(wrong.any()):
            bad = float(points[..., 0][wrong].flatten()[0])
            raise DataError(f"Precomputed: {bad:g} is not a row number; expected 0 to {len(self.matrix) - 1}")
        return rows

    @shapes("x: ... n d, y: ... m d -> ... n m")
    def block(self, x: Tensor, y: Tensor) -> Tensor:
        rows, columns = self._rows(x), self._rows(y)
        return self.matrix[rows[..., :, None], columns[..., None, :]].to(x.dtype)

    def diagonal(self, x: Tensor) -> Tensor:
        return self.matrix.diagonal()[self._rows(x)].to(x.dtype)
