"""A table made ready for training: what is learned from, what is predicted, and what the user should know of both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from mercer.app.fitting import goal
from mercer.app.frame import Frame, Note, suspicious, training_frame
from mercer.app.grouping import group_codes, unsaid
from mercer.app.tables import read_table
from mercer.app.targets import Target, find_targets
from mercer.app.words import listed, shown
from mercer.errors import DataError


@dataclass(frozen=True)
class Prepared:
    """A table read for training: columns and targets on the rows that can be used, and what was noticed."""

    table: pa.Table
    frame: Frame
    targets: list[Target]
    rows: np.ndarray
    notes: list[Note]
    sentences: list[str]
    groups: np.ndarray | None = None
    group: str | None = None

    def inputs(self) -> list[str]:
        """The columns of the file that are neither targets nor the groups, in its order."""
        others = {self.group, *(t.name for t in self.targets)}
        return [name for name in self.table.column_names if name not in others]


def prepare(path: Path, names: Sequence[str], task: str, group: str | None = None) -> Prepared:
    """Read a table for training. Raises DataError or UsageError naming what is wrong."""
    table = read_table(path)
    targets, rows, sentences = find_targets(table, names, task)
    chosen = table if len(rows) == table.num_rows else table.take(rows)
    codes, said = (None, []) if group is None else group_codes(chosen, group, names)
    frame, notes = training_frame(chosen, names if group is None else [*names, group])
    if not frame.columns:
        why = f": column '{shown(notes[0].column)}' {notes[0].text}" if notes else ""
        raise DataError(f"no column is left to predict {listed(names)} from{why}; expected at least one that varies")
    notes += suspicious(frame, goal(targets))
    sentences += [f"column '{shown(n.column)}' {n.text}" for n in notes if not n.dropped]
    sentences += said if group is not None else unsaid(frame, targets)
    return Prepared(table, frame, targets, rows, notes, sentences, codes, group)
