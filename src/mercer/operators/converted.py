"""Converted: the same map for vectors of another precision."""

from __future__ import annotations

import torch
from torch import Tensor

from mercer.operator import Cost, Operator


class Converted(Operator):
    """A map of one dtype applied to vectors of another: they are converted on the way in, the result on the way out.

    Half-precision points take their kernel values and sums in float32 this way. Cost: that of A.
    """

    def __init__(self, of: Operator, dtype: torch.dtype):
        self.of, self.dtype = of, dtype
        self.shape, self.device, self.claims = of.shape, of.device, of.claims

    def matmul(self, v: Tensor) -> Tensor:
        return self.of.matmul(v.to(self.of.dtype)).to(self.dtype)

    @property
    def mT(self) -> Operator:
        return Converted(self.of.mT, self.dtype)

    def cost(self, rhs: int = 1) -> Cost:
        return self.of.cost(rhs)

    def dense(self) -> Tensor:
        return self.of.dense().to(self.dtype)

    def diagonal(self) -> Tensor:
        return self.of.diagonal().to(self.dtype)

    def tril(self) -> Operator:
        return Converted(self.of.tril(), self.dtype)

    def stabilised(self) -> Operator:
        return Converted(self.of.stabilised(), self.dtype)

    def _select(self, rows: Tensor, cols: Tensor) -> Operator:
        return Converted(self.of._select(rows, cols), self.dtype)
