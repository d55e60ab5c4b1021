"""Hamming kernel for categories."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mercer.claims import PSD, Claim
from mercer.errors import ShapeError
from mercer.kernel import Kernel
from mercer.parameter import Positive, like
from mercer.shapes import shapes


class Hamming(Kernel):
    """Kernel of categories: exp(-sum_i [x_i != y_i] / lengthscale_i).

    Each column holds codes; only equality matters, so their order and spacing do not.
    lengthscale: () or (d,), > 0, a pure number: how many mismatches reduce the kernel by a factor e.
    Claims: symmetric, psd, unit diagonal, separable, positive. Not differentiable in x (its gradient there is zero).
    Source [kondor2002]: the diffusion kernel of a product of complete graphs, scaled to 1 on the diagonal.
    """

    claims = PSD | {Claim.UNIT_DIAGONAL, Claim.SEPARABLE, Claim.POSITIVE}
    lengthscale = Positive()

    def __init__(self, lengthscale: Any = 1.0):
        super().__init__()
        self.lengthscale = lengthscale

    @shapes("x: ... n d, y: ... m d -> ... n m")
    def log_block(self, x: Tensor, y: Tensor) -> Tensor:
        rate = like(1 / self.lengthscale, x)
        if rate.ndim > 0 and rate.shape[-1] != x.shape[-1]:
            raise ShapeError(f"Hamming.lengthscale.d is {rate.shape[-1]}, x.d is {x.shape[-1]}")
        rate = rate.expand(x.shape[-1])
        batch = torch.broadcast_shapes(x.shape[:-2], y.shape[:-2])
        total = x.new_zeros(*batch, x.shape[-2], y.shape[-2])
        for k in range(x.shape[-1]):
            total = total - rate[k] * (x[..., :, None, k] != y[..., None, :, k])
        return total

    @shapes("x: ... n d, y: ... m d -> ... n m")
    def block(self, x: Tensor, y: Tensor) -> Tensor:
        return self.log_block(x, y).exp()
