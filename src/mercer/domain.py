"""Domain: points and their measure. The arrangement of the points decides which operator is cheapest."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from mercer.errors import DataError, ShapeError


class Domain(ABC):
    """Points `... n d` with quadrature weights `... n` (None: the counting measure, every weight 1)."""

    weights: Tensor | None = None

    @property
    @abstractmethod
    def points(self) -> Tensor:
        """`... n d`, made on demand where the arrangement is implicit."""

    @property
    def n(self) -> int:
        return self.points.shape[-2]

    @property
    def d(self) -> int:
        return self.points.shape[-1]

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: Any) -> Points:
        """The chosen points (a slice, an index tensor or a mask) with their weights; the arrangement is lost."""
        weights = None if self.weights is None else self.weights[..., index]
        return Points(self.points[..., index, :], weights)


class Points(Domain):
    """Points in no particular arrangement.

    points: `... n d`, a floating tensor. weights: `... n`, > 0, or None.
    """

    def __init__(self, points: Tensor, weights: Tensor | None = None):
        if points.ndim < 2:
            raise ShapeError(
                f"points have shape {tuple(points.shape)}; expected ... n d: write x[:, None] for n points on a line"
            )
        if weights is not None and weights.shape[-1:] != points.shape[-2:-1]:
            raise ShapeError(f"weights.n is {tuple(weights.shape)[-1:]}, but there are {points.shape[-2]} points")
        self._points, self.weights = points, weights

    @property
    def points(self) -> Tensor:
        return self._points


class Line(Domain):
    """n equally spaced points start, start + step, ... on a line (d = 1)."""

    def __init__(self, n: int, step: float = 1.0, start: float = 0.0, dtype: torch.dtype | None = None):
        self.count, self.step, self.start = n, float(step), float(start)
        self.dtype = dtype or torch.get_default_dtype()

    @property
    def points(self) -> Tensor:
        return (self.start + self.step * torch.arange(self.count, dtype=self.dtype))[:, None]


class Grid(Domain):
    """The product of lines: every combination of their points, the last line running fastest (d = number of lines)."""

    def __init__(self, *axes: Line):
        if not axes:
            raise ShapeError("Grid needs at least one Line")
        self.axes = axes

    @property
    def sizes(self) -> tuple[int, ...]:
        return tuple(axis.count for axis in self.axes)

    @property
    def points(self) -> Tensor:
        return torch.cartesian_prod(*[axis.points[:, 0] for axis in self.axes]).reshape(-1, len(self.axes))


def as_domain(x: Any) -> Domain:
    """A Domain as it is; a tensor or array as Points. Integers become float64 (exact up to 2^53)."""
    if isinstance(x, Domain):
        return x
    tensor = torch.as_tensor(x)
    if tensor.is_complex():
        raise TypeError("points are complex; a kernel takes real points: stack real and imaginary parts as columns")
    if not tensor.is_floating_point():
        tensor = tensor.to(torch.float64)
    return Points(tensor)


def finite(name: str, values: Tensor) -> Tensor:
    """`values` (`... n d`) as they are; DataError naming the first row and column that is NaN or infinite."""
    if not math.isfinite(values.detach().sum().item()):  # one pass; the mask decides
        bad = ~torch.isfinite(values.detach())
        if bool(bad.any()):
            *_, row, column = at = bad.nonzero()[0].tolist()
            found = float(values[tuple(at)])
            raise DataError(f"{name} is {found} at row {row}, column {column}; drop or fill such rows")
    return values
