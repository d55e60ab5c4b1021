"""Kernels of functions that repeat: periodic and cosine."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from mercer.claims import PSD, Claim
from mercer.errors import ShapeError
from mercer.kernel import ProfileKernel, Spectrum
from mercer.numerics import exp
from mercer.parameter import Positive, like
from mercer.statistic import Statistic


def _per_column(name: str, value: Tensor, x: Tensor) -> Tensor:
    if value.ndim > 0 and value.shape[-1] != x.shape[-1]:
        raise ShapeError(f"{name}.d is {value.shape[-1]}, x.d is {x.shape[-1]}")
    return like(value, x)


def _phase(turns: Tensor) -> Tensor:
    """Turns to radians, whole turns dropped first: far from the origin their rounding would swamp the rest."""
    return 2 * math.pi * (turns - turns.round())


class Periodic(ProfileKernel):
    """Periodic kernel: exp(-2 sum_i sin^2(pi (x_i - y_i) / period_i) / lengthscale_i^2).

    Each column is wound onto a circle, where the kernel is Gaussian.
    lengthscale: () or (d,), > 0, a pure number. period: () or (d,), > 0, in the units of x.
    Claims: symmetric, psd, stationary, unit diagonal, separable, positive.
    Source [mackay1998; rasmussen2006, eq. 4.31].
    """

    statistic = Statistic.SQUARED_DISTANCE
    claims = PSD | {Claim.STATIONARY, Claim.UNIT_DIAGONAL, Claim.SEPARABLE, Claim.POSITIVE}
    lengthscale = Positive()
    period = Positive()

    def __init__(self, lengthscale: Any = 1.0, period: Any = 1.0):
        super().__init__()
        self.lengthscale, self.period = lengthscale, period

    def coordinates(self, x: Tensor) -> Tensor:
        lengthscale = _per_column("Periodic.lengthscale", self.lengthscale, x)
        turn = _phase(x / _per_column("Periodic.period", self.period, x))
        return torch.cat([turn.cos() / lengthscale, turn.sin() / lengthscale], -1)

    def profile(self, s: Tensor) -> Tensor:
        return exp(s, -0.5)

    def log_profile(self, s: Tensor) -> Tensor:
        return -0.5 * s

    def native(self) -> tuple[str, *tuple[float | Tensor, ...]] | None:
        return "exponential", -0.5


class Cosine(ProfileKernel):
    """Cosine kernel: cos(2 pi sum_i (x_i - y_i) / period_i), of rank two.

    period: () or (d,), > 0, in the units of x.
    Claims: symmetric, psd, stationary, unit diagonal.
    Source [rahimi2007]: one frequency of Bochner's theorem.
    """

    statistic = Statistic.DOT
    claims = PSD | {Claim.STATIONARY, Claim.UNIT_DIAGONAL}
    period = Positive()

    def __init__(self, period: Any = 1.0):
        super().__init__()
        self.period = period

    def coordinates(self, x: Tensor) -> Tensor:
        turns = x / _per_column("Cosine.period", self.period, x)
        turn = _phase(turns).sum(-1, keepdim=True)
        return torch.cat([turn.cos(), turn.sin()], -1)

    def profile(self, s: Tensor) -> Tensor:
        return s

    def native(self) -> tuple[str, *tuple[float | Tensor, ...]] | None:
        return ("identity",)

    def spectrum(self) -> Spectrum:
        """One frequency: 2 pi in every column, measured in periods."""

        def sample(rank: int, d: int, generator: torch.Generator | None) -> Tensor:
            return torch.full((rank, d), 2 * math.pi, dtype=torch.float64)

        def periods(x: Tensor) -> Tensor:
            return x / _per_column("Cosine.period", self.period, x)

        return Spectrum(sample, periods, False, lambda: torch.ones((), dtype=torch.float64))
