"""Vecchia: a psd kernel through a sparse factor of its inverse."""

from __future__ import annotations

from functools import cached_property, partial

import numpy as np
import torch
from torch import Tensor

from mercer.budget import memory_budget
from mercer.claims import PSD, Claim
from mercer.errors import NotPositiveDefiniteError, ShapeError, StructureError
from mercer.kernel import Kernel, ProfileKernel, Scaled, Warped
from mercer.operator import Composed, Cost, Operator
from mercer.operators.kept import Kept
from mercer.operators.ordering import earlier_neighbours, maximin
from mercer.operators.pattern import Pattern, product
from mercer.operators.solvable import (
    POINT_RATE,
    SPARSE_RATE,
    Shift,
    Solvable,
    System,
    again,
    answer,
    columns,
    implicit_solve,
)
from mercer.operators.sparse import Sparse, solve_pattern, times
from mercer.operators.speed import call_seconds
from mercer.solver import Solution


@torch.no_grad()
def seen(kernel: Kernel, points: Tensor) -> np.ndarray:
    """Where a kernel sees points, `n d'` float64: the scaled coordinates of its stationary parts, else the points."""
    found = _coordinates(kernel, points.detach().double().cpu())
    return np.concatenate(found, 1) if found else points.detach().double().cpu().numpy()


def _coordinates(kernel: Kernel, x: Tensor) -> list[np.ndarray]:
    if isinstance(kernel, ProfileKernel):
        return [kernel.coordinates(x).numpy()] if Claim.STATIONARY in kernel.claims else []
    if isinstance(kernel, Warped):
        return _coordinates(kernel.kernel, kernel.moved(x))
    parts = [kernel.kernel] if isinstance(kernel, Scaled) else getattr(kernel, "parts", [])
    return [u for part in parts for u in _coordinates(part, x)]


def sequence(kernel: Kernel, points: Tensor, neighbours: int) -> tuple[Tensor, Tensor]:
    """(order from coarse to fine, each place's group: its nearest earlier ones and itself last, -1 where none)."""
    place = seen(kernel, points)
    order = maximin(place)
    near = earlier_neighbours(place[order], min(neighbours, max(len(order) - 1, 0)))
    groups = np.concatenate([near[:, ::-1], np.arange(len(order))[:, None]], 1)
    return torch.from_numpy(order), torch.from_numpy(groups)


class Vecchia(Solvable):
    """An approximation of K + noise I for a psd kernel on points: its inverse is U U^T with a sparse triangular U.

    Points are ordered from coarse to fine; column i of U holds point i and its nearest earlier `neighbours`:
    u = C^-T e_last with C C^T = K + noise I of these points, i last [schafer2021, thm. 2.1]. Among all factors with
    these entries it has the least Kullback-Leibler divergence, which falls as `neighbours` grows; with n - 1 of
    them it is exact.
    kernel: psd. points: n d, float32 or float64. noise: >= 0, a number or a scalar tensor. neighbours: >= 1.
    The order is that of the first use. `factor()` is U, `precision()` the inverse, `error(v)` the error of products.
    Cost: n (neighbours + 1)^3 / 3 flops to make, kept where no gradient is wanted; 2 n neighbours each solve.
    Error: that of the approximation; never proposed by `assemble`. Raises: NotPositiveDefiniteError for equal points
    without noise. Source [vecchia1988; schafer2021].
    """

    def __init__(self, kernel: Kernel, points: Tensor, noise: Shift = 0.0, neighbours: int = 30):
        if Claim.PSD not in kernel.claims:
            raise StructureError(f"Vecchia takes a psd kernel; {kernel!r} does not claim it")
        if points.ndim != 2 or points.device.type != "cpu":
            raise ShapeError(f"points have shape {tuple(points.shape)} on {points.device}; expected n d on the CPU")
        if neighbours < 1:
            raise ValueError(f"Vecchia.neighbours is {neighbours}; expected at least 1")
        self.kernel, self.points, self.noise, self.neighbours = kernel, points, noise, neighbours
        self._kept = Kept()
        n = len(points)
        self.shape, self.dtype, self.device, self.claims = torch.Size([n, n]), points.dtype, points.device, PSD

    @cached_property
    def _places(self) -> tuple[Tensor, Tensor, Pattern, Tensor]:
        """(order, each point's group: itself last, -1 where none, the pattern of U, the order of its values)."""
        order, groups = sequence(self.kernel, self.points, self.neighbours)
        row, rows = torch.nonzero(groups >= 0)[:, 0], groups[groups >= 0]
        n = len(order)
        pattern, sorting = Pattern.sorted(rows, row, n, n)
        return order, groups, pattern, sorting

    def _columns(self, points: Tensor, group: Tensor, noise: Tensor) -> Tensor:
        """The columns of U for some groups, b k -> b k."""
        real = group >= 0
        at = points[group.clamp_min(0)]
        block = self.kernel.block(at, at)
        eye = torch.eye(group.shape[-1], dtype=block.dtype)
        both = real.unsqueeze(-1) & real.unsqueeze(-2)
        lower, info = torch.linalg.cholesky_ex(torch.where(both, block + noise * eye, eye))
        if bool((info != 0).any()):
            raise NotPositiveDefiniteError("points that nearly coincide have no factor: add noise", 0.0)
        return torch.linalg.solve_triangular(lower.mT, eye[:, -1:].expand(*group.shape, 1), upper=True)[..., 0]

    def values(self) -> tuple[Pattern, Tensor]:
        """The places of U and its values there, differentiable in points, noise and the kernel's parameters."""
        order, groups, pattern, sorting = self._places
        noise = torch.as_tensor(self.noise, dtype=self.dtype)

        def make() -> Tensor:
            points, (n, k) = self.points[order], groups.shape
            height = max(memory_budget() // 2 // (8 * k * k * self.dtype.itemsize), 16)
            run = again(self._columns, points, noise, *self.kernel.parameters()) if n > height else self._columns
            found = [run(points, part, noise) for part in groups.split(height)]
            return torch.cat(found)[groups >= 0][sorting] if found else points[:, 0]

        if torch.is_grad_enabled() and noise.requires_grad:
            return pattern, make()
        return pattern, self._kept.get(self.kernel, make, self.points, key=float(noise.detach()))

    def factor(self) -> Operator:
        """U, upper triangular in the order from coarse to fine, its rows moved to the places of the points."""
        pattern, values = self.values()
        order, n = self._places[0], self.shape[-1]
        return Sparse(values, order[pattern.rows], pattern.cols, (n, n))

    def precision(self) -> Operator:
        """(K + noise I)^-1 as U U^T."""
        factor = self.factor()
        precision = Composed(factor, factor.mT)
        precision.claims = PSD
        return precision

    def matmul(self, v: Tensor) -> Tensor:
        order = self._places[0]
        if not v.numel():
            return v
        pattern, values = self.values()
        zero = torch.zeros((), dtype=self.dtype)
        system = System(partial(solve_pattern, pattern, "NATURAL"), partial(times, pattern))
        inner = implicit_solve(system, v[..., order, :], values, zero)
        outer = implicit_solve(system, inner, values, zero, transposed=True)
        return outer[..., torch.argsort(order), :]

    @property
    def mT(self) -> Vecchia:
        return self

    def cost(self, rhs: int = 1) -> Cost:
        n, k = self.shape[-1], min(self.neighbours, self.shape[-1]) + 1
        work = 4.0 * n * k * rhs
        memory = min(8.0 * n * k * k * self.dtype.itemsize, memory_budget() / 2) + 60.0 * n * k
        make = n * k**3 / 3
        return Cost(make, work, memory, make / 7e8 + n / POINT_RATE * 30, call_seconds() + 4 * work / SPARSE_RATE)

    def solve(self, b: Tensor, shift: Shift = 0.0) -> Solution:
        """U U^T b: the exact inverse of this approximation. A shift belongs in `noise`: StructureError otherwise."""
        _unshifted("solve", shift)
        wide, order = columns(self, b), self._places[0]
        pattern, values = self.values()
        inner = product(pattern, values, wide[..., order, :], transposed=True)
        x = product(pattern, values, inner)[..., torch.argsort(order), :]
        return answer(self, x, b, torch.zeros((), dtype=self.dtype))

    def logdet(self, shift: Shift = 0.0) -> Tensor:
        """log det of this approximation. A shift belongs in `noise`: StructureError otherwise."""
        _unshifted("logdet", shift)
        pattern, values = self.values()
        return -2 * values[pattern.rows == pattern.cols].log().sum()

    @torch.no_grad()
    def error(self, v: Tensor) -> float:
        """|A v - (K + noise I) v| / |(K + noise I) v| for a matrix v `n c`, K applied exactly."""
        exact = self.kernel(self.points).matmul(v) + torch.as_tensor(self.noise, dtype=self.dtype) * v
        return float((self.matmul(v) - exact).norm() / exact.norm())


def _unshifted(what: str, shift: Shift) -> None:
    if isinstance(shift, Tensor) or shift:
        raise StructureError(f"Vecchia.{what} takes no shift: give it as Vecchia(..., noise=...)")
