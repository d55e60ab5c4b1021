"""What ends a fit that would go on: seconds where they were given, counted work where they were not, or the user."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

UNTOLD = 40.0  # seconds of a usual machine that a fit's learning is planned for when nobody said
CUBED, SQUARED = 1.2e-10, 2e-9  # seconds of a gradient on such a machine, for rows^3, and for rows^2 times columns
GROWTH = 2.5  # power of the rows with which the measured time of a step grows


@dataclass
class Clock:
    """Seconds left, or, where none were given, work left; and whether the user interrupted.

    Without seconds nothing depends on how fast the machine is now: `count` adds the seconds that a usual machine
    would have taken, and `patience` is how many of these there are.
    """

    seconds: float | None
    start: float
    interrupted: bool = False
    patience: float = UNTOLD
    counted: float = 0.0

    @classmethod
    def of(cls, seconds: float | None, patience: float = UNTOLD) -> Clock:
        return cls(seconds, time.perf_counter(), patience=patience)

    def used(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self.start

    def count(self, seconds: float) -> None:
        """Add work, in seconds of a usual machine."""
        self.counted += seconds

    def limit(self) -> float:
        """The seconds that were given, or the work that may be done."""
        return self.patience if self.seconds is None else self.seconds

    def gone(self) -> float:
        """How much of the limit is used up."""
        return self.counted if self.seconds is None else self.used()

    def over(self, share: float = 1.0) -> bool:
        """Whether this share of the limit is used up, or the user interrupted."""
        return self.interrupted or self.gone() > share * self.limit()

    def late(self, share: float = 1.0) -> bool:
        """Whether seconds were given and this share of them is over, or the user interrupted."""
        return self.interrupted or (self.seconds is not None and self.used() > share * self.seconds)


@dataclass(frozen=True)
class Room:
    """What fits in the share of the clock. step: measured seconds of a gradient on `rows` rows, 0: by count."""

    clock: Clock
    share: float
    step: float
    rows: int
    columns: int

    def seconds(self, rows: int) -> float:
        """What a gradient on so many rows takes: here, or, where no seconds were given, on a usual machine."""
        if self.step:
            return self.step * (rows / self.rows) ** GROWTH
        return CUBED * rows**3 + SQUARED * rows**2 * self.columns

    def fits(self, rows: int, steps: float) -> bool:
        """Whether so many steps on so many rows fit in what is left."""
        return steps * self.seconds(rows) <= self.share * self.clock.limit() - self.clock.gone()


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread inside: eigendecompositions of a thousand rows gain nothing from more, and lose on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def quickest(step: Callable[[], object], clock: Clock) -> Iterator[float]:
    """One thread inside, where that is faster: matrices of a few hundred rows on a busy machine wait for each other.

    Gives the seconds of one step. Where no seconds were given nothing is measured: one thread, and 0.
    """
    threads = torch.get_num_threads()
    seconds = {1: 0.0} if clock.seconds is None else {}
    for count in () if seconds else {1, threads}:
        torch.set_num_threads(count)
        start = time.perf_counter()
        step()
        seconds[count] = time.perf_counter() - start
    torch.set_num_threads(min(seconds, key=lambda count: seconds[count]))
    try:
        yield min(seconds.values())
    finally:
        torch.set_num_threads(threads)
