"""Bands around numbers and sets of classes that hold the truth as often as they promise, with that measured."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from mercer.app.words import number, shown
from mercer.learn.conformal import LocalConformal
from mercer.learn.copies import Repeats

COVERAGE = 0.9
ENOUGH = 20  # judged rows of a class from which a promise to it can be checked
_UNLIKE = 1.1  # times the judged models' misses from which those of the model of all rows are another model's
LEVELS = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95])


def conformal_rank(n: int, coverage: float) -> int:
    """The place, from 1, of the sorted score that covers a new one with this chance; n + 1 means that none does."""
    return int(np.ceil((n + 1) * coverage))


def widest(calibrator: LocalConformal, coverage: float) -> np.ndarray:
    """The half width of bands where the local spread is one, for each target; infinite where rows are too few."""
    size, rank = np.sort(np.abs(calibrator.scores), axis=0), conformal_rank(len(calibrator.scores), coverage)
    return size[rank - 1] if rank <= len(size) else np.full(size.shape[1], np.inf)


@dataclass(frozen=True)
class ClassSets:
    """Sets of classes: all whose chance is at least the class's own threshold, and always the likeliest.

    A threshold of its own covers each class as promised, the rare ones too; a class of too few rows to have one (9 for
    90 %) is in every set. chances: the sorted out-of-fold chances given to the true class; codes: those classes.
    Source [sadinle2019, sec. 2.2], [vovk2005, sec. 4.5].
    """

    chances: np.ndarray
    codes: np.ndarray

    @classmethod
    def of(cls, own: np.ndarray, codes: np.ndarray) -> ClassSets:
        """From the out-of-fold chance given to the true class of each row, and that class."""
        order = np.argsort(own, kind="stable")
        return cls(own[order], np.asarray(codes, dtype=np.int64)[order])

    @classmethod
    def fit(cls, chances: np.ndarray, codes: np.ndarray) -> ClassSets:
        """From out-of-fold chances, n x classes, and the true codes."""
        return cls.of(chances[np.arange(len(codes)), codes], codes)

    def _threshold(self, code: int, coverage: float) -> float:
        own = self.chances[self.codes == code]
        place = len(own) - conformal_rank(len(own), coverage)
        return float(own[place]) if place >= 0 else 0.0

    def members(self, chances: np.ndarray, coverage: float = COVERAGE) -> np.ndarray:
        """n x classes, True where the class is in the row's set."""
        inside = chances >= np.array([self._threshold(c, coverage) for c in range(chances.shape[1])])
        inside[np.arange(len(chances)), chances.argmax(1)] = True
        return inside


Calibrator = LocalConformal | ClassSets


@dataclass(frozen=True)
class Measured:
    """What the bands or sets of one target did on rows that did not calibrate them.

    low, high, pit: for numbers, of every judged row; inside: whether the 90 % band or set held the truth;
    curve: the share held at each of LEVELS; size: median width, or mean number of classes.
    least: of classes of 20 rows or more, the one whose rows were held least often, the share and the rows.
    few: the classes of fewer rows, and how many.
    """

    low: np.ndarray
    high: np.ndarray
    pit: np.ndarray
    inside: np.ndarray
    curve: list[float]
    size: float
    least: tuple[int, float, int] | None = None
    few: list[tuple[int, int]] = field(default_factory=list)

    def on(self, back: Callable[[np.ndarray], np.ndarray]) -> Measured:
        """The same of numbers that go back to another scale, which has the same order."""
        low, high = back(self.low), back(self.high)
        return replace(self, low=low, high=high, size=float(np.median(high - low)))


def _least(true: np.ndarray, inside: np.ndarray) -> tuple[int, float, int] | None:
    rows = np.bincount(true)
    shares = np.bincount(true, weights=inside) / np.maximum(rows, 1)
    shares[rows < ENOUGH] = np.inf
    worst = int(shares.argmin())
    return (worst, float(shares[worst]), int(rows[worst])) if np.isfinite(shares[worst]) else None


def _numbers(
    place: np.ndarray,
    true: np.ndarray,
    found: np.ndarray,
    parts: Sequence[np.ndarray],
    kept: np.ndarray,
    seed: int,
    seconds: float | None,
) -> list[Measured]:
    low, high, pit = np.empty_like(true), np.empty_like(true), np.empty_like(true)
    hits = np.empty((len(LEVELS), *true.shape), dtype=bool)
    for rows in parts:
        others = np.setdiff1d(kept, rows)
        calibrator = LocalConformal(scale=False, random_state=seed, time_budget=seconds)
        calibrator.fit(place[others], (true - found)[others])
        spread = calibrator.spread(place[rows])
        for level, inside in zip(LEVELS, hits, strict=True):
            inside[rows] = np.abs(true - found)[rows] <= widest(calibrator, float(level)) * spread
        half = widest(calibrator, COVERAGE) * spread
        low[rows], high[rows] = found[rows] - half, found[rows] + half
        pit[rows] = calibrator.pit(found[rows], place[rows], true[rows])
    inside, width = (true >= low) & (true <= high), np.median(high - low, axis=0)
    return [
        Measured(low[:, c], high[:, c], pit[:, c], inside[:, c], hits[:, :, c].mean(1).tolist(), float(width[c]))
        for c in range(true.shape[1])
    ]


def _classes(true: np.ndarray, chances: np.ndarray, parts: Sequence[np.ndarray], kept: np.ndarray) -> Measured:
    n = len(true)
    hits, sizes = np.empty((len(LEVELS), n), dtype=bool), np.empty(n)
    inside = np.empty(n, dtype=bool)
    for rows in parts:
        others = np.setdiff1d(kept, rows)
        sets = ClassSets.fit(chances[others], true[others])
        for level, hit in zip(LEVELS, hits, strict=True):
            hit[rows] = sets.members(chances[rows], float(level))[np.arange(len(rows)), true[rows]]
        members = sets.members(chances[rows])
        inside[rows], sizes[rows] = members[np.arange(len(rows)), true[rows]], members.sum(1)
    nothing = np.full(n, np.nan)
    rows = np.bincount(true, minlength=chances.shape[1])
    few = [(int(c), int(rows[c])) for c in np.flatnonzero(rows < ENOUGH)]
    curve, size = hits.mean(1).tolist(), float(sizes.mean())
    return Measured(nothing, nothing, nothing, inside, curve, size, _least(true, inside), few)


def _parts(folds: np.ndarray, seed: int) -> list[np.ndarray]:
    """The rows of each fold; of two halves where there is one fold only."""
    labels = folds if len(np.unique(folds)) > 1 else np.random.default_rng(seed).permutation(len(folds)) % 2
    return [np.flatnonzero(labels == label) for label in np.unique(labels)]


def one_of_each(groups: np.ndarray, seed: int) -> np.ndarray:
    """A row of each group, drawn by chance: what stands for a new row of a new group. [dunn2023, sec. 3]"""
    order = np.random.default_rng(seed).permutation(len(groups))
    return np.sort(order[np.unique(groups[order], return_index=True)[1]])


def measure_numbers(
    place: np.ndarray,
    true: np.ndarray,
    found: np.ndarray,
    folds: np.ndarray,
    seed: int,
    seconds: float | None = None,
    groups: np.ndarray | None = None,
) -> tuple[LocalConformal, list[Measured]]:
    """(calibrator of all rows, what calibrators of the other folds did on each fold, for each target).

    seconds: for learning where bands are wider, all calibrators together; None: 4 for each.
    place: n x (d + targets), where the width is looked up, predictions last; true, found: n x targets, found out of
    fold. Rows that share a place, or one of groups, n numbers, calibrate once, by one of them.
    """
    columns = np.ascontiguousarray(place[:, : place.shape[1] - true.shape[1]])
    twins = Repeats.of(torch.from_numpy(columns)) if groups is None else None
    kept = np.arange(len(true)) if twins is None else twins.picked
    kept = kept if groups is None else one_of_each(groups, seed)
    parts = _parts(folds, seed)
    each = None if seconds is None else seconds / (len(parts) + 1)
    measured = _numbers(place, true, found, parts, kept, seed, each)
    final = LocalConformal(scale=False, random_state=seed, time_budget=each)
    return final.fit(place[kept], (true - found)[kept]), measured


def as_wide_as(
    calibrator: LocalConformal, judged: np.ndarray, missed: np.ndarray | None
) -> tuple[LocalConformal, np.ndarray]:
    """(calibrator, the factors its bands were widened by), where the model of all rows misses rows left out by more.

    judged, missed: n x t, what rows were missed by out of fold, and by the model of all rows when left out of it (None:
    there is no such model).
    """
    if missed is None:
        return calibrator, np.ones(judged.shape[1])
    own, usual = (np.quantile(np.abs(wrong), COVERAGE, axis=0) for wrong in (missed, judged))
    times = np.divide(own, usual, out=np.ones_like(own), where=usual > 0)
    times = np.where(times > _UNLIKE, times, 1.0)
    wide = copy.copy(calibrator)
    wide.scores = calibrator.scores * times
    return wide, times


def unlike(names: Sequence[str], times: np.ndarray) -> str:
    """What is said where bands were widened."""
    wide = [f"'{shown(name)}' ({number(t, 2)} times)" for name, t in zip(names, times, strict=True) if t > 1]
    return (
        f"the model of all rows misses left-out rows by more than the judged models: wider bands of {', '.join(wide)}"
    )


def measure_classes(
    true: np.ndarray, chances: np.ndarray, folds: np.ndarray, seed: int, groups: np.ndarray | None = None
) -> tuple[ClassSets, list[Measured]]:
    """The same for sets of classes. true: n codes; chances: n x classes, out of fold.

    Of groups one row for each class calibrates, as a class has a threshold of its own.
    """
    pairs = None if groups is None else groups.astype(np.int64) * chances.shape[1] + true
    kept = np.arange(len(true)) if pairs is None else one_of_each(pairs, seed)
    return ClassSets.fit(chances[kept], true[kept]), [_classes(true, chances, _parts(folds, seed), kept)]


def as_modest_as(sets: ClassSets, left_out: np.ndarray | None, codes: np.ndarray) -> ClassSets:
    """The sets, with each class's threshold no higher than what rows left out of the last model say of it.

    left_out: n x classes, the chances that it gave to these rows, NaN where none (None: there is no such model); codes:
    n. Chances of weak signals differ less from row to row than from model to model: thresholds of other models would
    let all rows of a class in, or none.
    """
    if left_out is None:
        return sets
    own = left_out[np.arange(len(codes)), codes]
    known = np.isfinite(own)
    last = ClassSets.of(own[known], codes[known])
    chances, kinds = [], []
    for c in range(left_out.shape[1]):
        chosen = min((sets, last), key=lambda each: each._threshold(c, COVERAGE))
        chances.append(chosen.chances[chosen.codes == c])
        kinds.append(np.full(len(chances[-1]), c))
    return ClassSets.of(np.concatenate(chances), np.concatenate(kinds))


def to_state(calibrator: Calibrator) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """(JSON, arrays)."""
    if isinstance(calibrator, ClassSets):
        return {"kind": "sets"}, {"chances": calibrator.chances, "codes": calibrator.codes}
    state, arrays = calibrator.get_state()
    return {"kind": "local", "state": state}, arrays


def from_state(state: dict[str, Any], arrays: dict[str, np.ndarray]) -> Calibrator:
    """The calibrator that `to_state` described."""
    if state["kind"] == "sets":
        chances, codes = arrays["chances"], arrays["codes"]
        if codes.shape != chances.shape or codes.dtype.kind != "i" or (len(codes) and codes.min() < 0):
            raise ValueError("classes of sets")
        return ClassSets(chances, codes)
    return LocalConformal.from_state(state["state"], arrays)
