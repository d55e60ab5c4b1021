"""Krylov: what all iterative solvers share: units, precision, restarts from the true residual, an honest report."""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mercer.errors import ConvergenceWarning
from mercer.linalg.cholesky import advice, right_hand_side, single_matrix
from mercer.linalg.precondition import Preconditioner
from mercer.operator import Operator
from mercer.operators.solvable import magnitude
from mercer.solver import Solution, Solver

WIDE = torch.float64
RESTARTS = 8  # each must at least halve the residual
SLACK = 1.0001  # rounding of the last measure
TINY = 1e-300
STALLED = "; it fell no further, from rounding (use float64, Refined or more noise) or as A is singular or not psd"


@dataclass(frozen=True)
class KrylovState:
    """The operator and an operator close to its inverse (None: the identity). Vectors are kept in float64.

    scale: a power of two that brings A near one, so that squares of its products stay in the float range.
    """

    a: Operator
    inverse: Operator | None
    scale: float = 1.0

    def near(self, v: Tensor) -> Tensor:
        """v as numbers that A can take exactly."""
        return v.to(self.a.dtype).to(WIDE)

    def product(self, v: Tensor) -> Tensor:
        return self.a.matmul(v.to(self.a.dtype)).to(WIDE) * self.scale

    def residual(self, x: Tensor, b: Tensor) -> Tensor:
        """b - A x of the x that is handed out, rounded to the dtype of A."""
        return b - self.product(x)

    def precondition(self, r: Tensor) -> Tensor:
        return r if self.inverse is None else self.inverse.matmul(r.to(self.inverse.dtype)).to(WIDE) / self.scale

    def scaled(self, v: Tensor) -> KrylovState:
        """The same system with A near one along v, columns of length near one."""
        peak = float(self.a.matmul(v.to(self.a.dtype)).abs().max()) if v.numel() else 0.0
        usable = 0 < peak < math.inf
        return replace(self, scale=math.ldexp(1.0, -min(max(math.frexp(peak)[1], -1000), 1000))) if usable else self


class Krylov(Solver[KrylovState], ABC):
    """A solver of A x = b that knows A by its products. `cycle` is the method; the rest is said once, here.

    The recursions run in float64 whatever the dtype of A, whose products keep theirs. A cycle ends where its own
    residual is small; then |A x - b| is measured, and while that is too large another cycle starts from it.
    """

    def __init__(
        self,
        preconditioner: Preconditioner | Operator | None = None,
        tolerance: float = 1e-6,
        max_iterations: int = 1000,
        callback: Callable[[int, float], bool | None] | None = None,
    ):
        if not tolerance > 0 or max_iterations < 1:
            name = type(self).__name__
            raise ValueError(
                f"{name}: tolerance is {tolerance}, max_iterations {max_iterations}; expected > 0 and >= 1"
            )
        self.preconditioner, self.tolerance = preconditioner, tolerance
        self.max_iterations, self.callback = max_iterations, callback

    @torch.no_grad()
    def prepare(self, a: Operator) -> KrylovState:
        self.check(a)
        single_matrix(type(self).__name__, a)
        inverse = self.preconditioner
        return KrylovState(a, inverse.prepare(a) if isinstance(inverse, Preconditioner) else inverse)

    @abstractmethod
    def cycle(self, state: KrylovState, x: Tensor, r: Tensor, limit: Tensor, steps: int) -> tuple[int, bool]:
        """Improve x in place from its residual r until |r| <= limit in each column; (steps so far, asked to stop)."""

    def told(self, steps: int, norms: Tensor, limit: Tensor) -> bool:
        """Tell the callback the largest residual; True when it asks to stop."""
        if self.callback is None:
            return False
        return bool(self.callback(steps, self.tolerance * float((norms / limit.clamp_min(TINY)).max())))

    @torch.no_grad()
    def solve(self, state: KrylovState, b: Tensor, start: Tensor | None = None) -> Solution:
        rhs = right_hand_side(b, state.a.shape[-1])
        if b.dtype != state.a.dtype:
            raise TypeError(f"A x = b: A is {state.a.dtype}, b is {b.dtype}; convert one of them")
        rhs = rhs.to(WIDE)
        size = magnitude(rhs)
        rhs = rhs / size
        norm = rhs.norm(dim=0)
        x = torch.zeros_like(rhs) if start is None else start.reshape(rhs.shape).to(WIDE) / size
        away = float(x.norm(dim=0).max()) if x.numel() else 0.0
        state = state.scaled(x / away if 0 < away < math.inf else rhs)
        x /= state.scale
        steps, stopped, r = self._improve(state, rhs, x, self.tolerance * norm)
        value = (x * state.scale * size).to(b.dtype)
        held = value.to(WIDE) / size / state.scale
        if not torch.equal(held, state.near(x)):  # the answer leaves the range of its dtype
            r = state.residual(held, rhs)
        residuals = r.norm(dim=0) / torch.where(norm > 0, norm, 1.0)
        residuals = torch.nan_to_num(residuals, nan=math.inf, posinf=math.inf)
        worst = float(residuals.max()) if rhs.numel() else 0.0
        converged = worst <= self.tolerance * SLACK
        if not converged and not stopped:
            message = f"{type(self).__name__} stopped after {steps} iterations at a residual of {worst:.1e}, "
            message += f"tolerance {self.tolerance:.1e}"
            message += advice(b.dtype, worst) or (STALLED if steps < self.max_iterations else "")
            warnings.warn(ConvergenceWarning(message, worst, steps), stacklevel=3)
        return Solution(value.reshape(b.shape), worst, steps, converged, residuals)

    def _improve(self, state: KrylovState, rhs: Tensor, x: Tensor, limit: Tensor) -> tuple[int, bool, Tensor]:
        """Cycles until the measured residual is small, stalls, or the iterations are used up; x is the best seen."""
        steps, stopped, before = 0, False, math.inf
        r = state.residual(x, rhs) if bool(x.any()) else rhs
        zero = Best(torch.zeros_like(rhs), rhs)
        for _ in range(RESTARTS):
            worst = float((r.norm(dim=0) / limit.clamp_min(TINY)).max()) if r.numel() else 0.0
            if stopped or steps >= self.max_iterations or not 1 < worst < before / 2:
                break
            before, best = worst, Best(x, r)
            steps, stopped = self.cycle(state, x, r.clone(), limit, steps)
            r = state.residual(x, rhs)
            best.see(x, r)
            x.copy_(best.x)
            r = best.r
        zero.see(x, r)
        x.copy_(zero.x)
        return steps, stopped, zero.r


class Best:
    """The iterate of smallest residual, column by column; its residual r, where that is given."""

    def __init__(self, x: Tensor, r: Tensor):
        self.x, self.r, self.norm = x.clone(), r, r.norm(dim=0)

    def see(self, x: Tensor, r: Tensor) -> None:
        """Keep the columns that are better."""
        norm = r.norm(dim=0)
        better = norm <= self.norm
        self.x, self.r = torch.where(better, x, self.x), torch.where(better, r, self.r)
        self.norm = torch.where(better, norm, self.norm)


def dot(a: Tensor, b: Tensor) -> Tensor:
    """The inner product of every pair of columns."""
    return (a * b).sum(0)
