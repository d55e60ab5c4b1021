"""Falkon's preconditioner: coordinates in which the normal equations of landmarks are nearly the identity."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.linalg import solve_triangular


class Whitening:
    """w = B v with B = T^-1 A^-1, T^T T = K_mm, A^T A = S + level I, S close to T^-T K_mn D K_nm T^-1.

    root: T, `m m` upper; gram: S from a sample of rows (or from the landmarks, where they are a uniform draw of them:
    n / m T T^T). Eight rows for each landmark save most of the iterations that the landmarks alone need. `at` sets the
    levels: columns of v come in equal groups, one for each. Cost: m^3 / 3 flops for each level, 2 m^2 for each column
    of v; memory (levels + 2) m^2 numbers. Source [rudi2017, alg. 1], [marteauferey2019, sec. 4].
    """

    def __init__(self, root: Tensor, gram: Tensor):
        self.root, self.gram = root, gram
        self.inner: list[Tensor] = []

    @classmethod
    def uniform(cls, middle: Tensor, rows: int) -> Whitening:
        """For landmarks that are a uniform draw of so many rows; middle: K_mm in float64, definite."""
        root = torch.linalg.cholesky(middle).mT
        return cls(root, root @ root.mT * (rows / len(middle)))

    def at(self, levels: Sequence[float]) -> Whitening:
        """The same for these levels."""
        found = Whitening(self.root, self.gram)
        for level in levels:
            inner = self.gram.clone()
            inner.diagonal().add_(level)
            found.inner.append(torch.linalg.cholesky(inner).mT)
        return found

    def _groups(self, v: Tensor, which: Sequence[int] | None) -> list[tuple[Tensor, Tensor]]:
        """(A, its columns of v) of each group."""
        inner = self.inner if which is None else [self.inner[g] for g in which]
        return list(zip(inner, v.chunk(len(inner), 1), strict=True))

    def down(self, v: Tensor, which: Sequence[int] | None = None) -> Tensor:
        """B v: weights of the landmarks. which: the groups that v holds, None for all."""
        parts = [solve_triangular(a, part, upper=True) for a, part in self._groups(v, which)]
        return solve_triangular(self.root, torch.cat(parts, 1), upper=True)

    def _outer(self, v: Tensor, which: Sequence[int] | None) -> Tensor:
        return torch.cat([solve_triangular(a.mT, part, upper=False) for a, part in self._groups(v, which)], 1)

    def up(self, v: Tensor, which: Sequence[int] | None = None) -> Tensor:
        """B^T v."""
        return self._outer(solve_triangular(self.root.mT, v, upper=False), which)

    def ridge(self, w: Tensor, level: Tensor | float, which: Sequence[int] | None = None) -> Tensor:
        """B^T level K_mm w, level: of each column."""
        return self._outer(level * (self.root @ w), which)
