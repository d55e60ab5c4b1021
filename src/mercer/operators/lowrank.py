"""LowRank: left right^T, what a feature map makes of a kernel."""

from __future__ import annotations

import torch
from torch import Tensor

from mercer.assemble import Request, rule
from mercer.claims import NO_CLAIMS, PSD, Claim, Claims
from mercer.feature import FeatureMap
from mercer.operator import Cost, Operator

CHUNK = 128  # rows of the causal product handled by one masked block


class LowRank(Operator):
    """left right^T with left: ... n r and right: ... m r. Cost: 2 (n + m) r flops each product and column."""

    def __init__(self, left: Tensor, right: Tensor, claims: Claims = NO_CLAIMS, causal: bool = False):
        self.left, self.right, self.causal, self.claims = left, right, causal, claims
        batch = torch.broadcast_shapes(left.shape[:-2], right.shape[:-2])
        self.shape = torch.Size([*batch, left.shape[-2], right.shape[-2]])
        self.dtype, self.device = left.dtype, left.device

    @property
    def rank(self) -> int:
        return self.left.shape[-1]

    def matmul(self, v: Tensor) -> Tensor:
        if not self.causal:
            return self.left @ (self.right.mT @ v)
        # linear attention with a running state: the past enters through the r x c sum of right_j v_j^T
        n, m = self.shape[-2:]
        batch = torch.broadcast_shapes(self.shape[:-2], v.shape[:-2])
        state = v.new_zeros(*batch, self.rank, v.shape[-1])
        pieces = []
        for i in range(0, n, CHUNK):
            left, right, values = (t[..., i : i + CHUNK, :] for t in (self.left, self.right, v))
            within = (left @ right.mT).tril() @ values if i < m else 0
            pieces.append(left @ state + within)
            if i < m:
                state = state + right.mT @ values
        return torch.cat(pieces, -2) if pieces else v.new_zeros(*batch, 0, v.shape[-1])

    @property
    def mT(self) -> Operator:
        if self.causal:
            return _Flipped(self)
        return LowRank(self.right, self.left, self.claims)

    def cost(self, rhs: int = 1) -> Cost:
        n, m = self.shape[-2:]
        batch = self.shape[:-2].numel()
        extra = CHUNK * (n + m) if self.causal else 0
        work = batch * (2.0 * (n + m) * self.rank + extra) * rhs
        return Cost(0, work, batch * self.dtype.itemsize * (self.rank * rhs + (CHUNK**2 if self.causal else 0)))

    def diagonal(self) -> Tensor:
        k = min(self.shape[-2:])
        return (self.left[..., :k, :] * self.right[..., :k, :]).sum(-1)

    def tril(self) -> Operator:
        return LowRank(self.left, self.right, NO_CLAIMS, causal=True)

    def _select(self, rows: Tensor, cols: Tensor) -> Operator:
        if self.causal:
            return super()._select(rows, cols)
        return LowRank(self.left[..., rows, :], self.right[..., cols, :])


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
    left = phi.features(request.x.points)
    right = left if request.square else phi.features(request.y.points)
    return LowRank(left, right, PSD if request.square else NO_CLAIMS)
