"""How the seconds of a fit are shared between its trainings."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from mercer.app.progress import Watch

_REPORT_SHARE, _BASELINE_SHARE = 0.22, 0.15  # of the time budget
_REPORT = (
    2.0  # seconds that calibration, pictures and writing take of a small table, if that is under 0.4 of the budget
)
_LEAST, _ENOUGH = 0.5, 1.5  # seconds that a training is asked to take at least, and below which there are fewer folds
_UNEVEN = 0.6  # of what the first training was asked to take, or needed: no later one is asked for less
_OVER = 0.15  # of the budget that a second fold may cost beyond it: one fold judges badly
_SEEN, _BUSIEST = 0.5, 4.0  # seconds of work that show how busy the machine is, and the most that is believed of it
_UNTOLD = 30.0  # seconds of a training when there is no budget


def _usual(costs: Sequence[float]) -> float:
    """The mean cost, without the first where there are others: it loads and warms what all use."""
    return float(np.mean(costs[1:] or costs)) if costs else 0.0


@dataclass
class Pace:
    """Even shares for the trainings that are left, folds and all rows: fewer of them rather than shorter ones.

    trainings: all of them, that of all rows included; left: those still meant to be done. What a training takes beyond
    what it was asked for (coordinates, solves, other programs on the machine) and what the yardsticks take is measured
    and set aside for those to come; a fold given up for want of time is taken up again where others needed less.
    """

    watch: Watch
    trainings: int
    left: int = 0
    done: int = 0
    need: float = 0.0
    extra: list[float] = field(default_factory=list)
    yardsticks: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.left = self.trainings
        self._begun = time.monotonic(), time.process_time()

    def until_report(self) -> float:
        """Seconds until the report must be begun."""
        budget = self.watch.seconds or 0.0
        return self.watch.left() - max(_REPORT_SHARE * budget, min(_REPORT * self._busy(), 0.4 * budget))

    def _busy(self) -> float:
        """How many times as long as its work takes all has taken so far, as other programs want the machine too."""
        wall, work = time.monotonic() - self._begun[0], time.process_time() - self._begun[1]
        return min(max(wall / work, 1.0), _BUSIEST) if work > _SEEN else 1.0

    def beside(self) -> float:
        """Seconds that the yardsticks of a fold may take."""
        return _BASELINE_SHARE * max(self.until_report(), 0.0) / max(self.left - 1, 1)

    def _each(self, trainings: int) -> float:
        """Seconds to ask of each of so many trainings, the last without yardsticks."""
        left = self.until_report()
        if not np.isfinite(left):
            return _UNTOLD
        beside = _usual(self.yardsticks) * (trainings - 1) if self.done else _BASELINE_SHARE * left
        return (left - beside) / trainings - _usual(self.extra)

    def _wanted(self) -> float:
        return max(_UNEVEN * self.need, min(_LEAST, self.need)) if self.done else _ENOUGH

    def another(self) -> bool:
        """Whether there is time for one more fold; leaves out folds, two at least aside, where all get too little."""
        self.left, few = self.trainings - self.done, max(3 - self.done, 1)  # two folds are wanted, and that of all rows
        while self.left > few and self._each(self.left) < self._wanted():
            self.left -= 1
        over = _OVER * (self.watch.seconds or 0.0) / 2 if self.done == 1 else 0.0
        return self.left > 1 and (not self.done or self._each(2) + over >= min(_LEAST, self.need))

    def share(self) -> float:
        """Seconds to ask of the next training; at least most of what the first was asked for, or needed."""
        return max(self._each(self.left), self._wanted() if self.done else _LEAST)

    def took(self, asked: float, seconds: float) -> None:
        """Learn from a training that is over; one that ended by itself says what is needed."""
        self.need = min(self.need or asked, seconds) if seconds < asked else self.need or asked
        self.left, self.done = max(self.left - 1, 1), self.done + 1
        self.extra.append(max(seconds - asked, 0.0))

    def compared(self, seconds: float) -> None:
        """Learn from the yardsticks of a fold."""
        self.yardsticks.append(seconds)
