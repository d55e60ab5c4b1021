"""Elementary functions of tensors: quick exponentials, logarithms that are safe at zero."""

from __future__ import annotations

import math

import torch
from torch import Tensor

LOG2_E = 1.4426950408889634


def exp(x: Tensor, factor: float = 1.0) -> Tensor:
    """e^(factor x) through exp2, several times faster on CPUs.

    Meant for exponents <= 0, where the absolute error is below eps (the relative error is |factor x| eps).
    """
    return (x * (factor * LOG2_E)).exp2_()


def log(x: Tensor) -> Tensor:
    """log x for x >= 0, with gradient 0 where x is 0 and the logarithm -inf."""
    return torch.where(x > 0, torch.where(x > 0, x, 1.0).log(), -math.inf)


def log_add(a: Tensor, b: Tensor) -> Tensor:
    """log(e^a + e^b), with gradient 0 where both are -inf."""
    top = torch.maximum(a, b).detach()
    top = torch.where(top == -math.inf, 0.0, top)
    return log((a - top).exp() + (b - top).exp()) + top
