"""Pairwise distances, computed accurately, with gradients of any order.

Squared distances are the delicate ones. The expanded form |x|^2 + |y|^2 - 2 x.y loses everything far from the origin,
so points are centred first; what remains is an error of about eps (|x|^2 + |y|^2). Where that may matter (a kink at
distance zero, or points spread over many lengthscales) near pairs are computed again from their differences.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from mercer.numerics.matmul import outer_products

DIRECT_COLUMNS = 4  # up to here differences are as cheap as the expanded form, and exact
NEAR_FLOAT32, NEAR_FLOAT64 = 1e-3, 1e-6  # pairs with s below this times (|x|^2 + |y|^2) are recomputed
HARMLESS = 8e-6  # an absolute error of s that a smooth profile hardly notices: 64 eps of float32
GATHERED = 2**20  # numbers gathered at once for near pairs
CENTRING = 31  # points whose median is the centre
GOLDEN = 0.6180339887498949


def _differences(x: Tensor, y: Tensor) -> Iterator[Tensor]:
    """x_k - y_k for every pair, one column k at a time."""
    for k in range(x.shape[-1]):
        yield x[..., :, None, k] - y[..., None, :, k]


def _zeros(x: Tensor, y: Tensor) -> Tensor:
    return x.new_zeros((*torch.broadcast_shapes(x.shape[:-2], y.shape[:-2]), x.shape[-2], y.shape[-2]))


def _direct(x: Tensor, y: Tensor, out: Tensor | None = None) -> Tensor:
    s = _zeros(x, y) if out is None else out
    if torch._C._are_functorch_transforms_active():
        for difference in _differences(x, y):
            s = s + difference.square()
        return s
    if not x.shape[-1]:
        return s.zero_()
    torch.sub(x[..., :, None, 0], y[..., None, :, 0], out=s).square_()
    gap = torch.empty_like(s) if x.shape[-1] > 1 else s  # one buffer for the rest: fresh memory costs more than sums
    for k in range(1, x.shape[-1]):
        torch.sub(x[..., :, None, k], y[..., None, :, k], out=gap)
        s.addcmul_(gap, gap)
    return s


class Pairs:
    """Squared distances of x: `... n d` and y: `... m d` a tile at a time; what all tiles share is prepared once.

    The middle of y is at the origin. kink: near pairs are computed again from their differences.
    """

    def __init__(self, x: Tensor, y: Tensor, kink: bool):
        self.x, self.y = x, y
        self.long: tuple[Tensor, Tensor] | None = None  # None: by differences
        few = x.shape[-1] <= DIRECT_COLUMNS
        if not x.numel() or not y.numel() or (few and (kink or x.shape[-1] == 1 or x.dtype != torch.float32)):
            return
        left, right = x.square().sum(-1, keepdim=True), y.square().sum(-1, keepdim=True)
        largest = float(left.max() + right.max())
        far = largest * torch.finfo(x.dtype).eps > HARMLESS
        if not math.isfinite(largest) or (few and far):  # squares overflow: keep the harm to its own row
            return
        # both norms ride in two more columns of the product; what follows is in place, as memory costs more than sums
        one = x.new_ones(()).expand
        self.long = (
            torch.cat([-2 * x, left, one(*x.shape[:-1], 1)], -1),
            torch.cat([y, one(*y.shape[:-1], 1), right], -1),
        )
        self.careful = kink or far

    def tile(self, rows: slice, cols: slice, out: Tensor | None = None) -> Tensor:
        """The distances of these rows and columns, in `out` where that is of use."""
        x, y = self.x[..., rows, :], self.y[..., cols, :]
        if self.long is None:
            return _direct(x, y, out)
        s = outer_products(self.long[0][..., rows, :], self.long[1][..., cols, :], out).clamp_min_(0)
        if self.careful:
            norms = self.long[0][..., rows, -2, None] + self.long[1][..., cols, -1][..., None, :]
            near = s < (NEAR_FLOAT64 if s.dtype == torch.float64 else NEAR_FLOAT32) * norms
            count = int(near.sum())
            if 4 * count > s.numel():
                return _direct(x, y, out)
            if count:
                _recompute(s, near, x.expand(*s.shape[:-2], *x.shape[-2:]), y.expand(*s.shape[:-2], *y.shape[-2:]))
        return s


def _recompute(s: Tensor, near: Tensor, x: Tensor, y: Tensor) -> None:
    """The marked entries of s from differences, in place, some pairs at a time."""
    for at in near.nonzero().split(max(GATHERED // x.shape[-1], 1)):
        *batch, i, j = at.unbind(-1)
        s[(*batch, i, j)] = (x[(*batch, i)] - y[(*batch, j)]).square().sum(-1)


def centre(y: Tensor) -> Tensor:
    """A point in the middle of y: ... m d -> ... 1 d, that no outlier and no NaN moves; a constant to gradients."""
    m = y.shape[-2]
    if m > CENTRING:  # spread by the golden ratio, which keeps step with no period of the rows
        y = y[..., [int(m * (k * GOLDEN % 1)) for k in range(CENTRING)], :]
    return y.detach().nanmedian(-2, keepdim=True).values


class _SquaredDistance(torch.autograd.Function):
    """Never negative; its gradient is 2 (x - y) everywhere, also where rounding was clamped away."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, y: Tensor, kink: bool) -> Tensor:
        if torch._C._are_functorch_transforms_active():  # sizes of batched numbers cannot be asked for
            return _direct(x, y)
        return Pairs(x, y, kink).tile(slice(None), slice(None))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, bool], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0], inputs[1])

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, y = ctx.saved_tensors
        gx = 2 * (g.sum(-1, keepdim=True) * x - g @ y)
        gy = 2 * (g.sum(-2).unsqueeze(-1) * y - g.mT @ x)
        return gx.sum_to_size(x.shape), gy.sum_to_size(y.shape), None


def squared_distance(x: Tensor, y: Tensor, kink: bool = False, centred: bool = False) -> Tensor:
    """|x_i - y_j|^2: `... n d, ... m d -> ... n m`, >= 0, twice differentiable also at distance zero.

    kink: recompute near pairs from differences, for kernels that are not smooth at distance zero. centred: the middle
    of y is at the origin already.
    Error: relative eps for d <= 4. Else absolute eps (|x|^2 + |y|^2) around the middle of y while that is below 8e-6,
    and relative 1e-4 (float32) or 3e-10 (float64) beyond, and always with `kink`. Cost: 2 n m d flops.
    """
    if y.shape[-2] > 0 and not centred:
        middle = centre(y)  # a shift: the distances and their gradients do not depend on it
        x, y = x - middle, y - middle
    return _SquaredDistance.apply(x, y, kink)


class _L1Distance(torch.autograd.Function):
    """torch's fused distance forward; gradients column by column, so that they can be differentiated again."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, y: Tensor) -> Tensor:
        return torch.cdist(x, y, p=1.0)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:
        x, y = ctx.saved_tensors
        if not torch.is_grad_enabled() and x.ndim == y.ndim == 2 and x.shape[-1]:  # nobody differentiates this again
            fused, g = torch.ops.aten._cdist_backward, g.contiguous()
            return fused(g, x, y, 1.0, g), fused(g.mT.contiguous(), y, x, 1.0, g)
        left, right = [], []
        for difference in _differences(x, y):
            signed = g * difference.sign()
            left.append(signed.sum(-1))
            right.append(-signed.sum(-2))
        if not left:
            return torch.zeros_like(x), torch.zeros_like(y)
        return torch.stack(left, -1).sum_to_size(x.shape), torch.stack(right, -1).sum_to_size(y.shape)


def absolute_distance(x: Tensor, y: Tensor) -> Tensor:
    """sum_k |x_ik - y_jk|: `... n d, ... m d -> ... n m`. Cost: 3 n m d flops."""
    return _L1Distance.apply(x, y)
