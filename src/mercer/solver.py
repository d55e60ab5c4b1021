"""Solver: prepare(A) once, solve(state, b) as often as needed; the answer says how good it is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Generic, TypeVar

from torch import Tensor

from mercer.claims import NO_CLAIMS, Claim, Claims
from mercer.errors import ShapeError, StructureError
from mercer.operator import Operator

State = TypeVar("State")


@dataclass(frozen=True)
class Solution:
    """value: `... n c`. residuals: |A x - b| / |b| of each column; residual: the largest. converged: it is small."""

    value: Tensor
    residual: float
    iterations: int
    converged: bool
    residuals: Tensor


class Solver(ABC, Generic[State]):
    """A way to answer A x = b for operators that claim `needs`."""

    needs: Claims = NO_CLAIMS

    @abstractmethod
    def prepare(self, a: Operator) -> State:
        """Everything that depends on A alone: a factor, a preconditioner."""

    @abstractmethod
    def solve(self, state: State, b: Tensor) -> Solution:
        """b: n c -> x with A x = b."""

    def check(self, a: Operator) -> None:
        """Raise ShapeError or StructureError when A is not square or lacks a claim the solver needs."""
        if a.shape[-1] != a.shape[-2]:
            raise ShapeError(f"{type(self).__name__} needs a square operator, got {tuple(a.shape)}")
        missing = self.needs - a.claims
        if missing:
            names = ", ".join(sorted(claim.name.lower() for claim in missing))
            raise StructureError(f"{type(self).__name__} needs an operator that is {names}; {a!r} does not claim it")


SYMMETRIC_PSD: Claims = frozenset({Claim.SYMMETRIC, Claim.PSD})
