"""How fast this machine is: nanoseconds of the pieces that kernel products are made of, measured once or by default."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
import platform
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch

from mercer.machine import library

log = logging.getLogger("mercer")

FORMAT = 4  # of the file and of the meaning of its names

# Nanoseconds of one thread, float32 then float64, of a usual machine of 2023: assumed where nothing was measured.
# core, tiles: for one pair of points, the value of a profile, one column of a statistic, one right-hand side; point:
# one coordinate that is packed. tiles.many: for one pair, once, where there are several right-hand sides. dense.read:
# one number of a matrix beyond the caches; dense.make: one of fresh memory; fft.flop: of 2.5 L log2 L for a real
# transform of length L; fft.pass: one number that is padded, multiplied or copied beside it: of all threads together.
# call: any product. threads.share: of a further thread's ideal speed-up, no time.
DEFAULTS: dict[str, tuple[float, float]] = {
    "core.exponential": (0.16, 0.55), "core.matern12": (0.22, 0.75), "core.matern32": (0.25, 0.80),
    "core.matern52": (0.27, 0.85), "core.power": (0.40, 1.6), "core.polynomial": (0.10, 0.20),
    "core.wendland": (0.35, 0.70), "core.root": (0.15, 0.50), "core.identity": (0.05, 0.10),
    "core.arccosine": (0.5, 1.9),
    "core.step": (0.06, 0.12), "core.direct": (0.022, 0.045), "core.expanded": (0.020, 0.040),
    "core.absolute": (0.035, 0.07), "core.dot": (0.020, 0.040), "core.rhs": (0.025, 0.05), "core.point": (2.0, 3.0),
    "tiles.exponential": (0.5, 1.6), "tiles.matern12": (3.0, 6.0), "tiles.matern32": (4.0, 8.0),
    "tiles.matern52": (5.0, 10.0), "tiles.power": (4.0, 12.0), "tiles.polynomial": (1.0, 1.5),
    "tiles.wendland": (4.0, 8.0), "tiles.root": (3.0, 6.0), "tiles.identity": (0.2, 0.3),
    "tiles.arccosine": (20.0, 40.0), "tiles.step": (0.3, 0.6),
    "tiles.other": (5.0, 10.0), "tiles.direct": (0.3, 0.6), "tiles.expanded": (0.025, 0.05),
    "tiles.absolute": (1.0, 1.2), "tiles.dot": (0.025, 0.05), "tiles.rhs": (0.05, 0.10),
    "tiles.many": (1.0, 1.0),
    "dense.read": (0.15, 0.30), "dense.rhs": (0.03, 0.06), "dense.make": (0.4, 0.8),
    "fft.flop": (0.15, 0.3), "fft.pass": (1.0, 2.0), "call": (1e5, 1e5),
    "conv.point": (0.5, 1.0), "conv.tap": (0.028, 0.056), "conv.weight": (0.06, 0.12), "conv.dense": (0.02, 0.04),
    "conv.last.point": (2.0, 4.0), "conv.last.tap": (0.025, 0.05), "conv.last.weight": (0.07, 0.14),
    "conv.flop": (0.13, 0.26), "conv.mix": (2.0, 4.0), "conv.shift": (0.4, 0.8),
    "threads.share": (0.9, 0.9),
}  # fmt: skip


class Rates:
    """Nanoseconds by name and precision, and where they come from."""

    def __init__(self, table: dict[str, tuple[float, float]], source: str):
        self.table, self.source = table, source

    def __call__(self, name: str, dtype: torch.dtype) -> float:
        pair = self.table.get(name) or DEFAULTS[name]
        return pair[dtype == torch.float64]

    def threads(self, dtype: torch.dtype) -> float:
        """The speed-up that the threads of torch bring."""
        return 1 + self("threads.share", dtype) * (torch.get_num_threads() - 1)

    def known(self, name: str) -> bool:
        """Whether there is such a rate."""
        return name in DEFAULTS


def _machine(core: str, installed: str) -> dict[str, str | int]:
    return {
        "format": FORMAT, "mercer": installed, "torch": torch.__version__, "core": core, "processor": _processor(),
    }  # fmt: skip


@functools.cache
def _installed() -> str:
    """Found among files, as slowly as a small product runs."""
    return version("mercer")


@functools.cache
def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    keep = ("model name", "cpu family", "model\t")
    return " ".join(dict.fromkeys(line.split(":")[1].strip() for line in lines if line.startswith(keep)))


def path() -> Path:
    """Where this machine's rates are kept: one file for each processor, core and version."""
    name = "LOCALAPPDATA" if sys.platform == "win32" else "XDG_CACHE_HOME"
    return _path(os.environ.get(name), library.wanted(), _installed())


@functools.cache
def _path(base: str | None, core: str, installed: str) -> Path:
    """Asked for by every product, so not made anew."""
    folder = Path(base) if base else Path.home() if sys.platform == "win32" else Path.home() / ".cache"
    key = hashlib.sha256(json.dumps(_machine(core, installed), sort_keys=True).encode()).hexdigest()[:12]
    return folder / "mercer" / f"rates-{key}.json"


@functools.cache
def _read(file: Path) -> Rates:
    try:
        held = json.loads(file.read_text())
        table = {name: (float(pair[0]), float(pair[1])) for name, pair in held["rates"].items() if name in DEFAULTS}
        if not all(0 < ns < 1e6 for pair in table.values() for ns in pair):
            raise ValueError("a rate is not between 0 and 1e6 nanoseconds")
    except FileNotFoundError:
        return Rates(DEFAULTS, "usual rates; `mercer doctor --calibrate` measures this machine's")
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        log.warning("%s is not used: %s; `mercer doctor --calibrate` writes a new one", file, error)
        return Rates(DEFAULTS, "usual rates; the file of this machine's is damaged")
    return Rates(table, f"measured on this machine on {held.get('date', 'an unknown day')}")


def rates() -> Rates:
    """This machine's rates where they were measured, else the defaults."""
    return _read(path())


def keep(table: dict[str, tuple[float, float]]) -> Path:
    """Write measured rates, in one step, and use them from now on. Raises OSError where they cannot be written."""
    file = path()
    file.parent.mkdir(parents=True, exist_ok=True)
    held = {**_machine(library.wanted(), _installed()), "date": time.strftime("%Y-%m-%d"), "rates": table}
    partial = file.with_suffix(f".{os.getpid()}.partial")
    partial.write_text(json.dumps(held, indent=1))
    partial.replace(file)
    _read.cache_clear()
    return file


def best(task: Callable[[], object], repeats: int = 5, clock: Callable[[], float] = time.process_time) -> float:
    """Seconds that the quickest of several runs kept the processor busy, after one that does not count."""
    task()
    found = float("inf")
    for _ in range(repeats):
        start = clock()
        task()
        found = min(found, clock() - start)
    return found
