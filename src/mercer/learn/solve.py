"""Kernel ridge on given parameters: exact by Cholesky, or with the whole kernel by CG."""

from __future__ import annotations

import copy
import dataclasses
import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from mercer.assemble import assemble
from mercer.claims import PSD
from mercer.errors import ConvergenceWarning
from mercer.kernel import Kernel
from mercer.learn.plan import Plan
from mercer.learn.tune import Clock
from mercer.linalg import CG, Cholesky, Factor, NystromPreconditioner
from mercer.operator import Cost, Operator
from mercer.operators.shifted import Shifted

FOLDS = 4
TOLERANCE = 2e-3  # of a residual in units of y: far below what noise leaves to be known
LOOSE = 10 * TOLERANCE  # a residual beyond which iterations may have found anything
FLOOR = 1e-6  # smallest noise of the float32 paths, relative to the kernel's diagonal


@dataclass(frozen=True)
class Fitted:
    """f(x) = k(x, points) weights. left_out: predictions of rows by fits without them, `n c`.

    noise: the one used; factor: of K + noise I, and precision, the diagonal of its inverse, where that is exact.
    """

    points: Tensor
    weights: Tensor
    left_out: Tensor
    noise: float
    plan: Plan
    factor: Factor | None = None
    precision: Tensor | None = None


def exact(
    kernel: Kernel, noise: float, x: Tensor, y: Tensor, plan: Plan, alphas: list[float], clock: Clock,
    share: Tensor | None = None,
) -> Fitted:  # fmt: skip
    """Cholesky in float64; the noise is picked by leave-one-out predictions, y - w / diag(A^-1).

    share: of the noise, `n`, of rows that are means of twins.

    Source [rasmussen2006, eq. 5.12].
    """
    with torch.no_grad():
        k = kernel.block(x, x)
    best: tuple[float, Fitted] | None = None
    for alpha in [noise, *[noise * a for a in alphas]]:
        if best is not None and clock.over(0.8):
            break
        a = k.clone()
        a.diagonal().add_(alpha if share is None else alpha * share)
        factor = Cholesky().factor(a)
        weights = factor.solve(y)
        precision = factor.inverse_diagonal()
        left_out = y - weights / precision[:, None]
        error = float((y - left_out).square().mean())
        done = dataclasses.replace(plan, jitter=factor.jitter)
        if best is None or error < best[0]:
            best = (error, Fitted(x, weights, left_out, alpha, done, factor, precision))
    if best is None:
        raise ValueError("exact: no noise level was given")
    return best[1]


class _Columnwise(Operator):
    """v -> mask * (D K D (mask * v)) + noise * v with a mask and a noise for each column: many fits in one product."""

    def __init__(self, k: Operator, mask: Tensor, noise: Tensor, d: Tensor):
        self.k, self.mask, self.noise = k, mask * d, noise
        self.shape, self.dtype, self.device, self.claims = k.shape, k.dtype, k.device, PSD

    def matmul(self, v: Tensor) -> Tensor:
        return self.mask * self.k.matmul(self.mask * v) + self.noise * v

    @property
    def mT(self) -> Operator:
        return self

    def cost(self, rhs: int = 1) -> Cost:
        return self.k.cost(rhs)


class _Folded(Operator):
    """For each column v the inverse of mask F F^T mask + noise I: Woodbury with one small factor for each fold.

    A preconditioner of all rows would be far off on part of them: leaving rows out moves the small eigenvalues.
    """

    def __init__(self, factor: Tensor, fold: Tensor, mask: Tensor, outputs: int, noise: float):
        self.f, self.mask, self.outputs, self.noise = factor, mask, outputs, noise
        parts = [(factor[fold == i].mT @ factor[fold == i]).double() for i in range(int(fold.max()) + 1)]
        total = torch.stack(parts).sum(0)
        self.lower = [self._root(total), *[self._root(total - part) for part in parts]]
        n = len(factor)
        self.shape, self.dtype, self.device, self.claims = torch.Size([n, n]), factor.dtype, factor.device, PSD

    def _root(self, gram: Tensor) -> Tensor:
        gram.diagonal().add_(self.noise)
        return Cholesky().factor(gram).lower

    def only(self, fold: int, times: int, mask: Tensor) -> _Folded:
        """The same for columns that all leave out one fold."""
        found = copy.copy(self)
        found.lower, found.mask = [self.lower[fold + 1]], mask
        found.outputs = times * self.outputs
        return found

    def matmul(self, v: Tensor) -> Tensor:
        inner = self.f.mT @ (self.mask * v)
        columns = inner.double().split(self.outputs, 1)
        each = [torch.cholesky_solve(c, lower) for c, lower in zip(columns, self.lower, strict=True)]
        return (v - self.mask * (self.f @ torch.cat(each, 1).to(v.dtype))) / self.noise

    @property
    def mT(self) -> Operator:
        return self

    def cost(self, rhs: int = 1) -> Cost:
        n, r = self.f.shape
        return Cost(2.0 * n * r * r, 4.0 * n * r * rhs, float(n) * rhs * self.dtype.itemsize)


def masks(n: int, folds: int, outputs: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(fold of each row, mask `n (1 + folds) outputs`: all rows first, then all but one fold)."""
    fold = torch.randperm(n, generator=generator) % folds
    keep = torch.cat([torch.ones(n, 1), (fold[:, None] != torch.arange(folds)).float()], 1)
    return fold, keep.repeat_interleave(outputs, 1)


def own(found: Tensor, fold: Tensor, outputs: int) -> Tensor:
    """From predictions `n folds outputs` of every fold's fit, each row's by the fit that did not see it."""
    return found.reshape(len(fold), -1, outputs)[torch.arange(len(fold)), fold]


def run_cg(solver: CG, a: Operator, b: Tensor, start: Tensor | None = None):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return solver.solve(solver.prepare(a), b)


def noises(noise: float, factors: list[float]) -> list[float]:
    """The noise itself and its multiples, none below what float32 can bear."""
    return [max(noise * f, FLOOR) for f in (1.0, *factors)]


def whole(
    kernel: Kernel, noise: float, x: Tensor, y: Tensor, plan: Plan, factors: list[float],
    generator: torch.Generator, clock: Clock, share: Tensor | None = None,
) -> Fitted:  # fmt: skip
    """All of K in float32, one conjugate gradient run for the fit and for the fits that leave a fold out.

    share: of the noise, `n`; rows are divided by its root, which leaves one noise for all.
    """
    n, outputs = y.shape
    d = torch.ones(n, 1) if share is None else share[:, None].rsqrt().float()
    points, rows = x.float(), d * y.float()
    with torch.no_grad():
        k = assemble(kernel, points, rhs=outputs * (FOLDS + 1), products=60)
        k = k if k.claims & PSD == PSD else Shifted(k, 0.0)
        diagonal = float(k.diagonal().mean())
        levels = [max(a, FLOOR * diagonal) for a in noises(noise, factors)]
        fold, mask = masks(n, FOLDS, outputs, generator)
        factor = d * NystromPreconditioner(plan.landmarks, generator).factor(k)
        inverse = _Folded(factor, fold, mask, outputs, levels[0])
        solver = CG(inverse, TOLERANCE, 150, lambda i, r: clock.over() and i >= 10)
        steps, chosen = 0, levels[0]
        if len(levels) > 1:  # one fold decides the noise
            held = mask[:, outputs : 2 * outputs].repeat(1, len(levels))
            each = torch.tensor(levels, dtype=torch.float32).repeat_interleave(outputs)
            trial = CG(inverse.only(0, len(levels), held), 5 * TOLERANCE, 60, lambda i, r: clock.over() and i >= 10)
            found = run_cg(trial, _Columnwise(k, held, each, d), held * rows.repeat(1, len(levels)))
            out = fold == 0
            guess = k.matmul(d * found.value)[out].reshape(-1, len(levels), outputs)
            errors = (guess - y.float()[out][:, None]).square().mean((0, 2))
            chosen, steps = levels[int(errors.argmin())], found.iterations
        each = torch.full((mask.shape[1],), chosen)
        answer = run_cg(solver, _Columnwise(k, mask, each, d), mask * rows.repeat(1, FOLDS + 1))
        weights = d * answer.value
        left_out = own(k.matmul(weights[:, outputs:]), fold, outputs)
    done = dataclasses.replace(plan, residual=answer.residual, iterations=steps + answer.iterations)
    return Fitted(points, weights[:, :outputs].contiguous(), left_out.double(), chosen, done)
