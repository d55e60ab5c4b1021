"""Exit codes, and how every expected failure becomes one line on stderr."""

from __future__ import annotations

import errno
import json
import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mercer.app.words import one_line
from mercer.errors import MercerError, MercerWarning

log = logging.getLogger("mercer")

OK, USAGE, DATA, MEMORY, INTERRUPTED = 0, 2, 3, 4, 130


class UsageError(MercerError, ValueError):
    """The command line asks for something that cannot be: a bad option, or a place that cannot be written."""


class Interrupted(MercerError):
    """The user stopped the work before there was anything to keep."""


def code_of(error: BaseException) -> int:
    """The exit code for an expected failure."""
    if isinstance(error, UsageError):
        return USAGE
    if isinstance(error, Interrupted | KeyboardInterrupt):
        return INTERRUPTED
    if isinstance(error, MemoryError):
        return MEMORY
    return USAGE if isinstance(error, OSError) else DATA


def _sentence(error: BaseException) -> str:
    if isinstance(error, KeyboardInterrupt):
        return "interrupted; nothing was written"
    if isinstance(error, OSError) and not isinstance(error, MercerError):
        place = f"{error.filename}: " if error.filename else ""
        mend = {
            errno.ENOSPC: "free some space or choose another place with --out",
            errno.EDQUOT: "free some space or choose another place with --out",
            errno.EROFS: "choose a place that can be written with --out",
            errno.EACCES: "check its permissions or choose another place",
            errno.EPERM: "check its permissions or choose another place",
        }.get(error.errno or 0, "check the path")
        return f"{place}{error.strerror or error}; {mend}"
    if isinstance(error, MemoryError) and not str(error):
        return "the machine ran out of memory; give a smaller --memory, or fewer rows"
    return str(error)


def _tell(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    """A warning of ours is a line for the user; one of a library is for the log."""
    if issubclass(category, MercerWarning):
        sys.stderr.write(f"mercer: warning: {one_line(str(message))}\n")
    else:
        log.debug("%s: %s", category.__name__, message)


@contextmanager
def one_line_errors(as_json: bool) -> Iterator[None]:
    """Inside the block an expected failure prints one line and exits with its code; a fault of ours does not."""
    before, warnings.showwarning = warnings.showwarning, _tell
    try:
        yield
    except (MercerError, OSError, MemoryError, KeyboardInterrupt) as error:
        code, text = code_of(error), one_line(_sentence(error))
        if as_json:
            sys.stdout.write(json.dumps({"ok": False, "exit": code, "error": text}) + "\n")
        sys.stderr.write(f"mercer: {text}\n")
        raise SystemExit(code) from None
    finally:
        warnings.showwarning = before
