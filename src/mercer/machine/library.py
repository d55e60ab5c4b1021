"""The compiled core: found, loaded and called through ctypes. Where it is missing, torch tiles do the work."""

from __future__ import annotations

import ctypes
import functools
import logging
import os
import sys
from pathlib import Path

import torch

log = logging.getLogger("mercer")

VERSION = 5
SUFFIX = {"win32": ".dll", "darwin": ".dylib"}.get(sys.platform, ".so")
WIDTHS = {"AVX512": "avx512", "AVX2": "avx2"}  # what torch calls the processor's vectors; others run the portable core
NAMES = (*WIDTHS.values(), "portable")
FACTORS, STEPS, DEPTH = 8, 32, 8  # the core's limits
DONE, NO_MEMORY, STOPPED, OUT_OF_RANGE = range(4)
OPS = (
    "exponential", "matern12", "matern32", "matern52", "power", "polynomial", "wendland", "root", "arccosine",
    "identity", "constant", "scale", "add", "multiply",
)  # fmt: skip
PARAMETERS = 6
# which statistics a profile may be taken of, where these are not the squared distances
ON = {"exponential": (0, 1, 2, 3), "polynomial": (3,), "identity": (3,), "arccosine": (3,)}


class Factor(ctypes.Structure):
    """One statistic: where its points lie, and how they are shifted and scaled."""

    _fields_ = (
        ("x", ctypes.c_void_p), ("y", ctypes.c_void_p), ("x_stride", ctypes.c_int64), ("y_stride", ctypes.c_int64),
        ("scale", ctypes.c_void_p), ("centre", ctypes.c_void_p), ("dx", ctypes.c_void_p),
        ("d", ctypes.c_int32), ("statistic", ctypes.c_int32),
    )  # fmt: skip


class Step(ctypes.Structure):
    """One step of the program."""

    _fields_ = (("op", ctypes.c_int32), ("factor", ctypes.c_int32), ("p", ctypes.c_double * PARAMETERS))


class Job(ctypes.Structure):
    """One call: see the struct of the same name in core.cpp."""

    _fields_ = (
        ("factors", ctypes.c_void_p), ("steps", ctypes.c_void_p),
        ("factor_count", ctypes.c_int32), ("step_count", ctypes.c_int32),
        ("n", ctypes.c_int64), ("m", ctypes.c_int64), ("first", ctypes.c_int64), ("last", ctypes.c_int64),
        ("begin", ctypes.c_int64), ("end", ctypes.c_int64),
        ("v", ctypes.c_void_p), ("v_stride", ctypes.c_int64), ("out", ctypes.c_void_p), ("out_stride", ctypes.c_int64),
        ("sums", ctypes.c_void_p), ("weights", ctypes.c_void_p), ("weights_stride", ctypes.c_int64),
        ("row_bias", ctypes.c_void_p), ("column_bias", ctypes.c_void_p),
        ("left", ctypes.c_void_p), ("left_stride", ctypes.c_int64), ("shares", ctypes.c_void_p),
        ("stop", ctypes.c_void_p), ("r", ctypes.c_int32), ("part", ctypes.c_int32),
    )  # fmt: skip


def wanted() -> str:
    """Which core suits this processor; the environment variable MERCER_CORE says otherwise, "off" for none."""
    return os.environ.get("MERCER_CORE") or WIDTHS.get(torch.backends.cpu.get_cpu_capability(), "portable")


@functools.cache
def load(name: str) -> ctypes.CDLL | None:
    """The core of that name, or None (said once in the log) where it was not built or does not load."""
    if name == "off":
        return None
    if name not in NAMES:
        log.warning("MERCER_CORE is %r: expected one of %s; torch tiles run instead", name, ", ".join((*NAMES, "off")))
        return None
    path = Path(__file__).with_name(f"core_{name}{SUFFIX}")
    try:
        core = ctypes.CDLL(str(path))
    except OSError as error:
        log.info("no compiled core (%s): kernel products run in torch tiles, several times slower", error)
        return None
    if core.mercer_version() != VERSION:
        log.warning("the compiled core %s is of another version: reinstall mercer; torch tiles run instead", path.name)
        return None
    return core


def core() -> ctypes.CDLL | None:
    """The core in use, or None."""
    return load(wanted())
