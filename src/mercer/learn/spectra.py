"""Eigenpairs of a kernel on its rows, and what a filter of any level makes of them: weights, left-out errors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mercer.assemble import assemble
from mercer.kernel import Kernel
from mercer.learn.filters import Filter, gain
from mercer.learn.landmarks import block_rows
from mercer.learn.plan import EXACT_ROWS
from mercer.learn.solve import FOLDS
from mercer.learn.tune import Clock
from mercer.linalg import Cholesky
from mercer.linalg.lanczos import Recurrence

Levels = Callable[[float, bool], list[float]]  # (largest eigenvalue, whether products are float32) -> levels to try
TOLERANCE = 5e-4  # change of the fit, relative to y, in the last ten Lanczos steps
CHECK, MOST = 10, 150  # Lanczos steps between looks, and at most


@dataclass(frozen=True)
class Found:
    """f(x) = k(x, points) weights at `level`; errors: left-out mean squares of all levels; left_out: `n c`."""

    points: Tensor
    weights: Tensor
    left_out: Tensor
    level: float
    levels: list[float]
    errors: list[float]
    residual: float = 0.0
    steps: int = 0
    jitter: float = 0.0


@dataclass(frozen=True)
class _Pairs:
    """values `r` of the operator; the weights of a filter are turn (gain(values) * coefficients): `p r`, `r c`."""

    values: Tensor
    turn: Tensor
    coefficients: Tensor

    def seen(self, across: Tensor, h: Filter, levels: list[float]) -> Tensor:
        """Predictions `levels q c` where the turned kernel values are `q r`."""
        return torch.stack([across @ (gain(h, self.values, a)[:, None] * self.coefficients) for a in levels])

    def weights(self, h: Filter, level: float) -> Tensor:
        return self.turn @ (gain(h, self.values, level)[:, None] * self.coefficients)

    def missed(self, moment: Tensor, right: Tensor, squares: float, h: Filter, level: float) -> float:
        """Mean over outputs of the squares that these weights miss on rows known by their sums."""
        w = self.weights(h, level)
        return (squares - 2 * float((w * right).sum()) + float((w * (moment @ w)).sum())) / w.shape[1]


def _best(levels: list[float], left_out: Tensor, y: Tensor) -> tuple[int, list[float]]:
    """(the level of least error, the errors) of left-out predictions `levels n c`."""
    errors = (left_out - y).square().mean((1, 2)).tolist()
    return min(range(len(levels)), key=errors.__getitem__), errors


def _fold(n: int, generator: torch.Generator) -> Tensor:
    return torch.randperm(n, generator=generator) % min(FOLDS, n)


def every_pair(k: Tensor, y: Tensor, weight: Tensor) -> _Pairs:
    """Of R K R, R^2 the weights of rows: f = K R u g(lambda) u^T R y."""
    root = weight.sqrt()[:, None]
    values, vectors = torch.linalg.eigh(root * k * root.mT)
    turn = root * vectors
    return _Pairs(values, turn, turn.mT @ y)


def eigh(
    kernel: Kernel, x: Tensor, y: Tensor, weight: Tensor, h: Filter, choose: Levels, generator: torch.Generator,
    ridge: bool,
) -> Found:  # fmt: skip
    """All eigenpairs. Left-out predictions: of ridge the closed form, of other filters four folds' own eigenpairs.

    A row that is left out changes the eigenvectors; only ridge has an answer to that in its hat matrix. weight: of
    rows, with sum 1. Source [rasmussen2006, eq. 5.12].
    """
    k = kernel.block(x, x)
    pairs = every_pair(k, y, weight)
    levels = choose(float(pairs.values[-1]), False)
    left_out = y.new_empty(len(levels), *y.shape)
    if ridge:  # (K + level / weight)^-1 = R u (lambda + level)^-1 u^T R
        for at, level in enumerate(levels):
            inverse = 1 / (pairs.values.clamp_min(0) + level)
            diagonal = pairs.turn.square() @ inverse
            left_out[at] = y - (pairs.turn @ (inverse[:, None] * pairs.coefficients)) / diagonal[:, None]
    else:
        fold = _fold(len(x), generator)
        for f in range(int(fold.max()) + 1):
            rest, out = (fold != f).nonzero()[:, 0], (fold == f).nonzero()[:, 0]
            part = every_pair(k[rest][:, rest], y[rest], weight[rest] / weight[rest].sum())
            left_out[:, out] = part.seen(k[out][:, rest] @ part.turn, h, levels)
    best, errors = _best(levels, left_out, y)
    return Found(x, pairs.weights(h, levels[best]), left_out[best], levels[best], levels, errors)


def features(
    kernel: Kernel, x: Tensor, y: Tensor, weight: Tensor, h: Filter, choose: Levels, generator: torch.Generator,
    landmarks: int,
) -> Found:  # fmt: skip
    """Eigenpairs of the second moments of phi(x) = L^-1 k(z, x), L L^T = k(z, z): of the whole and of the folds."""
    n = len(x)
    z = x[torch.randperm(n, generator=generator)[:landmarks]]
    factor = Cholesky().factor(kernel.block(z, z))
    fold = _fold(n, generator)
    folds, size = int(fold.max()) + 1, block_rows(len(z))
    moment, right, mass = y.new_zeros(folds, len(z), len(z)), y.new_zeros(folds, len(z), y.shape[1]), y.new_zeros(folds)
    squares = [float((weight[fold == f, None] * y[fold == f].square()).sum()) for f in range(folds)]

    def phi(rows: Tensor) -> Tensor:
        return torch.linalg.solve_triangular(factor.lower, kernel.block(z, x[rows]), upper=False).mT

    held = [(fold == f).nonzero()[:, 0].split(size) for f in range(folds)]
    for f in range(folds):
        for rows in held[f]:
            block = phi(rows)
            heavy = weight[rows][:, None] * block
            moment[f].addmm_(block.mT, heavy)
            right[f].addmm_(heavy.mT, y[rows])
            mass[f] += weight[rows].sum()

    def pairs(a: Tensor, b: Tensor, total: Tensor) -> _Pairs:
        values, vectors = torch.linalg.eigh(a / total)
        return _Pairs(values, vectors, vectors.mT @ b / total)

    all_pairs = pairs(moment.sum(0), right.sum(0), mass.sum())
    levels = choose(float(all_pairs.values[-1]), False)
    parts = [pairs(moment.sum(0) - moment[f], right.sum(0) - right[f], mass.sum() - mass[f]) for f in range(folds)]
    errors = [sum(part.missed(moment[f], right[f], squares[f], h, a) for f, part in enumerate(parts)) for a in levels]
    best = min(range(len(levels)), key=errors.__getitem__)
    left_out = torch.empty_like(y)
    for f, part in enumerate(parts):
        inner = part.weights(h, levels[best])
        for rows in held[f]:
            left_out[rows] = phi(rows) @ inner
    inner = all_pairs.weights(h, levels[best])
    weights = torch.linalg.solve_triangular(factor.lower.mT, inner, upper=True)
    return Found(z, weights, left_out, levels[best], levels, errors, jitter=factor.jitter)


class _Krylov:
    """The Krylov spaces of y on all rows and on those of each fold: mask R K R mask, one product for all columns."""

    def __init__(self, kernel: Kernel, x: Tensor, y: Tensor, weight: Tensor, fold: Tensor):
        self.folds, (n, self.outputs) = int(fold.max()) + 1, y.shape
        self.x = x if n <= EXACT_ROWS else x.float()
        mask = torch.cat([torch.ones(n, 1), (fold[:, None] != torch.arange(self.folds)).float()], 1).to(y.dtype)
        mass = weight @ mask
        root = (mask * (weight[:, None] / mass).sqrt()).repeat_interleave(self.outputs, 1)
        self.root = root
        self.k = assemble(kernel, self.x, rhs=root.shape[1], products=60)
        self.held = [(fold == f).nonzero()[:, 0] for f in range(self.folds)]
        self.run = Recurrence(root * y.repeat(1, 1 + self.folds), min(MOST, n), True)
        self.rows: list[list[Tensor]] = [[] for _ in self.held]  # of K R Q at the rows each fold leaves out

    def step(self) -> None:
        v = self.root * self.run.v
        product = self.k.matmul(v.to(self.x.dtype)).to(v.dtype)
        for f, out in enumerate(self.held):
            self.rows[f].append(product[out, (1 + f) * self.outputs : (2 + f) * self.outputs])
        self.run.step(self.root * product)

    def look(self) -> None:
        """Eigenpairs of the tridiagonal matrices of all columns so far."""
        self.t = self.run.tridiagonal()
        self.values, self.vectors = torch.linalg.eigh(self.t.dense())
        self.first = self.vectors[:, 0] * self.t.lengths[:, None]

    def inner(self, column: int, h: Filter, level: float, power: int = 0) -> Tensor:
        """gain(T) e1 |y|, or with power 1 h(T) e1 |y|: coefficients in the Krylov basis, `m`."""
        share = gain(h, self.values[column], level) * self.values[column] ** power
        return self.vectors[column] @ (share * self.first[column])

    def left_out(self, h: Filter, levels: list[float]) -> Tensor:
        """Predictions `levels n c` of the rows that each fold leaves out."""
        found = self.root.new_empty(len(levels), len(self.root), self.outputs)
        for f, out in enumerate(self.held):
            across = torch.stack(self.rows[f], -1)  # q c m
            for c in range(self.outputs):
                column = (1 + f) * self.outputs + c
                inner = torch.stack([self.inner(column, h, level) for level in levels], 1)
                found[:, out, c] = (across[:, c] @ inner).mT
        return found

    def weights(self, h: Filter, level: float) -> Tensor:
        basis = self.t.basis
        each = [basis[c] @ self.inner(c, h, level) for c in range(self.outputs)] if basis is not None else []
        return self.root[:, : self.outputs] * torch.stack(each, 1)


def krylov(
    kernel: Kernel, x: Tensor, y: Tensor, weight: Tensor, h: Filter, choose: Levels, clock: Clock,
    generator: torch.Generator,
) -> Found:  # fmt: skip
    """h(K) y by Lanczos from y, for the fit and the fits that leave a fold out at once, until the fit stands still.

    Cost: a product of the whole kernel with (folds + 1) c columns each step. Source [golub2010, ch. 6].
    """
    space = _Krylov(kernel, x, y, weight, _fold(len(x), generator))
    fits: list[Tensor] = []
    most, residual, steps = min(MOST, len(x)), float("inf"), 0
    while residual > TOLERANCE and steps < most and not (clock.over() and steps >= 2 * CHECK):
        for _ in range(min(CHECK, most - steps)):
            space.step()
            steps += 1
        space.look()
        levels = choose(float(space.values.max()), space.x.dtype == torch.float32)
        left_out = space.left_out(h, levels)
        best, errors = _best(levels, left_out, y)
        fits.append(torch.stack([space.inner(c, h, levels[best], 1) for c in range(space.outputs)]))
        if len(fits) > 1:
            old = torch.nn.functional.pad(fits[-2], (0, fits[-1].shape[1] - fits[-2].shape[1]))
            residual = float((fits[-1] - old).norm() / space.t.lengths[: space.outputs].norm().clamp_min(1e-300))
    residual = 0.0 if steps == len(x) else residual
    weights = space.weights(h, levels[best]).to(space.x.dtype)
    return Found(space.x, weights, left_out[best], levels[best], levels, errors, residual, steps)
