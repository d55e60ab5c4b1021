"""Kept: a tensor computed from a module and some points, kept until one of them changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def _state(module: nn.Module) -> tuple[list[Tensor], list[Any]]:
    """Everything the module's values depend on: its tensors, and its plain attributes with the types of its parts."""
    tensors, plain = [*module.parameters(), *module.buffers()], list[Any]()
    for part in module.modules():
        plain.append(type(part))
        for value in vars(part).values():
            if isinstance(value, Tensor):
                tensors.append(value)
            elif isinstance(value, bool | int | float | str):
                plain.append(value)
    return tensors, plain


class Kept:
    """The last value of `make`, given again while module and points are as they were then.

    Parameters and buffers are compared by value: fused optimisers and `.data` change them without a trace in torch's
    version counters. Points are compared by identity and version. Where a gradient is wanted, and inside torch.func
    transforms, nothing is kept.
    """

    def __init__(self) -> None:
        self._value: Tensor | None = None
        self._tensors: list[Tensor] = []
        self._plain: list[Any] = []
        self._points: tuple[Tensor, int] | None = None

    def get(
        self, module: nn.Module, make: Callable[[], Tensor], points: Tensor | None = None, key: Any = None
    ) -> Tensor:
        """make(), or what it gave last time. key: whatever else the value depends on."""
        tensors, plain = _state(module)
        sources = tensors if points is None else [*tensors, points]
        wanted = torch.is_grad_enabled() and any(t.requires_grad for t in sources)
        if wanted or torch._C._are_functorch_transforms_active() or (points is not None and points.is_inference()):
            return make()
        if self._value is None or not self._same(tensors, [*plain, key], points):
            self._value = make()
            self._tensors, self._plain = [t.detach().clone() for t in tensors], [*_state(module)[1], key]
            self._points = None if points is None else (points, points._version)
        return self._value

    def _same(self, tensors: list[Tensor], plain: list[Any], points: Tensor | None) -> bool:
        if points is not None and (
            self._points is None or points is not self._points[0] or points._version != self._points[1]
        ):
            return False
        if plain != self._plain or len(tensors) != len(self._tensors):
            return False
        return all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(tensors, self._tensors, strict=True))
