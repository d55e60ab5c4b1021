"""Riesz kernel, the kernel of the energy distance."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from mercer.claims import Claim
from mercer.kernel import ProfileKernel
from mercer.kernels.chain import chain, off_zero
from mercer.parameter import Positive
from mercer.statistic import Statistic


class Riesz(ProfileKernel):
    """Riesz kernel: -(|x - y| / lengthscale)^power. With power = 1 its squared MMD is the energy distance.

    power: in (0, 2). lengthscale: () or (d,), > 0, in the units of x.
    Claims: symmetric, conditionally positive definite (not psd: every value is <= 0), stationary, isotropic.
    Source [szekely2013; sejdinovic2013, ex. 15].
    """

    statistic = Statistic.DISTANCE
    claims = frozenset({Claim.SYMMETRIC, Claim.CPD, Claim.STATIONARY, Claim.ISOTROPIC})
    lengthscale = Positive()

    def __init__(self, power: float = 1.0, lengthscale: Any = 1.0):
        super().__init__()
        if not 0 < power < 2:
            raise ValueError(f"Riesz.power is {power}; expected a number in (0, 2)")
        self.power, self.lengthscale = float(power), lengthscale

    def profile(self, s: Tensor) -> Tensor:
        half = self.power / 2
        return chain(s, lambda s: -(s**half), off_zero(lambda s: -half * s ** (half - 1)))

    def native(self) -> tuple[str, *tuple[float | Tensor, ...]] | None:
        return ("root",) if self.power == 1 else None
