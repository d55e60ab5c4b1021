"""mercer: a kernel is one object.

Rooms: kernels, operators, features, linalg, learn, compare, compress, nn. Functions: explain (what will be computed and
what it costs), memory (a budget for everything inside a `with` block). Nothing is imported before it is used (PEP 562).
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_ROOMS = ("compare", "compress", "features", "kernels", "learn", "linalg", "nn", "operators")
_FUNCTIONS = {"explain": "mercer.assemble", "memory": "mercer.budget"}

__all__ = ["__version__", *_ROOMS, *_FUNCTIONS]


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return importlib.import_module(f"mercer.{name}")
    if name in _FUNCTIONS:
        return getattr(importlib.import_module(_FUNCTIONS[name]), name)
    raise AttributeError(f"mercer has no {name!r}; it has {', '.join(__all__[1:])}")


def __dir__() -> list[str]:
    return sorted(__all__)
