"""What `mercer predict` does: a model folder and new rows in, predictions with bands out."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mercer.app.columns import Column, refined, to_column
from mercer.app.cores import threads
from mercer.app.frame import Frame, expected, text_names
from mercer.app.oof import distinct
from mercer.app.places import check_apart, check_output
from mercer.app.progress import Watch
from mercer.app.scores import NAMES, score
from mercer.app.store import Interval, Model, load
from mercer.app.tables import read_table, write_table
from mercer.app.targets import Target, codes_of
from mercer.app.words import count, number, shown
from mercer.budget import memory

_CHUNK = 20_000


Answer = tuple[list[np.ndarray], list[Interval | None], list[np.ndarray | None]]


def _chunked(model: Model, frame: Frame, watch: Watch) -> Answer:
    """Predictions, bands and sets, a chunk of rows at a time so that coordinates never exist for all rows."""
    parts, bands, sets = [], [], []
    for start in range(0, frame.rows, _CHUNK):
        rows = frame.take(np.arange(start, min(start + _CHUNK, frame.rows)))
        found, ends = model.answer(rows)
        parts.append(found)
        bands.append(ends)
        sets.append(model.sets(rows, parts[-1]))
        watch.advance()
    found = [np.concatenate(p) for p in zip(*parts, strict=True)]
    joined: list[Interval | None] = []
    for every in zip(*bands, strict=True):
        pairs = [b for b in every if b is not None]
        joined.append((np.concatenate([b[0] for b in pairs]), np.concatenate([b[1] for b in pairs])) if pairs else None)
    inside = [None if every[0] is None else np.concatenate(every) for every in zip(*sets, strict=True)]
    return found, joined, inside


def _columns(target: Target, found: np.ndarray, band: Interval | None, inside: np.ndarray | None) -> dict[str, Any]:
    if target.task == "regression":
        return {"": found} | ({"_lower": band[0], "_upper": band[1]} if band is not None else {})
    columns: dict[str, Any] = {"": target.restored(found.argmax(1))}
    columns |= {f"_chance_{c}": found[:, k] for k, c in enumerate(target.classes)}
    if inside is not None:
        names = np.array(target.classes, dtype=object)
        columns["_set"] = [" | ".join(names[row]) for row in inside]
    return columns


def to_table(model: Model, answer: Answer) -> pa.Table:
    """One row for each row predicted: the target's name holds the prediction; bands, chances and sets beside it."""
    columns: dict[str, Any] = {}
    for target, values, band, inside in zip(model.targets, *answer, strict=True):
        parts = _columns(target, values, band, inside)
        names = distinct([target.name + end for end in parts], columns)
        columns |= dict(zip(names, parts.values(), strict=True))
    return pa.table(columns)


def predictions(model: Model, table: pa.Table) -> pa.Table:
    """The predictions of a table that is already read."""
    with Watch(None, quiet=True) as watch, threads(table.num_rows):
        return to_table(model, _chunked(model, expected(table, model.trained.encoder), watch))


def _unbounded(answer: Answer) -> int:
    """How many rows have an infinite band."""
    wide = [np.isinf(band[0]) | np.isinf(band[1]) for band in answer[1] if band is not None]
    return int(np.any(wide, axis=0).sum()) if wide else 0


def _of_classes(target: Target, column: Column, chances: np.ndarray, inside: np.ndarray | None) -> list[dict[str, Any]]:
    codes = codes_of(refined(column), target.classes)
    rows = np.flatnonzero(codes >= 0)
    if len(rows) < 2:
        return []
    known = Target(target.name, target.task, codes[rows], target.classes, target.form)
    scores = {name: value for name, value in score(known, chances[rows], "skill").items() if np.isfinite(value)}
    new = int((codes < 0).sum() - column.missing.sum())
    entry: dict[str, Any] = {"target": target.name, "rows": len(rows), "scores": scores, "unknown": new}
    return [entry | ({"held": float(inside[rows, codes[rows]].mean())} if inside is not None else {})]


def _scores(
    model: Model, table: pa.Table, found: list[np.ndarray], bands: list[Interval | None], sets: list[np.ndarray | None]
) -> list[dict[str, Any]]:
    """Scores of the targets that the new table happens to hold."""
    results = []
    for target, values, band, inside in zip(model.targets, found, bands, sets, strict=True):
        column = to_column(target.name, table.column(target.name)) if target.name in table.column_names else None
        if column is not None and target.task == "classification" and column.kind != "date":
            results += _of_classes(target, column, values, inside)
            continue
        if column is None or target.task != "regression" or column.kind != "number":
            continue
        rows = np.flatnonzero(~column.missing)
        if len(rows) < 2 or np.ptp(column.values[rows]) == 0:
            continue
        known = Target(target.name, target.task, column.values[rows], [], target.form)
        entry: dict[str, Any] = {"target": target.name, "rows": len(rows), "scores": score(known, values[rows])}
        if band is not None:
            entry["held"] = float(((known.values >= band[0][rows]) & (known.values <= band[1][rows])).mean())
        results.append(entry)
    return results


def run(folder: Path, path: Path, out: Path, limit: int | None, quiet: bool) -> dict[str, Any]:
    """Predict the rows of a table and write them; the facts of doing so."""
    check_output(out)
    check_apart(out, path)
    model = load(folder)
    table = read_table(path, text=text_names(model.trained.encoder))
    frame = expected(table, model.trained.encoder)
    steps = -(-frame.rows // _CHUNK)
    with Watch(None, steps, quiet) as watch, memory(limit) if limit is not None else nullcontext(), threads(frame.rows):
        watch.stage("predicting")
        notes = model.trained.encoder.surprises(frame)
        answer = _chunked(model, frame, watch)
    written, unbounded = to_table(model, answer), _unbounded(answer)
    if unbounded:
        notes.append(f"{count(unbounded, 'row')} without a bound: too few judged rows to say what unknown cells cost")
    write_table(written, out)
    return {
        "out": str(out), "rows": frame.rows, "columns": written.column_names, "notes": notes,
        "scores": _scores(model, table, *answer), "seconds": round(watch.elapsed(), 2),
    }  # fmt: skip


def as_text(facts: dict[str, Any]) -> str:
    """The facts as lines."""
    lines = [f"! {note}" for note in facts["notes"]]
    for entry in facts["scores"]:
        numeric = "r2" in entry["scores"]
        names = ("r2",) if numeric else ("accuracy", "skill", "log_loss")
        values = ", ".join(f"{NAMES[n]} {number(entry['scores'][n])}" for n in names if n in entry["scores"])
        held = f"; 90 % {'bands' if numeric else 'sets'} held {100 * entry['held']:.1f} %" if "held" in entry else ""
        held += f"; {count(entry['unknown'], 'row')} of classes not trained on" if entry.get("unknown") else ""
        lines.append(f"{shown(entry['target'])}: {values} on {count(entry['rows'], 'known row')}{held}")
    lines.append(f"{count(facts['rows'], 'row')} predicted in {facts['seconds']:.1f} s -> {facts['out']}")
    return "\n".join(lines)
