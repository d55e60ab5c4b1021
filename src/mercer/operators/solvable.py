"""Solvable: operators whose structure answers A x = b and log det A, and how such answers are differentiated."""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from mercer.claims import Claim
from mercer.errors import ConvergenceWarning, ShapeError
from mercer.operator import Operator
from mercer.solver import Solution

Shift = float | Tensor

# Nominal speeds of one core, for predicted seconds of structured products.
LAG_RATE = 1e7  # kernel values a second at a list of lags
SPARSE_RATE = 2.5e8  # stored entries a second of a sparse product with one column
MORE_COLUMNS = 0.1  # what each further column costs beside the first
TREE_RATE = 4e6  # neighbours a second that a k-d tree finds
ENTRY_RATE = 8e6  # kernel values a second at a list of pairs
POINT_RATE = 1e6  # points a second that a k-d tree takes in
FIRST_CALL = 3e-4  # seconds of overhead of what is made before the first product
MISSED = {torch.float64: 1e-6, torch.float32: 1e-3}  # residuals above which an answer says that it missed


def transformable(name: str, dtype: torch.dtype) -> None:
    """Raise TypeError for numbers that are not float32 or float64, which is what FFTs take everywhere."""
    if dtype not in MISSED:
        raise TypeError(f"{name} takes float32 or float64, got {dtype}: convert what it is made of")


class Solvable(Operator, ABC):
    """A square operator whose structure answers A x = b and log det A; each of them also for A + shift I.

    shift: a number or a scalar tensor, which carries gradients. Answers are differentiable in b, in shift and in
    whatever the operator is made of, to any order, by implicit differentiation.
    """

    pairs: Callable[[], Operator] | None = None  # the same map entry by entry, where it was made of a kernel and points

    @abstractmethod
    def solve(self, b: Tensor, shift: Shift = 0.0) -> Solution:
        """(A + shift I)^-1 b for b `... n c` or `n`, with the residual that was measured."""

    @abstractmethod
    def logdet(self, shift: Shift = 0.0) -> Tensor:
        """log det (A + shift I), `...`. Raises NotPositiveDefiniteError where a factor is not positive."""

    def tril(self) -> Operator:
        return super().tril() if self.pairs is None else self.pairs().tril()

    def stabilised(self) -> Operator:
        """Itself where the diagonal of a positive kernel bounds every row's sum from below, else entry by entry."""
        return self if self.pairs is None or Claim.POSITIVE in self.claims else self.pairs().stabilised()

    def _select(self, rows: Tensor, cols: Tensor) -> Operator:
        whole = super()._select(rows, cols)
        if self.pairs is None:
            return whole
        return min((self.pairs()._select(rows, cols), whole), key=lambda op: op.cost().seconds())


def columns(op: Operator, b: Tensor) -> Tensor:
    """b as `... n c`. Raises ShapeError or TypeError when A x = b cannot be asked."""
    n, m = op.shape[-2:]
    if n != m:
        raise ShapeError(f"A x = b needs a square A, got {tuple(op.shape)}")
    wide = b[:, None] if b.ndim == 1 else b
    if wide.ndim < 2 or wide.shape[-2] != n:
        raise ShapeError(f"A x = b: A has {n} rows, b has shape {tuple(b.shape)}; expected ... {n} c")
    if b.dtype != op.dtype:
        raise TypeError(f"A x = b: A is {op.dtype}, b is {b.dtype}; convert one of them")
    return wide


def as_shift(op: Operator, shift: Shift) -> Tensor:
    """The shift as a scalar tensor in the operator's dtype."""
    value = torch.as_tensor(shift, dtype=op.dtype, device=op.device)
    if value.ndim:
        raise ShapeError(f"shift has shape {tuple(value.shape)}; expected a number, or use Shifted and a solver")
    return value


def magnitude(b: Tensor) -> Tensor:
    """The power of two below the largest entry of each column, `... 1 c`: squares of b / it stay in the float range."""
    peak = b.detach().abs().amax(-2, keepdim=True) if b.shape[-2] else b.new_zeros(*b.shape[:-2], 1, b.shape[-1])
    low = torch.finfo(b.dtype).tiny  # a size that is no normal number has no inverse
    return torch.ldexp(torch.ones_like(peak), torch.frexp(torch.where(peak > low, peak, 1.0)).exponent - 1)


def answer(op: Operator, x: Tensor, b: Tensor, shift: Tensor, iterations: int = 1) -> Solution:
    """The Solution of (A + shift I) x = b with its measured residual; x: `... n c`, b: as it was given."""
    wide = b[:, None] if b.ndim == 1 else b
    if not x.numel():
        x = x.expand(*torch.broadcast_shapes(op.shape[:-2], x.shape[:-2]), *x.shape[-2:])
    with torch.no_grad():
        value = x.detach()
        size = magnitude(wide)
        held, right = value / size, wide / size
        norm = right.norm(dim=-2)
        error = (op.matmul(held) + shift * held - right).norm(dim=-2) / torch.where(norm > 0, norm, 1.0)
        error = torch.nan_to_num(error, nan=math.inf, posinf=math.inf)
        residual = float(error.max()) if error.numel() else 0.0
    tolerance = MISSED[op.dtype]
    if not residual <= tolerance:
        text = f"{type(op).__name__}.solve: residual {residual:.1e} above {tolerance:g}; a larger shift would help"
        warnings.warn(ConvergenceWarning(text, residual, iterations), stacklevel=3)
    return Solution(x.squeeze(-1) if b.ndim == 1 else x, residual, iterations, residual <= tolerance, error)


def again(run: Callable[..., Tensor], *tensors: Tensor) -> Callable[..., Tensor]:
    """`run`, run again in a backward pass in place of keeping its parts, where one of the tensors wants gradients."""
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        return partial(checkpoint, run, use_reentrant=False, preserve_rng_state=False)
    return run


@dataclass(frozen=True)
class System:
    """A family of matrices A(tensors): solve(transposed, b, tensors) and product(transposed, x, tensors).

    solve may use anything; product must be made of differentiable operations.
    """

    solve: Callable[[bool, Tensor, tuple[Tensor, ...]], Tensor]
    product: Callable[[bool, Tensor, tuple[Tensor, ...]], Tensor]


def implicit_solve(system: System, b: Tensor, *tensors: Tensor, transposed: bool = False) -> Tensor:
    """A(tensors)^-1 b, differentiable in b and the tensors to any order: each gradient is one more solve."""
    return _Implicit.apply(system, transposed, b, *tensors)


class _Implicit(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, system: System, transposed: bool, b: Tensor, *tensors: Tensor) -> Tensor:
        x = system.solve(transposed, b, tensors)
        ctx.system, ctx.transposed, ctx.size = system, transposed, b.shape
        ctx.save_for_backward(x, *tensors)
        return x

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, *tensors = ctx.saved_tensors
        higher, needs = torch.is_grad_enabled(), ctx.needs_input_grad[3:]
        adjoint = implicit_solve(ctx.system, g, *tensors, transposed=not ctx.transposed)
        found: list[Tensor | None] = [None] * len(tensors)
        if any(needs):
            with torch.enable_grad():  # aliases: the gradient must not reach the tensors through x
                alias = [t.view_as(t) if higher and t.requires_grad else t.detach().requires_grad_() for t in tensors]
                out = ctx.system.product(ctx.transposed, x if higher else x.detach(), tuple(alias))
                wanted = [a for a, need in zip(alias, needs, strict=True) if need]
                got = iter(torch.autograd.grad(out, wanted, -adjoint, create_graph=higher, allow_unused=True))
            found = [next(got) if need else None for need in needs]
        return None, None, adjoint.sum_to_size(ctx.size), *found
