"""Support: how far a compact kernel reaches, and the pairs of points within its reach."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import cast

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor

from mercer.claims import Claim
from mercer.kernel import Kernel, Product, ProfileKernel, Scaled
from mercer.operators.kept import Kept
from mercer.operators.pattern import Pattern
from mercer.operators.solvable import again
from mercer.statistic import Statistic

DISTANCES = (Statistic.DISTANCE, Statistic.SQUARED_DISTANCE)
SAMPLED = 64, 1024  # rows and columns of the sample that foretells the number of entries
PIECE = 2**18  # pairs whose values are made at once where gradients are wanted


@dataclass(frozen=True)
class Support:
    """A kernel and the compact part of it that decides which pairs are within reach."""

    kernel: Kernel
    part: ProfileKernel
    kept: Kept = field(default_factory=Kept)
    made: Kept = field(default_factory=Kept)

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
    def _scaled(self, x: Tensor, y: Tensor) -> tuple[np.ndarray, np.ndarray]:
        middle = y[:1].detach().double().nan_to_num()
        u = [self.part.coordinates(p.detach().double() - middle).cpu().numpy() for p in (x, y)]
        return u[0], u[1]

    def expected(self, x: Tensor, y: Tensor) -> float:
        """About how many entries there are, from the distances of a few rows and columns."""
        if not len(x) or not len(y):
            return 0.0
        a, b = self._scaled(x[:: max(len(x) // SAMPLED[0], 1)], y[:: max(len(y) // SAMPLED[1], 1)])
        near = ((a[:, None] - b[None]) ** 2).sum(-1) < self.radius() ** 2
        return len(x) * len(y) * (float(near.sum()) + 1) / near.size

    def places(self, x: Tensor, y: Tensor) -> Tensor:
        """Rows and columns of all pairs within reach, `2 e`, sorted by row."""
        if not len(x) or not len(y):
            return torch.zeros(2, 0, dtype=torch.long, device=x.device)
        a, b = self._scaled(x, y)
        reach = self.radius() * (1 + 1e-9)
        pairs = cKDTree(a).sparse_distance_matrix(cKDTree(b), reach, output_type="ndarray")
        order = np.argsort(pairs["i"] * len(b) + pairs["j"], kind="stable")
        return torch.from_numpy(np.stack([pairs["i"][order], pairs["j"][order]]).astype(np.int64)).to(x.device)

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
    """The support of a kernel that is, or contains as a factor, a profile of distance that claims to be compact."""

    def compact(k: Kernel) -> ProfileKernel | None:
        if isinstance(k, Scaled):
            return compact(k.kernel)
        if isinstance(k, Product):
            return next((p for p in map(compact, cast(list[Kernel], list(k.parts))) if p is not None), None)
        if Claim.COMPACT in k.claims and isinstance(k, ProfileKernel) and k.statistic in DISTANCES:
            return k
        return None

    part = compact(kernel)
    return None if part is None else Support(kernel, part)
