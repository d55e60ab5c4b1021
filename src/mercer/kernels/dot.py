"""Kernels of the dot product: linear, polynomial and exponential."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mercer.claims import PSD, Claim
from mercer.kernel import ProfileKernel
from mercer.parameter import Positive, like
from mercer.statistic import Statistic


class Linear(ProfileKernel):
    """Linear kernel: sum_i x_i y_i / lengthscale_i^2.

    lengthscale: () or (d,), > 0, in the units of x.
    Claims: symmetric, psd. Source [rasmussen2006, sec. 4.2.2].
    """

    statistic = Statistic.DOT
    claims = PSD
    lengthscale = Positive()

    def __init__(self, lengthscale: Any = 1.0):
        super().__init__()
        self.lengthscale = lengthscale

    def profile(self, s: Tensor) -> Tensor:
        return s

    def native(self) -> tuple[str, *tuple[float | Tensor, ...]] | None:
        return ("identity",)


class Polynomial(ProfileKernel):
    """Polynomial kernel: (sum_i x_i y_i / lengthscale_i^2 + offset)^degree.

    degree: integer >= 1. lengthscale: () or (d,), > 0, in the units of x. offset: (), > 0: the weight of lower degrees.
    Claims: symmetric, psd. Source [rasmussen2006, sec. 4.2.2].
    """

    statistic = Statistic.DOT
    claims = PSD
    lengthscale = Positive()
    offset = Positive(axes=(0,))

    def __init__(self, degree: int = 2, lengthscale: Any = 1.0, offset: float = 1.0):
        super().__init__()
        if degree != int(degree) or degree < 1:
            raise ValueError(f"Polynomial.degree is {degree}; expected an integer >= 1")
        self.degree, self.lengthscale, self.offset = int(degree), lengthscale, offset

    def profile(self, s: Tensor) -> Tensor:
        return (s + like(self.offset, s)) ** self.degree

    def native(self) -> tuple[str, *tuple[float | Tensor, ...]] | None:
        return "polynomial", self.offset, self.degree


class ExpDot(ProfileKernel):
    """Exponentiated dot product, the kernel inside softmax attention: exp(sum_i x_i y_i / lengthscale_i^2).

    lengthscale: () or (d,), > 0, in the units of x; None means d^(1/4), fixed: the 1 / sqrt(d) of scaled dot-product
    attention. Claims: symmetric, psd, positive. Source [vaswani2017, eq. 1; tsai2019].
    """

    statistic = Statistic.DOT
    claims = PSD | {Claim.POSITIVE}
    lengthscale = Positive(optional=True)

    def __init__(self, lengthscale: Any = None):
        super().__init__()
        self.lengthscale = lengthscale

    def coordinates(self, x: Tensor) -> Tensor:
        return super().coordinates(x) if self.lengthscale is not None else x / max(x.shape[-1], 1) ** 0.25

    def profile(self, s: Tensor) -> Tensor:
        return torch.exp(s)

    def log_profile(self, s: Tensor) -> Tensor:
        return s

    def native(self) -> tuple[str, *tuple[float | Tensor, ...]] | None:
        return "exponential", 1.0
