"""How many threads to use: all cores, but one where the work is small or the machine is busy with other things."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from threadpoolctl import threadpool_limits

SMALL = 2500  # rows; several threads mostly wait for each other on the matrices of so few
BUSY = 1.25  # running programs for each core


def cores() -> int:
    """The cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def wanted(rows: int) -> int:
    """Threads for work on so many rows. On a busy machine waiting threads cost more than they bring."""
    busy = hasattr(os, "getloadavg") and os.getloadavg()[0] > BUSY * cores()
    return 1 if rows <= SMALL or busy else torch.get_num_threads()


@contextmanager
def threads(rows: int) -> Iterator[int]:
    """Inside the block torch, BLAS and OpenMP use `wanted(rows)` threads."""
    before, count = torch.get_num_threads(), wanted(rows)
    with threadpool_limits(count):
        torch.set_num_threads(count)
        try:
            yield count
        finally:
            torch.set_num_threads(before)
