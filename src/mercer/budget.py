"""The memory budget: how much working memory a product may take, and how much the machine has."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
FRESH = 0.05  # seconds for which the memory that was free is taken to be free still: asking takes as long as a product
_last: list[float] = [-1.0, 0.0]  # when it was asked, and what came
_limit: ContextVar[int | None] = ContextVar("memory_limit", default=None)


def parse_bytes(amount: int | str) -> int:
    """Bytes from a count or from text such as "512M", "4G", "1.5GiB". Raises ValueError naming the text."""
    if isinstance(amount, int):
        found = amount
    else:
        match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([KMGT]?)(?:i?B)?\s*", amount, re.IGNORECASE)
        if match is None:
            raise ValueError(f"memory is {amount!r}; expected a number of bytes or text like '512M' or '4G'")
        found = int(float(match[1]) * _UNITS[match[2].upper()])
    if found <= 0:
        raise ValueError(f"memory is {amount!r}; expected more than 0 bytes")
    return found


def _read(path: str) -> int | None:
    try:
        return int(Path(path).read_text())
    except (OSError, ValueError):  # not this kind of system, or "max": no limit from here
        return None


def _meminfo() -> int | None:
    try:
        text = Path("/proc/meminfo").read_text()
    except OSError:
        return None
    match = re.search(r"MemAvailable:\s+(\d+) kB", text)
    return int(match[1]) * 1024 if match else None


def _reclaimable(path: str) -> int:
    """Bytes of a cgroup that only keep files in memory, which it gives up when asked."""
    try:
        match = re.search(r"^(?:total_)?inactive_file (\d+)$", Path(path).read_text(), re.MULTILINE)
    except OSError:
        return 0
    return int(match[1]) if match else 0


def free_memory() -> int:
    """Bytes this process may still take: the machine's available memory, or less where a cgroup says so."""
    if time.monotonic() - _last[0] > FRESH:
        _last[:] = time.monotonic(), _measured()
    return int(_last[1])


def _measured() -> int:
    found = _meminfo()
    if found is None:
        names = os.sysconf_names if hasattr(os, "sysconf_names") else {}
        pages = os.sysconf("SC_PHYS_PAGES") // 2 if "SC_PHYS_PAGES" in names else 2**18
        found = pages * (os.sysconf("SC_PAGE_SIZE") if "SC_PAGE_SIZE" in names else 4096)
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        top, now = _read(limit), _read(used)
        if top is not None and now is not None:
            kept = _reclaimable(str(Path(used).with_name("memory.stat")))
            found = min(found, max(top - now + min(kept, now), 0))
    return found


def memory_budget() -> int:
    """Working bytes that one operation may take: the limit set by `memory(...)`, else a quarter of what is free."""
    limit = _limit.get()
    return limit if limit is not None else max(free_memory() // 4, 2**24)


@contextmanager
def memory(limit: int | str) -> Iterator[int]:
    """Inside the block every product stays within `limit` bytes of working memory: `with memory("512M"): ...`."""
    token = _limit.set(parse_bytes(limit))
    try:
        yield memory_budget()
    finally:
        _limit.reset(token)


def mib(size: float) -> str:
    """Bytes as people read them: MiB with three digits, small amounts too, GiB from 1,024 of them on."""
    if size >= 2**30:
        return f"{size / 2**30:,.2f} GiB" if size < 100 * 2**30 else f"{size / 2**30:,.0f} GiB"
    amount = size / 2**20
    return f"{amount:,.{0 if amount >= 100 else 1 if amount >= 10 else 3}f} MiB"
