"""Towers of Gram matrices: each layer's is free around the kernel of the one below, and rows are seen through it."""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn

from mercer.errors import JitterWarning, ShapeError, StructureError
from mercer.kernel import Kernel
from mercer.learn.inducing import Inducing, Posterior, Seen
from mercer.learn.likelihoods import Observation
from mercer.linalg import Cholesky

WIDE = 100.0  # nu beyond which A has less room than 1
TINY = 1e-24  # square of a coordinate below which it has no slope


def factor(gram: Tensor, ridge: float) -> tuple[Tensor, float]:
    """(R, jitter) with R R^T = gram + jitter I, with gradients; ridge: the least jitter, of the mean diagonal."""
    unit = torch.eye(len(gram), dtype=torch.float64)
    jitter = ridge * float(gram.detach().diagonal().mean())
    found, info = torch.linalg.cholesky_ex(gram + jitter * unit)
    if not info and bool(torch.isfinite(found).all()):
        return found, jitter
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", JitterWarning)  # the amount is in the plan
        jitter += Cholesky().factor(gram + jitter * unit).jitter
    return torch.linalg.cholesky(gram + jitter * unit), jitter


def of_gram(kernel: Kernel) -> None:
    """Raise StructureError unless the kernel sees points through their inner products only."""
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(4, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    turn = torch.linalg.qr(torch.randn(5, 3, generator=generator, dtype=torch.float64)).Q.mT
    with torch.no_grad():
        try:
            same = torch.allclose(kernel.block(x, y), kernel.block(x @ turn, y @ turn), rtol=1e-9, atol=1e-12)
        except ShapeError:
            same = False  # a lengthscale for each column
    if not same:
        raise StructureError(
            f"kernel is {kernel!r}; expected one of |x|, |y| and x.y alone, the same after a rotation: it meets Gram "
            "matrices, which have no columns"
        )


def widths(nu: Any, layers: int) -> list[float]:
    """nu of each layer. Raises ValueError unless it is a number > 0, or one for each layer."""
    try:
        found = [float(v) for v in np.broadcast_to(np.asarray(nu, dtype=np.float64), (layers,))]
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"nu is {nu!r}; expected a number > 0 (inf: held), or one for each of {layers} layers"
        ) from error
    if not all(v > 0 for v in found):
        raise ValueError(f"nu is {nu!r}; expected numbers > 0 (inf: Gram matrices are held)")
    return found


class Layer(nn.Module):
    """A Gram matrix G = R A A^T R^T around R R^T: A is lower triangular with a positive diagonal, at first I.

    nu: what the divergence from R R^T weighs; inf: A stays I. Large nu leave A little room: what is learned is in
    units of it, so that steps of one size suit all.
    """

    def __init__(self, m: int, nu: float):
        super().__init__()
        self.m, self.nu, free = m, nu, math.isfinite(nu)
        self.unit = min(1.0, math.sqrt(WIDE / nu))
        self.log_size = nn.Parameter(torch.zeros(m, dtype=torch.float64), requires_grad=free)
        self.below = nn.Parameter(torch.zeros(m * (m - 1) // 2, dtype=torch.float64), requires_grad=free)

    def root(self) -> Tensor:
        """A, `m m`."""
        row, column = torch.tril_indices(self.m, self.m, -1)
        flat = torch.zeros(self.m, self.m, dtype=torch.float64).index_put((row, column), self.unit * self.below)
        return flat + (self.unit * self.log_size).exp().diag()

    def divergence(self) -> Tensor:
        """KL(N(0, G) | N(0, R R^T)): of A alone."""
        size = self.unit * self.log_size
        rise = torch.expm1(2 * size) - 2 * size  # of the diagonal, each >= 0
        return 0.5 * ((self.unit * self.below).square().sum() + rise.sum())

    def cost(self) -> Tensor:
        """nu times the divergence; 0 where A is held."""
        return self.nu * self.divergence() if math.isfinite(self.nu) else torch.zeros((), dtype=torch.float64)


class Floor(NamedTuple):
    """Landmarks at one layer. points: m d, whose products are the Gram below; factor: R; gram: G = R A A^T R^T."""

    points: Tensor
    factor: Tensor
    gram: Tensor


class Tower(nn.Module, ABC):
    """Layers 1 .. L of Gram matrices at landmarks and the prior of the output. A row has coordinates in each layer.

    With a = R^-1 k(z, x): G(x, z) = a^T A A^T R^T and G(x, x) = k(x, x) - |a|^2 + |A^T a|^2, so that the points
    R A (landmarks) and (A^T a, sqrt(k(x, x) - |a|^2)) (a row, its last axis its own) have these products, and any
    kernel of inner products takes them as they are. Source [yang2023, sec. 4.3].
    """

    def __init__(self, m: int, nu: Sequence[float], ridge: float):
        super().__init__()
        self.layers = nn.ModuleList(Layer(m, v) for v in nu)
        self.ridge, self.jitter = ridge, 0.0

    def layer(self, level: int) -> Layer:
        """The Gram matrix of level + 1."""
        return cast(Layer, self.layers[level])

    @abstractmethod
    def begin(self, x: Tensor) -> Tensor:
        """Rows as points whose products are the Gram matrix of layer 0."""

    @abstractmethod
    def among(self, level: int, points: Tensor) -> Tensor:
        """The prior of level + 1 among landmarks, `m m`; points: m d."""

    @abstractmethod
    def across(self, level: int, points: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The prior of level + 1 between landmarks and rows, `m b`, and of each row, `b`."""

    def climb(self, z: Tensor) -> list[Floor]:
        """The landmarks through all layers; the last floor is the output's, whose gram is its prior."""
        points, found = z, []
        self.jitter = 0.0
        for level in range(len(self.layers)):
            lower, jitter = factor(self.among(level, points), self.ridge)
            root = lower @ self.layer(level).root()
            found.append(Floor(points, lower, root @ root.mT))
            points = torch.cat([root, torch.zeros(len(root), 1, dtype=torch.float64)], 1)
            self.jitter = max(self.jitter, jitter)
        top = self.among(len(self.layers), points)
        lower, jitter = factor(top, self.ridge)
        self.jitter = max(self.jitter, jitter)
        return [*found, Floor(points, lower, top)]

    def rise(self, x: Tensor, floors: Sequence[Floor], levels: int | None = None) -> tuple[Tensor, Tensor]:
        """(a: m b, rest: b) of rows at the output, or after so many layers."""
        rows, last = self.begin(x), len(self.layers) if levels is None else levels
        for level, floor in enumerate(floors[: last + 1]):
            cross, own = self.across(level, floor.points, rows)
            a = torch.linalg.solve_triangular(floor.factor, cross, upper=False)
            rest = (own - a.square().sum(0)).clamp_min(0)
            if level == last:
                break
            rows = torch.cat([a.mT @ self.layer(level).root(), rest.clamp_min(TINY).sqrt()[:, None]], 1)
        return a, rest

    def cost(self) -> Tensor:
        """sum of nu KL(N(0, G) | N(0, its prior)). Source [yang2023, eq. 13]."""
        return torch.stack([self.layer(level).cost() for level in range(len(self.layers))]).sum()


class _Deep(Inducing):
    """The sparse model of a tower's output."""

    def __init__(self, tower: Tower, kernel: Kernel, z: Tensor, observed: Observation, centre: Tensor):
        super().__init__(kernel, z, observed, centre, tower.ridge)
        self.tower = tower
        self.floors: list[Floor] = []

    def lower(self) -> Tensor:
        """R of the output's prior; the floors below are kept for `see`."""
        self.floors = self.tower.climb(self.z)
        self.jitter = self.tower.jitter
        return self.floors[-1].factor

    def see(self, x: Tensor, y: Tensor, lower: Tensor, weight: float = 1.0) -> Seen:
        a, rest = self.tower.rise(x, self.floors)
        return Seen(a, rest, y, weight)

    def bound(self, q: Posterior, seen: Seen) -> Tensor:
        """The evidence bound less the cost of the tower."""
        return super().bound(q, seen) - self.tower.cost()


def model(tower: Tower, kernel: Kernel, z: Tensor, observed: Observation, centre: Tensor) -> Inducing:
    """What learns: the tower under an observation model."""
    return _Deep(tower, kernel, z, observed, centre)
