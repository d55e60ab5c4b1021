"""Refined: a cheap close operator is solved, the operator itself only measures the residual."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from mercer.claims import Claim
from mercer.errors import ConvergenceWarning, ShapeError
from mercer.linalg.krylov import Krylov, KrylovState
from mercer.operator import Cost, Operator
from mercer.solver import Solver


class _Answers(Operator):
    """v -> what a solver answers for v; `taken` counts its iterations."""

    def __init__(self, solver: Solver[Any], a: Operator):
        self.solver, self.state, self.taken = solver, solver.prepare(a), 0
        self.shape, self.dtype, self.device, self.claims = a.shape, a.dtype, a.device, a.claims

    def matmul(self, v: Tensor) -> Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # what counts is the residual of the outer operator
            found = self.solver.solve(self.state, v)
        self.taken += found.iterations
        return found.value

    @property
    def mT(self) -> Operator:
        return self

    def cost(self, rhs: int = 1) -> Cost:
        return Cost(0, float(self.shape[0]) * self.shape[1] * rhs, 0)


class Refined(Krylov):
    """Iterative refinement: x += B^-1 (b - A x), with B close to A and cheaper, until |A x - b| is small.

    solver: any Solver, its tolerance loose (1e-3 is good); close: B, such as A in float32. tolerance: of |A x - b|.
    With A = k(x) + noise in float64 and B the same in float32, nearly all products run in float32 and the answer has
    the residual of float64.
    Needs: one symmetric matrix, b of its dtype; B of its shape. Cost: the solver's, and one product with A each round.
    Error: residual <= tolerance, measured with A. It is not reached where |A - B| |A^-1| >= 1/2, which is said.
    Raises ConvergenceWarning, ShapeError, TypeError. Source [golub2013, sec. 3.5.3].
    """

    needs = frozenset({Claim.SYMMETRIC})

    def __init__(self, solver: Solver[Any], close: Operator, tolerance: float = 1e-6, max_iterations: int = 10000):
        super().__init__(None, tolerance, max_iterations)
        self.solver, self.close = solver, close

    @torch.no_grad()
    def prepare(self, a: Operator) -> KrylovState:
        if a.shape != self.close.shape:
            raise ShapeError(f"Refined: A has shape {tuple(a.shape)}, the close operator {tuple(self.close.shape)}")
        state = super().prepare(a)
        return KrylovState(state.a, _Answers(self.solver, self.close))

    def cycle(self, state: KrylovState, x: Tensor, r: Tensor, limit: Tensor, steps: int) -> tuple[int, bool]:
        x += state.precondition(r)
        taken = state.inverse.taken if isinstance(state.inverse, _Answers) else 1
        return max(taken, 1), False
