"""Woodbury: the inverse of a low-rank matrix plus a diagonal one, as an operator."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from mercer.claims import PSD
from mercer.errors import ShapeError, StructureError
from mercer.operator import Cost, Operator

WIDE = torch.float64
BLOCK = 2**20  # entries of a factor that are widened to float64 at once


class Woodbury(Operator):
    """(F F^T + diag(shift))^-1, applied by the identity D^-1 - D^-1 F (I + F^T D^-1 F)^-1 F^T D^-1.

    factor: n r, kept in its dtype. shift: a number, a scalar tensor or one value per row `n`, > 0. dtype: of the
    vectors it takes; by default that of the factor. All sums run in float64, because D^-1 v and what is taken from
    it agree in as many digits as F F^T is larger than the shift.
    Cost: n r^2 flops once, 4 n r each product. Raises StructureError when shift is not positive.
    Source [woodbury1950].
    """

    def __init__(self, factor: Tensor, shift: float | Tensor, dtype: torch.dtype | None = None):
        if factor.ndim != 2:
            raise ShapeError(f"Woodbury: factor has shape {tuple(factor.shape)}; expected n r")
        self.factor, self.dtype, self.device = factor, dtype or factor.dtype, factor.device
        self.shift = torch.as_tensor(shift, dtype=WIDE, device=factor.device).expand(factor.shape[0])
        if not bool((self.shift > 0).all()):
            raise StructureError(f"Woodbury: shift is {float(self.shift.min()):.3g}; expected > 0: add noise to K")
        self.shape, self.claims = torch.Size([factor.shape[0]] * 2), PSD
        self._root = self.shift.rsqrt()[:, None]
        self._gram = torch.zeros(*[factor.shape[1]] * 2, dtype=WIDE, device=factor.device)
        for at in self._blocks():
            part = factor[at].to(WIDE) * self._root[at]
            self._gram = self._gram.addmm(part.mT, part)
        self._lower = torch.linalg.cholesky(self._gram + torch.eye(len(self._gram), dtype=WIDE, device=factor.device))

    def _blocks(self) -> list[slice]:
        n, r = self.factor.shape
        high = max(BLOCK // max(r, 1), 1)
        return [slice(i, min(i + high, n)) for i in range(0, n, high)]

    def _columns(self) -> tuple[Tensor, ...] | None:
        """The factor in pieces of its columns where these lie in memory one after the other: quicker to widen."""
        n, r = self.factor.shape
        return self.factor.split(max(BLOCK // max(n, 1), 1), 1) if self.factor.stride(0) == 1 and n and r else None

    def _down(self, u: Tensor) -> Tensor:
        """F^T D^-1/2 u, in float64."""
        u = u * self._root
        if self.factor.dtype == WIDE:
            return self.factor.mT @ u
        columns = self._columns()
        if columns is not None:
            return torch.cat([part.to(WIDE).mT @ u for part in columns], -2)
        total = u.new_zeros(*u.shape[:-2], self.factor.shape[1], u.shape[-1])
        for at in self._blocks():
            total += self.factor[at].to(WIDE).mT @ u[..., at, :]
        return total

    def _up(self, w: Tensor) -> Tensor:
        """D^-1/2 F w, in float64."""
        if self.factor.dtype == WIDE:
            return self.factor @ w * self._root
        total, columns = w.new_zeros(*w.shape[:-2], self.factor.shape[0], w.shape[-1]), self._columns()
        if columns is None:
            for at in self._blocks():
                total[..., at, :] = self.factor[at].to(WIDE) @ w
            return total * self._root
        for part, weights in zip(columns, w.split(columns[0].shape[1], -2), strict=True):
            total += part.to(WIDE) @ weights
        return total * self._root

    def matmul(self, v: Tensor) -> Tensor:
        u = v.to(WIDE) * self._root
        return ((u - self._up(torch.cholesky_solve(self._down(u), self._lower))) * self._root).to(v.dtype)

    @property
    def mT(self) -> Operator:
        return self

    def cost(self, rhs: int = 1) -> Cost:
        n, r = self.factor.shape
        return Cost(float(n) * r * r, (4.0 * n * r + 2.0 * r * r) * rhs, (n + r) * rhs * self.dtype.itemsize)

    def diagonal(self) -> Tensor:
        parts = []
        for at in self._blocks():
            half = torch.linalg.solve_triangular(
                self._lower, (self.factor[at].to(WIDE) * self._root[at]).mT, upper=False
            )
            parts.append((1 - half.square().sum(0)) / self.shift[at])
        return (torch.cat(parts) if parts else self.shift).to(self.dtype)

    def logdet(self) -> Tensor:
        """log det (F F^T + diag(shift)), of the matrix that this operator inverts; a float64 scalar."""
        return 2 * self._lower.diagonal().log().sum() + self.shift.log().sum()

    @functools.cached_property
    def _spectrum(self) -> tuple[Tensor, Tensor]:
        """s = sqrt(1 + eigenvalues) of F^T D^-1 F, and its eigenvectors."""
        values, vectors = torch.linalg.eigh(self._gram)
        return (values.clamp_min(0) + 1).sqrt(), vectors

    def _mixed(self, v: Tensor, weights: Tensor) -> Tensor:
        _, vectors = self._spectrum
        return v + self._up(vectors @ (weights[:, None] * (vectors.mT @ self._down(v))))

    def root(self, v: Tensor) -> Tensor:
        """L v, where L L^T = F F^T + diag(shift); v: n c in float64."""
        s, _ = self._spectrum
        return self._mixed(v, 1 / (1 + s)) / self._root

    def whiten(self, v: Tensor) -> Tensor:
        """L^-1 v, where L L^T = F F^T + diag(shift); v: n c in float64."""
        s, _ = self._spectrum
        return self._mixed(v * self._root, -1 / (s * (1 + s)))

    def whiten_mT(self, v: Tensor) -> Tensor:
        """L^-T v, where L L^T = F F^T + diag(shift); v: n c in float64."""
        s, _ = self._spectrum
        return self._mixed(v, -1 / (s * (1 + s))) * self._root
