"""Two-sample test by the maximum mean discrepancy of any kernel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mercer.budget import memory_budget
from mercer.claims import Claim
from mercer.domain import Domain, as_domain, finite
from mercer.errors import DataError, ShapeError, StructureError
from mercer.kernel import Kernel
from mercer.kernels.gaussian import Gaussian

MEDIAN_POINTS = 2000  # the median distance of a pooled sample is taken over at most this many of its points
NO_PAIRS = 1e-12  # of the squared weight of a sample: a share of distinct pairs that is rounding


@dataclass(frozen=True)
class MMDResult:
    """statistic: the unbiased squared MMD. p_value: of the permutation test. null: its draws under permutation.

    estimator: which estimate of the squared MMD. kernel: the kernel used.
    """

    statistic: float
    p_value: float
    null: Tensor
    estimator: str
    kernel: Kernel


def median_kernel(pooled: Tensor, generator: torch.Generator | None = None) -> Gaussian:
    """A Gaussian whose lengthscale is the median distance between distinct points of the pooled sample `n d`.

    Above 2,000 points the median is over a random subset. Raises DataError when half of the pairs coincide.
    Source [gretton2012, sec. 8].
    """
    if len(pooled) > MEDIAN_POINTS:
        pooled = pooled[torch.randperm(len(pooled), generator=generator)[:MEDIAN_POINTS]]
    middle = float(torch.pdist(pooled).median())
    if middle <= 0:
        raise DataError("the median distance is 0: half of the pairs of points coincide; pass a kernel instead")
    return Gaussian(middle)


def squared_mmd(kernel: Kernel, x: Tensor | Domain, y: Tensor | Domain) -> Tensor:
    """The unbiased squared MMD of two samples: mean k(x, x') + mean k(y, y') - 2 mean k(x, y) over distinct points.

    kernel: psd, or conditionally psd (Riesz gives the energy distance). x: n d, y: m d, n, m >= 2; the weights of a
    Domain weigh its points. A scalar in float64, differentiable in points and kernel; it may be below zero.
    Cost: (n + m)^2 (2 d + 30) flops, O(n + m) memory. Raises StructureError for other kernels, DataError for NaN,
    weights that leave no pair, and kernel values so large that the statistic is no number. Source [gretton2012, eq. 3].
    """
    pooled, weights, n = _pool(kernel, x, y)
    sides = torch.zeros_like(pooled[:, :1])
    sides[:n] = 1
    return _finite(kernel, _statistics(kernel, pooled, weights, sides))[0]


def mmd(
    kernel: Kernel | None,
    x: Tensor | Domain,
    y: Tensor | Domain,
    *,
    permutations: int = 999,
    generator: torch.Generator | None = None,
) -> MMDResult:
    """Do two samples come from one distribution? The unbiased squared MMD and its permutation p-value.

    p = (1 + #{permuted >= observed}) / (1 + permutations): at most alpha of equal samples fall below alpha, for any n.
    kernel: psd or conditionally psd; None is a Gaussian at the pooled median distance. x: n d, y: m d, n, m >= 2.
    permutations: >= 1, columns of products with the lazy operator of the pooled sample, as many as the budget allows.
    generator: its seed fixes every split, whatever the memory budget.
    Cost: (n + m)^2 (2 d + 30 + 2 permutations) flops; memory O((n + m) permutations), within the memory budget.
    Raises StructureError, DataError as `squared_mmd`, for any split. Source [gretton2012, eq. 3; phipson2010].
    """
    if permutations < 1:
        raise ValueError(f"permutations is {permutations}; expected at least 1")
    if kernel is None:
        kernel = median_kernel(_pool(Gaussian(), x, y)[0], generator)
    pooled, weights, n = _pool(kernel, x, y)
    total = len(pooled)
    width = max(memory_budget() // (8 * 8 * total), 1)  # columns at a time, eight arrays of that width in float64
    found = []
    with torch.no_grad():
        for start in range(0, permutations + 1, width):
            count = min(width, permutations + 1 - start)
            # one split after the other, so that a seed gives the same ones whatever the budget
            drawn = [torch.randperm(total, generator=generator) for _ in range(count - (start == 0))]
            order = torch.stack([torch.arange(total), *drawn] if start == 0 else drawn, 1)  # the observed split first
            sides = torch.zeros_like(order, dtype=torch.float64).scatter_(0, order[:n], 1.0).to(pooled.device)
            found.append(_finite(kernel, _statistics(kernel, pooled, weights, sides)))
        scale = kernel(pooled[:1], pooled).dense().abs().max()
    values = torch.cat(found)
    observed, null = values[0], values[1:]
    slack = 1e-12 * float(scale + values.abs().max())  # equal splits differ by rounding
    beyond = int((null >= observed - slack).sum())
    return MMDResult(float(observed), (1 + beyond) / (1 + permutations), null, "unbiased", kernel)


def _pool(kernel: Kernel, x: Any, y: Any) -> tuple[Tensor, Tensor, int]:
    """Both samples below each other in float64, their weights (one where there are none), and the size of the first."""
    if Claim.CPD not in kernel.claims:
        raise StructureError(
            f"the MMD needs a kernel that is psd or conditionally psd, {kernel!r} claims neither: it could call two "
            "different distributions equal; use e.g. Gaussian, Matern or Riesz"
        )
    first, second = as_domain(x), as_domain(y)
    for name, side in (("x", first), ("y", second)):
        if side.points.ndim != 2:
            raise ShapeError(f"{name} has shape {tuple(side.points.shape)}; expected n d")
        if side.n < 2:
            raise DataError(f"{name} has {side.n} points; the unbiased estimate needs at least 2")
    if first.d != second.d:
        raise ShapeError(f"y.d is {second.d}, x.d is {first.d}")
    parts, weights = [], []
    for name, side in (("x", first), ("y", second)):
        parts.append(finite(name, side.points).to(torch.float64))
        weights.append(torch.ones_like(parts[-1][:, 0]) if side.weights is None else side.weights.to(parts[-1]))
        bad = ~(torch.isfinite(weights[-1]) & (weights[-1] >= 0))
        if bool(bad.any()):
            row = int(bad.nonzero()[0])
            raise DataError(f"{name}.weights is {float(weights[-1][row])} at row {row}; expected finite numbers >= 0")
    return torch.cat(parts), torch.cat(weights), first.n


def _finite(kernel: Kernel, values: Tensor) -> Tensor:
    if not bool(torch.isfinite(values).all()):
        raise DataError(
            f"the squared MMD is {float(values[~torch.isfinite(values)][0])}: {kernel!r} overflows on these points; "
            "standardise them, or use a kernel that is bounded, such as Gaussian"
        )
    return values


def _statistics(kernel: Kernel, pooled: Tensor, weights: Tensor, sides: Tensor) -> Tensor:
    """The statistic of every split: sides `n b` holds 1 for the points of the first sample and 0 for the second's."""
    a = weights.unsqueeze(-1) * sides
    whole = weights.unsqueeze(-1)
    product = kernel(pooled) @ torch.cat([whole, a], -1)
    all_, first = product[:, :1], product[:, 1:]  # K w and K a
    diagonal = kernel.diagonal(pooled).unsqueeze(-1)
    within = (a * first).sum(0)
    cross = (a * all_).sum(0) - within
    rest = (whole * all_).sum(0) - within - 2 * cross
    within = within - (a.square() * diagonal).sum(0)  # distinct pairs only
    b = whole - a
    rest = rest - (b.square() * diagonal).sum(0)
    size_a, size_b = a.sum(0), b.sum(0)
    pairs_a, pairs_b = size_a.square() - a.square().sum(0), size_b.square() - b.square().sum(0)
    if not bool((pairs_a > NO_PAIRS * size_a.square()).all() and (pairs_b > NO_PAIRS * size_b.square()).all()):
        raise DataError(
            "the weights leave a sample, or one of its permutations, with a single point that counts: no pair of "
            "distinct points to average over; drop the points of weight 0 and use at least 2 others on each side"
        )
    return within / pairs_a + rest / pairs_b - 2 * cross / (size_a * size_b)
