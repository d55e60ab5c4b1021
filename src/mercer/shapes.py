"""Shapes by name: `@shapes("x: ... n d, y: ... m d -> ... n m")` checks a call and names the axis at fault."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from mercer.errors import ShapeError

F = TypeVar("F", bound=Callable[..., Any])
Axes = tuple[str, ...]


def _parse(line: str) -> tuple[dict[str, Axes], Axes | None]:
    left, _, right = line.partition("->")
    inputs = {}
    for part in left.split(","):
        name, _, axes = part.partition(":")
        inputs[name.strip()] = tuple(axes.split())
    return inputs, tuple(right.split()) or None


def _bind(line: str, name: str, axes: Axes, tensor: Tensor, sizes: dict[str, int]) -> None:
    core = axes[1:] if axes and axes[0] == "..." else axes
    if tensor.ndim < len(core) or (core is axes and tensor.ndim != len(core)):
        raise ShapeError(f"expected [{line}], but {name} has shape {tuple(tensor.shape)}: {tensor.ndim} axes")
    for axis, size in zip(core, tensor.shape[tensor.ndim - len(core) :], strict=True):
        wanted = int(axis) if axis.isdigit() else sizes.setdefault(axis, size)
        if wanted != size:
            raise ShapeError(f"expected [{line}], but {name}.{axis} is {size}, elsewhere {wanted}")


def check(line: str, **tensors: Tensor) -> dict[str, int]:
    """Check tensors against a line such as `"x: ... n d, y: ... m d"`; return the size of every named axis."""
    sizes: dict[str, int] = {}
    for name, axes in _parse(line)[0].items():
        _bind(line, name, axes, tensors[name], sizes)
    return sizes


def shapes(line: str) -> Callable[[F], F]:
    """Check the tensors of a call, and its result, against `line`. A leading `...` stands for batch axes.

    Arguments that are not tensors (None, a Domain) pass unchecked. Raises ShapeError before the body runs.
    """
    inputs, output = _parse(line)

    def wrap(fn: F) -> F:
        names = list(inspect.signature(fn).parameters)
        places = [(names.index(name), name, axes) for name, axes in inputs.items()]

        @functools.wraps(fn)
        def checked(*args: Any, **kwargs: Any) -> Any:
            sizes: dict[str, int] = {}
            for place, name, axes in places:
                value = args[place] if place < len(args) else kwargs.get(name)
                if isinstance(value, torch.Tensor):
                    _bind(line, name, axes, value, sizes)
            result = fn(*args, **kwargs)
            if output is not None and isinstance(result, torch.Tensor):
                _bind(line, "the result", output, result, sizes)
            return result

        return checked  # type: ignore[return-value]

    return wrap
