"""SpectralConv: the Fourier layer of neural operators, exact on any grid."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mercer.errors import ShapeError


class SpectralConv(nn.Module):
    """One Fourier layer: out(s) = sum over |k_i| <= modes_i of R_k x_k exp(2 pi i k.s), x_k the coefficients of x.

    A periodic convolution whose kernel has the band |k_i| <= modes_i, with a complex matrix R_k per frequency. x is
    read as the trigonometric interpolant of its samples s = j / n on the unit torus (an even n shares its highest
    frequency between +n/2 and -n/2), so that input and output grids may have any sizes, odd or even.
    modes: whole numbers >= 0, one per grid axis. weight: `in out 2 m_1 + 1 ... m_d + 1 2` (last axis real, imaginary);
    frequencies with k_d < 0 follow from the output being real. Cost: FFTs, and in out prod(band) flops a sample.
    Source [li2021, eq. 4-5].
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        modes: int | Sequence[int],
        generator: torch.Generator | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        self.in_channels, self.out_channels = in_channels, out_channels
        self.modes = (modes,) if isinstance(modes, int) else tuple(modes)
        if not self.modes or min(self.modes) < 0:
            raise ValueError(f"modes is {modes}; expected whole numbers >= 0, one per grid axis")
        band = [2 * m + 1 for m in self.modes[:-1]] + [self.modes[-1] + 1]
        start = torch.randn(in_channels, out_channels, *band, 2, generator=generator, dtype=dtype)
        self.weight = nn.Parameter((start / math.sqrt(2 * in_channels)).to(device))

    def _bands(self, device: torch.device) -> list[Tensor]:
        """The frequencies kept along each axis; the last axis keeps k >= 0."""
        last = len(self.modes) - 1
        return [torch.arange(0 if i == last else -m, m + 1, device=device) for i, m in enumerate(self.modes)]

    def forward(self, x: Tensor, size: int | Sequence[int] | None = None) -> Tensor:
        """x: batch in_channels *n -> batch out_channels *size; size: the output grid, default that of x."""
        d = len(self.modes)
        if x.ndim != d + 2 or x.shape[1] != self.in_channels:
            raise ShapeError(f"x has shape {tuple(x.shape)}; expected batch {self.in_channels} and {d} grid axes")
        if x.dtype != self.weight.dtype:
            raise TypeError(f"x is {x.dtype}, the layer's weight is {self.weight.dtype}; convert one of them")
        sizes = x.shape[2:] if size is None else (size,) * d if isinstance(size, int) else tuple(size)
        if len(sizes) != d or min(sizes) < 1:
            raise ShapeError(f"size is {size}; expected {d} numbers >= 1")
        coefficients = self._analyse(x)
        mixed = torch.einsum("bi...,io...->bo...", coefficients, torch.view_as_complex(self.weight))
        return self._evaluate(mixed, sizes)

    def _analyse(self, x: Tensor) -> Tensor:
        """Coefficients of the trigonometric interpolant in the band."""
        found = torch.fft.rfft(x, norm="forward")
        bands = self._bands(x.device)
        for axis in range(x.ndim - 1, 1, -1):
            n, k = x.shape[axis], bands[axis - 2]
            if axis < x.ndim - 1:
                found = torch.fft.fft(found, dim=axis, norm="forward")
            share = torch.where(2 * k.abs() < n, 1.0, torch.where(2 * k.abs() == n, 0.5, 0.0)).to(x.dtype)
            at = (k % n).clamp(max=found.shape[axis] - 1)  # what lies beyond the input's band has share 0
            found = found.index_select(axis, at) * share.reshape([-1] + [1] * (x.ndim - 1 - axis))
        return found

    def _evaluate(self, c: Tensor, sizes: Sequence[int]) -> Tensor:
        """Re sum_k c_k exp(2 pi i k.s) at s = j / size: frequencies that a grid cannot tell apart add up."""
        bands = self._bands(c.device)
        twice = torch.where(bands[-1] > 0, 2.0, 1.0).to(c.real.dtype)  # k and -k are conjugate and both count
        c = c * twice
        for axis, (n, k) in enumerate(zip(sizes, bands, strict=True), start=2):
            shape = [n if i == axis else s for i, s in enumerate(c.shape)]
            c = torch.fft.ifft(c.new_zeros(shape).index_add(axis, k % n, c), dim=axis, norm="forward")
        return c.real

    def extra_repr(self) -> str:
        return f"{self.in_channels}, {self.out_channels}, modes={self.modes}"
