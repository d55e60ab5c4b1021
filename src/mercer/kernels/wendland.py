"""Wendland kernels: piecewise polynomials of compact support."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mercer.claims import PSD, Claim
from mercer.errors import ShapeError
from mercer.kernel import ProfileKernel
from mercer.kernels.chain import Link, chain, off_zero
from mercer.parameter import Positive
from mercer.statistic import Statistic


def _links(j: int, smoothness: int) -> tuple[Link, ...]:
    """phi and its derivatives by s = r^2, for phi(r) of [rasmussen2006, eq. 4.21] with exponent j."""

    def rest(s: Tensor) -> tuple[Tensor, Tensor]:
        r = s.sqrt()
        return r, (1 - r).clamp_min(0)

    def zero(s: Tensor) -> Tensor:
        return rest(s)[1] ** j

    def zero_slope(s: Tensor) -> Tensor:
        r, t = rest(s)
        return -0.5 * j * t ** (j - 1) / r

    def one(s: Tensor) -> Tensor:
        r, t = rest(s)
        return t ** (j + 1) * ((j + 1) * r + 1)

    def one_slope(s: Tensor) -> Tensor:
        return -0.5 * (j + 1) * (j + 2) * rest(s)[1] ** j

    def one_curve(s: Tensor) -> Tensor:
        r, t = rest(s)
        return 0.25 * (j + 1) * (j + 2) * j * t ** (j - 1) / r

    def two(s: Tensor) -> Tensor:
        r, t = rest(s)
        return t ** (j + 2) * ((j * j + 4 * j + 3) * s + (3 * j + 6) * r + 3) / 3

    def two_slope(s: Tensor) -> Tensor:
        r, t = rest(s)
        return -(j + 3) * (j + 4) / 6 * t ** (j + 1) * ((j + 1) * r + 1)

    def two_curve(s: Tensor) -> Tensor:
        return (j + 3) * (j + 4) * (j + 1) * (j + 2) / 12 * rest(s)[1] ** j

    def two_bend(s: Tensor) -> Tensor:
        r, t = rest(s)
        return -(j + 3) * (j + 4) * (j + 1) * (j + 2) * j / 24 * t ** (j - 1) / r

    chains: tuple[tuple[Link, ...], ...] = (
        (zero, off_zero(zero_slope)),
        (one, one_slope, off_zero(one_curve)),
        (two, two_slope, two_curve, off_zero(two_bend)),
    )
    return chains[smoothness]


class Wendland(ProfileKernel):
    """Wendland kernel: (1 - r)_+^(j + q) p_q(r), r = |x - y| / lengthscale; zero for r >= 1.

    With q = smoothness and j = floor(dimension / 2) + q + 1: p_0 = 1, p_1 = (j + 1) r + 1,
    p_2 = ((j^2 + 4 j + 3) r^2 + (3 j + 6) r + 3) / 3. Functions are 2 q times differentiable at zero distance.
    lengthscale: () or (d,), > 0: the radius of the support, in the units of x.
    smoothness: 0, 1 or 2. dimension: the largest number of columns for which the kernel is psd.
    Claims: symmetric, psd, stationary, isotropic, unit diagonal, compact, positive.
    Raises: ShapeError for points with more columns than `dimension`. Source [wendland1995; rasmussen2006, eq. 4.21].
    """

    statistic = Statistic.DISTANCE
    claims = PSD | {Claim.STATIONARY, Claim.ISOTROPIC, Claim.UNIT_DIAGONAL, Claim.COMPACT, Claim.POSITIVE}
    lengthscale = Positive()

    def __init__(self, lengthscale: Any = 1.0, smoothness: int = 1, dimension: int = 3):
        super().__init__()
        if smoothness not in (0, 1, 2):
            raise ValueError(f"Wendland.smoothness is {smoothness}; expected 0, 1 or 2")
        if dimension < 1:
            raise ValueError(f"Wendland.dimension is {dimension}; expected at least 1")
        self.smoothness, self.dimension, self.lengthscale = smoothness, dimension, lengthscale

    def coordinates(self, x: Tensor) -> Tensor:
        if x.shape[-1] > self.dimension:
            raise ShapeError(f"{self!r} is psd up to {self.dimension} columns, x.d is {x.shape[-1]}: raise `dimension`")
        return super().coordinates(x)

    def profile(self, s: Tensor) -> Tensor:
        j = self.dimension // 2 + self.smoothness + 1
        # beyond the support every link is zero; r = 1 there keeps the powers finite
        return chain(torch.clamp(s, max=1.0), *_links(j, self.smoothness))

    def native(self) -> tuple[str, *tuple[float | Tensor, ...]] | None:
        j, q = self.dimension // 2 + self.smoothness + 1, self.smoothness
        # value t^e (a + b r + c r^2) and slope by s of t^(e - 1) (m + n r), over r where q is 0; t = (1 - r)_+
        a, b, c = ((1, 0, 0), (1, j + 1, 0), (1, j + 2, (j * j + 4 * j + 3) / 3))[q]
        m = (-0.5 * j, -0.5 * (j + 1) * (j + 2), -(j + 3) * (j + 4) / 6)[q]
        return "wendland", j + q, a, b, c, m, (j + 1) * m if q == 2 else 0.0
