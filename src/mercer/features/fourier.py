"""Fourier: random Fourier features, and Orthogonal: the same with orthogonal directions."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mercer.claims import PSD, Claim
from mercer.errors import ShapeError, StructureError
from mercer.feature import FeatureMap
from mercer.kernel import Kernel, Spectrum
from mercer.parameter import like

_KEPT = frozenset({Claim.STATIONARY, Claim.UNIT_DIAGONAL})  # cos^2 + sin^2 = 1, cos(a - b): exact for any draw


def haar(count: int, d: int, generator: torch.Generator | None = None) -> Tensor:
    """Unit vectors `count d`, uniform on the sphere, orthogonal within each block of d of them.

    The orthogonal factor of a Gaussian matrix is uniform only with the signs of R's diagonal moved into Q
    [mezzadri2007]. Cost: count d min(count, d) flops, times 4.
    """
    blocks = torch.randn(math.ceil(count / d), d, min(count, d), generator=generator, dtype=torch.float64)
    q, r = torch.linalg.qr(blocks)
    sign = torch.where(r.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0).to(torch.float64)
    return (q * sign.unsqueeze(-2)).mT.reshape(-1, d)[:count]


def width(spectrum: Spectrum, d: int) -> int:
    """How many coordinates the spectrum lives on for points with d columns: fewer after `kernel.on(columns)`."""
    with torch.no_grad():
        return spectrum.coordinates(torch.zeros(1, d, dtype=torch.float64)).shape[-1]


def _pairs(rank: int) -> int:
    if rank < 2 or rank % 2:
        raise ValueError(f"rank is {rank}; expected an even number >= 2: features come in (cos, sin) pairs")
    return rank // 2


def columns_of(phi: FeatureMap, d: int, x: Tensor) -> None:
    """Raise ShapeError when x has not the d columns that the map was drawn for."""
    if x.shape[-1] != d:
        raise ShapeError(f"{type(phi).__name__} was drawn for d = {d} columns, x.d is {x.shape[-1]}")


def _waves(kernel: Kernel, x: Tensor, frequencies: Tensor) -> Tensor:
    spectrum = kernel.spectrum()
    phase = spectrum.coordinates(x) @ like(frequencies, x).mT
    size = like((spectrum.variance() / len(frequencies)).sqrt(), x)
    return size * torch.cat([phase.cos(), phase.sin()], -1)


class Fourier(FeatureMap):
    """Random Fourier features: sqrt(2 variance / rank) [cos(w . u(x)), sin(w . u(x))], w drawn from the spectrum of k.

    kernel: a stationary kernel with a spectrum(); it stays live, so its lengthscale trains through the features.
    d: columns of x. rank: even, >= 2; the number of features. frequencies: a buffer, `rank/2 columns`.
    Claims: symmetric, psd, stationary, and unit diagonal where k has it.
    Cost: n d rank flops. Error: variance (1 + k(2 delta) - 2 k(delta)^2) / rank per entry, for k(0) = 1.
    Raises StructureError when the kernel has no spectrum. Source [rahimi2007; sutherland2015, eq. 4].
    """

    frequencies: Tensor

    def __init__(self, kernel: Kernel, d: int, rank: int, generator: torch.Generator | None = None):
        super().__init__()
        self.kernel, self.d, self.rank = kernel, d, rank
        self.claims = PSD | (kernel.claims & _KEPT)
        columns = width(kernel.spectrum(), d)
        self.register_buffer("frequencies", torch.zeros(_pairs(rank), columns, dtype=torch.float64))
        self.redraw(generator)

    def redraw(self, generator: torch.Generator | None = None) -> None:
        """New independent frequencies, in place."""
        count, d = self.frequencies.shape
        self.frequencies.copy_(self.kernel.spectrum().sample(count, d, generator))

    def features(self, x: Tensor) -> Tensor:
        """phi(x): x: ... n d -> ... n r."""
        columns_of(self, self.d, x)
        return _waves(self.kernel, x, self.frequencies)


class Orthogonal(FeatureMap):
    """Orthogonal random features: Fourier with directions orthogonal in blocks of d and the norms of independent draws.

    kernel: a stationary kernel whose spectrum is isotropic in its scaled coordinates (Gaussian, Matern, ...).
    d: columns of x. rank: even, >= 2. frequencies: a buffer, `rank/2 columns`.
    Claims: symmetric, psd, stationary, and unit diagonal where k has it.
    Cost: n d rank flops, and 4 rank d min(rank, d) for a draw. Error: unbiased; below Fourier's for nearby points.
    Raises StructureError when the spectrum is missing or not isotropic. Source [yu2016, eq. 5, with chi norms].
    """

    frequencies: Tensor

    def __init__(self, kernel: Kernel, d: int, rank: int, generator: torch.Generator | None = None):
        super().__init__()
        spectrum = kernel.spectrum()
        if not spectrum.isotropic:
            raise StructureError(
                f"Orthogonal needs a spectrum that is the same in every direction, {kernel!r} has not; use Fourier"
            )
        self.kernel, self.d, self.rank = kernel, d, rank
        self.claims = PSD | (kernel.claims & _KEPT)
        self.register_buffer("frequencies", torch.zeros(_pairs(rank), width(spectrum, d), dtype=torch.float64))
        self.redraw(generator)

    def redraw(self, generator: torch.Generator | None = None) -> None:
        """New directions and new norms, in place."""
        count, d = self.frequencies.shape
        norms = self.kernel.spectrum().sample(count, d, generator).norm(dim=-1, keepdim=True)
        self.frequencies.copy_(norms * haar(count, d, generator))

    def features(self, x: Tensor) -> Tensor:
        """phi(x): x: ... n d -> ... n r."""
        columns_of(self, self.d, x)
        return _waves(self.kernel, x, self.frequencies)
