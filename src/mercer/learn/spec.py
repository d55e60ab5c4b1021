"""Kernels as plain data: a name from an allow-list, numbers, and nested parts; no pickle, no import paths."""

from __future__ import annotations

from typing import Any

import torch

from mercer import kernels
from mercer.errors import StructureError
from mercer.kernel import Columns, Kernel, Warped
from mercer.kernels import Metric
from mercer.learn.lift import Lift

ALLOWED: dict[str, type[Kernel]] = {
    name: kind
    for name in kernels.__all__
    if isinstance(kind := getattr(kernels, name), type) and issubclass(kind, Kernel) and not kind.__abstractmethods__
}
DEPTH = 16  # nested kernels in a file; deeper ones are not ours
LARGEST = 1e30  # of a number in a file: beyond it, or below its inverse, float32 squares mean nothing


def _plain(value: Any, kernel: Kernel, name: str, depth: int) -> Any:
    if isinstance(value, Kernel):
        return {"kernel": to_spec(value, depth + 1)}
    if isinstance(value, torch.Tensor):
        return value.detach().double().tolist()
    if isinstance(value, list | tuple):
        return [_plain(v, kernel, name, depth) for v in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise StructureError(f"{kernel!r}: argument {name} is {type(value).__name__}, which has no plain form to save")


def to_spec(kernel: Kernel, depth: int = 0) -> dict[str, Any]:
    """The kernel as JSON-able values: {"name": ..., "arguments": {...}}.

    Raises StructureError for kernels of a user's own class and for warps by a module (columns and metrics are fine).
    """
    if depth > DEPTH:
        raise StructureError(f"the kernel nests deeper than {DEPTH} levels")
    if isinstance(kernel, Warped):
        if isinstance(kernel.module, Metric):
            matrix = kernel.module.matrix.tolist()
            return {"name": "Metric", "matrix": matrix, "of": to_spec(kernel.kernel, depth + 1)}
        if isinstance(kernel.module, Lift):
            scales = kernel.module.lengthscale.tolist()
            return {"name": "Lift", "lengthscale": scales, "of": to_spec(kernel.kernel, depth + 1)}
        if not isinstance(kernel.module, Columns):
            raise StructureError(f"{kernel!r} warps by a module, which is code and is not saved; save its state_dict")
        return {"name": "Columns", "columns": kernel.module.columns, "of": to_spec(kernel.kernel, depth + 1)}
    name = type(kernel).__name__
    if ALLOWED.get(name) is not type(kernel):
        raise StructureError(f"{kernel!r} is not one of mercer's kernels, so it cannot be saved without code")
    arguments = {key: _plain(value, kernel, key, depth) for key, value in kernel.arguments().items()}
    return {"name": name, "arguments": arguments}


def _value(plain: Any, depth: int) -> Any:
    if isinstance(plain, dict):
        return from_spec(plain.get("kernel"), depth + 1)
    if isinstance(plain, list):
        return [_value(v, depth) for v in plain]
    if isinstance(plain, int | float) and not (plain == 0 or 1 / LARGEST <= abs(plain) <= LARGEST):
        raise StructureError(f"a saved kernel holds {plain}; expected a size between {1 / LARGEST:g} and {LARGEST:g}")
    return plain


def _metric(rows: Any) -> Metric:
    if not isinstance(rows, list) or not all(isinstance(row, list) for row in rows):
        raise StructureError("a saved metric is not a list of rows")
    if not all(type(v) in (int, float) and abs(v) <= LARGEST for row in rows for v in row):
        raise StructureError(f"a saved metric holds something else than numbers of a size up to {LARGEST:g}")
    try:
        return Metric(rows)
    except (TypeError, ValueError) as error:
        raise StructureError(f"a saved metric is not a matrix: {error}") from error


def _lift(scales: Any) -> Lift:
    if not isinstance(scales, list) or not all(type(v) is float and 1 / LARGEST <= v <= LARGEST for v in scales):
        raise StructureError("a saved lengthscale is not a list of numbers of a usual size")
    return Lift(scales)


def from_spec(spec: Any, depth: int = 0) -> Kernel:
    """The kernel that `to_spec` described. Raises StructureError naming what does not belong."""
    if not isinstance(spec, dict) or not isinstance(spec.get("name"), str) or depth > DEPTH:
        raise StructureError("a saved kernel is not of the form {name, arguments}")
    if spec["name"] == "Columns":
        columns = spec.get("columns")
        if not isinstance(columns, list) or not all(type(c) is int and 0 <= c < 10**6 for c in columns):
            raise StructureError("a saved kernel names columns that are not whole numbers >= 0")
        return from_spec(spec.get("of"), depth + 1).on(columns)
    if spec["name"] == "Lift":
        return from_spec(spec.get("of"), depth + 1).warp(_lift(spec.get("lengthscale")))
    if spec["name"] == "Metric":
        return from_spec(spec.get("of"), depth + 1).warp(_metric(spec.get("matrix")))
    kind, arguments = ALLOWED.get(spec["name"]), spec.get("arguments")
    if kind is None or not isinstance(arguments, dict):
        raise StructureError(f"{spec['name']!r} is not a kernel of mercer")
    values = {key: _value(value, depth) for key, value in arguments.items()}
    try:
        return kind(*values.pop("parts")) if set(values) == {"parts"} else kind(**values)
    except (TypeError, ValueError) as error:
        raise StructureError(f"{spec['name']} cannot be made from its saved arguments: {error}") from error
