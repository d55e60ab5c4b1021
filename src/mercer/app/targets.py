"""The columns to predict: which task each is, which rows can be learned from, and back from codes to words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import pyarrow as pa

from mercer.app.columns import LARGEST, Column, numbers_in, refined, to_column
from mercer.app.exits import UsageError
from mercer.app.words import closest, count, listed, shown
from mercer.errors import DataError

FEWEST_ROWS = 10
MOST_CLASSES = 100
# currency before or after a number, percent, a unit of up to four letters; and marks between thousands
_DRESS = r"^[$\u20ac\u00a3\u00a5]\s*|\s*(?:[%$\u20ac\u00a3\u00a5]|(?<=[\d\s])[A-Za-z\u00b0]{1,4})$"
_THOUSANDS = r"(?<=\d)[,'_\s](?=\d{3})"
TASKS = ("auto", "regression", "classification")


@dataclass(frozen=True)
class Target:
    """A target column. values: numbers, or codes of `classes` (their text, sorted) where task is classification.

    form: what the column held: number, flag, text or date.
    """

    name: str
    task: str
    values: np.ndarray
    classes: list[str]
    form: str

    def take(self, rows: np.ndarray) -> Target:
        """The same target on the chosen rows."""
        return replace(self, values=self.values[rows])

    def matrix(self) -> np.ndarray:
        """n x t standardised numbers: the values, or one column for each class (one for two classes)."""
        if self.task == "regression":
            table = self.values[:, None]
        elif len(self.classes) == 2:
            table = (self.values == 1).astype(np.float64)[:, None]
        else:
            table = np.eye(len(self.classes))[self.values.astype(int)]
        return (table - table.mean(0)) / np.maximum(table.std(0), 1e-12)

    def restored(self, codes: np.ndarray) -> pa.Array:
        """Class codes as the values that the file held."""
        words = np.array(self.classes, dtype=object)[codes]
        if self.form == "number":
            numbers = numbers_in(words)
            return pa.array(numbers.astype(np.int64) if (numbers == np.floor(numbers)).all() else numbers)
        return pa.array(words == "true") if self.form == "flag" else pa.array(words, pa.string())


def _dressed(column: Column) -> str:
    """Why a column of text that is meant as numbers is none, and how to mend it; nothing where it is not so meant."""
    present = pd.Series(column.values[~column.missing], dtype=object)
    words = np.isnan(numbers_in(present.to_numpy()))
    if words.mean() <= 0.5:
        odd, more = shown(present[words].iloc[0], 20), int(words.sum()) - 1
        if not more:
            return f"'{odd}' is no number; correct that cell or leave it empty"
        others = f"{'is' if more == 1 else 'are'} {count(more, 'more cell')}"
        return f"'{odd}' is no number, nor {others}; correct them or leave them empty"
    bare = present.str.strip().str.replace(_DRESS, "", regex=True).str.replace(_THOUSANDS, "", regex=True)
    if np.isnan(numbers_in(bare.to_numpy())).mean() > 0.1:
        return ""
    return (
        f"'{shown(present.iloc[0], 20)}' is a number only without its signs; write it as {shown(bare.iloc[0], 20)} "
        "in all rows: no currency, percent sign, unit or thousands mark"
    )


def _task(column: Column, asked: str) -> tuple[str, str]:
    """The task of a target and, where it was a close call, a sentence."""
    present = column.values[~column.missing]
    distinct = len(pd.unique(present))
    if column.kind in ("text", "flag"):
        if asked == "regression":
            why = _dressed(column) if column.kind == "text" else ""
            mend = why if why else "use --task classification"
            raise DataError(f"target '{shown(column.name)}' holds {column.kind}, not numbers; {mend}")
        return "classification", ""
    if column.kind == "date":
        raise DataError(f"target '{shown(column.name)}' holds dates; turn it into a number, such as days since a start")
    if asked != "auto":
        return asked, ""
    whole = bool((present == np.floor(present)).all())
    if whole and (distinct == 2 or (2 < distinct <= 10 and len(present) >= 20 * distinct)):
        return "classification", (
            f"target '{shown(column.name)}' has {distinct} whole-number values, so they are taken as classes; "
            "use --task regression to take them as amounts"
        )
    return "regression", ""


def codes_of(column: Column, classes: Sequence[str]) -> np.ndarray:
    """The code of each cell among classes; -1 where it is missing or of none of them."""
    place = {word: code for code, word in enumerate(classes)}
    words = _words(column).astype(str)
    return np.array(
        [-1 if gone else place.get(w, -1) for w, gone in zip(words, column.missing, strict=True)], dtype=int
    )


def _words(column: Column) -> np.ndarray:
    if column.kind == "text":
        return column.values
    if column.kind == "flag":
        return np.where(column.values == 1, "true", "false").astype(object)
    return np.array([f"{v:.0f}" if v == np.floor(v) else repr(float(v)) for v in column.values], dtype=object)


def _target(column: Column, asked: str) -> tuple[Target, str]:
    name, (task, sentence) = shown(column.name), _task(column, asked)
    distinct = pd.unique(column.values)
    if len(distinct) == 1:
        what = "one class" if task == "classification" else "constant"
        raise DataError(f"target '{name}' is {what}: always '{shown(distinct[0], 20)}'; there is nothing to learn")
    if task == "regression":
        if np.ptp(column.values) <= 1e-12 * np.abs(column.values).max():
            raise DataError(f"target '{name}' varies only by rounding; there is nothing to learn")
        return Target(column.name, task, column.values.astype(np.float64), [], column.kind), sentence
    words = _words(column)
    classes, codes, sizes = np.unique(words.astype(str), return_inverse=True, return_counts=True)
    if len(classes) > MOST_CLASSES or len(classes) > len(words) / 2:
        why = _dressed(column) if column.kind == "text" else ""
        if why:
            raise DataError(f"target '{name}' holds text where numbers seem to be meant: {why}")
        mend = "use --task regression" if column.kind == "number" else "group them, or give another --target"
        raise DataError(f"target '{name}' has {len(classes):,} classes in {len(words):,} rows; {mend}")
    if column.kind == "number":
        order = np.argsort(numbers_in(classes.astype(object)))
        classes, codes = classes[order], np.argsort(order)[codes]
    rare = int((sizes < 5).sum())
    if rare:
        sentence = f"target '{name}': {count(rare, 'class', 'classes')} of fewer than 5 rows cannot be judged well"
    return Target(column.name, task, codes.ravel(), classes.tolist(), column.kind), sentence


def find_targets(table: pa.Table, names: Sequence[str], task: str) -> tuple[list[Target], np.ndarray, list[str]]:
    """(targets on the rows where every one is known, those rows, sentences on what was done).

    Raises UsageError where a target is given twice.
    Raises DataError where one is not in the table, cannot be predicted or leaves fewer than 10 rows.
    """
    columns = []
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"--target '{shown(name)}' was given {names.count(name)} times; give each target once")
        if name not in table.column_names:
            hint = closest(name, table.column_names)
            raise DataError(
                f"there is no column '{shown(name)}' to predict{hint}; the table has {listed(table.column_names, 8)}"
            )
        column = to_column(name, table.column(name))
        if column is None:
            raise DataError(
                f"target '{shown(name)}' holds {table.schema.field(name).type}; expected numbers, text or true/false"
            )
        columns.append(refined(column))
    known = ~np.any([c.missing for c in columns], axis=0)
    rows = np.flatnonzero(known)
    goals = listed(c.name for c in columns)
    if len(rows) == 0:
        if any(c.infinite for c in columns):
            raise DataError(
                f"target {goals} is missing, infinite or beyond {LARGEST:g} in all {count(table.num_rows, 'row')}; "
                "expected known values to learn from: give it in a larger unit"
            )
        raise DataError(
            f"target {goals} is empty in all {count(table.num_rows, 'row')}; expected known values to learn from"
        )
    if len(rows) < FEWEST_ROWS:
        raise DataError(f"{count(len(rows), 'row')} with a known target {goals}; expected at least {FEWEST_ROWS}")
    notes = []
    if len(rows) < table.num_rows:
        notes.append(
            f"{count(table.num_rows - len(rows), 'row')} left out: "
            f"target {goals} missing, infinite or beyond {LARGEST:g} there"
        )
    found = [_target(c.take(rows), task) for c in columns]
    return [t for t, _ in found], rows, notes + [s for _, s in found if s]
