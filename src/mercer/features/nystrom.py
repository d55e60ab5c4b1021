"""Nystrom features: the kernel seen through its values at a few landmarks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mercer.claims import Claim
from mercer.errors import NotPositiveDefiniteError, ShapeError, StructureError
from mercer.feature import FeatureMap
from mercer.kernel import Kernel
from mercer.operators.kept import Kept
from mercer.operators.pivoted import pivoted_cholesky
from mercer.parameter import like

JITTER = 1  # times m eps of the mean diagonal: what is added to K_mm before it is factored
LARGEST = 1e-3  # of the mean diagonal: with more than this the features would be those of another kernel


def uniform_landmarks(x: Tensor, rank: int, generator: torch.Generator | None = None) -> Tensor:
    """Positions of `rank` rows of x drawn uniformly without replacement, `rank`."""
    return torch.randperm(len(x), generator=generator)[: min(rank, len(x))]


def cholesky_landmarks(kernel: Kernel, x: Tensor, rank: int, generator: torch.Generator | None = None) -> Tensor:
    """Positions of rows drawn by randomly pivoted Cholesky, which spreads them; fewer where x has fewer distinct ones.

    Cost: rank n kernel values and n rank^2 flops. Source [chen2025, alg. 1].
    """
    return pivoted_cholesky(kernel(x), rank, random=True, generator=generator, block=max(1, rank // 10))[1]


class Nystrom(FeatureMap):
    """Features of any psd kernel from m landmarks z: phi(x) phi(y)^T = k(x, z) (k(z, z) + jitter I)^-1 k(z, y).

    kernel: psd (else StructureError). landmarks: m d. Exact to jitter where x or y is a landmark. jitter: m eps of
    the mean diagonal, eps of the dtype of x; ten times more, up to 1e-3, where k(z, z) cannot be factored with less.
    Claims: symmetric, psd. Cost: m kernel values and m^2 flops for each row; m^3 / 3 once per parameter change, and
    for each block of rows while a gradient with respect to parameters is wanted.
    Error: K - phi phi^T is psd; it falls with the eigenvalues of K beyond m.
    Raises NotPositiveDefiniteError when no jitter is enough. Source [williams2001].
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
        self.jitter = 0.0  # the last one added, in the units of k
        self._factor = Kept()

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
        points = x if x.dtype in (torch.float32, torch.float64) else x.float()  # half precision has no solver
        lower = self._factor.get(self, lambda: self._cholesky(torch.finfo(points.dtype).eps), key=points.dtype)
        block = self.kernel.block(points, like(self.landmarks, points))
        return torch.linalg.solve_triangular(like(lower, points).mT, block, upper=True, left=False).to(x.dtype)

    def _cholesky(self, eps: float) -> Tensor:
        """The factor of k(z, z) + jitter I in float64. Its gradient exists also where eigenvalues repeat."""
        z = self.landmarks.to(torch.float64)
        gram = self.kernel.block(z, z)
        scale, unit = float(gram.detach().diagonal().mean()), torch.eye(len(z), dtype=z.dtype, device=z.device)
        relative = JITTER * len(z) * eps
        while relative <= LARGEST or relative == JITTER * len(z) * eps:
            lower, info = torch.linalg.cholesky_ex(gram.detach() + relative * scale * unit)
            if not info:
                self.jitter = relative * scale
                return torch.linalg.cholesky(gram + self.jitter * unit) if gram.requires_grad else lower
            relative *= 10
        smallest = float(torch.linalg.eigvalsh(gram.detach())[0])
        raise NotPositiveDefiniteError(
            f"Nystrom: {self.kernel!r} at {len(z)} landmarks has the eigenvalue {smallest:.3g}, its mean diagonal is "
            f"{scale:.3g}, and jitter up to {LARGEST:g} of that did not mend it; is the kernel psd?",
            smallest,
        )

    def redraw(self, generator: torch.Generator | None = None) -> None:
        """The landmarks are given, not drawn: nothing changes."""

    def __repr__(self) -> str:
        return f"Nystrom({self.kernel!r}, {self.rank} landmarks)"
