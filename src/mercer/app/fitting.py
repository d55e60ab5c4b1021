"""From a table to a trained model: folds for an honest judgement, yardsticks on the same folds, then all rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from sklearn.model_selection import GroupKFold, KFold, StratifiedGroupKFold, StratifiedKFold

from mercer.app.baselines import Fold, baselines
from mercer.app.exits import Interrupted
from mercer.app.frame import Frame, TableEncoder
from mercer.app.heads import Head, fit_head, groups, predict, stopped
from mercer.app.progress import Watch
from mercer.app.targets import Target
from mercer.app.words import count

FOLDS = 5
_REPORT_SHARE, _BASELINE_SHARE = 0.22, 0.15  # of the time budget
_LEAST = 0.5  # seconds that a training is asked to take at least


@dataclass(frozen=True)
class Trained:
    """A table encoder and the learners on its coordinates."""

    encoder: TableEncoder
    heads: list[Head]
    classes: list[int]

    def predict(self, frame: Frame) -> list[np.ndarray]:
        """For each target n numbers, or n x classes chances."""
        return predict(self.heads, self.classes, self.encoder.encode(frame))


@dataclass
class Outcome:
    """What a fit has reached so far. folds: n, the fold that predicted each row, -1 where none has.

    found, others: out-of-fold predictions of mercer and of each yardstick, NaN where there are none.
    best: the latest model; rows: how many rows it was trained on; held: the rows that `judge` did not see.
    """

    folds: np.ndarray
    found: list[np.ndarray]
    others: dict[str, list[np.ndarray]]
    best: Trained | None = None
    rows: int = 0
    judge: Trained | None = None
    held: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=int))
    interrupted: bool = False
    seconds: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def judged(self) -> np.ndarray:
        """The rows that have out-of-fold predictions."""
        return np.flatnonzero(self.folds >= 0)

    def spent(self, what: str, seconds: float) -> None:
        """Add to the time spent on something."""
        self.seconds[what] = round(self.seconds.get(what, 0.0) + seconds, 3)


def _empty(targets: Sequence[Target]) -> list[np.ndarray]:
    return [np.full((len(t.values), len(t.classes)) if t.classes else len(t.values), np.nan) for t in targets]


def goal(targets: Sequence[Target]) -> np.ndarray:
    """All targets as one standardised matrix, n x t."""
    return np.hstack([t.matrix() for t in targets])


def repeated(frame: Frame) -> np.ndarray:
    """A number for each row that equal rows share."""
    table = pd.DataFrame({str(i): column.values for i, column in enumerate(frame.columns)})
    return table.groupby(list(table.columns), dropna=False, sort=False).ngroup().to_numpy()


def split(
    targets: Sequence[Target], folds: int, seed: int, groups: np.ndarray | None = None
) -> list[tuple[np.ndarray, np.ndarray]]:
    """(training rows, test rows) of each fold; classes are spread evenly where there are any.

    groups: rows of one number stay in one fold, so that no row is judged by a model that saw its twin.
    """
    n = len(targets[0].values)
    kinds = n if groups is None else len(np.unique(groups))
    apart = kinds < n
    folds = min(folds, kinds // 2)
    shuffled = {"n_splits": max(folds, 2), "shuffle": True, "random_state": seed}
    first = next((t for t in targets if t.classes), None)
    if first is not None and np.bincount(first.values).max() >= folds:
        rare = np.bincount(first.values) < folds  # too few rows to spread: they go where they fall
        codes = np.where(rare[first.values], int(np.argmax(np.bincount(first.values))), first.values)
        if apart:
            return list(StratifiedGroupKFold(**shuffled).split(codes, codes, groups))
        return list(StratifiedKFold(**shuffled).split(codes, codes))
    if apart:
        return list(GroupKFold(**shuffled).split(np.arange(n), groups=groups))
    return list(KFold(**shuffled).split(np.arange(n)))


def train(frame: Frame, targets: Sequence[Target], seconds: float, seed: int) -> tuple[Trained, np.ndarray]:
    """A model of these rows, and their coordinates."""
    encoder, x = TableEncoder.fit(frame, goal(targets), seed)
    parts = groups([t.task for t in targets])
    heads = [fit_head(members, targets, x, seconds / len(parts), seed) for members in parts]
    return Trained(encoder, heads, [len(t.classes) for t in targets]), x


@dataclass
class Pace:
    """How time is shared between the trainings that are left; learners overrun what they are asked for by a ratio."""

    watch: Watch
    left: int
    ratio: float = 1.0
    longest: float = 0.0

    def until_report(self) -> float:
        """Seconds until the report must be begun."""
        return self.watch.left() - _REPORT_SHARE * (self.watch.seconds or 0.0)

    def share(self) -> float:
        """Seconds to ask of the next training."""
        left = self.until_report()
        return max((1 - _BASELINE_SHARE) * left / self.left / self.ratio, _LEAST) if np.isfinite(left) else 30.0

    def took(self, asked: float, seconds: float) -> None:
        """Learn from a training that is over."""
        self.left -= 1
        self.longest = max(self.longest, seconds)
        self.ratio = max(seconds / asked, 1.0)


def _compare(outcome: Outcome, fold: Fold, targets: Sequence[Target], test: np.ndarray, pace: Pace) -> None:
    """Yardsticks on one fold; one that would take more than its share of the time left is not tried again."""
    for name, run in baselines().items():
        before, spent = pace.watch.elapsed(), outcome.seconds.get(name, 0.0)
        done = len(np.unique(outcome.folds[outcome.folds >= 0])) - 1
        if done and spent / done > _BASELINE_SHARE * max(pace.until_report(), 0.0) / max(pace.left - 1, 1):
            continue
        for i, target in enumerate(targets):
            outcome.others[name][i][test] = run(fold, target)
        outcome.spent(name, pace.watch.elapsed() - before)


def _fold(
    outcome: Outcome, frame: Frame, targets: Sequence[Target], k: int, rows: tuple, seed: int, pace: Pace
) -> None:
    (training, test), asked, before = rows, pace.share(), pace.watch.elapsed()
    inside, outside = frame.take(training), frame.take(test)
    goals = [t.take(training) for t in targets]
    trained, x = train(inside, goals, asked, seed)
    z = trained.encoder.encode(outside)
    found = predict(trained.heads, trained.classes, z)
    for i, values in enumerate(found):
        outcome.found[i][test] = values
    outcome.folds[test] = k
    outcome.best = outcome.judge = trained
    outcome.rows, outcome.held = len(training), test
    outcome.spent("folds", pace.watch.elapsed() - before)
    pace.took(asked, pace.watch.elapsed() - before)
    if any(stopped(head) for head in trained.heads):
        raise KeyboardInterrupt
    _compare(outcome, Fold(x, inside, z, outside, seed), goals, test, pace)


def fit(frame: Frame, targets: Sequence[Target], seed: int, watch: Watch, folds: int = FOLDS) -> Outcome:
    """Judge on folds, then train on all rows, within the time of `watch`; Ctrl-C keeps the best so far.

    Raises Interrupted where it is stopped before the first fold is done.
    """
    outcome = Outcome(np.full(frame.rows, -1), _empty(targets), {name: _empty(targets) for name in baselines()})
    twins = repeated(frame)
    copies = frame.rows - len(np.unique(twins))
    if copies:
        outcome.notes.append(f"{count(copies, 'row')} repeat another in every column; twins are kept in one fold")
    splits = split(targets, folds, seed, twins if len(np.unique(twins)) >= 4 else None)
    pace = Pace(watch, len(splits) + 1)
    try:
        for k, rows in enumerate(splits):
            watch.stage(f"fold {k + 1} of {len(splits)}")
            if k and pace.share() <= _LEAST and pace.until_report() < 2 * pace.longest:
                outcome.notes.append(f"the time budget allowed {k} of {len(splits)} folds")
                pace.left = 1
                break
            _fold(outcome, frame, targets, k, rows, seed, pace)
            watch.advance()
        watch.stage("all rows")
        before = watch.elapsed()
        outcome.best, _ = train(frame, targets, pace.share(), seed)
        outcome.rows = frame.rows
        outcome.spent("all rows", watch.elapsed() - before)
        if any(stopped(head) for head in outcome.best.heads):
            raise KeyboardInterrupt
        watch.advance()
    except KeyboardInterrupt:
        if outcome.best is None:
            raise Interrupted(
                "interrupted before the first fold was done: there is nothing to keep, nothing was written"
            ) from None
        outcome.interrupted = True
        outcome.notes.append(f"interrupted: this model was trained on {outcome.rows:,} of {frame.rows:,} rows")
    return outcome
