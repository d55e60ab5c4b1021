"""FeatureMap: phi(x) with k(x, y) = phi(x) . phi(y). It stands wherever a kernel stands."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from mercer.claims import PSD, Claim, Claims
from mercer.errors import StructureError
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

    def log_features(self, x: Tensor) -> Tensor:
        """log phi(x), for row normalisation without overflow. Raises StructureError where phi may be negative."""
        if Claim.POSITIVE not in self.claims:
            raise StructureError(f"{self!r} has features that may be negative; use positive features such as Favor")
        return self.features(x).log()

    def arguments(self) -> dict[str, Any]:
        """What the constructor was given, by name; the generator is spent, its draws are in state_dict."""
        names = [n for n in inspect.signature(type(self).__init__).parameters if n not in ("self", "generator")]
        return {name: getattr(self, name) for name in names}

    def block(self, x: Tensor, y: Tensor) -> Tensor:
        """phi(x) phi(y)^T: ... n m."""
        left = self.features(x)
        return left @ (left if y is x else self.features(y)).mT

    def log_block(self, x: Tensor, y: Tensor) -> Tensor:
        """log of `block`, from products scaled so that the largest entry of each row is of order one."""
        left, right = self.log_features(x), self.log_features(y)
        if not right.shape[-2]:
            return left @ right.mT
        top = right.detach().amax(-2, keepdim=True)
        size = (left.detach() + top).amax(-1, keepdim=True)
        return ((left + top - size).exp() @ (right - top).exp().mT).log() + size

    def diagonal(self, x: Tensor) -> Tensor:
        """|phi(x)|^2: ... n."""
        return self.features(x).square().sum(-1)

    def workspace(self, d: int) -> int:
        return self.rank + 2 * d
