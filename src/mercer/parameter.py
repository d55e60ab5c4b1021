"""Positive: a kernel parameter that is positive by construction and reads like a plain attribute."""

from __future__ import annotations

from typing import Any, overload

import torch
from torch import Tensor, nn

from mercer.errors import ShapeError


class Positive:
    """Descriptor on an nn.Module class: `lengthscale = Positive()`.

    Reading gives the value, a tensor that carries gradients. Writing takes a number, a sequence or a tensor without
    gradient, finite and > 0, with one of the allowed numbers of axes (default: () or (d,)). What an optimiser trains,
    and what state_dict holds, is its logarithm under the name `log_<name>`, float64 whatever `.to(dtype)` says.
    Writing another shape makes a new parameter: build optimisers afterwards. With optional=True None is allowed.
    """

    def __init__(self, axes: tuple[int, ...] = (0, 1), optional: bool = False):
        self.axes, self.optional = axes, optional

    def __set_name__(self, owner: type, name: str) -> None:
        self.name, self.raw = name, f"log_{name}"

    @overload
    def __get__(self, module: None, owner: type) -> Positive: ...
    @overload
    def __get__(self, module: nn.Module, owner: type) -> Any: ...
    def __get__(self, module: nn.Module | None, owner: type) -> Any:
        if module is None:
            return self
        raw = getattr(module, self.raw)
        return None if raw is None else raw.exp()

    def __set__(self, module: nn.Module, value: Any) -> None:
        if value is None and self.optional:
            module.register_parameter(self.raw, None)
            return
        where = f"{type(module).__name__}.{self.name}"
        if isinstance(value, Tensor) and value.requires_grad:
            raise TypeError(f"{where} takes a value without gradient: detach it, and train {self.raw}, which is in it")
        new = torch.as_tensor(value, dtype=torch.float64)
        if new.ndim not in self.axes:
            raise ShapeError(f"{where} has {new.ndim} axes; expected {' or '.join(str(a) for a in self.axes)}")
        if not bool(torch.isfinite(new).all() and (new > 0).all()):
            raise ValueError(f"{where} is {value}; expected finite numbers > 0")
        old = module._parameters.get(self.raw)
        if old is not None and old.shape == new.shape:
            with torch.no_grad():  # in place, so that an optimiser built earlier keeps training this parameter
                old.copy_(new.log())
        else:
            trains = old is None or old.requires_grad
            module.register_parameter(self.raw, nn.Parameter(new.log(), requires_grad=trains))


class WithParameters(nn.Module):
    """An nn.Module with Positive attributes."""

    def __setattr__(self, name: str, value: Any) -> None:
        descriptor = getattr(type(self), name, None)
        if isinstance(descriptor, Positive):
            descriptor.__set__(self, value)
        else:
            super().__setattr__(name, value)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        raw = [d.raw for d in vars(type(self)).values() if isinstance(d, Positive)]
        kept = {name: p.detach() for name in raw if (p := self._parameters.get(name)) is not None}
        super()._apply(fn, recurse)
        for name, before in kept.items():  # moved with the module, but never rounded
            after = getattr(self, name)
            after.data = before.to(device=after.device)
        return self


def like(value: Tensor, x: Tensor) -> Tensor:
    """`value` in the dtype and on the device of the points `x`; gradients flow through."""
    if not x.is_floating_point():
        raise TypeError(f"points are {x.dtype}; a kernel takes floating points: x.double()")
    return value.to(device=x.device, dtype=x.dtype)
