"""Matern kernels of order 1/2, 3/2 and 5/2."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mercer.claims import PSD, Claim
from mercer.kernel import ProfileKernel, Spectrum
from mercer.kernels.chain import chain, off_zero
from mercer.numerics import exp
from mercer.parameter import Positive
from mercer.statistic import Statistic

# Functions of q = r^2. Each order's derivative is a multiple of the order below; see [rasmussen2006, eq. 4.16-4.17].
_FAR = 1e4  # e^-r is zero in float64 too, and an infinite r does not meet it as infinity times zero
_HALF = (lambda q: exp(q.sqrt(), -1.0), off_zero(lambda q: -0.5 * exp(q.sqrt(), -1.0) / q.sqrt()))


def _times(factor: float, links: tuple) -> tuple:
    return tuple(lambda q, link=link: factor * link(q) for link in links)


def _linear(q: Tensor) -> Tensor:
    r = q.sqrt().clamp_max(_FAR)
    return (1 + r) * exp(r, -1.0)


def _quadratic(q: Tensor) -> Tensor:
    r = q.sqrt().clamp_max(_FAR)
    return (1 + r + r * r / 3) * exp(r, -1.0)


def _finite(r: Tensor) -> Tensor:
    return r.clamp_max(1e30)


_THREE_HALVES = (_linear, *_times(-1 / 2, _HALF))
_FIVE_HALVES = (_quadratic, *_times(-1 / 6, _THREE_HALVES))
# log of the same, so that rows can be normalised where the kernel itself underflows: the exponential cancels
_LOG_LINKS = {
    0.5: (lambda q: -q.sqrt(), off_zero(lambda q: -0.5 / q.sqrt())),
    1.5: (
        lambda q: torch.log1p(_finite(q.sqrt())) - q.sqrt(),
        lambda q: -0.5 / (1 + q.sqrt()),
        off_zero(lambda q: 0.25 / (q.sqrt() * (1 + q.sqrt()).square())),
    ),
    2.5: (
        lambda q: torch.log1p(_finite(q.sqrt() + q / 3)) - q.sqrt(),
        lambda q: -(1 + q.sqrt()) / (6 + 6 * q.sqrt() + 2 * q),
        lambda q: (1 / 18 + q.sqrt() / 36) / (1 + q.sqrt() + q / 3).square(),
        off_zero(lambda q: _bend(q.sqrt())),
    ),
}


def _bend(r: Tensor) -> Tensor:
    d = 1 + r + r * r / 3
    return (1 / 36 - 2 * (1 / 18 + r / 36) * (1 + 2 * r / 3) / d) / (2 * r * d.square())


_LINKS = {0.5: _HALF, 1.5: _THREE_HALVES, 2.5: _FIVE_HALVES}


class Matern(ProfileKernel):
    """Matern kernel: p_nu(r) exp(-r), r = sqrt(2 nu) |x - y| / lengthscale, p = 1, 1 + r, 1 + r + r^2/3.

    nu: 0.5 (continuous paths), 1.5 (once differentiable) or 2.5 (twice).
    lengthscale: () or (d,), > 0, in the units of x.
    Claims: symmetric, psd, stationary, isotropic, unit diagonal, positive.
    Source [rasmussen2006, eq. 4.16-4.17].
    """

    statistic = Statistic.DISTANCE
    claims = PSD | {Claim.STATIONARY, Claim.ISOTROPIC, Claim.UNIT_DIAGONAL, Claim.POSITIVE}
    lengthscale = Positive()

    def __init__(self, nu: float = 2.5, lengthscale: Any = 1.0):
        super().__init__()
        if nu not in _LINKS:
            raise ValueError(f"Matern.nu is {nu}; expected 0.5, 1.5 or 2.5")
        self.nu, self.lengthscale = float(nu), lengthscale

    def profile(self, s: Tensor) -> Tensor:
        return chain(2 * self.nu * s, *_LINKS[self.nu])

    def log_profile(self, s: Tensor) -> Tensor:
        return chain(2 * self.nu * s, *_LOG_LINKS[self.nu])

    def native(self) -> tuple[str, *tuple[float | Tensor, ...]] | None:
        return (f"matern{round(2 * self.nu)}2",)

    def spectrum(self) -> Spectrum:
        """Frequencies follow a multivariate t with 2 nu degrees of freedom [rasmussen2006, eq. 4.15]."""

        def sample(rank: int, d: int, generator: torch.Generator | None) -> Tensor:
            normal = torch.randn(rank, d, generator=generator, dtype=torch.float64)
            dof = round(2 * self.nu)
            chi2 = torch.randn(rank, dof, generator=generator, dtype=torch.float64).square().sum(-1, keepdim=True)
            return normal / (chi2 / dof).sqrt()

        return Spectrum(sample, self.coordinates, True, lambda: torch.ones((), dtype=torch.float64))
