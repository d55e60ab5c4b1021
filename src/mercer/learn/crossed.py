"""What two latent functions of one white noise have in common: Gaussian kernels of two lengthscales, convolved."""

from __future__ import annotations

from typing import cast

from torch import Tensor

from mercer.claims import PSD, Claim
from mercer.errors import StructureError
from mercer.kernel import Kernel, Scaled
from mercer.kernels import Gaussian
from mercer.numerics import exp
from mercer.parameter import like
from mercer.statistic import Statistic, pairwise


def _parts(kernel: Kernel) -> tuple[Gaussian, list[Tensor]]:
    """The Gaussian and the variances that multiply it. Raises StructureError for any other kernel."""
    found: list[Tensor] = []
    while isinstance(kernel, Scaled):
        found.append(kernel.variance)
        kernel = kernel.kernel
    if not isinstance(kernel, Gaussian):
        raise StructureError(f"interactions need Gaussian kernels, scaled or not: {kernel!r} has no cross-convolution")
    return kernel, found


class Crossed(Kernel):
    """Cross-covariance of u_1 = g_1 * w and u_2 = g_2 * w, w one white noise, where cov(u_i) are the kernels given.

    Lengthscales a, b: sqrt(v_1 v_2) prod_i sqrt(2 a_i b_i / (a_i^2 + b_i^2)) exp(-|x_i - y_i|^2 / (a_i^2 + b_i^2)); its
    spectrum is the root of the product of theirs. first, second: Gaussian, scaled or not; they stay live.
    Claims: symmetric, psd, stationary, positive. Derived by Fourier transform; Source [chen2018] for the idea.
    """

    claims = PSD | {Claim.STATIONARY, Claim.POSITIVE}

    def __init__(self, first: Kernel, second: Kernel):
        super().__init__()
        _parts(first), _parts(second)
        self.first, self.second = first, second

    def _shape(self, d: int) -> tuple[Tensor, Tensor]:
        """(the lengthscale of each column, the value at zero distance)."""
        (one, factors), (other, more) = _parts(self.first), _parts(self.second)
        a, b = (cast(Tensor, k.lengthscale).expand(d) for k in (one, other))
        square = a.square() + b.square()
        size = (2 * a * b / square).sqrt().prod()
        for variance in [*factors, *more]:
            size = size * variance.sqrt()
        return (square / 2).sqrt(), size

    def block(self, x: Tensor, y: Tensor) -> Tensor:
        lengthscale, size = self._shape(x.shape[-1])
        unit = like(lengthscale, x)
        u = x / unit
        s = pairwise(Statistic.SQUARED_DISTANCE, u, u if y is x else y / unit)
        return like(size, x) * exp(s, -0.5)

    def diagonal(self, x: Tensor) -> Tensor:
        return like(self._shape(x.shape[-1])[1], x).expand(x.shape[:-1])

    def __repr__(self) -> str:
        return f"Crossed({self.first!r}, {self.second!r})"
