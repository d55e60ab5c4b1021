"""What estimators expect of their arguments, and the errors that name them."""

from __future__ import annotations

import math
import numbers
from typing import Any

import numpy as np

from mercer.claims import Claim
from mercer.errors import StructureError
from mercer.kernel import Kernel


def _or_none(optional: bool) -> str:
    return ", or None" if optional else ""


def positive(name: str, value: Any, *, optional: bool = True, below: float = math.inf) -> None:
    """Raise ValueError unless the value is a number > 0 and < below (or None, where that is optional)."""
    fine = isinstance(value, numbers.Real) and not isinstance(value, bool) and 0 < float(value) < below
    if not (fine or (optional and value is None)):
        limit = "" if below == math.inf else f" and < {below:g}"
        raise ValueError(f"{name} is {value!r}; expected a number > 0{limit}{_or_none(optional)}")


def count(name: str, value: Any, least: int, *, optional: bool = False) -> None:
    """Raise ValueError unless the value is a whole number >= least (or None, where that is optional)."""
    fine = isinstance(value, numbers.Integral) and not isinstance(value, bool) and int(value) >= least
    if not (fine or (optional and value is None)):
        raise ValueError(f"{name} is {value!r}; expected a whole number >= {least}{_or_none(optional)}")


def share(name: str, value: Any) -> None:
    """Raise ValueError unless the value is None (none) or a number from 0 to below 1."""
    fine = isinstance(value, numbers.Real) and not isinstance(value, bool) and 0 <= float(value) < 1
    if not (fine or value is None):
        raise ValueError(f"{name} is {value!r}; expected a number from 0 to below 1, or None")


def inside(name: str, value: Any) -> None:
    """Raise ValueError unless the value is a number between 0 and 1, neither of them."""
    if not (isinstance(value, numbers.Real) and not isinstance(value, bool) and 0 < float(value) < 1):
        raise ValueError(f"{name} is {value!r}; expected a number between 0 and 1, such as 0.9")


def psd(owner: Any, kernel: Any, name: str = "kernel") -> None:
    """Raise TypeError or StructureError unless the kernel is None or one that claims to be psd."""
    if kernel is not None and not isinstance(kernel, Kernel):
        raise TypeError(f"{name} is {type(kernel).__name__}; expected a mercer Kernel or None")
    if kernel is not None and Claim.PSD not in kernel.claims:
        raise StructureError(
            f"{getattr(owner, '__name__', type(owner).__name__)} needs a psd kernel; {kernel!r} does not claim it"
        )


def truth(name: str, value: Any, *, optional: bool = False) -> None:
    """Raise ValueError unless the value is True or False (or None, where that is optional)."""
    if not (isinstance(value, bool | np.bool_) or (optional and value is None)):
        raise ValueError(f"{name} is {value!r}; expected True or False{_or_none(optional)}")


def usual(owner: Any) -> None:
    """Check what learners have in common, where they have it: kernel, standardize, learn, time_budget, progress."""
    held = vars(owner)
    kernel = held.get("kernel")
    for one in kernel if isinstance(kernel, list | tuple) else [kernel]:
        psd(owner, one)
    truth("standardize", held.get("standardize"), optional=True)
    truth("learn", held.get("learn", True))
    positive("time_budget", held.get("time_budget"))
    if held.get("progress") is not None and not callable(held["progress"]):
        raise TypeError(f"progress is {held['progress']!r}; expected something to call, or None")
