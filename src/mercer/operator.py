"""Operator: a linear map known by its action, and the algebra of such maps."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from mercer.budget import memory_budget, mib
from mercer.claims import LINEAR, NO_CLAIMS, Claim
from mercer.errors import MemoryBudgetError, ShapeError, StructureError

FLOPS_PER_SECOND = 2e10  # about one core; for operators that do not know their speed better


@dataclass(frozen=True)
class Cost:
    """make: flops once; apply: flops of one product; memory: peak working bytes beyond inputs and output.

    make_seconds, apply_seconds: the time of both, where it is known better than by flops.
    """

    make: float
    apply: float
    memory: float
    make_seconds: float | None = None
    apply_seconds: float | None = None

    def __add__(self, other: Cost) -> Cost:
        make, both = self.seconds(0) + other.seconds(0), self.seconds() + other.seconds()
        flops = self.make + other.make, self.apply + other.apply
        return Cost(*flops, max(self.memory, other.memory), make, both - make)

    def flops(self, products: int = 1) -> float:
        return self.make + products * self.apply

    def seconds(self, products: int = 1) -> float:
        make = self.make / FLOPS_PER_SECOND if self.make_seconds is None else self.make_seconds
        return make + products * (self.apply / FLOPS_PER_SECOND if self.apply_seconds is None else self.apply_seconds)


class Operator(ABC):
    """A linear map `... m c -> ... n c`. `A @ v` applies it to a matrix or a vector; `A @ B` composes."""

    shape: torch.Size
    dtype: torch.dtype
    device: torch.device
    claims: frozenset[Claim] = NO_CLAIMS

    @abstractmethod
    def matmul(self, v: Tensor) -> Tensor:
        """v: ... m c -> ... n c. Differentiable."""

    def normal(self, v: Tensor, weights: Tensor | None = None) -> Tensor:
        """A^T (weights * (A v)), the product of normal equations: v `... m c`, weights `... n c` or None for one."""
        seen = self.matmul(v)
        return self.mT.matmul(seen if weights is None else weights * seen)

    @property
    @abstractmethod
    def mT(self) -> Operator:
        """The transpose of the last two axes."""

    @abstractmethod
    def cost(self, rhs: int = 1) -> Cost:
        """What a product with `rhs` columns takes."""

    def dense(self) -> Tensor:
        """The matrix itself, `... n m`. Raises MemoryBudgetError when it does not fit the memory budget."""
        self._fits()
        n, m = self.shape[-2:]
        if n < m:  # as few unit vectors as there are rows or columns
            return self.mT.matmul(torch.eye(n, dtype=self.dtype, device=self.device)).mT
        return self.matmul(torch.eye(m, dtype=self.dtype, device=self.device))

    def diagonal(self) -> Tensor:
        """The entries A[i, i], `... min(n, m)`."""
        k = min(self.shape[-2:])
        pieces = []
        for start in range(0, k, 256):  # 256 unit vectors at a time: n x 256 numbers, never n x m
            width = min(256, k - start)
            unit = torch.zeros(self.shape[-1], width, dtype=self.dtype, device=self.device)
            unit[start + torch.arange(width), torch.arange(width)] = 1
            pieces.append(self.matmul(unit)[..., start : start + width, :].diagonal(dim1=-2, dim2=-1))
        return torch.cat(pieces, -1) if pieces else torch.zeros(*self.shape[:-2], 0, dtype=self.dtype)

    def tril(self) -> Operator:
        """The causal part: entries above the diagonal become zero."""
        raise StructureError(f"{type(self).__name__} has no causal part; use Dense(A.dense()).tril()")

    def stabilised(self) -> Operator:
        """The same map up to one positive factor per row, chosen so that no entry overflows."""
        return self

    def normalised(self) -> Operator:
        """(A v) / (A 1): every row divided by its sum, as in softmax. Overflow is avoided where the map allows."""
        return Normalised(self.stabilised())

    def _fits(self) -> None:
        need = self.shape.numel() * self.dtype.itemsize
        if need > memory_budget():
            raise MemoryBudgetError(
                f"the {tuple(self.shape)} matrix takes {mib(need)}, the budget is {mib(memory_budget())}: "
                "use products, or raise the budget with mercer.memory(...)"
            )

    def _select(self, rows: Tensor, cols: Tensor) -> Operator:
        return Selected(self, rows, cols)

    def __getitem__(self, index: Any) -> Operator | Tensor:
        """Rows and blocks. Slices, index tensors and masks give an Operator; an integer gives the row or entry."""
        rows, cols = index if isinstance(index, tuple) and len(index) == 2 else (index, slice(None))
        if any(i is None or i is ... or isinstance(i, tuple) for i in (rows, cols)):
            raise IndexError(
                f"A[{index}]: expected rows, or rows and columns, of every matrix of the batch, as A[:, 0]"
            )
        r, c = _positions(rows, self.shape[-2], "row"), _positions(cols, self.shape[-1], "column")
        part = self._select(r, c)
        if isinstance(rows, Integral) or isinstance(cols, Integral):
            block = part.dense()
            block = block.squeeze(-2) if isinstance(rows, Integral) else block
            return block.squeeze(-1) if isinstance(cols, Integral) else block
        return part

    def __matmul__(self, v: Tensor | Operator) -> Any:
        if isinstance(v, Operator):
            return Composed(self, v)
        if not isinstance(v, Tensor):  # a list or an array: numbers without a torch dtype of their own
            v = torch.as_tensor(v).to(dtype=self.dtype, device=self.device)
        if v.ndim == 0:
            raise ShapeError("A @ v: v is a single number; write factor * A, or give v one entry per column of A")
        vector = v.ndim == 1
        columns = v[:, None] if vector else v
        if columns.shape[-2] != self.shape[-1]:
            raise ShapeError(f"A @ v: A has {self.shape[-1]} columns, v has {columns.shape[-2]} rows")
        for a, b in zip(reversed(self.shape[:-2]), reversed(columns.shape[:-2]), strict=False):
            if a != b and 1 not in (a, b):
                raise ShapeError(f"A @ v: the batch of A is {[*self.shape[:-2]]}, that of v {[*columns.shape[:-2]]}")
        if columns.dtype != self.dtype:
            raise TypeError(f"A @ v: A is {self.dtype}, v is {columns.dtype}; convert one of them")
        out = self.matmul(columns)
        return out.squeeze(-1) if vector else out

    def __add__(self, other: Operator) -> Operator:
        return Sum(self, other) if isinstance(other, Operator) else NotImplemented

    def __mul__(self, factor: float | Tensor) -> Operator:
        if isinstance(factor, Operator):
            raise TypeError("A * B of two operators is not a lazy product; multiply the kernels, or use A @ B")
        return Scaled(self, factor)

    __rmul__ = __mul__

    def __rmatmul__(self, v: Any) -> Tensor:
        rows = torch.as_tensor(v)
        return self.mT @ rows if rows.ndim == 1 else (self.mT @ rows.mT).mT

    def __sub__(self, other: Operator) -> Operator:
        return self + (-1.0) * other if isinstance(other, Operator) else NotImplemented

    def __truediv__(self, factor: float | Tensor) -> Operator:
        return Scaled(self, 1.0 / factor)

    def __neg__(self) -> Operator:
        return Scaled(self, -1.0)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(shape={tuple(self.shape)}, dtype={self.dtype})"


def _positions(index: Any, size: int, axis: str) -> Tensor:
    """A slice, an integer, a mask or an index tensor as positions in 0 ... size - 1."""
    if isinstance(index, slice):
        return torch.arange(size)[index]
    at = torch.as_tensor([int(index)] if isinstance(index, Integral) else index)
    if at.dtype == torch.bool:
        if at.shape != (size,):
            raise IndexError(f"the {axis} mask has shape {tuple(at.shape)}; expected ({size},)")
        return at.nonzero().squeeze(-1)
    at = at.to(torch.long)
    outside = at[(at < -size) | (at >= size)]
    if len(outside):
        raise IndexError(f"{axis} {int(outside[0])} is out of range for {size}")
    return at % max(size, 1)


def _inherit(op: Operator, of: Operator, shape: Iterable[int] | None = None) -> None:
    op.dtype, op.device, op.shape = of.dtype, of.device, torch.Size(of.shape if shape is None else shape)


class Sum(Operator):
    """A + B: products are added, nothing is formed."""

    def __init__(self, *parts: Operator):
        if len({part.shape[-2:] for part in parts}) != 1:
            raise ShapeError(f"operators of shapes {[tuple(p.shape) for p in parts]} cannot be added")
        self.parts = parts
        batch = torch.broadcast_shapes(*[part.shape[:-2] for part in parts])
        _inherit(self, parts[0], (*batch, *parts[0].shape[-2:]))
        self.claims = frozenset.intersection(*[part.claims for part in parts]) & LINEAR

    def matmul(self, v: Tensor) -> Tensor:
        total = self.parts[0].matmul(v)
        for part in self.parts[1:]:
            total = total + part.matmul(v)
        return total

    @property
    def mT(self) -> Operator:
        return Sum(*[part.mT for part in self.parts])

    def cost(self, rhs: int = 1) -> Cost:
        total = Cost(0, 0, 0)
        for part in self.parts:
            total = total + part.cost(rhs)
        return total

    def dense(self) -> Tensor:
        self._fits()
        return functools.reduce(torch.add, [part.dense() for part in self.parts])

    def diagonal(self) -> Tensor:
        return functools.reduce(torch.add, [part.diagonal() for part in self.parts])

    def _select(self, rows: Tensor, cols: Tensor) -> Operator:
        return Sum(*[part._select(rows, cols) for part in self.parts])

    def tril(self) -> Operator:
        return Sum(*[part.tril() for part in self.parts])


class Composed(Operator):
    """A @ B: B first, then A. With a Diagonal on the right, the weights of a measure, it is as capable as A."""

    def __init__(self, left: Operator, right: Operator):
        if left.shape[-1] != right.shape[-2]:
            raise ShapeError(f"A @ B: A has {left.shape[-1]} columns, B has {right.shape[-2]} rows")
        self.left, self.right = left, right
        batch = torch.broadcast_shapes(left.shape[:-2], right.shape[:-2])
        _inherit(self, left, (*batch, left.shape[-2], right.shape[-1]))

    def matmul(self, v: Tensor) -> Tensor:
        return self.left.matmul(self.right.matmul(v))

    @property
    def mT(self) -> Operator:
        return Composed(self.right.mT, self.left.mT)

    def cost(self, rhs: int = 1) -> Cost:
        return self.left.cost(rhs) + self.right.cost(rhs)

    def dense(self) -> Tensor:
        self._fits()
        if isinstance(self.right, Diagonal):
            return self.left.dense() * self.right.values.unsqueeze(-2)
        return super().dense()

    def diagonal(self) -> Tensor:
        if isinstance(self.right, Diagonal):
            left = self.left.diagonal()
            return left * self.right.values[..., : left.shape[-1]]
        return super().diagonal()

    def tril(self) -> Operator:
        return Composed(self.left.tril(), self.right) if isinstance(self.right, Diagonal) else super().tril()

    def stabilised(self) -> Operator:
        return Composed(self.left.stabilised(), self.right)

    def _select(self, rows: Tensor, cols: Tensor) -> Operator:
        inner = torch.arange(self.left.shape[-1])
        if isinstance(self.right, Diagonal):
            return Composed(self.left._select(rows, cols), Diagonal(self.right.values[..., cols]))
        return Composed(self.left._select(rows, inner), self.right._select(inner, cols))


class Scaled(Operator):
    """factor * A, factor a number or a scalar tensor."""

    def __init__(self, of: Operator, factor: float | Tensor):
        if isinstance(factor, Tensor) and factor.ndim > 0:
            raise ShapeError(f"the factor of an operator is a scalar, got shape {tuple(factor.shape)}")
        self.of, self.factor = of, factor
        _inherit(self, of)
        positive = bool(torch.as_tensor(factor).detach() >= 0)
        self.claims = of.claims & (LINEAR if positive else frozenset({Claim.SYMMETRIC}))

    def matmul(self, v: Tensor) -> Tensor:
        return self.of.matmul(v) * self.factor

    @property
    def mT(self) -> Operator:
        return Scaled(self.of.mT, self.factor)

    def cost(self, rhs: int = 1) -> Cost:
        return self.of.cost(rhs) + Cost(0, self.shape[-2] * rhs, 0)

    def dense(self) -> Tensor:
        return self.of.dense() * self.factor

    def diagonal(self) -> Tensor:
        return self.of.diagonal() * self.factor

    def _select(self, rows: Tensor, cols: Tensor) -> Operator:
        return Scaled(self.of._select(rows, cols), self.factor)

    def tril(self) -> Operator:
        return Scaled(self.of.tril(), self.factor)


class Selected(Operator):
    """A[rows, cols] of an operator that only knows products: scatter, apply, gather."""

    def __init__(self, of: Operator, rows: Tensor, cols: Tensor):
        self.of, self.rows, self.cols = of, rows.to(of.device), cols.to(of.device)
        _inherit(self, of, (*of.shape[:-2], len(rows), len(cols)))

    def matmul(self, v: Tensor) -> Tensor:
        full = v.new_zeros(*v.shape[:-2], self.of.shape[-1], v.shape[-1]).index_add(-2, self.cols, v)
        return self.of.matmul(full).index_select(-2, self.rows)

    @property
    def mT(self) -> Operator:
        return Selected(self.of.mT, self.cols, self.rows)

    def cost(self, rhs: int = 1) -> Cost:
        return self.of.cost(rhs) + Cost(0, len(self.rows) * rhs, sum(self.of.shape[-2:]) * rhs * self.dtype.itemsize)


class Normalised(Operator):
    """diag(1 / (A 1)) A: rows that sum to one. One pass over A, with the ones as an extra column."""

    def __init__(self, of: Operator):
        self.of = of
        _inherit(self, of)

    def matmul(self, v: Tensor) -> Tensor:
        both = self.of.matmul(torch.cat([v, torch.ones_like(v[..., :1])], -1))
        return both[..., :-1] / _mass(both[..., -1:])

    @property
    def mT(self) -> Operator:
        sums = self.of.matmul(torch.ones(self.shape[-1], 1, dtype=self.dtype, device=self.device))
        return Composed(self.of.mT, Diagonal(1 / _mass(sums).squeeze(-1)))

    def cost(self, rhs: int = 1) -> Cost:
        return self.of.cost(rhs + 1) + Cost(0, self.shape[-2] * rhs, 0)


def _mass(sums: Tensor) -> Tensor:
    return torch.where(sums == 0, 1.0, sums)  # a row without any mass gives zeros, not NaN


class Diagonal(Operator):
    """diag(values): values `... n`."""

    def __init__(self, values: Tensor):
        self.values = values
        self.shape = torch.Size([*values.shape, values.shape[-1]])
        self.dtype, self.device = values.dtype, values.device
        self.claims = frozenset({Claim.SYMMETRIC})

    def matmul(self, v: Tensor) -> Tensor:
        return self.values.unsqueeze(-1) * v

    @property
    def mT(self) -> Operator:
        return self

    def cost(self, rhs: int = 1) -> Cost:
        return Cost(0, self.shape[-2] * rhs, 0)

    def dense(self) -> Tensor:
        self._fits()
        return torch.diag_embed(self.values)

    def diagonal(self) -> Tensor:
        return self.values

    def tril(self) -> Operator:
        return self
