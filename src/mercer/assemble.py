"""assemble: kernel x points -> operator. Rules propose exact operators, cost disposes, `explain` shows the table."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from mercer.budget import memory_budget, mib
from mercer.domain import Domain, as_domain, finite
from mercer.errors import MemoryBudgetError, ShapeError
from mercer.operator import Diagonal, Operator


@dataclass(frozen=True)
class Request:
    """What is asked for: k on x and y, applied `products` times to `rhs` columns within `memory` bytes."""

    kernel: Any
    x: Domain
    y: Domain
    rhs: int = 1
    products: int = 1
    memory: int = field(default_factory=memory_budget)

    @property
    def square(self) -> bool:
        """The same points on both sides, so that symmetry and definiteness carry over to the operator."""
        return self.x is self.y


Rule = Callable[[Request], Operator | None]
_RULES: list[Rule] = []


def rule(propose: Rule) -> Rule:
    """Register a rule: a function that proposes an exact operator for a request, or None. Order is irrelevant."""
    _RULES.append(propose)
    return propose


@dataclass(frozen=True)
class Candidate:
    """One row of `explain`: an operator, what it costs, and whether it fits the memory budget."""

    operator: Operator
    flops: float
    memory: float
    seconds: float
    fits: bool
    error: float = 0.0  # every operator assembled without a tolerance is exact up to rounding

    @property
    def name(self) -> str:
        return type(self.operator).__name__


def candidates(request: Request) -> list[Candidate]:
    """Every proposal for a request: those that fit the memory budget first, the cheapest of them at the top."""
    if not _RULES:
        importlib.import_module("mercer.operators")  # the one backend loader: the operators' files hold the rules
    if request.x.d != request.y.d:
        raise ShapeError(f"k(x, y): y.d is {request.y.d}, x.d is {request.x.d}")
    if request.x.points.dtype != request.y.points.dtype:
        raise TypeError(f"k(x, y): x is {request.x.points.dtype}, y is {request.y.points.dtype}; convert one of them")
    finite("x", request.x.points)
    if not request.square:
        finite("y", request.y.points)
    found = []
    for propose in _RULES:
        operator = propose(request)
        if operator is not None:
            cost = operator.cost(request.rhs)
            flops, seconds = cost.flops(request.products), cost.seconds(request.products)
            found.append(Candidate(operator, flops, cost.memory, seconds, cost.memory <= request.memory))
    return sorted(found, key=lambda c: (not c.fits, c.seconds, c.memory))


def _request(kernel: Any, x: Any, y: Any, rhs: int, products: int) -> Request:
    left = as_domain(x)
    return Request(kernel, left, left if y is None or y is x else as_domain(y), rhs, products)


def assemble(kernel: Any, x: Any, y: Any = None, *, rhs: int = 1, products: int = 1) -> Operator:
    """The cheapest exact operator for k on x and y under the memory budget. Computes nothing yet.

    x: `... n d`, y: `... m d` (default: x), tensors or Domains. products: how often it will be applied (a solver
    that applies it a hundred times may be better off with the matrix). Weights of y multiply from the right:
    (K f)(x) = sum_j k(x, y_j) weight_j f_j. Raises MemoryBudgetError when nothing fits.
    """
    request = _request(kernel, x, y, rhs, products)
    best = candidates(request)[0]
    if not best.fits:
        raise MemoryBudgetError(
            f"{best.name} needs {mib(best.memory)} of working memory, the budget is "
            f"{mib(request.memory)}: raise it with mercer.memory(...)"
        )
    weights = request.y.weights
    return best.operator if weights is None else best.operator @ Diagonal(weights)


def explain(kernel: Any, x: Any, y: Any = None, *, rhs: int = 1, products: int = 1) -> None:
    """Print the candidates for k(x, y), chosen one first: flops, peak working memory, predicted seconds, error."""
    request = _request(kernel, x, y, rhs, products)
    print(f"{kernel!r} on {request.x.n:,} x {request.y.n:,} points, d = {request.x.d}")
    print(f"right-hand sides {rhs}, products {products}, memory budget {request.memory / 2**20:,.0f} MiB")
    print(f"{'':2}{'operator':<12}{'flops':>10}{'MiB':>10}{'seconds':>10}{'error':>8}")
    for place, row in enumerate(candidates(request)):
        mark = "->" if place == 0 and row.fits else "  "
        note = "" if row.fits else "  over the memory budget"
        numbers = f"{row.flops:>10.1e}{row.memory / 2**20:>10.1f}{row.seconds:>10.2g}{row.error:>8.0e}"
        print(f"{mark}{row.name:<12}{numbers}{note}")
