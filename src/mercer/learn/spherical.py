"""SphericalFeatures: inducing variables that are units of a neural network, for arc-cosine kernels."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from scipy.special import comb, gammaln
from torch import Tensor
from torch.nn.functional import softplus

from mercer.errors import StructureError
from mercer.kernel import Kernel, Scaled, Warped
from mercer.kernels import ArcCosine
from mercer.learn.arguments import count
from mercer.learn.lift import Lift
from mercer.learn.state import record

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": torch.relu, "softplus": lambda t: softplus(4 * t) / 4}


def legendre(t: Tensor, degree: int, d: int) -> Iterator[Tensor]:
    """Legendre polynomials P_0 .. P_degree of dimension d (P(1) = 1), degree >= 1, by their recurrence."""
    before, here = torch.ones_like(t), t
    yield from (before, here)
    for n in range(1, degree):
        before, here = here, torch.add((2 * n + d - 2) / (n + d - 2) * (t * here), before, alpha=-n / (n + d - 2))
        yield here


def _sum(weights: Sequence[float], t: Tensor, d: int) -> Tensor:
    """sum_n weights_n P_n(t)."""
    total = torch.zeros_like(t)
    for weight, value in zip(weights, legendre(t, len(weights) - 1, d), strict=True):
        if weight:
            total = torch.add(total, value, alpha=weight)
    return total


def multiplicity(degree: int, d: int) -> np.ndarray:
    """How many spherical harmonics of each degree 0 .. degree there are on the unit sphere of d axes."""
    n = np.arange(1, degree + 1)
    return np.concatenate([[1.0], (2 * n + d - 2) / n * comb(n + d - 3, n - 1)])


def _coefficients(shape: Callable[[Tensor], Tensor], degree: int, d: int) -> np.ndarray:
    """Funk-Hecke: the mean of shape(t) P_n(t) over the sphere, by Gauss-Legendre in the angle on both half-spheres."""
    at, weight = np.polynomial.legendre.leggauss(degree + d + 40)
    angle = np.concatenate([(at + 1) * math.pi / 4, (at + 3) * math.pi / 4])
    density = np.sin(angle) ** (d - 2) * math.exp(gammaln(d / 2) - gammaln((d - 1) / 2)) / math.sqrt(math.pi)
    t = torch.from_numpy(np.cos(angle))
    values = shape(t) * torch.from_numpy(np.tile(weight, 2) * math.pi / 4 * density)
    return np.array([float(p @ values) for p in legendre(t, degree, d)])


def _zonal(order: int) -> Callable[[Tensor], Tensor]:
    """The arc-cosine kernel of unit vectors as a function of their product."""

    def shape(t: Tensor) -> Tensor:
        pole = torch.zeros(len(t), 2, dtype=torch.float64)
        pole[:, 0] = 1
        other = torch.stack([t, (1 - t.square()).clamp_min(0).sqrt()], -1)
        return ArcCosine(order).block(pole[:1], other)[0]

    return shape


@lru_cache(maxsize=64)
def _series(activation: str, order: int, degree: int, d: int) -> tuple[list[float], list[float]]:
    """Weights of P_n in the feature and in the covariance of two features, which is 1 for a feature with itself."""
    a, eigenvalue = (_coefficients(s, degree, d) for s in (ACTIVATIONS[activation], _zonal(order)))
    n, many = np.arange(degree + 1), multiplicity(degree, d)
    held = (n == 1) | (n % 2 == 0) if order else (n == 0) | (n % 2 == 1)  # the kernel has no others
    own = np.where(held, many * a**2 / np.where(held, eigenvalue, 1.0), 0.0)
    size = own.sum()
    return (np.where(held, many * a, 0.0) / math.sqrt(size)).tolist(), (own / size).tolist()


def _unwrapped(kernel: Kernel, x: Tensor) -> tuple[Tensor, int, Tensor]:
    """(variance, order of the arc-cosine kernel, the points that it sees)."""
    variance = torch.ones((), dtype=torch.float64)
    while isinstance(kernel, Scaled | Warped):
        if isinstance(kernel, Scaled):
            variance = variance * kernel.variance
        else:
            x = kernel.moved(x)
        kernel = kernel.kernel
    if not isinstance(kernel, ArcCosine):
        raise StructureError(f"SphericalFeatures are of an ArcCosine kernel, scaled or warped; got {kernel!r}")
    return variance, kernel.order, x


@record
@dataclass(frozen=True)
class SphericalFeatures:
    """Inducing variables <f, s(w . x / |x|)> of an arc-cosine kernel, s an activation: cov(u, f(x)) is a unit of a net.

    s is cut at a degree of spherical harmonics, so that it lies in the space of the kernel and the bound stays a bound.
    count: units, >= 1; w are the directions of points, which learning moves. points: values f(z) beside them, >= 0:
    what units leave over, the orthogonal basis; q of both is joint. activation: "relu" or "softplus" (of 4 t, over 4).
    degree: >= 1. Give it as `landmarks` of VariationalGaussianProcess; kernel None is then
    variance * ArcCosine(1) of (x / lengthscale, 1).
    Cost: as so many landmarks, and degree multiplications for each pair. Source [tiao2023, sec. 3], [dutordoir2021].
    """

    count: int = 100
    points: int = 0
    activation: str = "relu"
    degree: int = 10

    def __post_init__(self) -> None:
        count("count", self.count, 1)
        count("points", self.points, 0)
        count("degree", self.degree, 1)
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation is {self.activation!r}; expected one of {', '.join(ACTIVATIONS)}")

    def kernel(self, d: int) -> Kernel:
        """The kernel where none is given."""
        return Scaled(Warped(ArcCosine(1), Lift(torch.full((d,), max(math.sqrt(d), 1.0), dtype=torch.float64))), 1.0)

    def gram(self, kernel: Kernel, z: Tensor) -> Tensor:
        """Covariances of the inducing variables: units at the first `count` of the points z: m d, f at the others."""
        variance, order, moved = _unwrapped(kernel, z[: self.count])
        w = moved / moved.norm(dim=-1, keepdim=True)
        _, own = _series(self.activation, order, self.degree, w.shape[-1])
        units = variance * _sum(own, w @ w.mT, w.shape[-1])
        z = z[self.count :]
        between = self._units(kernel, w, z)
        return torch.cat([torch.cat([units, between], 1), torch.cat([between.mT, kernel.block(z, z)], 1)])

    def cross(self, kernel: Kernel, z: Tensor, x: Tensor) -> Tensor:
        """Covariances of the inducing variables with f at x: b d, `m b`."""
        _, _, moved = _unwrapped(kernel, z[: self.count])
        w = moved / moved.norm(dim=-1, keepdim=True)
        return torch.cat([self._units(kernel, w, x), kernel.block(z[self.count :], x)])

    def _units(self, kernel: Kernel, w: Tensor, x: Tensor) -> Tensor:
        variance, order, moved = _unwrapped(kernel, x)
        size = moved.norm(dim=-1)
        unit = moved / size.clamp_min(torch.finfo(size.dtype).tiny)[:, None]
        weights, _ = _series(self.activation, order, self.degree, w.shape[-1])
        return variance * size**order * _sum(weights, w @ unit.mT, w.shape[-1])
