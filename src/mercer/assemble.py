"""assemble: kernel x points -> operator. Rules propose exact operators, cost disposes, `explain` shows the table."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any

import torch

from mercer.budget import memory_budget, mib
from mercer.domain import Domain, Grid, Line, as_domain, finite
from mercer.errors import MemoryBudgetError, ShapeError
from mercer.operator import Diagonal, Operator


@dataclass(frozen=True)
class Request:
    """What is asked for: k on x and y, applied `products` times to `rhs` columns within `memory` bytes.

    tolerance: the error of an entry, relative to the largest of the diagonal, that is allowed; None: exact only.
    """

    kernel: Any
    x: Domain
    y: Domain
    rhs: int = 1
    products: int = 1
    tolerance: float | None = None
    memory: int = field(default_factory=memory_budget)
    declined: list[str] = field(default_factory=list, compare=False)

    @property
    def square(self) -> bool:
        """The same points on both sides, so that symmetry and definiteness carry over to the operator."""
        return self.x is self.y

    def decline(self, name: str, why: str) -> None:
        """Note for `explain` why a rule that was meant for such a request proposes nothing."""
        self.declined.append(f"{name}: {why}")


Rule = Callable[[Request], Operator | None]
Bounds = Callable[[Request, Operator], float | None]
_RULES, _BOUNDS = list[Rule](), list[Bounds]()
SOLVING = 1e-3, 2e-4  # seconds once and each product that an operator on a Line or Grid may take longer if it can solve


def rule(propose: Rule) -> Rule:
    """Register a rule: a function that proposes an exact operator for a request, or None. Order is irrelevant."""
    _RULES.append(propose)
    return propose


def bounds(of: Bounds) -> Bounds:
    """Register the function that bounds the error of an entry, relative to the largest of the diagonal."""
    _BOUNDS.append(of)
    return of


@dataclass(frozen=True)
class Candidate:
    """One row of `explain`: an operator, what it costs, and whether it fits the memory budget."""

    operator: Operator
    flops: float
    memory: float
    seconds: float
    fits: bool

    @property
    def name(self) -> str:
        return type(self.operator).__name__


def candidates(request: Request) -> list[Candidate]:
    """Every proposal for a request: those that fit the memory budget first, the cheapest of them at the top.

    On a Line or Grid an operator that can solve goes before one that is faster by less than a millisecond or so.
    """
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
    found.sort(key=lambda c: (not c.fits, c.seconds, c.memory))
    solver = next((c for c in found if c.fits and hasattr(c.operator, "solve")), None)
    if solver is not None and request.square and isinstance(request.x, Line | Grid):
        limit = found[0].seconds + SOLVING[0] + SOLVING[1] * request.products
        found.sort(key=lambda c: c is not solver or c.seconds > limit)  # who names a Line may want answers of it too
    return found


def _request(kernel: Any, x: Any, y: Any, rhs: int, products: int, tolerance: float | None = None) -> Request:
    left = as_domain(x)
    right = left if y is None or y is x else as_domain(y)
    for name, count in (("rhs", rhs), ("products", products)):
        if isinstance(count, bool) or not isinstance(count, Integral) or count < 1:
            raise ValueError(f"{name} is {count!r}; expected a whole number >= 1")
    if tolerance is not None and not 0 < tolerance < 1:
        raise ValueError(f"tolerance is {tolerance}; expected a number between 0 and 1, or None for exact products")
    return Request(kernel, left, right, rhs, products, tolerance)


def assemble(
    kernel: Any, x: Any, y: Any = None, *, rhs: int = 1, products: int = 1, tolerance: float | None = None
) -> Operator:
    """The cheapest exact operator for k on x and y under the memory budget. Computes nothing yet.

    x: `... n d`, y: `... m d` (default: x), tensors or Domains. products: how often it will be applied (a solver
    that applies it a hundred times may be better off with the matrix). Weights of y multiply from the right:
    (K f)(x) = sum_j k(x, y_j) weight_j f_j. tolerance: approximations compete too, if no entry is wrong by more than
    this times the largest of the diagonal; their `error` is measured, so they are made now.
    Raises MemoryBudgetError when nothing fits.
    """
    request = _request(kernel, x, y, rhs, products, tolerance)
    best = candidates(request)[0]
    if not best.fits:
        raise MemoryBudgetError(
            f"{best.name} needs {mib(best.memory)} of working memory, the budget is "
            f"{mib(request.memory)}: raise it with mercer.memory(...)"
        )
    weights = request.y.weights
    return best.operator if weights is None else best.operator @ Diagonal(weights)


def explain(
    kernel: Any, x: Any, y: Any = None, *, rhs: int = 1, products: int = 1, tolerance: float | None = None
) -> None:
    """Print the candidates for k(x, y), the chosen one first, why the others lost, and why rules proposed nothing.

    Flops, peak working memory, predicted seconds (from this machine's rates), and a bound of the error of an entry,
    relative to the largest of the diagonal: rounding on these points, and what an approximation measured.
    """
    request = _request(kernel, x, y, rhs, products, tolerance)
    rows = candidates(request)
    dtype = request.x.points.dtype
    print(f"{kernel!r} on {request.x.n:,} x {request.y.n:,} points, d = {request.x.d}, {dtype}")
    allowed = "exact" if tolerance is None else f"tolerance {tolerance:g}"
    print(f"right-hand sides {rhs}, products {products}, {allowed}, memory budget {mib(request.memory)}")
    print(f"{'':2}{'operator':<14}{'flops':>9}{'memory':>12}{'seconds':>10}{'error':>8}")
    errors = [next((e for of in _BOUNDS if (e := of(request, row.operator)) is not None), None) for row in rows]
    for place, (row, error) in enumerate(zip(rows, errors, strict=True)):
        mark = "->" if place == 0 and row.fits else "  "
        numbers = f"{row.flops:>9.1e}{mib(row.memory):>12}{row.seconds:>10.2g}"
        numbers += f"{'-':>8}" if error is None else f"{error:>8.0e}"
        print(f"{mark}{row.name:<14}{numbers}{_note(rows, place)}")
    print(*[f"  {line}\n" for line in request.declined], sep="", end="")
    if tolerance is not None and errors[0] is not None and errors[0] > tolerance:
        print(_beyond(dtype, tolerance, errors[0]))


def _note(rows: list[Candidate], place: int) -> str:
    """Why a candidate was chosen before a faster one, or why it lost."""
    first, row = rows[0], rows[place]
    if not row.fits:
        return "  over the memory budget"
    if place:
        return f"  {row.seconds / first.seconds:.3g} times as long" if first.seconds else ""
    faster = any(other.fits and other.seconds < first.seconds for other in rows)
    return "  can solve, and takes hardly longer" if faster else ""


def _beyond(dtype: torch.dtype, tolerance: float, error: float) -> str:
    name, more = str(dtype).removeprefix("torch."), "" if dtype == torch.float64 else ": use float64"
    if tolerance < torch.finfo(dtype).eps:
        return f"  {name} cannot reach {tolerance:g}{more}"
    return f"  {name} may not reach {tolerance:g}, errors are bounded by {error:.0e} only{more}"
