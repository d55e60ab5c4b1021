"""Spectral mixture kernel."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from mercer.claims import PSD, Claim
from mercer.errors import ShapeError
from mercer.kernel import Kernel, Spectrum
from mercer.numerics import centre, squared_distance
from mercer.parameter import Positive, like
from mercer.shapes import shapes


class SpectralMixture(Kernel):
    """Spectral mixture kernel: sum_q weights_q exp(-2 pi^2 sum_i scales_qi^2 t_i^2) cos(2 pi t . frequencies_q).

    Here t = x - y.
    The spectrum is a mixture of q Gaussians (mirrored at zero), so any stationary kernel can be approached.
    weights: (q,), > 0, the variances. frequencies: (q, d), > 0, in cycles per unit of x. scales: (q, d), > 0, the
    standard deviation of each frequency.
    Claims: symmetric, psd, stationary.
    Source [wilson2013, eq. 12], with one cosine of the joint phase, as the mirrored mixture has it.
    """

    claims = PSD | {Claim.STATIONARY}
    weights = Positive(axes=(1,))
    frequencies = Positive(axes=(2,))
    scales = Positive(axes=(2,))

    def __init__(self, weights: Any, frequencies: Any, scales: Any):
        super().__init__()
        self.weights, self.frequencies, self.scales = weights, frequencies, scales
        q = self.weights.shape
        if len(q) != 1 or self.frequencies.ndim != 2 or self.frequencies.shape != (*q, self.frequencies.shape[-1]):
            got = f"{tuple(q)} and {tuple(self.frequencies.shape)}"
            raise ShapeError(f"weights are (q,) and frequencies (q, d); got {got}")
        if self.scales.shape != self.frequencies.shape:
            raise ShapeError(f"scales are {tuple(self.scales.shape)}, frequencies {tuple(self.frequencies.shape)}")

    @shapes("x: ... n d, y: ... m d -> ... n m")
    def block(self, x: Tensor, y: Tensor) -> Tensor:
        if self.frequencies.shape[-1] != x.shape[-1]:
            raise ShapeError(f"SpectralMixture.frequencies.d is {self.frequencies.shape[-1]}, x.d is {x.shape[-1]}")
        weights, frequencies, scales = (like(p, x) for p in (self.weights, self.frequencies, self.scales))
        total = torch.zeros((), dtype=x.dtype, device=x.device)
        if y.shape[-2] > 0:  # a phase far from the origin is rounded
            middle = centre(y)
            x, y = x - middle, y - middle
        for weight, frequency, scale in zip(weights, frequencies, scales, strict=True):
            envelope = torch.exp(-2 * math.pi**2 * squared_distance(x * scale, y * scale))
            turn_x, turn_y = 2 * math.pi * (x @ frequency), 2 * math.pi * (y @ frequency)
            wave = torch.cos(turn_x.unsqueeze(-1) - turn_y.unsqueeze(-2))
            total = total + weight * envelope * wave
        return total

    def diagonal(self, x: Tensor) -> Tensor:
        return like(self.weights, x).sum().expand(x.shape[:-1])

    def spectrum(self) -> Spectrum:
        """A component in proportion to its weight, then a normal frequency around its mean."""

        def sample(rank: int, d: int, generator: torch.Generator | None) -> Tensor:
            part = torch.multinomial(self.weights.detach(), rank, replacement=True, generator=generator)
            noise = torch.randn(rank, d, generator=generator, dtype=torch.float64)
            return 2 * math.pi * (self.frequencies.detach()[part] + self.scales.detach()[part] * noise)

        return Spectrum(sample, lambda x: x, False, lambda: self.weights.sum())
