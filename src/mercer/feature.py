"""FeatureMap: phi(x) with k(x, y) = phi(x) . phi(y). It stands wherever a kernel stands."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from mercer.claims import PSD, Claims
from mercer.kernel import Kernel


class FeatureMap(Kernel, ABC):
    """A finite-dimensional kernel known by its features; `phi(x, y)` is a low-rank Operator."""

    claims: Claims = PSD
    rank: int

    @abstractmethod
    def features(self, x: Tensor) -> Tensor:
        """phi(x): x: ... n d -> ... n r."""

    @abstractmethod
    def redraw(self, generator: torch.Generator | None = None) -> None:
        """Draw whatever is random again, in place; a map without randomness stays as it is."""

    def block(self, x: Tensor, y: Tensor) -> Tensor:
        """phi(x) phi(y)^T: ... n m."""
        left = self.features(x)
        return left @ (left if y is x else self.features(y)).mT

    def diagonal(self, x: Tensor) -> Tensor:
        """|phi(x)|^2: ... n."""
        return self.features(x).square().sum(-1)

    def workspace(self, d: int) -> int:
        return self.rank + 2 * d
