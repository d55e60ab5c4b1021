"""Bands around numbers and sets of classes that hold the truth as often as they promise, with that measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mercer.learn.conformal import LocalConformal

COVERAGE = 0.9
LEVELS = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95])


def conformal_rank(n: int, coverage: float) -> int:
    """The place, from 1, of the score among n sorted ones that covers a new one with this chance; n + 1 means none does."""
    return int(np.ceil((n + 1) * coverage))


@dataclass(frozen=True)
class ClassSets:
    """Sets of classes: all whose chance is at least a threshold, and always the likeliest [sadinle2019].

    chances: the sorted out-of-fold chances given to the true class.
    """

    chances: np.ndarray

    @classmethod
    def fit(cls, chances: np.ndarray, codes: np.ndarray) -> ClassSets:
        """From out-of-fold chances, n x classes, and the true codes."""
        return cls(np.sort(chances[np.arange(len(codes)), codes]))

    def members(self, chances: np.ndarray, coverage: float = COVERAGE) -> np.ndarray:
        """n x classes, True where the class is in the row's set."""
        n = len(self.chances)
        place = n - conformal_rank(n, coverage)
        threshold = self.chances[place] if place >= 0 else 0.0
        inside = chances >= threshold
        inside[np.arange(len(chances)), chances.argmax(1)] = True
        return inside


Calibrator = LocalConformal | ClassSets


@dataclass(frozen=True)
class Measured:
    """A calibrator of all judged rows, and what calibrators of the other folds did on each fold.

    low, high, pit: for numbers, of every judged row; inside: whether the 90 % band or set held the truth.
    """

    calibrator: Calibrator
    low: np.ndarray
    high: np.ndarray
    pit: np.ndarray
    inside: np.ndarray
    curve: list[float]
    size: float


def calibrate(x: np.ndarray, found: np.ndarray, true: np.ndarray, seed: int) -> LocalConformal:
    """A calibrator of bands from out-of-fold predictions of rows at coordinates `x`."""
    return LocalConformal(random_state=seed).fit(x, true - found)


def band(
    calibrator: LocalConformal, x: np.ndarray, found: np.ndarray, coverage: float
) -> tuple[np.ndarray, np.ndarray]:
    """(lower, upper) around predictions."""
    return calibrator.interval(found, x, coverage)


def place_of(calibrator: LocalConformal, x: np.ndarray, found: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Where the truth falls in its predicted distribution, 0 to 1."""
    return calibrator.pit(found, x, true)


def _numbers(x: np.ndarray, true: np.ndarray, found: np.ndarray, parts: Sequence[np.ndarray], seed: int) -> Measured:
    n = len(true)
    low, high, pit, hits = np.empty(n), np.empty(n), np.empty(n), np.empty((len(LEVELS), n), dtype=bool)
    for rows in parts:
        others = np.setdiff1d(np.arange(n), rows)
        calibrator = calibrate(x[others], found[others], true[others], seed)
        for level, inside in zip(LEVELS, hits, strict=True):
            below, above = band(calibrator, x[rows], found[rows], float(level))
            inside[rows] = (true[rows] >= below) & (true[rows] <= above)
        low[rows], high[rows] = band(calibrator, x[rows], found[rows], COVERAGE)
        pit[rows] = place_of(calibrator, x[rows], found[rows], true[rows])
    inside = (true >= low) & (true <= high)
    everything = calibrate(x, found, true, seed)
    return Measured(everything, low, high, pit, inside, hits.mean(1).tolist(), float(np.median(high - low)))


def _classes(true: np.ndarray, chances: np.ndarray, parts: Sequence[np.ndarray]) -> Measured:
    n = len(true)
    hits, sizes = np.empty((len(LEVELS), n), dtype=bool), np.empty(n)
    inside = np.empty(n, dtype=bool)
    for rows in parts:
        others = np.setdiff1d(np.arange(n), rows)
        sets = ClassSets.fit(chances[others], true[others])
        for level, hit in zip(LEVELS, hits, strict=True):
            hit[rows] = sets.members(chances[rows], float(level))[np.arange(len(rows)), true[rows]]
        members = sets.members(chances[rows])
        inside[rows], sizes[rows] = members[np.arange(len(rows)), true[rows]], members.sum(1)
    nothing = np.full(n, np.nan)
    return Measured(
        ClassSets.fit(chances, true), nothing, nothing, nothing, inside, hits.mean(1).tolist(), float(sizes.mean())
    )


def measure(x: np.ndarray, true: np.ndarray, found: np.ndarray, folds: np.ndarray, seed: int) -> Measured:
    """Calibrate on out-of-fold predictions; measure each fold with bands calibrated on the others.

    x: n x d coordinates for the local width; found: n numbers, or n x classes chances. With one fold it is halved.
    """
    labels = folds if len(np.unique(folds)) > 1 else np.random.default_rng(seed).permutation(len(true)) % 2
    parts = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    return _classes(true, found, parts) if found.ndim == 2 else _numbers(x, true, found, parts, seed)


def to_state(calibrator: Calibrator) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """(JSON, arrays)."""
    if isinstance(calibrator, ClassSets):
        return {"kind": "sets"}, {"chances": calibrator.chances}
    state, arrays = calibrator.get_state()
    return {"kind": "local", "state": state}, arrays


def from_state(state: dict[str, Any], arrays: dict[str, np.ndarray]) -> Calibrator:
    """The calibrator that `to_state` described."""
    if state["kind"] == "sets":
        return ClassSets(arrays["chances"])
    return LocalConformal.from_state(state["state"], arrays)
