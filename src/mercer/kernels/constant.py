"""Constant kernel."""

from __future__ import annotations

import torch
from torch import Tensor

from mercer.claims import PSD, Claim
from mercer.kernel import Kernel, Step
from mercer.parameter import Positive, like
from mercer.shapes import shapes


class Constant(Kernel):
    """Constant kernel: variance, for every pair: the prior of an unknown mean.

    variance: (), > 0.
    Claims: symmetric, psd, stationary, isotropic, positive. Source [rasmussen2006, table 4.1].
    """

    claims = PSD | {Claim.STATIONARY, Claim.ISOTROPIC, Claim.POSITIVE}
    variance = Positive(axes=(0,))

    def __init__(self, variance: float = 1.0):
        super().__init__()
        self.variance = variance

    @shapes("x: ... n d, y: ... m d -> ... n m")
    def block(self, x: Tensor, y: Tensor) -> Tensor:
        batch = torch.broadcast_shapes(x.shape[:-2], y.shape[:-2])
        return like(self.variance, x).expand(*batch, x.shape[-2], y.shape[-2])

    def program(self) -> list[Step] | None:
        return [Step("constant", (self.variance,))]
