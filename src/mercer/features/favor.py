"""Favor: positive random features of the kernel inside softmax attention."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mercer.claims import PSD, Claim
from mercer.errors import StructureError
from mercer.feature import FeatureMap
from mercer.features.fourier import columns_of, haar
from mercer.kernels.dot import ExpDot
from mercer.parameter import like


class Favor(FeatureMap):
    """Positive random features (FAVOR+) of ExpDot: exp(w . u - |u|^2 / 2) / sqrt(rank), u = x / lengthscale.

    kernel: an ExpDot; it stays live, so its lengthscale trains. d: columns of x. rank: >= 1, the number of features.
    orthogonal: directions orthogonal in blocks of d (less variance), norms chi(d); else standard normal.
    Claims: symmetric, psd, positive. Cost: n d rank flops.
    Error: unbiased; relative variance (exp(|u + v|^2) - 1) / rank for independent directions, so it serves
    inputs with |u + v| of order one and nothing much larger. Raises StructureError for any other kernel.
    Source [choromanski2021, eq. 7 and sec. 3].
    """

    frequencies: Tensor

    def __init__(
        self, kernel: ExpDot, d: int, rank: int, orthogonal: bool = True, generator: torch.Generator | None = None
    ):
        super().__init__()
        if not isinstance(kernel, ExpDot):
            raise StructureError(f"Favor is the feature map of ExpDot, got {kernel!r}; use Fourier or Nystrom")
        if rank < 1:
            raise ValueError(f"rank is {rank}; expected a number of features >= 1")
        self.kernel, self.d, self.rank, self.orthogonal = kernel, d, rank, orthogonal
        self.claims = PSD | {Claim.POSITIVE}
        self.register_buffer("frequencies", torch.zeros(rank, d, dtype=torch.float64))
        self.redraw(generator)

    def redraw(self, generator: torch.Generator | None = None) -> None:
        """New directions and new norms, in place."""
        drawn = torch.randn(self.rank, self.d, generator=generator, dtype=torch.float64)
        if self.orthogonal:
            drawn = drawn.norm(dim=-1, keepdim=True) * haar(self.rank, self.d, generator)
        self.frequencies.copy_(drawn)

    def log_features(self, x: Tensor) -> Tensor:
        """log phi(x): x: ... n d -> ... n r."""
        columns_of(self, self.d, x)
        u = self.kernel.coordinates(x)
        size = u.square().sum(-1, keepdim=True) / 2
        return u @ like(self.frequencies, x).mT - size - math.log(self.rank) / 2

    def features(self, x: Tensor) -> Tensor:
        """phi(x): x: ... n d -> ... n r."""
        return self.log_features(x).exp()
