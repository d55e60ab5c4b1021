"""Positive: a kernel parameter that is positive by construction and reads like a plain attribute."""

from __future__ import annotations

from typing import Any, overload

import torch
from torch import Tensor, nn


class Positive:
    """Descriptor on an nn.Module class: `lengthscale = Positive()`.

    Reading gives the value, a tensor that carries gradients. Writing takes a number, a sequence or a tensor of shape
    () or (d,), finite and > 0. What an optimiser trains, and what state_dict holds, is its logarithm in float64,
    under the name `log_<name>`. With optional=True the value None is allowed as well and is stored as no parameter.
    """

    def __init__(self, optional: bool = False):
        self.optional = optional

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
        new = torch.as_tensor(value, dtype=torch.float64).detach()
        if not bool(torch.isfinite(new).all() and (new > 0).all()):
            raise ValueError(f"{type(module).__name__}.{self.name} is {value}; expected finite numbers > 0")
        old = module._parameters.get(self.raw)
        if old is not None and old.shape == new.shape:
            with torch.no_grad():  # in place, so that an optimiser built earlier keeps training this parameter
                old.copy_(new.log())
        else:
            trains = old is None or old.requires_grad
            module.register_parameter(self.raw, nn.Parameter(new.log(), requires_grad=trains))


class WithParameters(nn.Module):
    """An nn.Module whose Positive attributes may also be assigned an nn.Parameter."""

    def __setattr__(self, name: str, value: Any) -> None:
        descriptor = getattr(type(self), name, None)
        if isinstance(descriptor, Positive):
            descriptor.__set__(self, value)
        else:
            super().__setattr__(name, value)


def like(value: Tensor, x: Tensor) -> Tensor:
    """`value` in the dtype and on the device of the points `x`; gradients flow through."""
    return value.to(device=x.device, dtype=x.dtype)
