"""Logistic kernel."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from mercer.claims import PSD, Claim
from mercer.kernel import ProfileKernel, Spectrum
from mercer.parameter import Positive
from mercer.statistic import Statistic


class Logistic(ProfileKernel):
    """Logistic kernel: product over columns of sech^2((x_i - y_i) / (2 lengthscale_i)).

    The density of the logistic distribution, scaled to 1 at zero: smooth, with exponential tails.
    lengthscale: () or (d,), > 0, in the units of x.
    Claims: symmetric, psd, stationary, unit diagonal, separable, positive.
    Source: its Fourier transform pi w / sinh(pi w) is positive [gradshteyn2007, 3.982].
    """

    statistic = Statistic.PER_AXIS
    claims = PSD | {Claim.STATIONARY, Claim.UNIT_DIAGONAL, Claim.SEPARABLE, Claim.POSITIVE}
    lengthscale = Positive()

    def __init__(self, lengthscale: Any = 1.0):
        super().__init__()
        self.lengthscale = lengthscale

    def log_profile(self, s: Tensor) -> Tensor:
        # sech^2(s / 2) = 4 sigmoid(s) sigmoid(-s): no overflow on either side
        return torch.nn.functional.logsigmoid(s) + torch.nn.functional.logsigmoid(-s) + math.log(4)

    def profile(self, s: Tensor) -> Tensor:
        return 4 * torch.sigmoid(s) * torch.sigmoid(-s)

    def spectrum(self) -> Spectrum:
        """sech^2(t / 2) is the square of the characteristic function of half a hyperbolic secant variable."""

        def sample(rank: int, d: int, generator: torch.Generator | None) -> Tensor:
            uniform = torch.rand(2, rank, d, generator=generator, dtype=torch.float64)
            secant = 2 / math.pi * torch.log(torch.tan(math.pi / 2 * uniform))
            return secant.sum(0) / 2

        return Spectrum(sample, self.coordinates, False, lambda: torch.ones((), dtype=torch.float64))
