"""Kronecker: products of small matrices that act on one axis each. What a separable kernel makes of a grid."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from mercer.assemble import Request, rule
from mercer.budget import memory_budget
from mercer.claims import NO_CLAIMS, Claim, Claims
from mercer.domain import Line
from mercer.errors import NotPositiveDefiniteError, ShapeError, StructureError
from mercer.feature import FeatureMap
from mercer.kernel import Columns, Kernel, Product, Scaled, Warped
from mercer.operator import Cost, Operator
from mercer.operators.dense import Dense
from mercer.operators.solvable import (
    FIRST_CALL,
    Shift,
    Solvable,
    System,
    answer,
    as_shift,
    columns,
    implicit_solve,
)
from mercer.operators.speed import call_seconds, fft_seconds
from mercer.operators.tiled import KERNEL_FLOPS
from mercer.operators.toeplitz import DTYPES, Toeplitz, lines, tiled
from mercer.solver import Solution

KEPT: Claims = frozenset({Claim.SYMMETRIC, Claim.PSD, Claim.POSITIVE, Claim.UNIT_DIAGONAL})
FACTORED = 4096  # rows up to which a factor is solved as a dense matrix


def _along(matrices: list[Tensor], v: Tensor) -> Tensor:
    """(M_1 kron M_2 kron ...) v, one axis after the other; each step turns the axis it has done to the end."""
    c = v.shape[-1]
    for matrix in matrices:
        step = matrix @ v.reshape(*v.shape[:-2], matrix.shape[-1], -1)
        v = step.mT.reshape(*step.shape[:-2], -1, 1)
    return v.reshape(*v.shape[:-2], c, -1).mT


class Kronecker(Solvable):
    """A_1 kron A_2 kron ...: entry ((i, k), (j, l)) is A_1[i, j] A_2[k, l], the last factor running fastest.

    factors: one or more operators, square or not, with batch axes that broadcast.
    Solve and logdet go factor by factor; with a shift through the eigenvectors of the factors, which must be symmetric.
    Claims: symmetric, psd, positive, unit diagonal where every factor has them.
    Cost: one product with each factor, applied to all the other axes at once; numbers of the sizes of v and of the
    result, three times. Source [vanloan2000].
    """

    def __init__(self, *factors: Operator):
        if not factors:
            raise ShapeError("Kronecker needs at least one factor")
        dtypes = {f.dtype for f in factors}
        if len(dtypes) > 1:
            raise TypeError(f"the factors are {', '.join(sorted(map(str, dtypes)))}; convert them to one of these")
        self.factors = factors
        batch = torch.broadcast_shapes(*[f.shape[:-2] for f in factors])
        n, m = (math.prod(f.shape[axis] for f in factors) for axis in (-2, -1))
        self.shape, self.dtype, self.device = torch.Size([*batch, n, m]), factors[0].dtype, factors[0].device
        self.claims = frozenset.intersection(*[f.claims for f in factors]) & KEPT
        self.claims |= {Claim.CPD} if Claim.PSD in self.claims else NO_CLAIMS

    def _widths(self) -> list[int]:
        """For each factor, how many columns it is applied to for each column of v."""
        rows, cols = [f.shape[-2] for f in self.factors], [f.shape[-1] for f in self.factors]
        return [math.prod(rows[:k]) * math.prod(cols[k + 1 :]) for k in range(len(rows))]

    def _numbers(self) -> int:
        """Numbers alive at once while one column is multiplied."""
        widths = self._widths()
        widest = max(w * max(f.shape[-2:]) for w, f in zip(widths, self.factors, strict=True))
        return 3 * widest * max(math.prod(self.shape[:-2]), 1)

    def _apply(self, v: Tensor) -> Tensor:
        c = v.shape[-1]
        for factor in self.factors:
            step = factor.matmul(v.reshape(*v.shape[:-2], factor.shape[-1], -1))
            v = step.mT.reshape(*step.shape[:-2], -1, 1)
        return v.reshape(*v.shape[:-2], c, -1).mT

    def matmul(self, v: Tensor) -> Tensor:
        n, m = self.shape[-2:]
        if not n or not m or not v.shape[-1]:
            return v.new_zeros(*torch.broadcast_shapes(self.shape[:-2], v.shape[:-2]), n, v.shape[-1])
        each = self._numbers() * max(math.prod(v.shape[:-2]), 1) * self.dtype.itemsize
        width = max(memory_budget() // 2 // each, 1)
        if width >= v.shape[-1]:
            return self._apply(v)
        return torch.cat([self._apply(piece) for piece in v.split(width, -1)], -1)

    @property
    def mT(self) -> Kronecker:
        made, pairs = Kronecker(*[f.mT for f in self.factors]), self.pairs
        made.pairs = None if pairs is None else lambda: pairs().mT
        return made

    def cost(self, rhs: int = 1) -> Cost:
        total, parts = Cost(0, 0, 0), zip(self.factors, self._widths(), strict=True)
        for factor, width in parts:
            total = total + factor.cost(max(width, 1) * rhs)
        moved = self._numbers() * rhs
        fits = max(memory_budget() // 2, self._numbers() * self.dtype.itemsize)
        memory = total.memory + min(moved * self.dtype.itemsize, fits)
        passing = fft_seconds(0, len(self.factors) * moved / 3, self.dtype)
        seconds = total.seconds() - total.seconds(0) + passing + call_seconds()
        return Cost(total.make, total.apply, memory, total.seconds(0) + len(self.factors) * FIRST_CALL, seconds)

    def dense(self) -> Tensor:
        self._fits()

        def join(a: Tensor, b: Tensor) -> Tensor:
            both = a[..., :, None, :, None] * b[..., None, :, None, :]
            return both.reshape(*both.shape[:-4], both.shape[-4] * both.shape[-3], both.shape[-2] * both.shape[-1])

        return functools.reduce(join, [f.dense() for f in self.factors])

    def diagonal(self) -> Tensor:
        if all(f.shape[-1] == f.shape[-2] for f in self.factors):
            return functools.reduce(
                lambda a, b: (a.unsqueeze(-1) * b.unsqueeze(-2)).flatten(-2), [f.diagonal() for f in self.factors]
            )
        at = torch.arange(min(self.shape[-2:]))
        total, row, col = torch.ones((), dtype=self.dtype, device=self.device), at, at
        for factor in reversed(self.factors):
            n, m = factor.shape[-2:]
            total = total * factor.dense()[..., row % n, col % m]
            row, col = row // n, col // m
        return total

    def _square(self, what: str) -> None:
        if any(f.shape[-1] != f.shape[-2] for f in self.factors):
            shapes = [tuple(f.shape[-2:]) for f in self.factors]
            raise ShapeError(f"Kronecker.{what} needs square factors, got {shapes}")

    def _symmetric(self, what: str) -> list[Tensor]:
        if Claim.SYMMETRIC not in self.claims:
            raise StructureError(f"Kronecker.{what} with a shift needs factors that claim to be symmetric")
        return [f.dense() for f in self.factors]

    def solve(self, b: Tensor, shift: Shift = 0.0) -> Solution:
        """(A + shift I)^-1 b: factor by factor, or by eigenvectors [vanloan2000] where there is a shift.

        Raises: ShapeError unless every factor is square, StructureError for a shift of factors not symmetric.
        """
        wide, s = columns(self, b), as_shift(self, shift)
        self._square("solve")
        if not wide.numel():
            return answer(self, wide, b, s)
        if isinstance(shift, Tensor) or shift:
            return answer(self, implicit_solve(SHIFTED, wide, s, *self._symmetric("solve")), b, s)
        x, c = wide, wide.shape[-1]
        for factor in self.factors:
            n, right = factor.shape[-1], x.reshape(*x.shape[:-2], factor.shape[-1], -1)
            if isinstance(factor, Solvable) and n > FACTORED:
                step = factor.solve(right).value
            else:
                step = _divide(factor, right)
            x = step.mT.reshape(*step.shape[:-2], -1, 1)
        return answer(self, x.reshape(*x.shape[:-2], c, -1).mT, b, s)

    def logdet(self, shift: Shift = 0.0) -> Tensor:
        """log det (A + shift I). Raises NotPositiveDefiniteError where the determinant is not positive."""
        self._square("logdet")
        n = self.shape[-1]
        if isinstance(shift, Tensor) or shift:
            spectra = [torch.linalg.eigvalsh(a) for a in self._symmetric("logdet")]
            values = functools.reduce(lambda a, b: (a.unsqueeze(-1) * b.unsqueeze(-2)).flatten(-2), spectra)
            values = values + as_shift(self, shift)
            _positive(values.detach().min() if n else None)
            return values.log().sum(-1)
        total, sign = torch.zeros((), dtype=self.dtype, device=self.device), torch.ones(())
        for factor in self.factors:
            power = n // max(factor.shape[-1], 1)
            if isinstance(factor, Solvable) and factor.shape[-1] > FACTORED:
                total = total + power * factor.logdet()
                continue
            found, size = torch.linalg.slogdet(factor.dense())
            total, sign = total + power * size, sign * found.detach().cpu() ** (power % 2)
        _positive(sign.min())
        return total


def _divide(factor: Operator, b: Tensor) -> Tensor:
    x, info = torch.linalg.solve_ex(factor.dense(), b)
    if bool((info != 0).any()):
        raise NotPositiveDefiniteError("a factor is singular; add a shift", 0.0)
    return x


def _positive(smallest: Tensor | None) -> None:
    if smallest is not None and not float(smallest) > 0:
        raise NotPositiveDefiniteError(
            f"A + shift I is not positive definite ({float(smallest):.3g}); add a larger shift", float(smallest)
        )


def _solve_shifted(transposed: bool, b: Tensor, tensors: tuple[Tensor, ...]) -> Tensor:
    shift, *matrices = tensors
    values, vectors = zip(*[torch.linalg.eigh(a) for a in matrices], strict=True)
    spectrum = functools.reduce(lambda a, b: (a.unsqueeze(-1) * b.unsqueeze(-2)).flatten(-2), values)
    inner = _along([q.mT for q in vectors], b) / (spectrum + shift).unsqueeze(-1)
    return _along(list(vectors), inner)


def _product_shifted(transposed: bool, x: Tensor, tensors: tuple[Tensor, ...]) -> Tensor:
    shift, *matrices = tensors
    return _along(list(matrices), x) + shift * x


SHIFTED = System(_solve_shifted, _product_shifted)


class _Axis(Kernel):
    """A separable stationary kernel along one of its d axes, so that the product over axes is the kernel."""

    def __init__(self, kernel: Kernel, axis: int, d: int):
        super().__init__()
        self.kernel, self.axis, self.d = kernel, axis, d
        self.claims = kernel.claims & (KEPT | {Claim.CPD, Claim.STATIONARY})

    def block(self, x: Tensor, y: Tensor) -> Tensor:
        def placed(u: Tensor) -> Tensor:
            return torch.nn.functional.pad(u, (self.axis, self.d - 1 - self.axis))

        found = self.kernel.block(placed(x), placed(y))
        if self.axis == 0 or Claim.UNIT_DIAGONAL in self.kernel.claims:
            return found
        return found / self.kernel.diagonal(x.new_zeros(1, self.d))


def separable(kernel: Kernel) -> bool:
    """Whether k is a product over single columns: it claims so, or it is made of kernels of one column each."""
    if Claim.SEPARABLE in kernel.claims:
        return True
    if isinstance(kernel, Product):
        return all(separable(part) for part in kernel.parts if isinstance(part, Kernel))
    if isinstance(kernel, Scaled):
        return separable(kernel.kernel)
    return isinstance(kernel, Warped) and isinstance(kernel.module, Columns) and len(set(kernel.module.columns)) == 1


def _along_axis(kernel: Kernel, x: Line, y: Line, width: int, products: int) -> Operator:
    """The cheaper of an FFT and the matrix, for one axis that is applied to `width` columns."""
    dense = Dense.deferred(tiled(kernel, x, y), float(x.count) * y.count * KERNEL_FLOPS)
    if x.step != y.step:
        return dense
    fast = Toeplitz.on(kernel, x, None if x is y else y)
    return min((dense, fast), key=lambda op: op.cost(width).seconds(products))


@rule
def gridded(request: Request) -> Operator | None:
    """A separable stationary kernel on grids: one operator for each axis."""
    kernel, axes, others = request.kernel, lines(request.x), lines(request.y)
    if len(axes) < 2 or len(axes) != len(others) or len({line.dtype for line in (*axes, *others)}) > 1:
        return None
    if axes[0].dtype not in DTYPES or isinstance(kernel, FeatureMap):
        return None
    if Claim.STATIONARY not in kernel.claims or not separable(kernel):
        request.decline("Kronecker", "the kernel is not a stationary product over columns")
        return None
    parts = []
    for k, (x, y) in enumerate(zip(axes, axes if request.square else others, strict=True)):
        width = math.prod(a.count for a in axes[:k]) * math.prod(b.count for b in others[k + 1 :]) * request.rhs
        parts.append(_along_axis(_Axis(kernel, k, len(axes)), x, y, max(width, 1), request.products))
    made = Kronecker(*parts)
    made.pairs = lambda: tiled(kernel, request.x, request.y)
    return made
