"""Krylov: what all iterative solvers share: units, precision, restarts from the true residual, an honest report."""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mercer.errors import ConvergenceWarning
from mercer.linalg.cholesky import right_hand_side, single_matrix
from mercer.linalg.precondition import Preconditioner
from mercer.operator import Operator
from mercer.solver import Solution, Solver

WIDE = torch.float64
RESTARTS = 8  # each must at least halve the residual
SLACK = 1.0001  # rounding of the last measure
TINY = 1e-300


@dataclass(frozen=True)
class KrylovState:
    """The operator and an operator close to its inverse (None: the identity). Vectors are kept in float64."""

    a: Operator
    inverse: Operator | None

    def near(self, v: Tensor) -> Tensor:
        """v as numbers that A can take exactly."""
        return v.to(self.a.dtype).to(WIDE)

    def product(self, v: Tensor) -> Tensor:
        return self.a.matmul(v.to(self.a.dtype)).to(WIDE)

    def residual(self, x: Tensor, b: Tensor) -> Tensor:
        """b - A x of the x that is handed out, rounded to the dtype of A."""
        return b - self.product(x)

    def precondition(self, r: Tensor) -> Tensor:
        return r if self.inverse is None else self.inverse.matmul(r.to(self.inverse.dtype)).to(WIDE)


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
        rhs, size = _near_one(rhs.to(WIDE))
        norm = rhs.norm(dim=0)
        x = torch.zeros_like(rhs) if start is None else start.reshape(rhs.shape).to(WIDE) / size
        steps, stopped, r = self._improve(state, rhs, x, self.tolerance * norm)
        residuals = r.norm(dim=0) / torch.where(norm > 0, norm, 1.0)
        worst = float(residuals.max()) if rhs.numel() else 0.0
        converged = worst <= self.tolerance * SLACK
        if not converged and not stopped:
            name = type(self).__name__
            message = f"{name} stopped after {steps} iterations at a residual of {worst:.1e}, "
            message += f"tolerance {self.tolerance:.1e}{_advice(b.dtype, worst)}"
            warnings.warn(ConvergenceWarning(message, worst, steps), stacklevel=3)
        return Solution((x * size).to(b.dtype).reshape(b.shape), worst, steps, converged, residuals)

    def _improve(self, state: KrylovState, rhs: Tensor, x: Tensor, limit: Tensor) -> tuple[int, bool, Tensor]:
        """Cycles until the measured residual is small, stalls, or the iterations are used up."""
        steps, stopped, before = 0, False, math.inf
        r = state.residual(x, rhs)
        for _ in range(RESTARTS):
            worst = float((r.norm(dim=0) / limit.clamp_min(TINY)).max()) if r.numel() else 0.0
            if stopped or steps >= self.max_iterations or not 1 < worst < before / 2:
                break
            before = worst
            steps, stopped = self.cycle(state, x, r.clone(), limit, steps)
            r = state.residual(x, rhs)
        return steps, stopped, r


def _advice(dtype: torch.dtype, worst: float) -> str:
    return f"; {dtype} may hold no more: use float64, or Refined" if dtype != WIDE and worst < 1e-3 else ""


def _near_one(b: Tensor) -> tuple[Tensor, Tensor]:
    """(columns of length 1/2 to 2, the powers of two they were divided by): no square leaves the float range."""
    peak = b.abs().amax(0) if len(b) else b.new_zeros(b.shape[1])
    peak = torch.where(peak > 0, peak, 1.0)
    exponent = torch.frexp(peak).exponent + torch.frexp((b / peak).norm(dim=0).clamp_min(1.0)).exponent - 1
    size = torch.ldexp(torch.ones_like(peak), exponent.clamp(-1000, 1000))
    return b / size, size


def dot(a: Tensor, b: Tensor) -> Tensor:
    """The inner product of every pair of columns."""
    return (a * b).sum(0)
