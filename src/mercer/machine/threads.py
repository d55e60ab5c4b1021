"""Tasks on as many threads as torch uses, each running torch and the compiled core on one thread."""

from __future__ import annotations

import contextvars
import ctypes
import functools
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait

import torch


class Stop:
    """A flag that running tasks look at: set where the user interrupted or a task failed."""

    def __init__(self) -> None:
        self.flag = ctypes.c_int32(0)

    @property
    def address(self) -> int:
        return ctypes.addressof(self.flag)

    def __bool__(self) -> bool:
        return bool(self.flag.value)


_here = threading.local()


def _begin() -> None:
    _here.working = True
    torch.set_num_threads(1)  # a setting of the calling thread: many threads inside many threads wait for each other


@functools.cache
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, "mercer", _begin)


def run(tasks: Sequence[Callable[[], None]], stop: Stop, inline: bool = False) -> None:
    """Run the tasks, torch.get_num_threads() at a time; raise what the first failed one raised.

    Ctrl-C sets `stop`, waits for the running tasks to notice, and goes on as KeyboardInterrupt.
    inline: run them here, one after the other, for work too small to share and too short to be interrupted. Work that
    a task itself asks for (a warp that attends, inside a tile) runs in its own thread: waiting for another could wait
    for ever.
    """
    if inline or getattr(_here, "working", False):
        for task in tasks:
            task()
        return
    pool = _pool(os.getpid(), torch.get_num_threads())
    running = [pool.submit(contextvars.copy_context().run, task) for task in tasks]  # with this thread's memory budget
    try:
        done, _ = wait(running, return_when=FIRST_EXCEPTION)
        for one in done:
            one.result()
        for one in running:
            one.result()
    except BaseException:
        stop.flag.value = 1
        for one in running:
            one.cancel()
        wait(running)
        raise
