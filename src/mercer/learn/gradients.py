"""How a kernel predictor moves with its inputs: gradients and their average outer product."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from mercer.assemble import assemble
from mercer.errors import ShapeError
from mercer.kernel import Kernel

BLOCK = 4096  # rows whose gradients are held at once


def agop(kernel: Kernel, x: Tensor, points: Tensor, weights: Tensor, diagonal: bool = False) -> Tensor:
    """The mean over rows of grad f(x) grad f(x)^T, f = k(., points) weights, summed over outputs: `d d` float64.

    x: n d, points: m d, weights: m c; diagonal: only the mean squares of each column's slope, `d`.
    Where k has a kink at a point of its own, the slope there counts as 0.
    Cost: c products of d + 1 right-hand sides where the kernel has a profile, n m (d + 30) c flops; the n x m matrix
    is never formed. Source [radhakrishnan2024, eq. 2].
    """
    if x.ndim != 2 or points.ndim != 2 or weights.ndim != 2 or len(points) != len(weights) or not len(x):
        shapes = f"{tuple(x.shape)}, {tuple(points.shape)}, {tuple(weights.shape)}"
        raise ShapeError(f"agop: x, points and weights have shapes {shapes}; expected n d, m d and m c")
    frozen = copy.deepcopy(kernel).requires_grad_(False)
    d = x.shape[1]
    total = torch.zeros(d if diagonal else (d, d), dtype=torch.float64)
    for part in x.detach().split(BLOCK):
        rows = part.clone().requires_grad_(True)
        with torch.enable_grad():
            found = assemble(frozen, rows, points).matmul(weights.to(rows.dtype))
            for c in range(weights.shape[1]):
                (slope,) = torch.autograd.grad(found[:, c].sum(), rows, retain_graph=c + 1 < weights.shape[1])
                slope = slope.double()
                total += slope.square().sum(0) if diagonal else slope.mT @ slope
    return total / len(x)
