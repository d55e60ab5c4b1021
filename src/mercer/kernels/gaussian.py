"""Gaussian kernel."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mercer.claims import PSD, Claim
from mercer.kernel import ProfileKernel, Spectrum
from mercer.numerics import exp
from mercer.parameter import Positive
from mercer.statistic import Statistic


class Gaussian(ProfileKernel):
    """Gaussian kernel (RBF, squared exponential): exp(-|x - y|^2 / (2 lengthscale^2)).

    lengthscale: () or (d,), > 0, in the units of x.
    Claims: symmetric, psd, stationary, isotropic, unit diagonal, separable, positive.
    Source [rasmussen2006, eq. 4.9].
    """

    statistic = Statistic.SQUARED_DISTANCE
    claims = PSD | {Claim.STATIONARY, Claim.ISOTROPIC, Claim.UNIT_DIAGONAL, Claim.SEPARABLE, Claim.POSITIVE}
    lengthscale = Positive()

    def __init__(self, lengthscale: Any = 1.0):
        super().__init__()
        self.lengthscale = lengthscale

    def profile(self, s: Tensor) -> Tensor:
        return exp(s, -0.5)

    def log_profile(self, s: Tensor) -> Tensor:
        return -0.5 * s

    def native(self) -> tuple[str, *tuple[float | Tensor, ...]] | None:
        return "exponential", -0.5

    def spectrum(self) -> Spectrum:
        """Frequencies are standard normal in the scaled coordinates [rahimi2007]."""

        def sample(rank: int, d: int, generator: torch.Generator | None) -> Tensor:
            return torch.randn(rank, d, generator=generator, dtype=torch.float64)

        return Spectrum(sample, self.coordinates, True, lambda: torch.ones((), dtype=torch.float64))
