"""Filters of spectral algorithms: which share h(lambda) of each eigendirection of K / n is learned.

Each takes eigenvalues > 0 and a level > 0 in their units: what lies far above the level is learned, what lies far below
is not. The error of a filter of qualification q falls no faster than level^2q, however smooth the target is.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable

import torch
from torch import Tensor

Filter = Callable[[Tensor, float], Tensor]


def ridge(values: Tensor, level: float) -> Tensor:
    """lambda / (lambda + level): kernel ridge with noise n level. Qualification 1. Source [engl1996, sec. 5.1]."""
    return values / (values + level)


def iterated_ridge(values: Tensor, level: float, times: int = 2) -> Tensor:
    """1 - (level / (lambda + level))^times: ridge of what ridge left, `times` >= 1 times. Qualification `times`.

    Source [engl1996, sec. 5.1].
    """
    return -torch.expm1(-times * torch.log1p(values / level))


def gradient_flow(values: Tensor, level: float) -> Tensor:
    """1 - exp(-lambda / level): gradient descent in continuous time up to 1 / level. No limit of qualification."""
    return -torch.expm1(-values / level)


def landweber(values: Tensor, level: float) -> Tensor:
    """1 - (1 - rate lambda)^steps: gradient descent of rate 1 / the largest value, and `steps` = 1 / (rate level).

    steps is rounded, at least 1. No limit of qualification. Source [engl1996, sec. 6.1].
    """
    top = float(values.max())
    return -torch.expm1(steps(top, level) * torch.log1p(-(values / top).clamp_max(1.0)))


def steps(top: float, level: float) -> int:
    """Gradient steps of `landweber` where the largest eigenvalue is `top`."""
    return max(round(top / level), 1)


def cutoff(values: Tensor, level: float) -> Tensor:
    """1 where lambda >= level, else 0: principal component regression. No limit of qualification."""
    return (values >= level).to(values.dtype)


FILTERS: dict[str, Filter] = {f.__name__: f for f in (ridge, gradient_flow, cutoff, iterated_ridge, landweber)}


def of(given: str | Callable) -> tuple[Filter, bool]:
    """(h(values, level), whether it depends on the level) of a name or a function h(values) or h(values, level).

    Raises ValueError naming the names there are; TypeError for what is neither.
    """
    if isinstance(given, str):
        if given not in FILTERS:
            names = ", ".join(FILTERS)
            raise ValueError(f"filter is {given!r}; expected one of {names}, or a function h(values, level)")
        return FILTERS[given], True
    if not callable(given):
        raise TypeError(f"filter is {type(given).__name__}; expected a name or a function h(values, level)")
    needed = [p for p in inspect.signature(given).parameters.values() if p.default is p.empty]
    if len(needed) == 1:
        return lambda values, level: given(values), False
    return given, True


def gain(h: Filter, values: Tensor, level: float) -> Tensor:
    """h(lambda) / lambda, the filter's stand-in for an inverse, at eigenvalues `r` known up to r eps of the largest.

    Directions that it would amplify beyond what their eigenvalues can be known to are left out.
    """
    safe = values.clamp_min(math.sqrt(torch.finfo(values.dtype).tiny))
    share = torch.as_tensor(h(safe, level))
    if share.shape != values.shape:
        raise ValueError(f"filter gave shape {tuple(share.shape)} for {len(values)} eigenvalues; expected one for each")
    found = share.to(values.dtype) / safe
    least = len(values) * torch.finfo(values.dtype).eps * float(safe.max())
    return torch.where(found.abs() * least <= 1, found, 0.0)
