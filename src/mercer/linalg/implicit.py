"""solve: x with A x = b as a differentiable function of b and of all that is inside A."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mercer.claims import Claim
from mercer.linalg.cholesky import Cholesky
from mercer.operator import Operator
from mercer.operators.shifted import Shifted
from mercer.operators.solvable import Solvable
from mercer.solver import Solution, Solver


class _Last(torch.autograd.Function):
    """A gradient that must not be differentiated again: what it depends on is not in the graph."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, *sources: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        raise RuntimeError(
            "solutions and log-determinants have gradients of first order only; differentiate "
            "torch.linalg.solve(A.dense(), b) or torch.logdet(A.dense()) for higher ones"
        )


class Implicit(torch.autograd.Function):
    """A value whose gradient with respect to `through` is slope(g), run only when it is asked for."""

    @staticmethod
    def forward(ctx: Any, through: Tensor, value: Tensor, slope: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.save_for_backward(through)
        ctx.slope = slope
        return value.clone()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None]:
        (through,) = ctx.saved_tensors
        with torch.no_grad():
            slope = ctx.slope(g).to(through.dtype)
        return (_Last.apply(slope, g, through) if torch.is_grad_enabled() else slope), None, None


def structured(a: Operator) -> tuple[Solvable, float | Tensor] | None:
    """(B, shift) where A = B + shift I and the structure of B answers for itself, else None."""
    if isinstance(a, Solvable):
        return a, 0.0
    if isinstance(a, Shifted) and isinstance(a.of, Solvable) and a.shift.ndim == 0:
        return a.of, a.shift
    return None


def solve(a: Operator, b: Tensor, solver: Solver[Any] | None = None) -> Solution:
    """A x = b, with gradients to b and to the points, parameters and shift inside A.

    x = A^-1 b; for a gradient g of x, w = A^-T g is the gradient of b and -w x^T that of A, which A's own product
    carries on. solver: any Solver; default: the structure of A or of A - shift I where it can solve (`Solvable`:
    gradients of any order), else `Cholesky()`. b: n c or n, as the solver takes it.
    Cost: that of the solver, one product with A, and for the gradient one more solve with as many columns.
    Error: that of the solver, forward and backward; a missed tolerance warns in both. Gradients of a
    Solver's answer are of first order: a second differentiation raises RuntimeError. Raises what the solver raises.
    Source [griewank2008, sec. 15.4].
    """
    known = structured(a) if solver is None else None
    if known is not None:
        return known[0].solve(b, known[1])
    used: Solver[Any] = Cholesky() if solver is None else solver
    with torch.no_grad():
        state = used.prepare(a)
        found = used.solve(state, b.detach())
    if not torch.is_grad_enabled():
        return found
    x = found.value.detach()
    rest = b - (a @ x.to(a.dtype)).to(b.dtype)
    if not rest.requires_grad:
        return found

    # the implicit function theorem: a change of b - A x at fixed x changes the answer by A^-1 times itself
    def back(g: Tensor) -> Tensor:
        turned = state if Claim.SYMMETRIC in a.claims else used.prepare(a.mT)
        return used.solve(turned, g).value

    return dataclasses.replace(found, value=Implicit.apply(rest, x, back))
