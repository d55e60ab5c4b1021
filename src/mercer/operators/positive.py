"""PositiveLowRank: exp(left) exp(right)^T, the low-rank map of positive features, in log space where it matters."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from mercer.assemble import Request, rule
from mercer.claims import NO_CLAIMS, PSD, Claim, Claims
from mercer.feature import FeatureMap
from mercer.operator import Cost, Operator
from mercer.operators.lowrank import Factor, LowRank


class PositiveLowRank(Operator):
    """exp(left) exp(right)^T with left: ... n r and right: ... m r the logarithms of positive features.

    left, right: tensors or Factors. `A @ v` is the plain low-rank product, block by block where the features do not
    fit. `A.stabilised()` divides each row by its sum without ever forming a number that overflows, also when causal;
    it holds all the logarithms. Cost: 2 (n + m) r flops each product and column.
    """

    def __init__(self, left: Tensor | Factor, right: Tensor | Factor, claims: Claims = NO_CLAIMS, causal: bool = False):
        logs = LowRank(left, right, claims, causal)
        self._left, self._right, self.causal, self.claims = logs.factors[0], logs.factors[1], causal, claims
        self.shape, self.dtype, self.device = logs.shape, logs.dtype, logs.device

    @functools.cached_property
    def _plain(self) -> LowRank:
        left = self._left.exp()
        right = left if self._right is self._left else self._right.exp()
        return LowRank(left, right, self.claims, self.causal)

    def matmul(self, v: Tensor) -> Tensor:
        return self._plain.matmul(v)

    @property
    def mT(self) -> Operator:
        return self._plain.mT

    def cost(self, rhs: int = 1) -> Cost:
        return self._plain.cost(rhs)

    def dense(self) -> Tensor:
        return self._plain.dense()

    def diagonal(self) -> Tensor:
        return self._plain.diagonal()

    def tril(self) -> Operator:
        return PositiveLowRank(self._left, self._right, NO_CLAIMS, causal=True)

    def stabilised(self) -> Operator:
        left = self._left.all()
        return _Balanced(left, left if self._right is self._left else self._right.all(), self.causal)

    def _select(self, rows: Tensor, cols: Tensor) -> Operator:
        return self._plain._select(rows, cols)


class _Balanced(Operator):
    """The map of PositiveLowRank with rows that sum to one, computed from products whose factors lie in [0, 1].

    A set of keys that every row of a block may see gives feature r the constant c_r = max_j right[j, r]: then
    exp(right - c) <= 1 has a 1 in every column, so exp(left + c - log row sum) <= 1 as well. A causal map is cut
    into such blocks by halving: the later half of the rows sees the earlier half of the keys, at every scale. No
    constant depends on a key that its rows may not see.
    """

    def __init__(self, left: Tensor, right: Tensor, causal: bool, transposed: bool = False):
        self.left, self.right, self.causal, self.transposed = left, right, causal, transposed
        batch = torch.broadcast_shapes(left.shape[:-2], right.shape[:-2])
        size = (left.shape[-2], right.shape[-2])
        self.shape = torch.Size([*batch, *(reversed(size) if transposed else size)])
        self.size = 1 << (max(*size, 1) - 1).bit_length() if causal else 0  # rows and keys, filled up to a power of two
        self.dtype, self.device = left.dtype, left.device
        with torch.no_grad():  # constants: a positive factor per row is free to choose
            self.log_mass = self._log_mass()

    def _levels(self) -> list[int]:
        """Block heights of the halving; 0 stands for the whole map in one block."""
        return [2**level for level in range((self.size - 1).bit_length())] if self.causal else [0]

    def _part(self, t: Tensor, height: int, later: bool, fill: float = 0.0) -> Tensor:
        """The earlier or later half of every pair of blocks, `... n c -> ... pairs height c`."""
        if not height:
            return t
        whole = torch.nn.functional.pad(t, (0, 0, 0, self.size - t.shape[-2]), value=fill)
        return whole.unflatten(-2, (-1, 2, height))[..., int(later), :, :]

    def _whole(self, t: Tensor, height: int, later: bool, n: int, fill: float = 0.0) -> Tensor:
        """`_part` undone, with `fill` where the other halves were."""
        if not height:
            return t
        other = torch.full_like(t, fill)
        halves = [other, t] if later else [t, other]
        return torch.stack(halves, -3).flatten(-4, -2)[..., :n, :]

    def _same(self) -> Tensor:
        k = min(self.left.shape[-2], self.right.shape[-2])
        return (self.left[..., :k, :] + self.right[..., :k, :]).logsumexp(-1, keepdim=True)

    def _log_mass(self) -> Tensor:
        n = self.left.shape[-2]
        total = self.left.new_full((*self.shape[:-2], n, 1), -torch.inf)
        if self.right.shape[-2] > 0:
            for height in self._levels():
                keys = self._part(self.right, height, False, -torch.inf).logsumexp(-2, keepdim=True)
                sums = (self._part(self.left, height, True) + keys).logsumexp(-1, keepdim=True)
                total = torch.logaddexp(total, self._whole(sums, height, True, n, -torch.inf))
        if self.causal:
            same = self._same()
            total[..., : same.shape[-2], :] = torch.logaddexp(total[..., : same.shape[-2], :], same)
        return torch.where(total == -torch.inf, 0.0, total)  # a row of zeros stays a row of zeros

    def matmul(self, v: Tensor) -> Tensor:
        rows, keys = self.left.shape[-2], self.right.shape[-2]
        batch = torch.broadcast_shapes(self.shape[:-2], v.shape[:-2])
        out = v.new_zeros(*batch, self.shape[-2], v.shape[-1])
        for height in self._levels() if keys else []:
            right = self._part(self.right, height, False, -torch.inf)
            top = right.detach().amax(-2, keepdim=True)
            top = torch.where(top == -torch.inf, 0.0, top)
            right = (right - top).exp()
            left = (self._part(self.left - self.log_mass, height, True, -torch.inf) + top).exp()
            if self.transposed:
                out = out + self._whole(right @ (left.mT @ self._part(v, height, True)), height, False, keys)
            else:
                out = out + self._whole(left @ (right.mT @ self._part(v, height, False)), height, True, rows)
        if self.causal:
            same = self._same()
            k = same.shape[-2]
            extra = (same - self.log_mass[..., :k, :]).exp() * v[..., :k, :]
            out = out + torch.nn.functional.pad(extra, (0, 0, 0, self.shape[-2] - k))
        return out

    @property
    def mT(self) -> Operator:
        return _Balanced(self.left, self.right, self.causal, not self.transposed)

    def cost(self, rhs: int = 1) -> Cost:
        return LowRank(self.left, self.right).cost(len(self._levels()) * (rhs + 2))

    def stabilised(self) -> Operator:
        return self


@rule
def positive_features(request: Request) -> Operator | None:
    """A map with positive features is its own low-rank factor, kept as logarithms."""
    phi = request.kernel
    if not isinstance(phi, FeatureMap) or Claim.POSITIVE not in phi.claims:
        return None
    left = Factor.of(phi, request.x.points, log=True)
    right = left if request.square else Factor.of(phi, request.y.points, log=True)
    return PositiveLowRank(left, right, (PSD | {Claim.POSITIVE}) if request.square else NO_CLAIMS)
