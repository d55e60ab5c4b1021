"""How the seconds of a fit are shared between its trainings."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mercer.app.progress import Watch

_REPORT_SHARE, _BASELINE_SHARE = 0.22, 0.15  # of the time budget
_LEAST, _ENOUGH = 0.5, 1.5  # seconds that a training is asked to take at least, and below which there are fewer folds
_UNEVEN = 0.6  # of what the first training was asked to take: no later one is asked for less
_OVER = 0.15  # of the budget that a second fold may cost beyond it: one fold judges badly
_UNTOLD = 30.0  # seconds of a training when there is no budget


@dataclass
class Pace:
    """Even shares for the trainings that are left, folds and all rows: fewer of them rather than shorter ones.

    left: trainings, all rows among them. What a training takes beyond what it was asked for (coordinates, solves,
    other programs on the machine) and what the yardsticks take is measured and set aside for those to come.
    """

    watch: Watch
    left: int
    done: int = 0
    first: float = 0.0
    extra: float = 0.0
    yardsticks: float = 0.0

    def until_report(self) -> float:
        """Seconds until the report must be begun."""
        return self.watch.left() - _REPORT_SHARE * (self.watch.seconds or 0.0)

    def beside(self) -> float:
        """Seconds that the yardsticks of a fold may take."""
        return _BASELINE_SHARE * max(self.until_report(), 0.0) / max(self.left - 1, 1)

    def _each(self, trainings: int) -> float:
        """Seconds to ask of each of so many trainings, the last without yardsticks."""
        left, done = self.until_report(), max(self.done, 1)
        if not np.isfinite(left):
            return _UNTOLD
        beside = self.yardsticks / done * (trainings - 1) if self.done else _BASELINE_SHARE * left
        return (left - beside) / trainings - self.extra / done

    def _wanted(self) -> float:
        return max(_UNEVEN * self.first, _LEAST) if self.done else _ENOUGH

    def another(self) -> bool:
        """Whether there is time for one more fold; gives up folds, two at least aside, that leave too little each."""
        few = max(3 - self.done, 1)  # trainings: two folds are wanted, and that of all rows
        while self.left > few and self._each(self.left) < self._wanted():
            self.left -= 1
        over = _OVER * (self.watch.seconds or 0.0) / 2 if self.done == 1 else 0.0
        return self.left > 1 and (not self.done or self._each(2) + over >= _LEAST)

    def share(self) -> float:
        """Seconds to ask of the next training; at least most of what the first was asked for."""
        return max(self._each(self.left), self._wanted() if self.done else _LEAST)

    def took(self, asked: float, seconds: float) -> None:
        """Learn from a training that is over."""
        self.first = self.first or asked
        self.left, self.done = max(self.left - 1, 1), self.done + 1
        self.extra += seconds - asked

    def compared(self, seconds: float) -> None:
        """Learn from the yardsticks of a fold."""
        self.yardsticks += seconds
