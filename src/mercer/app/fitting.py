"""From a table to a trained model: folds for an honest judgement, yardsticks on the same folds, then all rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
from sklearn.model_selection import GroupKFold, KFold, StratifiedGroupKFold, StratifiedKFold

from mercer.app.baselines import Fold, baselines
from mercer.app.exits import Interrupted
from mercer.app.frame import Frame, TableEncoder
from mercer.app.head import Head, at_known, no_worse, remarks
from mercer.app.heads import (
    Lesson,
    error,
    fit_head,
    forget,
    groups,
    hasty,
    lessons,
    predict,
    predict_both,
    stopped,
    usual_forms,
)
from mercer.app.pace import Pace
from mercer.app.progress import Watch
from mercer.app.targets import Target
from mercer.app.words import count
from mercer.errors import DataError
from mercer.learn.tails import pull

FOLDS = 5
_WORSE, _ROUNDING = 1.3, 1e-3  # times the left-out error of the folds' models that is said, and what is none


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

    found, others: out-of-fold predictions of mercer and of each yardstick, NaN where there are none; middle: of bands.
    best: the latest model; rows: how many rows it was trained on; held: the rows that `judge` did not see.
    learned, errors, hasty: what the folds' models learned, their errors on rows left out inside (for each target), and
    how many of them had hardly any time to learn.
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
    learned: list[Lesson] = field(default_factory=list)
    errors: list[list[float]] = field(default_factory=list)
    hasty: int = 0
    middle: list[np.ndarray] = field(default_factory=list)

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
    if any(c.kind == "number" and len(np.unique(c.values)) == frame.rows for c in frame.columns):
        return np.arange(frame.rows)  # no two are equal in this column, so none in all
    table = pd.DataFrame({str(i): column.values for i, column in enumerate(frame.columns)})
    return table.groupby(list(table.columns), dropna=False, sort=False).ngroup().to_numpy()


def _learnable(
    parts: Iterable[tuple[np.ndarray, np.ndarray]], targets: Sequence[Target]
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Folds that have test rows, and in training two classes of each class target: one part may hold all of one."""
    labels = [t.values for t in targets if t.classes]
    return [(a, b) for a, b in parts if len(b) and all(len(np.unique(v[a])) > 1 for v in labels)]


def split(
    targets: Sequence[Target], folds: int, seed: int, groups: np.ndarray | None = None
) -> list[tuple[np.ndarray, np.ndarray]]:
    """(training rows, test rows) of each fold; classes are spread evenly where there are any.

    groups: rows of one number stay in one fold, so that no row is judged by a model that saw its twin.
    """
    n = len(targets[0].values)
    kinds = n if groups is None else len(np.unique(groups))
    apart = kinds < n
    folds = min(folds, kinds if n >= 2 * kinds else kinds // 2)
    shuffled = {"n_splits": max(folds, 2), "shuffle": True, "random_state": seed}
    first = next((t for t in targets if t.classes), None)
    if first is not None and np.bincount(first.values).max() >= folds:
        rare = np.bincount(first.values) < folds  # too few rows to spread: they go where they fall
        codes = np.where(rare[first.values], int(np.argmax(np.bincount(first.values))), first.values)
        if apart:
            return _learnable(StratifiedGroupKFold(**shuffled).split(codes, codes, groups), targets)
        return _learnable(StratifiedKFold(**shuffled).split(codes, codes), targets)
    if apart:
        return _learnable(GroupKFold(**shuffled).split(np.arange(n), groups=groups), targets)
    return _learnable(KFold(**shuffled).split(np.arange(n)), targets)


def train(
    frame: Frame, targets: Sequence[Target], seconds: float, seed: int, learned: Sequence[Lesson] = (), whole: int = 0
) -> tuple[Trained, np.ndarray]:
    """A model of these rows, and their coordinates. learned: by models of some of these rows, to begin with.

    whole: rows of the table that these are a part of; 0: these are all.
    A target is learned in the form that most of those models have.
    """
    encoder, x = TableEncoder.fit(frame, goal(targets), seed)
    forms = usual_forms(learned)
    parts = groups(targets, forms)
    labels = encoder.labels() if learned else []
    heads = []
    for members in parts:
        form = forms.get(members[0])
        like = [le for le in learned if set(members) <= set(le.targets) and le.form == (form or le.form)]
        known = [pair for lesson in like if (pair := lesson.on(labels)) is not None]
        heads.append(fit_head(members, targets, x, seconds / len(parts), seed, known, form, whole or frame.rows))
    return Trained(encoder, heads, [len(t.classes) for t in targets]), x


def _compare(outcome: Outcome, fold: Fold, targets: Sequence[Target], test: np.ndarray, pace: Pace) -> None:
    """Yardsticks on one fold; one that would take more than its share of the time left is not tried again."""
    start = pace.watch.elapsed()
    for name, run in baselines().items():
        before, spent = pace.watch.elapsed(), outcome.seconds.get(name, 0.0)
        done = len(np.unique(outcome.folds[outcome.folds >= 0])) - 1
        if done and spent / done > pace.beside():
            continue
        for i, target in enumerate(targets):
            outcome.others[name][i][test] = run(fold, target)
        outcome.spent(name, pace.watch.elapsed() - before)
    pace.compared(pace.watch.elapsed() - start)


def _fold(
    outcome: Outcome, frame: Frame, targets: Sequence[Target], k: int, rows: tuple, seed: int, pace: Pace
) -> None:
    (training, test), asked, before = rows, pace.share(), pace.watch.elapsed()
    inside, outside = frame.take(training), frame.take(test)
    goals = [t.take(training) for t in targets]
    trained, x = train(inside, goals, asked, seed, whole=frame.rows)
    z = trained.encoder.encode(outside)
    for i, (values, middle) in enumerate(zip(*predict_both(trained.heads, trained.classes, z), strict=True)):
        outcome.found[i][test], outcome.middle[i][test] = values, middle
    outcome.folds[test] = k
    outcome.best = outcome.judge = trained
    outcome.rows, outcome.held = len(training), test
    outcome.learned += lessons(trained.heads, trained.encoder.labels())
    outcome.errors.append([error(head) for i in range(len(targets)) for head in trained.heads if i in head.targets])
    outcome.hasty += any(hasty(head) for head in trained.heads)
    outcome.spent("folds", pace.watch.elapsed() - before)
    pace.took(asked, pace.watch.elapsed() - before)
    if any(stopped(head) for head in trained.heads):
        raise KeyboardInterrupt
    _compare(outcome, Fold(x, inside, z, outside, seed, trained.encoder.wording()), goals, test, pace)


def doubts(outcome: Outcome, trained: Trained) -> list[str]:
    """Sentences where models had no time to learn, or that of all rows is not like those that were judged."""
    found = []
    if outcome.hasty:
        found.append(
            f"{count(outcome.hasty, 'fold')} had hardly any time to learn: scores are lower, and less even, than with "
            "a longer --time"
        )
    if any(hasty(head) for head in trained.heads):
        found.append("the model of all rows had hardly any time to learn: give a longer --time")
    for head in trained.heads:
        usual = float(np.median([errors[head.targets[0]] for errors in outcome.errors])) if outcome.errors else np.inf
        if error(head) > _WORSE * usual + _ROUNDING:
            found.append(
                f"the model of all rows misses rows left out of it by {error(head) / max(usual, _ROUNDING):.1f} times "
                "the square that the judged models do: expect less of it than the scores say"
            )
    return found


def _no_worse(outcome: Outcome, head: Head, targets: Sequence[Target]) -> Head:
    """The learner, drawn to the mean as far as the folds' models were worse than that on rows they had not seen."""
    rows = outcome.judged()
    for place, i in enumerate(head.targets if targets[head.targets[0]].task == "regression" else []):
        to_mean, middle = (pull(targets[i].values[rows], f[i][rows]) for f in (outcome.found, outcome.middle))
        head = no_worse(head, place, to_mean, middle)
        if to_mean is not None and head.scale is None:  # bands stand around what is predicted
            outcome.middle[i][rows] = to_mean[0] + to_mean[1] * (outcome.middle[i][rows] - to_mean[0])
    return head


def _all_rows(outcome: Outcome, frame: Frame, targets: Sequence[Target], seed: int, pace: Pace) -> None:
    before = pace.watch.elapsed()
    trained, _ = train(frame, targets, pace.share(), seed, outcome.learned)
    trained = replace(trained, heads=[_no_worse(outcome, head, targets) for head in trained.heads])
    outcome.best, outcome.rows = trained, frame.rows
    outcome.spent("all rows", pace.watch.elapsed() - before)
    if any(stopped(head) for head in trained.heads):
        raise KeyboardInterrupt
    outcome.notes += doubts(outcome, trained) + remarks(trained.heads, targets)


def _together(outcome: Outcome, frame: Frame) -> np.ndarray | None:
    """A number for each row that the rows which must not be parted by folds share, twins here; None where none do."""
    twins = repeated(frame)
    kinds = len(np.unique(twins))
    if kinds < frame.rows:
        copies = count(frame.rows - kinds, "row repeats", "rows repeat")
        outcome.notes.append(f"{copies} another in every column; twins are kept in one fold")
    return twins if kinds >= 4 else None


def fit(
    frame: Frame,
    targets: Sequence[Target],
    seed: int,
    watch: Watch,
    folds: int = FOLDS,
    named: np.ndarray | None = None,
) -> Outcome:
    """Judge on folds, then train on all rows, within the time of `watch`; Ctrl-C keeps the best so far.

    named: the group of each row, where the user gave groups that no two folds may share.
    The model of all rows begins with what the folds learned. Short of time there are fewer folds, not worse models.
    Raises Interrupted where it is stopped before the first fold is done.
    """
    others = {name: _empty(targets) for name in baselines()}
    outcome = Outcome(np.full(frame.rows, -1), _empty(targets), others, middle=_empty(targets))
    splits = split(targets, folds, seed, _together(outcome, frame) if named is None else named)
    if not splits:
        mend = "groups of several classes" if named is not None else "at least two rows of each class"
        raise DataError(f"leaving rows out leaves one class to learn from; expected {mend}")
    if len(splits) < folds and (named is not None or len(splits) < min(folds, frame.rows // 2)):
        what = "classes" if named is None else "groups"
        outcome.notes.append(f"the {what} allow {len(splits)} of {folds} folds")
    pace = Pace(watch, len(splits) + 1)
    try:
        for k, rows in enumerate(splits):
            watch.stage(f"fold {k + 1} of {len(splits)}")
            if not pace.another():
                outcome.notes.append(f"the time budget allowed {k} of {len(splits)} folds")
                break
            _fold(outcome, frame, targets, k, rows, seed, pace)
            watch.advance()
        watch.stage("all rows")
        _all_rows(outcome, frame, targets, seed, pace)
        watch.advance()
    except KeyboardInterrupt:
        if outcome.best is None:
            raise Interrupted(
                "interrupted before the first fold was done: there is nothing to keep, nothing was written"
            ) from None
        outcome.interrupted = True
        outcome.notes.append(f"interrupted: this model was trained on {outcome.rows:,} of {frame.rows:,} rows")
    heads = [] if outcome.best is None else outcome.best.heads
    for head in heads if named is not None else []:  # equal rows may be of one group, and new rows are of others
        forget(head)
    outcome.notes += at_known(heads, targets)
    return outcome
