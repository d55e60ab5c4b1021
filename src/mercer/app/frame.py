"""A whole table as plain columns, what is wrong with it, and its fitted map to coordinates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from mercer.app.columns import Column, as_kind, numbers_in, refined, to_column
from mercer.app.encoders import (
    Encoder,
    LevelEncoder,
    MeanEncoder,
    NumberEncoder,
    WordEncoder,
    fit_encoder,
    from_state,
    is_wording,
    to_state,
)
from mercer.app.novelty import blank, outside, unknown, unseen
from mercer.app.words import closest, count, listed, shown
from mercer.errors import DataError

_SAMPLE = 400  # training rows kept to see how the model answers to each column


@dataclass(frozen=True)
class Frame:
    """Columns of equal length, in the order of the file."""

    columns: list[Column]
    rows: int

    def take(self, rows: np.ndarray) -> Frame:
        """The same columns on the chosen rows."""
        return Frame([c.take(rows) for c in self.columns], len(rows))

    def names(self) -> list[str]:
        """The names of the columns."""
        return [c.name for c in self.columns]


@dataclass(frozen=True)
class Note:
    """Something about a column that the user should know. dropped: it is not used."""

    column: str
    text: str
    dropped: bool


def unused(notes: Sequence[Note], most: int = 8) -> list[str]:
    """A sentence for each column that was dropped, the first few."""
    said = [f"column '{shown(n.column)}' is not used: it {n.text}" for n in notes if n.dropped]
    return said if len(said) <= most else [*said[:most], f"{len(said) - most} more columns are not used"]


def training_frame(table: pa.Table, without: Sequence[str]) -> tuple[Frame, list[Note]]:
    """Every usable column except the targets, and notes on those that are not used."""
    kept: list[Column] = []
    notes: list[Note] = []
    seen: dict[tuple[str, bytes], str] = {}
    for name in table.column_names:
        if name in without:
            continue
        column = to_column(name, table.column(name))
        if column is None:
            notes.append(Note(name, f"holds {table.schema.field(name).type}, which has no plain form", True))
            continue
        column = refined(column)
        empty = column.missing
        distinct = len(pd.unique(column.values[~empty]))
        if empty.all():
            notes.append(Note(name, "is empty", True))
        elif distinct == 1 and not empty.any():
            notes.append(Note(name, f"is constant: always '{shown(column.values[0], 20)}'", True))
        else:
            key = (column.kind, pd.util.hash_array(column.values).tobytes())
            if key in seen:
                notes.append(Note(name, f"repeats column '{shown(seen[key])}'", True))
            else:
                seen[key] = name
                kept.append(column)
                notes += _almost_numbers(column)
                if column.infinite:
                    text = f"holds {count(column.infinite, 'infinite value')}, taken as missing"
                    notes.append(Note(name, text, False))
    return Frame(kept, table.num_rows), notes


def _almost_numbers(column: Column) -> list[Note]:
    """A note where a few cells, or a percent sign or commas, make a column of numbers one of text."""
    if column.kind != "text":
        return []
    present = np.flatnonzero(~column.missing)
    words = np.isnan(numbers_in(column.values[present]))
    bare = pd.Series(column.values[present], dtype=object).str.replace(r"[%\s,]", "", regex=True)
    if not words.any() or (words.mean() > 0.1 and np.isnan(numbers_in(bare.to_numpy())).mean() > 0.1):
        return []
    value = shown(column.values[present[words][0]], 20)
    text = f"holds numbers, but '{value}' is none, so all are taken as text; mend {{}}"
    many = int(words.sum())
    return [Note(column.name, text.format("that cell" if many == 1 else f"the {many:,} such cells"), False)]


def suspicious(frame: Frame, target: np.ndarray) -> list[Note]:
    """Columns that give the target away, and columns that only number the rows. target: n x t, standardised."""
    notes = []
    whole = pd.DataFrame(target).rank().to_numpy()
    for column in frame.columns:
        present = ~column.missing
        if present.sum() < 10:
            continue
        values = column.values[present]
        if column.kind != "text":
            ranks = pd.Series(values).rank().to_numpy()
            goals = whole if present.all() else pd.DataFrame(target[present]).rank().to_numpy()
            spread = ranks.std() * goals.std(axis=0)
            inner = ((ranks - ranks.mean())[:, None] * (goals - goals.mean(0))).mean(0)
            match = float(np.abs(inner / np.maximum(spread, 1e-12)).max())
            if match > 0.999:
                notes.append(Note(column.name, f"may give the target away: rank correlation {match:.4f}", False))
            step = np.diff(np.sort(values))
            if len(values) > 50 and column.kind == "number" and (step == 1).all():
                notes.append(Note(column.name, "looks like a row number: every value once, in steps of 1", False))
        elif len(set(values)) == len(values) > 50 and not is_wording(values):
            notes.append(Note(column.name, "looks like an identifier: a different text in every row", False))
    return notes


def _fallback(column: Column) -> Encoder:
    if column.kind == "text":
        return LevelEncoder(column.name, [], True)
    return NumberEncoder(column.name, 0.0, 1.0, False, True, 0.0, 0.0, kind=column.kind)


def _narrow(target: np.ndarray, most: int = 4) -> np.ndarray:
    if target.shape[1] <= most:
        return target
    directions = np.linalg.svd(target - target.mean(0), full_matrices=False)[2][:most]
    return target @ directions.T


@dataclass(frozen=True)
class TableEncoder:
    """The fitted encoders of a table: rows in, coordinates (n x d, float64) out.

    sample: coordinates of some training rows, by chance; not stored, so that a model read from a folder has none.
    """

    encoders: list[Encoder]
    sample: np.ndarray = field(default_factory=lambda: np.empty((0, 0)), compare=False)

    @classmethod
    def fit(cls, frame: Frame, target: np.ndarray, seed: int) -> tuple[TableEncoder, np.ndarray]:
        """The encoder and the coordinates of the training rows (mean targets cross-fitted). target: n x t."""
        target = _narrow(target)
        folds = np.random.default_rng(seed).permutation(frame.rows) % 5
        encoders, parts = [], []
        for column in frame.columns:
            encoder = _fallback(column) if column.missing.all() else fit_encoder(column, target, seed)
            encoders.append(encoder)
            if isinstance(encoder, MeanEncoder):
                parts.append(encoder.cross_fitted(column, target, folds))
            else:
                parts.append(encoder.encode(column))
        x = np.hstack(parts)
        return cls(encoders, x[np.random.default_rng(seed).permutation(frame.rows)[:_SAMPLE]]), x

    def encode(self, frame: Frame) -> np.ndarray:
        """The coordinates of new rows, whose columns `expected` has put in order."""
        return np.hstack([e.encode(c) for e, c in zip(self.encoders, frame.columns, strict=True)])

    def labels(self) -> list[str]:
        """The name of each coordinate."""
        return [label for e in self.encoders for label in e.labels()]

    def sources(self) -> np.ndarray:
        """For each coordinate, the number of the column it comes from."""
        return np.concatenate([np.full(len(e.labels()), i) for i, e in enumerate(self.encoders)])

    def wording(self) -> dict[int, np.ndarray]:
        """The coordinates of each column of free text, by its number."""
        sources = self.sources()
        return {i: np.flatnonzero(sources == i) for i, e in enumerate(self.encoders) if isinstance(e, WordEncoder)}

    def unknown(self, frame: Frame) -> np.ndarray:
        """n x columns, True where a cell is one that the model has never seen the like of."""
        pairs = zip(self.encoders, frame.columns, strict=True)
        return np.stack([unknown(e, c) for e, c in pairs], axis=1).reshape(frame.rows, len(self.encoders))

    def blank(self) -> np.ndarray:
        """The coordinates, d, of a row of which nothing is known."""
        return np.concatenate([blank(e) for e in self.encoders])

    def surprises(self, frame: Frame) -> list[str]:
        """Sentences on cells that the model has never seen the like of."""
        found = []
        for encoder, column in zip(self.encoders, frame.columns, strict=True):
            name, gone = f"column '{shown(encoder.column)}'", int(unknown(encoder, column).sum())
            if column.infinite and encoder.absent:
                found.append(f"{name}: {count(column.infinite, 'infinite value')}, taken as missing")
            if far := int(outside(encoder, column).sum()):
                rows = count(far, "row")
                found.append(f"{name}: {rows} far outside what training saw; bands (or sets) there may be too narrow")
            if not gone:
                continue
            new = int(unseen(encoder, column).sum())
            parts = [f"{count(new, 'cell')} with a category never seen in training"] if new else []
            if gone > new:
                what = "missing or infinite value" if column.infinite else "missing value"
                parts.append(f"{count(gone - new, what)}, none in training")
            rows = count(gone, "row")
            found.append(f"{name}: {' and '.join(parts)}; filled in, bands (or sets) of {rows} widened for it")
        return found

    def state(self) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
        """(JSON, arrays)."""
        pairs = [to_state(e) for e in self.encoders]
        return [s for s, _ in pairs], {f"column.{i}": a for i, (_, a) in enumerate(pairs) if a is not None}

    @classmethod
    def from_state(cls, states: list[dict[str, Any]], arrays: dict[str, np.ndarray]) -> TableEncoder:
        """The encoder that `state` described."""
        return cls([from_state(s, arrays.get(f"column.{i}")) for i, s in enumerate(states)])


def text_names(encoder: TableEncoder) -> list[str]:
    """Columns that a CSV reader must keep as text."""
    return [e.column for e in encoder.encoders if e.kind == "text"]


def expected(table: pa.Table, encoder: TableEncoder) -> Frame:
    """The columns of a new table that a fitted encoder reads, in its order and forms.

    Raises DataError naming columns that are missing (with the nearest name there is) or cells of another type.
    """
    there = table.column_names
    gone = [e.column for e in encoder.encoders if e.column not in there]
    if gone:
        unused = [n for n in there if n not in {e.column for e in encoder.encoders}]
        hint = closest(gone[0], unused)
        raise DataError(
            f"the table lacks {count(len(gone), 'column')} of the training table: {listed(gone)}{hint}; add or rename"
        )
    columns = []
    for e in encoder.encoders:
        column = to_column(e.column, table.column(e.column))
        if column is None:
            raise DataError(
                f"column '{shown(e.column)}' holds {table.schema.field(e.column).type}; expected {e.kind} values"
            )
        columns.append(as_kind(column, e.kind, getattr(e, "format", "")))
    return Frame(columns, table.num_rows)
