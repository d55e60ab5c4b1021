"""Cholesky: the direct solver, with a jitter policy that leaves a record."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from mercer.errors import ConvergenceWarning, DataError, JitterWarning, NotPositiveDefiniteError, ShapeError
from mercer.operator import Operator
from mercer.operators.solvable import MISSED, magnitude
from mercer.shapes import check
from mercer.solver import SYMMETRIC_PSD, Solution, Solver

LARGEST = 1e-3  # of trace(A) / n: beyond this the matrix that is factored is no longer the one that was given
EPS = torch.finfo(torch.float64).eps


def right_hand_side(b: Tensor, n: int) -> Tensor:
    """b as `n c`, real and finite. Raises TypeError, ShapeError, or DataError naming the first bad row and column."""
    if not b.dtype.is_floating_point:
        raise TypeError(
            f"A x = b: b is {b.dtype}; expected real floating-point numbers (solve both parts of complex ones)"
        )
    columns = b[:, None] if b.ndim == 1 else b
    check("b: n c", b=columns)
    if columns.shape[0] != n:
        raise ShapeError(f"A x = b: A has {n} rows, b has {columns.shape[0]}")
    if not bool(torch.isfinite(columns).all()):
        row, column = (~torch.isfinite(columns)).nonzero()[0].tolist()
        raise DataError(f"b[{row}, {column}] is {float(columns[row, column])}; expected finite right-hand sides")
    return columns


def advice(dtype: torch.dtype, worst: float) -> str:
    """The way out where the dtype of the answer is what limits it."""
    return f"; {dtype} may hold no more: use float64, or Refined" if dtype != torch.float64 and worst < 1e-3 else ""


def single_matrix(name: str, a: Operator) -> None:
    """Raise ShapeError when the operator has batch axes."""
    if len(a.shape) != 2:
        raise ShapeError(f"{name} takes one matrix at a time, A has shape {tuple(a.shape)}; loop over the batch")


@dataclass(frozen=True)
class Factor:
    """A + jitter I = lower lower^T in float64. jitter: what was added, in the units of A; dtype: that of A.

    The factor is a constant to autograd: gradients flow to a right-hand side and never to A.
    """

    lower: Tensor
    jitter: float
    dtype: torch.dtype

    def solve(self, b: Tensor) -> Tensor:
        """(A + jitter I)^-1 b, b: n c, in float64."""
        return torch.cholesky_solve(b.to(torch.float64), self.lower)

    def logdet(self) -> Tensor:
        """log det (A + jitter I), a float64 scalar."""
        return 2 * self.lower.diagonal().log().sum()

    def inverse(self) -> Tensor:
        """(A + jitter I)^-1 as a matrix. Cost: 2 n^3 / 3 flops."""
        return torch.cholesky_inverse(self.lower)

    def inverse_diagonal(self) -> Tensor:
        """The diagonal of (A + jitter I)^-1, `n`: what closed-form leave-one-out residuals need."""
        return self.inverse().diagonal()


class Cholesky(Solver[Factor]):
    """A = L L^T, once; then every right-hand side costs two triangular solves.

    The factor is made in float64. When A is not numerically definite, jitter I is added: relative to trace(A) / n,
    first n eps, then ten times more each time, never more than `largest` (<= 1e-3). The amount is in the state.
    tolerance: a solution is `converged` when the residual of the value that is returned, in the dtype of b and with
    jitter counted as error, is below it; None: 1e-6 in float64, 1e-3 in float32. The answer is a constant to autograd.
    Needs: one symmetric psd matrix (no batch). Cost: n^3 / 3 flops, 2 n^2 float64 numbers.
    Raises JitterWarning above rounding level (10 n eps); NotPositiveDefiniteError with the smallest eigenvalue;
    ConvergenceWarning where the tolerance was missed.
    """

    needs = SYMMETRIC_PSD

    def __init__(self, largest: float = LARGEST, tolerance: float | None = None):
        if not 0 <= largest <= LARGEST:
            raise ValueError(f"Cholesky.largest is {largest}; expected a number between 0 and {LARGEST}")
        self.largest, self.tolerance = largest, tolerance

    @torch.no_grad()
    def prepare(self, a: Operator) -> Factor:
        self.check(a)
        single_matrix("Cholesky", a)
        return self.factor(a.dense())

    def factor(self, matrix: Tensor) -> Factor:
        """The factor of a given symmetric matrix, n n."""
        work = matrix.detach().to(torch.float64)
        if not bool(torch.isfinite(work).all()):
            row, column = (~torch.isfinite(work)).nonzero()[0].tolist()
            raise DataError(f"A[{row}, {column}] is {float(work[row, column])}; a matrix with it has no factor")
        n = work.shape[-1]
        lower, info = torch.linalg.cholesky_ex(work)
        if info == 0:
            return Factor(lower, 0.0, matrix.dtype)
        scale = float(work.diagonal().mean()) if n else 0.0
        relative = n * EPS
        while scale > 0 and relative <= self.largest:
            shifted = work.clone()
            shifted.diagonal().add_(relative * scale)
            lower, info = torch.linalg.cholesky_ex(shifted)
            if info == 0:
                self._warn(relative, scale, n)
                return Factor(lower, relative * scale, matrix.dtype)
            relative *= 10
        smallest = float(torch.linalg.eigvalsh(work)[0])
        raise NotPositiveDefiniteError(
            f"A is not positive definite: its smallest eigenvalue is {smallest:.3g}, its mean diagonal {scale:.3g}, "
            f"and jitter up to {self.largest:g} of that did not mend it; add noise, or use a kernel that claims psd",
            smallest,
        )

    @staticmethod
    def _warn(relative: float, scale: float, n: int) -> None:
        if relative > 10.5 * n * EPS:
            message = (
                f"jitter of {relative:.1e} times the mean diagonal was added to factor the matrix; more noise avoids it"
            )
            warnings.warn(JitterWarning(message, relative * scale), stacklevel=4)

    @torch.no_grad()
    def solve(self, state: Factor, b: Tensor) -> Solution:
        rhs = right_hand_side(b, state.lower.shape[-1])
        wide = rhs.to(torch.float64)
        size = magnitude(wide)
        wide = wide / size
        value = (state.solve(wide) * size).to(b.dtype)
        x = value.to(torch.float64) / size  # what is handed out is what is measured
        error = state.lower @ (state.lower.mT @ x) - state.jitter * x - wide
        residuals = error.norm(dim=0) / wide.norm(dim=0).clamp_min(1e-300)
        residuals = torch.nan_to_num(residuals, nan=math.inf, posinf=math.inf)
        worst = float(residuals.max()) if wide.numel() else 0.0
        tolerance = MISSED.get(b.dtype, 0.1) if self.tolerance is None else self.tolerance
        if not worst <= tolerance:
            message = f"Cholesky ended at a residual of {worst:.1e}, tolerance {tolerance:.1e}"
            message += f"; of jitter {state.jitter:.1e}: more noise avoids it" if state.jitter else ""
            warnings.warn(ConvergenceWarning(message + advice(b.dtype, worst), worst, 1), stacklevel=3)
        return Solution(value.reshape(b.shape), worst, 1, worst <= tolerance, residuals)
