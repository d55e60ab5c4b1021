"""Kernel thinning: few points whose kernel mean is close to that of many."""

from __future__ import annotations

import math
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from mercer.budget import memory_budget
from mercer.claims import Claim
from mercer.domain import Domain, as_domain, finite
from mercer.errors import DataError, ShapeError, StructureError
from mercer.kernel import Kernel

PAIRS = 256  # at most so many pairs of points does one step of the walk hold the differences' Gram matrix of
COPIES = 8  # matrices of the size of a Gram block alive at once, in float64


def thin(
    kernel: Kernel,
    x: Tensor | Domain,
    size: int,
    *,
    delta: float = 0.5,
    swaps: int = 1,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Indices of `size` distinct rows of x whose equally weighted mean has a small MMD to all of x.

    Target kernel thinning: halve log2(n / size) times by a self-balancing walk, take the best of the coresets found
    and of a random subset, then swap single points while that lowers the MMD.
    kernel: psd or conditionally psd. x: n d. size: 1 <= size <= n; where n / size is no power of two, size 2^m random
    rows are walked and all n rows still are the target and the candidates of the swaps. delta: in (0, 1), the failure
    probability of the walk's bound. swaps: >= 0, passes over the coreset.
    Cost: about (3 + swaps size / n) n^2 kernel values, memory O(n) and the budget's blocks.
    Error: MMD near n^-1/2 for smooth kernels where random rows give n^-1/4, at size sqrt(n). Raises StructureError for
    other kernels, DataError for NaN. Source [dwivedi2024, alg. 1; dwivedi2022].
    """
    points = _checked(kernel, x, size, delta, swaps)
    n = len(points)
    with torch.no_grad():
        rounds = (n // size).bit_length() - 1
        order = torch.randperm(n, generator=generator).to(points.device)
        halved = _split(kernel, points, order[: size << rounds], rounds, delta, generator)
        coresets = torch.cat([halved, order[None, :size]])
        mean = (kernel(points) @ torch.full_like(points[:, :1], 1 / n)).squeeze(-1)
        best = coresets[int(_discrepancy(kernel, points, coresets, mean).argmin())]
        return _swap(kernel, points, best, mean, swaps)


def _checked(kernel: Kernel, x: Any, size: int, delta: float, swaps: int) -> Tensor:
    if Claim.CPD not in kernel.claims:
        raise StructureError(f"thinning needs a kernel that is psd or conditionally psd, {kernel!r} claims neither")
    domain = as_domain(x)
    if domain.points.ndim != 2:
        raise ShapeError(f"x has shape {tuple(domain.points.shape)}; expected n d")
    if domain.weights is not None:
        raise DataError("x has weights, and thinning counts every row alike; pass the points without weights")
    if not isinstance(size, Integral):
        raise TypeError(f"size is {size!r}; expected a whole number of rows")
    if not 1 <= size <= domain.n:
        raise DataError(f"size is {size}; expected between 1 and the {domain.n} rows of x")
    if not 0 < delta < 1 or swaps < 0:
        raise ValueError(f"delta is {delta}, swaps {swaps}; expected delta in (0, 1) and swaps >= 0")
    return finite("x", domain.points).to(torch.float64)


def _split(
    kernel: Kernel, points: Tensor, order: Tensor, rounds: int, delta: float, generator: torch.Generator | None
) -> Tensor:
    """2^rounds coresets, `2^rounds size`: each round halves every coreset of the one before, all of them at once."""
    coresets = order.unsqueeze(0)
    for done in range(rounds):
        scale = 2 * math.log(2 * len(order) * rounds / (delta * 2**done))  # 2 log(2 / delta') of each halving step
        pairs = coresets.unflatten(-1, (-1, 2))
        swapped = _walk(kernel, points[pairs[..., 0]], points[pairs[..., 1]], scale, generator)
        kept = torch.where(swapped, pairs[..., 1], pairs[..., 0])
        coresets = torch.stack([kept, pairs.sum(-1) - kept], 1).flatten(0, 1)
    return coresets


def _walk(kernel: Kernel, x: Tensor, y: Tensor, scale: float, generator: torch.Generator | None) -> Tensor:
    """Which pairs (x_i, y_i) give y_i to the first half: x, y: b p d -> b p, as many of the b at once as fit."""
    chance = torch.rand(x.shape[:2], dtype=x.dtype, generator=generator).to(x.device)
    numbers = memory_budget() // (2 * 8 * COPIES)
    pairs = max(min(PAIRS, x.shape[1], math.isqrt(numbers) // 2), 1)
    together = max(numbers // (2 * pairs) ** 2, 1)
    parts = zip(x.split(together), y.split(together), chance.split(together), strict=True)
    return torch.cat([_walk_together(kernel, u, v, draws, scale, pairs) for u, v, draws in parts])


def _walk_together(kernel: Kernel, x: Tensor, y: Tensor, chance: Tensor, scale: float, pairs: int) -> Tensor:
    """The self-balancing walk over pairs of points, for several samples side by side.

    The signed sum psi of the differences k(x_i) - k(y_i) is kept small: alpha = <psi, k(x_i) - k(y_i)>, and the sign
    that lowers it is the more likely one. Pairs in blocks: the past enters through a product with the lazy operator.
    """
    count = x.shape[1]
    sign = torch.zeros_like(chance)
    variance = torch.zeros_like(chance[:, 0])
    for start in range(0, count, pairs):
        here = slice(start, min(start + pairs, count))
        u, v = x[:, here], y[:, here]
        both = torch.cat([u, v], 1)
        gram = kernel.block(both, both).unflatten(-1, (2, -1)).unflatten(-3, (2, -1))
        gram = gram[:, 0, :, 0] + gram[:, 1, :, 1] - gram[:, 0, :, 1] - gram[:, 1, :, 0]
        past = torch.zeros_like(u[..., 0])
        if start:
            signs = sign[:, :start, None]
            product = kernel(both, torch.cat([x[:, :start], y[:, :start]], 1)) @ torch.cat([signs, -signs], 1)
            past = (product[:, : u.shape[1]] - product[:, u.shape[1] :]).squeeze(-1)
        for i in range(u.shape[1]):
            size = gram[:, i, i].clamp_min(0)  # b^2 = |k(x) - k(y)|^2
            alpha = past[:, i] + (gram[:, i, :i] * sign[:, start : start + i]).sum(-1)
            bound = torch.maximum((size * variance * scale).sqrt(), size)
            safe = torch.where(bound > 0, bound, 1.0)  # twin points: any choice is as good
            grow = 1 + (size - 2 * bound) * variance / safe.square()
            variance = variance + size * grow.clamp_min(0)
            take = chance[:, start + i] < 0.5 * (1 - alpha / safe)
            sign[:, start + i] = torch.where(take, 1.0, -1.0)
    return sign > 0


def _discrepancy(kernel: Kernel, points: Tensor, coresets: Tensor, mean: Tensor) -> Tensor:
    """The squared MMD of each coreset to all points, up to the constant they share."""
    chosen = points[coresets]
    size = coresets.shape[-1]
    ones = torch.ones_like(chosen[..., :1])
    return (kernel(chosen) @ ones).sum((-2, -1)) / size**2 - 2 * mean[coresets].mean(-1)


def _swap(kernel: Kernel, points: Tensor, coreset: Tensor, mean: Tensor, passes: int) -> Tensor:
    """Replace one point at a time by the row that lowers the MMD most; never raises it, never repeats a row."""
    coreset, size = coreset.clone(), len(coreset)
    diagonal = kernel.diagonal(points)
    total = (kernel(points, points[coreset]) @ torch.ones_like(points[coreset, :1])).squeeze(-1)
    for _ in range(passes):
        before = coreset.clone()
        for place in range(size):
            old = coreset[place]
            rest = total - kernel.block(points, points[old, None]).squeeze(-1)
            gain = 2 * rest + diagonal - 2 * size * mean  # size^2 MMD^2, up to what does not depend on the new row
            open_ = torch.ones_like(gain, dtype=torch.bool)
            open_[coreset] = False
            gain_open = torch.where(open_, gain, torch.inf)
            new = gain_open.argmin()
            if gain_open[new] < gain[old]:
                total = rest + kernel.block(points, points[new, None]).squeeze(-1)
                coreset[place] = new
        if bool((coreset == before).all()):
            break
    return coreset
