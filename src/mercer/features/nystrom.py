"""Nystrom features: the kernel seen through its values at a few landmarks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mercer.claims import Claim
from mercer.errors import ShapeError, StructureError
from mercer.feature import FeatureMap
from mercer.kernel import Kernel
from mercer.operators.pivoted import pivoted_cholesky
from mercer.parameter import like

EIGENVALUE = 1e-14  # relative: smaller eigenvalues of K_mm are rounding, and are left out of its pseudo-inverse


def uniform_landmarks(x: Tensor, rank: int, generator: torch.Generator | None = None) -> Tensor:
    """Positions of `rank` rows of x drawn uniformly without replacement, `rank`."""
    return torch.randperm(len(x), generator=generator)[: min(rank, len(x))]


def cholesky_landmarks(kernel: Kernel, x: Tensor, rank: int, generator: torch.Generator | None = None) -> Tensor:
    """Positions of rows drawn by randomly pivoted Cholesky, which spreads them; fewer where x has fewer distinct ones.

    Cost: rank n kernel values and n rank^2 flops. Source [chen2025, alg. 1].
    """
    return pivoted_cholesky(kernel(x), rank, random=True, generator=generator, block=max(1, rank // 10))[1]


class Nystrom(FeatureMap):
    """Features of any psd kernel from m landmarks z: phi(x) phi(y)^T = k(x, z) k(z, z)^+ k(z, y).

    kernel: psd (else StructureError). landmarks: m d. Exact where x or y is a landmark.
    Claims: symmetric, psd. Cost: m kernel values and m^2 flops for each row; m^3 once per parameter change.
    Error: K - phi phi^T is psd; it falls with the eigenvalues of K beyond m.
    Source [williams2001].
    """

    landmarks: Tensor

    def __init__(self, kernel: Kernel, landmarks: Any):
        super().__init__()
        if Claim.PSD not in kernel.claims:
            raise StructureError(f"Nystrom needs a psd kernel; {kernel!r} does not claim it")
        points = torch.as_tensor(landmarks)
        if points.ndim != 2 or not len(points):
            raise ShapeError(f"Nystrom.landmarks has shape {tuple(points.shape)}; expected m d with m >= 1")
        self.kernel, self.rank = kernel, len(points)
        self.register_buffer("landmarks", points)

    @classmethod
    def fit(
        cls,
        kernel: Kernel,
        x: Tensor,
        rank: int,
        method: str = "cholesky",
        generator: torch.Generator | None = None,
    ) -> Nystrom:
        """Landmarks chosen from the rows of x: "cholesky" (randomly pivoted Cholesky) or "uniform"."""
        if method not in ("cholesky", "uniform"):
            raise ValueError(f"Nystrom.fit: method is {method!r}; expected 'cholesky' or 'uniform'")
        uniform = method == "uniform"
        at = uniform_landmarks(x, rank, generator) if uniform else cholesky_landmarks(kernel, x, rank, generator)
        return cls(kernel, x[at])

    def features(self, x: Tensor) -> Tensor:
        """phi(x): x: ... n d -> ... n m."""
        z = self.landmarks.to(torch.float64)
        values, vectors = torch.linalg.eigh(self.kernel.block(z, z))
        keep = values > EIGENVALUE * len(z) * values[-1].detach()
        whitening = torch.where(keep, torch.where(keep, values, 1.0).rsqrt(), 0.0) * vectors
        return self.kernel.block(x, like(self.landmarks, x)) @ like(whitening, x)

    def redraw(self, generator: torch.Generator | None = None) -> None:
        """The landmarks are given, not drawn: nothing changes."""

    def __repr__(self) -> str:
        return f"Nystrom({self.kernel!r}, {self.rank} landmarks)"
