"""Shifted: A + shift I, the operator of every regularised problem."""

from __future__ import annotations

import torch
from torch import Tensor

from mercer.claims import LINEAR, NO_CLAIMS
from mercer.errors import ShapeError
from mercer.operator import Cost, Operator


class Shifted(Operator):
    """A + diag(shift): A square `... n n`; shift: a number, a scalar tensor, or one value per row `... n`."""

    def __init__(self, of: Operator, shift: float | Tensor):
        if of.shape[-1] != of.shape[-2]:
            raise ShapeError(f"A + shift I needs a square A, got {tuple(of.shape)}")
        self.of, self.shift = of, torch.as_tensor(shift, dtype=of.dtype, device=of.device)
        if self.shift.ndim and self.shift.shape not in (of.shape[:-1], of.shape[-1:]):
            raise ShapeError(
                f"the shift has shape {tuple(self.shift.shape)}; expected a number or {of.shape[-1]} values"
            )
        self.shape, self.dtype, self.device = of.shape, of.dtype, of.device
        self.claims = of.claims & LINEAR if bool((self.shift >= 0).all()) else NO_CLAIMS

    def matmul(self, v: Tensor) -> Tensor:
        shift = self.shift if self.shift.ndim == 0 else self.shift.unsqueeze(-1)
        return self.of.matmul(v) + shift * v

    @property
    def mT(self) -> Operator:
        return Shifted(self.of.mT, self.shift)

    def cost(self, rhs: int = 1) -> Cost:
        return self.of.cost(rhs) + Cost(0, 2.0 * self.shape[-2] * rhs, 0)

    def dense(self) -> Tensor:
        shift = self.shift.expand(self.shape[:-1])
        return self.of.dense() + torch.diag_embed(shift)

    def diagonal(self) -> Tensor:
        return self.of.diagonal() + self.shift

    def tril(self) -> Operator:
        return Shifted(self.of.tril(), self.shift)
