"""The linear kernel as the low-rank operator that it is."""

from __future__ import annotations

import torch
from torch import Tensor

from mercer.assemble import Request, rule
from mercer.claims import NO_CLAIMS, PSD
from mercer.feature import FeatureMap
from mercer.kernel import Kernel
from mercer.operator import Operator
from mercer.operators.lowrank import Factor, LowRank
from mercer.statistic import Statistic


class _Scaled(FeatureMap):
    """The points as a linear kernel scales them, with its parameters as they are when asked."""

    def __init__(self, kernel: Kernel, d: int):
        super().__init__()
        self.kernel, self.rank, self.claims = kernel, d, kernel.claims & PSD

    def features(self, x: Tensor) -> Tensor:
        scale = (self.kernel.program() or [])[0].scale
        return x if scale is None else x * scale.to(x.dtype)

    def redraw(self, generator: torch.Generator | None = None) -> None:
        """Nothing was drawn."""


@rule
def linear(request: Request) -> Operator | None:
    """A kernel that is one dot product: x (y^T v) in place of (x y^T) v."""
    program, x, y = request.kernel.program() or [], request.x.points, request.y.points
    one = len(program) == 1 and program[0].op == "identity" and program[0].statistic is Statistic.DOT
    if not one or program[0].points is not None or x.dtype not in (torch.float32, torch.float64):
        return None
    phi = _Scaled(request.kernel, x.shape[-1])
    left = Factor.of(phi, x)
    right = left if request.square else Factor.of(phi, y)
    return LowRank(left, right, phi.claims if request.square else NO_CLAIMS)
