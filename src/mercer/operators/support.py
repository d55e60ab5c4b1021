"""Support: how far kernels made of compact ones reach, and the pairs of points within their reach."""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import dataclass, field
from typing import cast

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor

from mercer.claims import Claim
from mercer.errors import DataError
from mercer.kernel import Kernel, Product, ProfileKernel, Scaled, Sum, Warped
from mercer.operators.kept import Kept
from mercer.operators.pattern import Pattern
from mercer.operators.solvable import again
from mercer.statistic import Statistic

DISTANCES = (Statistic.DISTANCE, Statistic.SQUARED_DISTANCE)
SAMPLED = 64, 1024  # rows and columns of the sample that foretells the number of entries
CHOICES = 16  # ways to bound a sum of products that are weighed against one another
PIECE = 2**18  # pairs whose values are made at once where gradients are wanted


@dataclass(frozen=True)
class Ball:
    """A compact profile of distance, and the warps that points pass before it sees them, the outermost first."""

    part: ProfileKernel
    warps: tuple[Warped, ...] = ()

    def radius(self) -> float:
        """The distance of scaled coordinates beyond which the profile is zero, to the last digit, from above."""
        grid = torch.logspace(-20, 20, 40 * 64 + 1, base=2.0, dtype=torch.float64)
        for _ in range(7):  # each round leaves a thousandth of the stretch
            reached = self._alive(grid).nonzero()
            if not len(reached):
                return float(grid[0])
            last = int(reached[-1])
            high = float(grid[min(last + 1, len(grid) - 1)])
            grid = torch.linspace(float(grid[last]), high, 1025, dtype=torch.float64)
        return high

    @torch.no_grad()
    def _alive(self, r: Tensor) -> Tensor:
        return self.part.profile(r.square()) != 0

    @torch.no_grad()
    def scaled(self, x: Tensor, y: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """The coordinates in which the profile measures distances, of both sides."""
        u, v = x.detach(), y.detach()
        for warp in self.warps:
            u, v = warp.moved(u), warp.moved(v)
        middle = v[:1].double().nan_to_num()
        a, b = (self.part.coordinates(p.double() - middle).cpu().numpy() for p in (u, v))
        return a, b

    def near(self, x: Tensor, y: Tensor) -> np.ndarray:
        """Whether each pair is within reach, n m."""
        a, b = self.scaled(x, y)
        return ((a[:, None] - b[None]) ** 2).sum(-1) < self.radius() ** 2

    def pairs(self, x: Tensor, y: Tensor) -> np.ndarray:
        """The pairs within reach, as row m + column."""
        a, b = self.scaled(x, y)
        for name, at in (("x", a), ("y", b)):
            bad = np.nonzero(~np.isfinite(at).all(1))[0]
            if len(bad):
                raise DataError(f"{name} has a number that is not finite in row {bad[0]}: it has no neighbours")
        found = cKDTree(a).sparse_distance_matrix(cKDTree(b), self.radius() * (1 + 1e-9), output_type="ndarray")
        return found["i"] * len(b) + found["j"]


Balls = tuple[Ball, ...]


@dataclass(frozen=True)
class Support:
    """A kernel and where it may be other than zero: in any one of the balls of each choice."""

    kernel: Kernel
    choices: tuple[Balls, ...]
    kept: Kept = field(default_factory=Kept)
    made: Kept = field(default_factory=Kept)

    def _fewest(self, x: Tensor, y: Tensor) -> tuple[float, Balls]:
        """The share of the pairs within reach, of some rows and columns, by the choice that has the fewest of them."""
        a, b = x[:: max(len(x) // SAMPLED[0], 1)], y[:: max(len(y) // SAMPLED[1], 1)]
        found = []
        for balls in self.choices:
            near = functools.reduce(np.logical_or, (ball.near(a, b) for ball in balls))
            found.append(((float(near.sum()) + 1) / near.size, balls))
        return min(found, key=lambda pair: pair[0])

    def expected(self, x: Tensor, y: Tensor) -> float:
        """About how many entries there are, from the distances of a few rows and columns."""
        if not len(x) or not len(y):
            return 0.0
        return len(x) * len(y) * self._fewest(x, y)[0]

    def places(self, x: Tensor, y: Tensor) -> Tensor:
        """Rows and columns of all pairs within reach, `2 e`, sorted by row."""
        if not len(x) or not len(y):
            return torch.zeros(2, 0, dtype=torch.long, device=x.device)
        balls = self._fewest(x, y)[1] if len(self.choices) > 1 else self.choices[0]
        at = np.unique(np.concatenate([ball.pairs(x, y) for ball in balls]))
        return torch.from_numpy(np.stack(np.divmod(at, len(y))).astype(np.int64)).to(x.device)

    def entries(self, x: Tensor, y: Tensor) -> tuple[Pattern, Tensor]:
        """The places within reach and the kernel's values there, both kept; values carry gradients where wanted."""
        with torch.no_grad():
            rows, cols = self.kept.get(self.kernel, lambda: self.places(x, y), x, key=(id(y), y._version))

        def values(r: Tensor, c: Tensor) -> Tensor:
            return self.kernel.block(x[r].unsqueeze(-2), y[c].unsqueeze(-2))[..., 0, 0]

        def make() -> Tensor:
            run = again(values, x, y, *self.kernel.parameters()) if len(rows) > PIECE else values
            found = [run(r, c) for r, c in zip(rows.split(PIECE), cols.split(PIECE), strict=True)]
            return torch.cat(found) if found else values(rows, cols)

        wanted = torch.is_grad_enabled() and y.requires_grad
        made = make() if wanted else self.made.get(self.kernel, make, x, key=(id(y), y._version))
        return Pattern(rows, cols, len(x), len(y)), made


def found_support(kernel: Kernel) -> Support | None:
    """Where a kernel made of compact profiles of distance may be other than zero; None where that may be anywhere.

    A product is zero where any one factor is, a sum where all of its parts are; factors, warps and chosen columns keep
    what is inside them.
    """

    def choices(k: Kernel) -> tuple[Balls, ...]:
        if isinstance(k, Scaled):
            return choices(k.kernel)
        if isinstance(k, Warped):
            inner = choices(k.kernel)
            return tuple(tuple(Ball(b.part, (k, *b.warps)) for b in balls) for balls in inner)
        if isinstance(k, Product):
            return tuple(balls for part in k.parts for balls in choices(cast(Kernel, part)))
        if isinstance(k, Sum):
            each = [choices(cast(Kernel, part)) for part in k.parts]
            if math.prod(map(len, each)) > CHOICES:
                each = [found[:1] for found in each]
            return tuple(tuple(b for balls in one for b in balls) for one in itertools.product(*each))
        if Claim.COMPACT in k.claims and isinstance(k, ProfileKernel) and k.statistic in DISTANCES:
            return ((Ball(k),),)
        return ()

    found = choices(kernel)
    return Support(kernel, found) if found else None
