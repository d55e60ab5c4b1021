"""Rows as directions, for kernels that see angles."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mercer.parameter import Positive, WithParameters, like


class Lift(WithParameters):
    """x -> (x / lengthscale, 1): rows as directions, with the constant that a network's bias stands for."""

    lengthscale = Positive(axes=(1,))

    def __init__(self, lengthscale: Any):
        super().__init__()
        self.lengthscale = lengthscale

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x / like(self.lengthscale, x), torch.ones_like(x[..., :1])], -1)
