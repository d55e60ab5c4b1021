"""Circulant: constant along diagonals that wrap around; the Fourier basis diagonalises it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mercer.claims import NO_CLAIMS, Claim, Claims
from mercer.errors import NotPositiveDefiniteError
from mercer.operator import Cost
from mercer.operators.solvable import Shift, Solvable, answer, as_shift, columns, transformable
from mercer.operators.speed import call_seconds, fft_seconds
from mercer.operators.toeplitz import Toeplitz
from mercer.operators.transform import fft_flops
from mercer.solver import Solution


class Circulant(Solvable):
    """A[i, j] = column[(i - j) mod n]: a convolution on the circle.

    column: `... n`, float32 or float64. claims: symmetric, psd, where it is.
    Its eigenvalues are the Fourier transform of the column, its inverse is circulant.
    Cost: three FFTs of n numbers a column for a product or a solve, one for logdet.
    Error: eps log2(n) |A| |v|, by norms. Source [golub2013, sec. 4.8.2].
    """

    def __init__(self, column: Tensor, claims: Claims = NO_CLAIMS):
        transformable("Circulant", column.dtype)
        self.column, self.claims = column, claims
        self.shape = torch.Size([*column.shape, column.shape[-1]])
        self.dtype, self.device = column.dtype, column.device

    def eigenvalues(self) -> Tensor:
        """The n complex eigenvalues, `... n`, in the order of the frequencies 0 ... n - 1."""
        return torch.fft.fft(self.column) if self.shape[-1] else self.column.to(torch.complex128)

    def _filtered(self, half: Tensor, v: Tensor) -> Tensor:
        n = self.shape[-1]
        if not v.numel():  # some FFT libraries refuse to transform nothing
            return v.expand(*torch.broadcast_shapes(self.shape[:-2], v.shape[:-2]), *v.shape[-2:])
        return torch.fft.irfft(torch.fft.rfft(v.mT) * half.unsqueeze(-2), n).mT

    def matmul(self, v: Tensor) -> Tensor:
        return self._filtered(torch.fft.rfft(self.column) if v.numel() else self.column, v)

    @property
    def mT(self) -> Circulant:
        return Circulant(torch.cat([self.column[..., :1], self.column[..., 1:].flip(-1)], -1), self.claims)

    def cost(self, rhs: int = 1) -> Cost:
        n, batch = max(self.shape[-1], 1), max(math.prod(self.shape[:-2]), 1)
        work = batch * (2 * rhs + 1) * fft_flops(n)
        seconds = call_seconds() + fft_seconds(work, 0, self.dtype)
        return Cost(0, work, 4.0 * batch * n * (rhs + 1) * self.dtype.itemsize, 0.0, seconds)

    def dense(self) -> Tensor:
        self._fits()
        at = torch.arange(self.shape[-1], device=self.device)
        return self.column[..., (at[:, None] - at) % max(self.shape[-1], 1)]

    def diagonal(self) -> Tensor:
        return self.column[..., :1].expand(self.column.shape)

    def tril(self) -> Toeplitz:
        return Toeplitz(self.column, torch.zeros_like(self.column))

    def _shifted(self, shift: Shift) -> Tensor:
        return torch.fft.rfft(self.column) + as_shift(self, shift)

    def _reciprocal(self, shift: Shift) -> Tensor:
        """1 / eigenvalue. Raises NotPositiveDefiniteError where there is none."""
        half = self._shifted(shift)
        found = 1 / half
        if not bool(torch.isfinite(torch.view_as_real(found.detach())).all()):
            at = (~torch.isfinite(torch.view_as_real(found.detach())).all(-1)).nonzero()[0].tolist()
            value = half.detach()[tuple(at)]
            raise NotPositiveDefiniteError(
                f"Circulant has no inverse: its eigenvalue at frequency {at[-1]} is {complex(value):.3g}; add a shift",
                float(value.real),
            )
        return found

    def inverse(self, shift: Shift = 0.0) -> Circulant:
        """(A + shift I)^-1, circulant again."""
        half = self._reciprocal(shift)
        keeps = self.claims & {Claim.SYMMETRIC, Claim.PSD, Claim.CPD} if Claim.PSD in self.claims else NO_CLAIMS
        return Circulant(torch.fft.irfft(half, self.shape[-1]), keeps)

    def solve(self, b: Tensor, shift: Shift = 0.0) -> Solution:
        """(A + shift I)^-1 b, exact up to rounding times the condition number. Raises NotPositiveDefiniteError where
        an eigenvalue is zero."""
        wide, s = columns(self, b), as_shift(self, shift)
        x = self._filtered(self._reciprocal(s), wide) if wide.numel() else wide
        return answer(self, x, b, s)

    def logdet(self, shift: Shift = 0.0) -> Tensor:
        """log det (A + shift I). Raises NotPositiveDefiniteError where the determinant is not positive."""
        n = self.shape[-1]
        if not n:
            return self.column.sum(-1)
        half = self._shifted(shift)
        alone = half.real[..., [0, -1]] if n % 2 == 0 else half.real[..., :1]  # all others come in conjugate pairs
        if not bool((alone.detach().prod(-1) > 0).all()):
            raise NotPositiveDefiniteError("the determinant is not positive; add a shift", float(alone.detach().min()))
        twice = torch.full((half.shape[-1],), 2.0, dtype=self.dtype, device=self.device)
        twice[0] = 1
        if n % 2 == 0:
            twice[-1] = 1
        return (twice * half.abs().log()).sum(-1)
