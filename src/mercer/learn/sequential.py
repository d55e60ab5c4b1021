"""Responses one after the other, each given its nearest earlier ones: likelihood, predictions, rows left out."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor

from mercer.budget import memory_budget
from mercer.errors import NotPositiveDefiniteError
from mercer.kernel import Kernel
from mercer.learn.likelihood import Evidence, Part
from mercer.learn.likelihoods import Observation
from mercer.learn.state import record
from mercer.operators.vecchia import seen, sequence

COPIES = 14  # blocks of the size of a group alive at once, gradients included
MOST = 2048  # groups at once: what stays in the cache


def height(k: int) -> int:
    """Groups of k points that are worked on at once, within the memory budget."""
    return int(min(max(memory_budget() // (2 * 8 * COPIES * k * k), 16), MOST))


@record
@dataclass(frozen=True)
class Observed:
    """What was observed: x: n d, y: n c (means over the rows of each place), shares: their noise in that of a row.

    rest: squared distances of rows from the mean of their place, summed, `c`; free: how many rows these add.
    """

    x: Tensor
    y: Tensor
    shares: Tensor
    rest: Tensor
    free: float = 0.0
    sizes: float = 0.0  # sum of the logarithms of the rows at each place


@dataclass(frozen=True)
class Rows:
    """Observations: y: n, the place of each, the mean of f, and the model p(y | f)."""

    y: Tensor
    place: Tensor
    centre: float
    model: Observation

    def slopes(self, mean: Tensor, variance: Tensor) -> tuple[float, Tensor, Tensor]:
        """(sum of E log p(y | f), its slopes in the mean and the variance of each place)."""
        at = self.place
        value, first, second = self.model.slopes(
            self.y[:, None], self.centre + mean[at][:, None], variance[at][:, None]
        )
        return (
            float(value),
            torch.zeros_like(mean).index_add(0, at, first[:, 0]),
            torch.zeros_like(mean).index_add(0, at, second[:, 0]),
        )


class Conditionals(Evidence):
    """log p(y) as a sum of conditional densities of y_i given the nearest earlier y; c outputs of one covariance.

    parts: (groups: b k, weights: b): members of each group with the point itself last, -1 where none; a weight above 1
    stands for others that were not drawn. neighbours: n - 1 of them give the exact likelihood.
    Cost: (k^3 / 3 + 2 k^2 (c + 1)) flops and two kernel blocks for each group; memory b k^2 in blocks.
    Source [vecchia1988], [katzfuss2021].
    """

    def __init__(self, kernel: Kernel, noise: float, data: Observed, neighbours: int):
        super().__init__(kernel, noise, [], profile=False)
        self.data, self.neighbours = data, neighbours

    def draw(self, rows: int, generator: torch.Generator) -> None:
        """Order all points anew; keep the coarsest quarter of `rows` conditionals and a random draw of the others."""
        order, groups = sequence(self.kernel, self.data.x, self.neighbours)
        n, first = len(order), rows // 4
        members = torch.where(groups >= 0, order[groups.clamp_min(0)], -1)
        weights = torch.ones(n, dtype=torch.float64)
        if n > rows:
            later = first + torch.randperm(n - first, generator=generator)[: rows - first].sort().values
            members = torch.cat([members[:first], members[later]])
            weights = torch.cat(
                [weights[:first], torch.full((len(later),), (n - first) / len(later), dtype=torch.float64)]
            )
        self.parts: list[Part] = [(members, weights)]

    def _part(self, part: Part, gradient: bool) -> tuple[float, list[Tensor]]:
        members, weights = part
        noise = math.exp(self.log_noise)
        data = self.data
        value = -0.5 * float(data.rest.sum()) / noise
        value -= 0.5 * data.y.shape[1] * (data.free * math.log(2 * math.pi * noise) + data.sizes)
        down = 0.5 * float(data.rest.sum()) / noise - 0.5 * data.y.shape[1] * data.free
        total = [torch.zeros_like(p) for _, p in self.named]
        size = height(members.shape[1])
        for group, weight in zip(members.split(size), weights.split(size), strict=True):
            found, grads, slope = self._some(group, weight, noise, gradient)
            value, down = value + found, down + slope
            total = [t if g is None else t + g for t, g in zip(total, grads, strict=True)]
        return value, [*total, torch.tensor(down, dtype=torch.float64)]

    def _some(
        self, group: Tensor, weight: Tensor, noise: float, gradient: bool
    ) -> tuple[float, Sequence[Tensor | None], float]:
        real, at = group >= 0, group.clamp_min(0)
        with torch.set_grad_enabled(gradient):
            block = self.kernel.block(self.data.x[at], self.data.x[at])
        share = torch.where(real, self.data.shares[at], 1.0)
        lower = factor(block.detach(), real, noise * share)
        y = torch.where(real[..., None], self.data.y[at], 0.0)
        ends = torch.zeros_like(y[..., :1])
        ends[:, -1] = 1.0
        solved = torch.cholesky_solve(torch.cat([ends, y], -1), lower)
        b, c = solved[..., :1], solved[..., 1:]
        last, s = b[:, -1, 0], (b * y).sum(1)  # precision of y_i given the others; its residual times that
        outputs, squares = y.shape[-1], s.square().sum(1)
        each = 0.5 * outputs * (last.log() - math.log(2 * math.pi)) - 0.5 * squares / last
        value = float(weight @ each)
        leaves = [p for _, p in self.named]
        if not gradient:
            return value, [None] * len(leaves), 0.0
        side = (c * (s / last[:, None])[:, None]).sum(-1, keepdim=True)
        side = side - 0.5 * (outputs / last + squares / last.square())[:, None, None] * b
        slope = weight[:, None, None] * side @ b.mT  # not symmetric; the block is
        slope = torch.where(real[..., None] & real[:, None], slope, 0.0)
        grads: Sequence[Tensor | None] = [None] * len(leaves)
        if leaves and block.requires_grad:
            grads = torch.autograd.grad(block, leaves, slope, allow_unused=True)
        return value, grads, noise * float((share * slope.diagonal(dim1=-2, dim2=-1)).sum())


def factor(block: Tensor, real: Tensor, noise: Tensor) -> Tensor:
    """Cholesky factors of blocks + noise, `b k k`, with ones where a group has no member."""
    eye = torch.eye(block.shape[-1], dtype=block.dtype)
    both = real[..., None] & real[..., None, :]
    lower, info = torch.linalg.cholesky_ex(
        torch.where(both, block, eye) + torch.where(real, noise, 0.0)[..., None] * eye
    )
    if bool((info != 0).any()):
        raise NotPositiveDefiniteError("rows that nearly coincide have no factor: the noise is too small", 0.0)
    return lower


class Nearby:
    """Predictions of f from the nearest observed points. kernel and noise: as learned."""

    def __init__(self, kernel: Kernel, noise: float, data: Observed):
        self.kernel, self.noise, self.data = kernel, noise, data
        self.tree = cKDTree(seen(kernel, data.x))

    def _near(self, x: Tensor, k: int) -> Tensor:
        rows = self.tree.query(seen(self.kernel, x), k, workers=-1)[1]
        return torch.from_numpy(np.asarray(rows, dtype=np.int64)).reshape(len(x), k)

    def _blocks(self, x: Tensor, k: int) -> Iterator[slice]:
        size = height(k + 1)
        for start in range(0, len(x), size):
            yield slice(start, min(start + size, len(x)))

    @torch.no_grad()
    def _solve(self, x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        near = self.data.x[rows]
        lower = factor(
            self.kernel.block(near, near), torch.ones_like(rows, dtype=torch.bool), self.noise * self.data.shares[rows]
        )
        across = self.kernel.block(near, x[:, None])
        half = torch.linalg.solve_triangular(lower, torch.cat([across, self.data.y[rows]], -1), upper=False)
        mean = (half[..., :1] * half[..., 1:]).sum(1)
        return mean, (self.kernel.diagonal(x) - half[..., 0].square().sum(1)).clamp_min(0)

    def predict(self, x: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """(mean `q c`, variance `q`) of f at x: q d, each from its k nearest observed points."""
        found = [self._solve(x[at], self._near(x[at], k)) for at in self._blocks(x, k)]
        if not found:
            return x.new_zeros(0, self.data.y.shape[1]), x.new_zeros(0)
        return torch.cat([m for m, _ in found]), torch.cat([v for _, v in found])

    def left_out(self, rows: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """(mean, variance) of f at observed points, each from its k nearest others."""
        means, variances = [], []
        for at in self._blocks(rows, k):
            own, x = rows[at], self.data.x[rows[at]]
            near = self._near(x, k + 1)
            same = near == own[:, None]
            same[~same.any(1), -1] = True
            mean, variance = self._solve(x, near[~same].reshape(len(own), k))
            means.append(mean)
            variances.append(variance)
        return torch.cat(means), torch.cat(variances)

    @torch.no_grad()
    def together(self, x: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """(mean `q c`, covariance `q q`) of f at x: q d: each point after the observed ones and those of x before it.

        Each is given its k nearest observed points and its k nearest earlier ones of x.
        Cost: q (2 k + 1)^3 / 3 + q^3 / 3 flops.
        """
        order, groups = sequence(self.kernel, x, k)
        x, q, n = x[order], len(x), len(self.data.x)
        both = torch.cat([self.data.x, x])
        noise = torch.cat([self.noise * self.data.shares, x.new_zeros(q)])
        members = torch.cat([self._near(x, k), torch.where(groups >= 0, groups + n, -1)], 1)
        left, ahead = x.new_zeros(q, self.data.y.shape[1]), x.new_zeros(q, q)
        size = height(members.shape[1])
        for at, group in zip(torch.arange(q).split(size), members.split(size), strict=True):
            real, to = group >= 0, group.clamp_min(0)
            lower = factor(self.kernel.block(both[to], both[to]), real, noise[to])
            ends = lower.new_zeros(*group.shape, 1)
            ends[:, -1] = 1.0
            u = torch.linalg.solve_triangular(lower.mT, ends, upper=True)[..., 0] * real
            known = real & (group < n)
            left[at] = -(torch.where(known, u, 0.0)[..., None] * self.data.y[torch.where(known, group, 0)]).sum(1)
            row, col = torch.nonzero(real & ~known, as_tuple=True)
            ahead[group[row, col] - n, at[row]] = u[row, col]
        back = torch.argsort(order)
        root = torch.linalg.solve_triangular(ahead, torch.eye(q, dtype=x.dtype), upper=True)  # U^-1, so cov = U^-T U^-1
        mean, covariance = root.mT @ left, root.mT @ root
        return mean[back], covariance[back][:, back]
