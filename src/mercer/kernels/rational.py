"""Kernels with polynomial tails: rational quadratic and inverse multiquadric."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mercer.claims import PSD, Claim
from mercer.kernel import ProfileKernel, Spectrum
from mercer.parameter import Positive, like
from mercer.statistic import Statistic

_CLAIMS = PSD | {Claim.STATIONARY, Claim.ISOTROPIC, Claim.UNIT_DIAGONAL, Claim.POSITIVE}


def _gamma_mixture(shape: Tensor, rank: int, d: int, generator: torch.Generator | None) -> Tensor:
    """Normal frequencies whose precision is Gamma(shape, 1): the spectrum of (1 + |x|^2 / 2)^(-shape)."""
    concentration = shape.detach().double().reshape(()).expand(rank)
    scale = torch._standard_gamma(concentration, generator=generator).sqrt()
    return torch.randn(rank, d, generator=generator, dtype=torch.float64) * scale[:, None]


class RationalQuadratic(ProfileKernel):
    """Rational quadratic kernel: (1 + |x - y|^2 / (2 alpha lengthscale^2))^(-alpha).

    A mixture of Gaussian kernels over lengthscales; alpha -> infinity gives Gaussian.
    lengthscale: () or (d,), > 0, in the units of x. alpha: (), > 0.
    Claims: symmetric, psd, stationary, isotropic, unit diagonal, positive.
    Source [rasmussen2006, eq. 4.19].
    """

    statistic = Statistic.SQUARED_DISTANCE
    claims = _CLAIMS
    lengthscale = Positive()
    alpha = Positive(axes=(0,))

    def __init__(self, lengthscale: Any = 1.0, alpha: float = 1.0):
        super().__init__()
        self.lengthscale, self.alpha = lengthscale, alpha

    def log_profile(self, s: Tensor) -> Tensor:
        alpha = like(self.alpha, s)
        return -alpha * torch.log1p(s / (2 * alpha))

    def profile(self, s: Tensor) -> Tensor:
        return self.log_profile(s).exp()

    def native(self) -> tuple[str, *tuple[float | Tensor, ...]] | None:
        return "power", 0.5 / self.alpha, -self.alpha

    def spectrum(self) -> Spectrum:
        def sample(rank: int, d: int, generator: torch.Generator | None) -> Tensor:
            return _gamma_mixture(self.alpha, rank, d, generator) / self.alpha.detach().sqrt()

        return Spectrum(sample, self.coordinates, True, lambda: torch.ones((), dtype=torch.float64))


class InverseMultiquadric(ProfileKernel):
    """Inverse multiquadric kernel: (1 + |x - y|^2 / lengthscale^2)^(-1/2).

    lengthscale: () or (d,), > 0, in the units of x.
    Claims: symmetric, psd, stationary, isotropic, unit diagonal, positive.
    Source [micchelli1986]; used with Stein's method by [gorham2017].
    """

    statistic = Statistic.SQUARED_DISTANCE
    claims = _CLAIMS
    lengthscale = Positive()

    def __init__(self, lengthscale: Any = 1.0):
        super().__init__()
        self.lengthscale = lengthscale

    def log_profile(self, s: Tensor) -> Tensor:
        return -0.5 * torch.log1p(s)

    def profile(self, s: Tensor) -> Tensor:
        return torch.rsqrt(1 + s)

    def native(self) -> tuple[str, *tuple[float | Tensor, ...]] | None:
        return "power", 1.0, -0.5

    def spectrum(self) -> Spectrum:
        def sample(rank: int, d: int, generator: torch.Generator | None) -> Tensor:
            return _gamma_mixture(torch.tensor(0.5), rank, d, generator) * 2**0.5

        return Spectrum(sample, self.coordinates, True, lambda: torch.ones((), dtype=torch.float64))
