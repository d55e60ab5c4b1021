"""The one place of the application that imports late, so that `mercer --help` loads typer and nothing heavier."""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType


def room(name: str) -> ModuleType:
    """The module mercer.app.<name>, imported when a command first needs it."""
    return importlib.import_module(f"mercer.app.{name}")


def optional(name: str) -> ModuleType | None:
    """An optional package, or None where it is not installed."""
    return importlib.import_module(name) if importlib.util.find_spec(name) is not None else None
