"""CG: conjugate gradients with a preconditioner, many right-hand sides, and an honest residual."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mercer.errors import ConvergenceWarning
from mercer.linalg.cholesky import right_hand_side, single_matrix
from mercer.linalg.precondition import Preconditioner
from mercer.operator import Operator
from mercer.solver import SYMMETRIC_PSD, Solution, Solver


@dataclass(frozen=True)
class CGState:
    """The operator and an operator close to its inverse (None: the identity)."""

    a: Operator
    inverse: Operator | None


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(0)


class CG(Solver[CGState]):
    """Solve A x = b by conjugate gradients: one product with A each step for all columns together.

    preconditioner: a Preconditioner, an Operator close to A^-1, or None. tolerance: of |A x - b| / |b|, each column
    stops on its own. max_iterations: >= 1. callback(iteration, residual) -> True stops early.
    Needs: one symmetric psd matrix (no batch), b of its dtype. Cost: a product with A and with the preconditioner
    each step; memory 5 n c. The answer carries no gradient: there is no implicit differentiation.
    Error: residual <= tolerance, measured at the end as |A x - b| and not by the recursion.
    Raises ConvergenceWarning, with converged=False in the answer, when the tolerance was missed; ShapeError, TypeError.
    Source [golub2013, alg. 11.5.1].
    """

    needs = SYMMETRIC_PSD

    def __init__(
        self,
        preconditioner: Preconditioner | Operator | None = None,
        tolerance: float = 1e-6,
        max_iterations: int = 1000,
        callback: Callable[[int, float], bool | None] | None = None,
    ):
        if not tolerance > 0 or max_iterations < 1:
            raise ValueError(f"CG: tolerance is {tolerance}, max_iterations {max_iterations}; expected > 0 and >= 1")
        self.preconditioner, self.tolerance = preconditioner, tolerance
        self.max_iterations, self.callback = max_iterations, callback

    @torch.no_grad()
    def prepare(self, a: Operator) -> CGState:
        self.check(a)
        single_matrix("CG", a)
        inverse = self.preconditioner
        return CGState(a, inverse.prepare(a) if isinstance(inverse, Preconditioner) else inverse)

    @torch.no_grad()
    def solve(self, state: CGState, b: Tensor, start: Tensor | None = None) -> Solution:
        rhs = right_hand_side(b, state.a.shape[-1])
        if b.dtype != state.a.dtype:
            raise TypeError(f"A x = b: A is {state.a.dtype}, b is {b.dtype}; convert one of them")
        # every column at unit length: no product of tiny or huge numbers leaves the float range
        peak = rhs.abs().amax(0) if len(rhs) else rhs.new_zeros(rhs.shape[1])
        peak = torch.where(peak > 0, peak, 1.0)
        rhs = rhs / peak
        norm = rhs.norm(dim=0).clamp_min(1.0)
        rhs, size = rhs / norm, peak * norm
        x = torch.zeros_like(rhs) if start is None else start.reshape(rhs.shape).to(rhs.dtype) / size
        steps, stopped = self._iterate(state, rhs, x)
        error = float((state.a.matmul(x) - rhs).norm(dim=0).max()) if rhs.numel() else 0.0
        converged = error <= self.tolerance * 1.0001
        if not converged and not stopped:
            message = (
                f"CG stopped after {steps} iterations at a residual of {error:.1e}, tolerance {self.tolerance:.1e}"
            )
            warnings.warn(ConvergenceWarning(message, error, steps), stacklevel=2)
        return Solution((x * size).reshape(b.shape), error, steps, converged)

    def _iterate(self, state: CGState, rhs: Tensor, x: Tensor) -> tuple[int, bool]:
        """Improve x in place; (steps taken, the callback asked to stop). Restarts from the true residual."""
        inverse = (lambda v: v) if state.inverse is None else state.inverse.matmul
        steps, stopped = 0, False
        for _ in range(3):  # the recursion drifts from the true residual, most from a far start: measure, and go on
            r = rhs - state.a.matmul(x)
            if stopped or steps >= self.max_iterations or not bool((r.norm(dim=0) > self.tolerance).any()):
                break
            z = inverse(r)
            p, rho = z.clone(), _dot(r, z)
            while steps < self.max_iterations and not stopped:
                q = state.a.matmul(p)
                curvature = _dot(p, q)
                live = (r.norm(dim=0) > self.tolerance) & (curvature > 0) & (rho > 0)
                if not bool(live.any()):
                    break
                step = torch.where(live, rho / torch.where(live, curvature, 1.0), 0.0)
                x += step * p
                r -= step * q
                steps += 1
                residual = r.norm(dim=0)
                stopped = bool(self.callback and self.callback(steps, float(residual.max())))
                if not bool((residual > self.tolerance).any()):
                    break
                z = inverse(r)
                new = _dot(r, z)
                p = z + torch.where(live, new / torch.where(live, rho, 1.0), 0.0) * p
                rho = new
        return steps, stopped
