"""Out-of-fold predictions as a table, and back: what oof.parquet holds and the report draws."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from mercer.app.targets import Target


@dataclass(frozen=True)
class Judged:
    """One target's out-of-fold predictions on the rows that have them; classes are codes. Not-a-number where unused."""

    true: np.ndarray
    found: np.ndarray
    low: np.ndarray
    high: np.ndarray
    pit: np.ndarray
    chances: np.ndarray
    at: np.ndarray | None = None


def distinct(names: Iterable[str], taken: Iterable[str] = ()) -> list[str]:
    """The names, with _2, _3, ... where one is already taken."""
    used, found = set(taken), []
    for name in names:
        new, k = name, 1
        while new in used:
            k += 1
            new = f"{name}_{k}"
        used.add(new)
        found.append(new)
    return found


def to_table(
    targets: Sequence[Target], judged: Sequence[Judged], rows: np.ndarray, folds: np.ndarray
) -> tuple[pa.Table, list[dict]]:
    """(the table, for each target the names of its columns). rows: their numbers in the file, from 1."""
    columns: dict[str, Any] = {"row": rows, "fold": folds + 1}
    places = []
    for target, found in zip(targets, judged, strict=True):
        parts: dict[str, Any] = {"": found.true, "_predicted": found.found}
        if target.task == "regression":
            parts |= {"_lower": found.low, "_upper": found.high, "_pit": found.pit}
        else:
            parts = {
                "": target.restored(found.true.astype(int)),
                "_predicted": target.restored(found.found.astype(int)),
            }
            parts |= {f"_chance_{c}": found.chances[:, i] for i, c in enumerate(target.classes)}
        names = distinct([f"{target.name}{end}" for end in parts], columns)
        columns |= dict(zip(names, parts.values(), strict=True))
        places.append({"columns": names})
    if judged and judged[0].at is not None:
        names = distinct(["coordinate_1", "coordinate_2"], columns)
        columns |= dict(zip(names, judged[0].at.T, strict=True))
    return pa.table(columns), places


def _codes(values: pa.ChunkedArray, classes: Sequence[str]) -> np.ndarray:
    words = ["true" if v is True else "false" if v is False else str(v) for v in values.to_pylist()]
    place = {c: i for i, c in enumerate(classes)}
    return np.array([place[w] for w in words])


def from_table(table: pa.Table, facts: dict[str, Any]) -> list[Judged]:
    """What `to_table` was given, read back by the names that the facts of the run hold."""
    found = []
    n = table.num_rows
    at = None
    if facts["map"] is not None:
        at = np.stack([c.to_numpy() for c in table.columns[-2:]], axis=1)
    for target in facts["targets"]:
        parts = [table.column(name) for name in target["oof"]["columns"]]
        nothing = np.full(n, np.nan)
        if target["task"] == "regression":
            true, best, low, high, pit = (p.to_numpy() for p in parts)
            found.append(Judged(true, best, low, high, pit, np.empty((n, 0)), at))
        else:
            true, best = (_codes(p, target["classes"]) for p in parts[:2])
            chances = np.stack([p.to_numpy() for p in parts[2:]], axis=1)
            found.append(Judged(true, best, nothing, nothing, nothing, chances, at))
    return found
