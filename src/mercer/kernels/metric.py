"""A linear map of the points, through which a kernel sees them in a metric of its own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mercer.errors import ShapeError
from mercer.parameter import like

LEAST = 1e-10  # of the largest eigenvalue: directions of a metric that no distance feels


class Metric(nn.Module):
    """The map x -> x matrix, `... n d -> ... n r`; `k.warp(Metric(A))` sees |x - y| in the metric M = A A^T.

    (x - y)^T M (x - y) is then the squared distance of two points, so directions outside A do not count at all.
    matrix: d r, finite, in the inverse units of x; a buffer, not trained by likelihood. Cost: 2 n d r flops.
    Raises ShapeError where matrix is not one, ValueError where it is not finite.
    """

    matrix: Tensor

    def __init__(self, matrix: Any):
        super().__init__()
        found = torch.as_tensor(matrix, dtype=torch.float64)
        if found.ndim != 2 or not found.numel():
            raise ShapeError(f"Metric.matrix has shape {tuple(found.shape)}; expected d r with d, r >= 1")
        if not bool(torch.isfinite(found).all()):
            raise ValueError("Metric.matrix holds NaN or infinity; expected finite numbers")
        self.register_buffer("matrix", found.detach().clone())

    @classmethod
    def of(cls, metric: Any) -> Metric:
        """The map to the eigenvectors of a psd metric M: d d, each times the root of its eigenvalue, largest first."""
        m = torch.as_tensor(metric, dtype=torch.float64)
        if m.ndim != 2 or m.shape[0] != m.shape[1]:
            raise ShapeError(f"Metric.of: metric has shape {tuple(m.shape)}; expected d d")
        values, vectors = torch.linalg.eigh((m + m.mT) / 2)
        if float(values[-1]) <= 0 or float(values[0]) < -1e-8 * float(values[-1]):
            raise ValueError(f"Metric.of: eigenvalues are {values[0]:.3g} to {values[-1]:.3g}; expected a psd metric")
        kept = (values > LEAST * values[-1]).nonzero()[:, 0].flip(0)
        return cls(vectors[:, kept] * values[kept].sqrt())

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] != len(self.matrix):
            raise ShapeError(f"the metric has {len(self.matrix)} columns, x.d is {x.shape[-1]}")
        return x @ like(self.matrix, x)
