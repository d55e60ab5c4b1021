"""Pattern: where a sparse matrix has entries, and differentiable products with values at these places."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor


@dataclass(frozen=True)
class Pattern:
    """Places (rows[e], cols[e]) of an n x m matrix, sorted by row; a place may occur more than once."""

    rows: Tensor
    cols: Tensor
    n: int
    m: int

    @staticmethod
    def sorted(rows: Tensor, cols: Tensor, n: int, m: int) -> tuple[Pattern, Tensor]:
        """The pattern of places in any order, and the order that sorts their values."""
        order = torch.argsort(rows * max(m, 1) + cols, stable=True)
        return Pattern(rows[order], cols[order], n, m), order

    def csr(self, values: np.ndarray) -> Any:
        """The matrix as scipy's compressed rows, one value a place."""
        starts = np.zeros(self.n + 1, dtype=np.int64)
        np.cumsum(np.bincount(self.rows.cpu().numpy(), minlength=self.n), out=starts[1:])
        return csr_array((values, self.cols.cpu().numpy(), starts), shape=(self.n, self.m))


def _product(pattern: Pattern, transposed: bool, values: Tensor, v: Tensor) -> Tensor:
    n = pattern.m if transposed else pattern.n
    batch = torch.broadcast_shapes(values.shape[:-1], v.shape[:-2])
    if not values.shape[-1] or not v.shape[-1]:
        return v.new_zeros(*batch, n, v.shape[-1])
    if v.device.type != "cpu" or v.dtype not in (torch.float32, torch.float64):
        here, there = (pattern.cols, pattern.rows) if transposed else (pattern.rows, pattern.cols)
        moved = values.unsqueeze(-1) * v.index_select(-2, there)
        return v.new_zeros(*batch, n, v.shape[-1]).index_add(-2, here, moved)
    many = values.expand(*batch, values.shape[-1]).reshape(-1, values.shape[-1])
    right = v.expand(*batch, *v.shape[-2:]).reshape(-1, *v.shape[-2:])
    found, matrix = [], pattern.csr(many[0].numpy())
    for value, column in zip(many, right, strict=True):
        matrix.data = value.numpy()
        found.append(torch.from_numpy((matrix.T if transposed else matrix) @ column.numpy()))
    return (torch.stack(found) if len(found) > 1 else found[0]).reshape(*batch, n, v.shape[-1])


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pattern: Pattern, transposed: bool, values: Tensor, v: Tensor) -> Tensor:
        ctx.pattern, ctx.transposed = pattern, transposed
        ctx.save_for_backward(values, v)
        return _product(pattern, transposed, values.detach(), v.detach())

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[None, None, Tensor | None, Tensor | None]:
        values, v = ctx.saved_tensors
        to_values = to_v = None
        if ctx.needs_input_grad[2]:
            left, right = (v, g) if ctx.transposed else (g, v)
            to_values = at_places(ctx.pattern, left, right).sum_to_size(values.shape)
        if ctx.needs_input_grad[3]:
            to_v = _Product.apply(ctx.pattern, not ctx.transposed, values, g).sum_to_size(v.shape)
        return None, None, to_values, to_v


def product(pattern: Pattern, values: Tensor, v: Tensor, transposed: bool = False) -> Tensor:
    """A v, or A^T v, for the sparse matrix A with these values (`... e`): ... m c -> ... n c, any gradients."""
    return _Product.apply(pattern, transposed, values, v)


def at_places(pattern: Pattern, left: Tensor, right: Tensor) -> Tensor:
    """(left right^T) at the places of the pattern: ... n c, ... m c -> ... e, one column at a time."""
    total = left.new_zeros(len(pattern.rows))
    for k in range(left.shape[-1]):
        total = total + left[..., k].index_select(-1, pattern.rows) * right[..., k].index_select(-1, pattern.cols)
    return total
