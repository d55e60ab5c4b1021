"""Woodbury: the inverse of a low-rank matrix plus a diagonal one, as an operator."""

from __future__ import annotations

import torch
from torch import Tensor

from mercer.claims import PSD
from mercer.errors import ShapeError, StructureError
from mercer.operator import Cost, Operator


class Woodbury(Operator):
    """(F F^T + diag(shift))^-1, applied by the identity D^-1 - D^-1 F (I + F^T D^-1 F)^-1 F^T D^-1.

    factor: n r. shift: a number, a scalar tensor or one value per row `n`, > 0.
    Cost: n r^2 flops once, 4 n r each product. Raises StructureError when shift is not positive.
    Source [woodbury1950].
    """

    def __init__(self, factor: Tensor, shift: float | Tensor):
        if factor.ndim != 2:
            raise ShapeError(f"Woodbury: factor has shape {tuple(factor.shape)}; expected n r")
        self.factor, self.dtype, self.device = factor, factor.dtype, factor.device
        self.shift = torch.as_tensor(shift, dtype=torch.float64, device=factor.device).expand(factor.shape[0])
        if not bool((self.shift > 0).all()):
            raise StructureError(f"Woodbury: shift is {float(self.shift.min()):.3g}; expected > 0: add noise to K")
        self.shape, self.claims = torch.Size([factor.shape[0]] * 2), PSD
        self._root = self.shift.rsqrt().to(factor.dtype)
        scaled = factor * self._root[:, None]
        inner = (scaled.mT @ scaled).to(torch.float64)
        inner.diagonal().add_(1.0)
        self._lower = torch.linalg.cholesky(inner)

    def matmul(self, v: Tensor) -> Tensor:
        u = v * self._root[:, None]
        scaled = self.factor * self._root[:, None] if self.shift.stride(0) else self.factor
        gain = 1.0 if self.shift.stride(0) else float(self._root[0]) if len(self._root) else 1.0
        inner = torch.cholesky_solve((scaled.mT @ u).to(torch.float64) * gain, self._lower).to(v.dtype)
        return (u - gain * (scaled @ inner)) * self._root[:, None]

    @property
    def mT(self) -> Operator:
        return self

    def cost(self, rhs: int = 1) -> Cost:
        n, r = self.factor.shape
        return Cost(float(n) * r * r, (4.0 * n * r + 2.0 * r * r) * rhs, (n + r) * rhs * self.dtype.itemsize)

    def logdet(self) -> Tensor:
        """log det (F F^T + diag(shift)), of the matrix that this operator inverts; a float64 scalar."""
        return 2 * self._lower.diagonal().log().sum() + self.shift.log().sum()
