"""What the user sees while the work runs: a bar on a terminal, a line for each stage elsewhere, always on stderr."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from mercer.app.words import one_line


class Watch:
    """A clock with a budget, and the place to say what is going on. seconds: the budget, None for none.

    started: the time.monotonic() at which the work began, now where it is None.
    """

    def __init__(self, seconds: float | None = None, steps: int = 1, quiet: bool = False, started: float | None = None):
        self.started = time.monotonic() if started is None else started
        self.seconds, self.quiet = seconds, quiet
        self._console = Console(file=sys.stderr, highlight=False, markup=False, soft_wrap=True)
        self._bar = Progress(
            SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn(),
            console=self._console, transient=True, disable=quiet or not self._console.is_terminal,
        )  # fmt: skip
        self._task = self._bar.add_task("starting", total=steps)

    def __enter__(self) -> Watch:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.started

    def left(self) -> float:
        """Seconds of the budget that remain, infinite where there is none."""
        return float("inf") if self.seconds is None else self.seconds - self.elapsed()

    def stage(self, text: str) -> None:
        """Say what begins now."""
        self._bar.update(self._task, description=one_line(text, 70))

    def advance(self, steps: float = 1) -> None:
        """Move the bar."""
        self._bar.advance(self._task, steps)

    def say(self, text: str) -> None:
        """A line that stays."""
        if not self.quiet:
            self._console.print(one_line(text))
