"""Laplace kernel."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mercer.claims import PSD, Claim
from mercer.kernel import ProfileKernel, Spectrum
from mercer.numerics import exp
from mercer.parameter import Positive
from mercer.statistic import Statistic


class Laplace(ProfileKernel):
    """Laplace kernel: exp(-sum_i |x_i - y_i| / lengthscale_i), a product over columns.

    It takes the L1 distance, as in [rahimi2007]; the kernel of the Euclidean distance is Matern(nu=0.5).
    lengthscale: () or (d,), > 0, in the units of x.
    Claims: symmetric, psd, stationary, unit diagonal, separable, positive.
    Source [rahimi2007, fig. 1].
    """

    statistic = Statistic.L1_DISTANCE
    claims = PSD | {Claim.STATIONARY, Claim.UNIT_DIAGONAL, Claim.SEPARABLE, Claim.POSITIVE}
    lengthscale = Positive()

    def __init__(self, lengthscale: Any = 1.0):
        super().__init__()
        self.lengthscale = lengthscale

    def profile(self, s: Tensor) -> Tensor:
        return exp(s, -1.0)

    def log_profile(self, s: Tensor) -> Tensor:
        return -s

    def native(self) -> tuple[str, *tuple[float | Tensor, ...]] | None:
        return "exponential", -1.0

    def spectrum(self) -> Spectrum:
        """Frequencies are independent Cauchy in each column [rahimi2007]."""

        def sample(rank: int, d: int, generator: torch.Generator | None) -> Tensor:
            uniform = torch.rand(rank, d, generator=generator, dtype=torch.float64)
            return torch.tan(torch.pi * (uniform - 0.5))

        return Spectrum(sample, self.coordinates, False, lambda: torch.ones((), dtype=torch.float64))
