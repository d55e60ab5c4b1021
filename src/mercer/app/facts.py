"""The facts of a run as plain JSON: what run.json holds, and the report, the card and the terminal say."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import binomtest

from mercer.app.bands import LEVELS, Measured
from mercer.app.columns import Column
from mercer.app.fitting import Outcome
from mercer.app.frame import Frame, Note
from mercer.app.oof import Judged
from mercer.app.scores import by_fold, main, score, spread
from mercer.app.targets import Target
from mercer.app.words import count, listed, number, percent, shown

_KINDS = {"number": "number", "flag": "true/false", "date": "date", "text": "text"}


def finite(value: Any) -> Any:
    """JSON without NaN or infinity (None instead) and without numpy's own types."""
    if isinstance(value, dict):
        return {str(k): finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    if isinstance(value, np.ndarray | np.generic):
        return finite(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _day(seconds: float) -> str:
    moment = pd.to_datetime(seconds, unit="s", errors="coerce")
    return "out of range" if pd.isna(moment) else f"{moment:%d %b %Y}"


def summary(column: Column) -> str:
    """The values of a column in a few words."""
    present = column.values[~column.missing]
    if len(present) == 0:
        return "none"
    if column.kind == "text":
        top = pd.Series(present, dtype=object).value_counts()
        return f"most often {shown(top.index[0], 24)} ({percent(top.iloc[0] / len(present), 0)})"
    if column.kind == "flag":
        return f"true in {percent(float(present.mean()), 0)}"
    low, middle, high = np.quantile(present, [0, 0.5, 1])
    if column.kind == "date":
        return f"{_day(low)} to {_day(high)}"
    return f"{number(low)} to {number(high)}, median {number(middle)}"


def columns(frame: Frame, notes: Sequence[Note], names: Sequence[str]) -> list[dict[str, Any]]:
    """One entry for each column of the file that is not a target, in the order of the file."""
    told = {n.column: n for n in notes}
    kept = {c.name: c for c in frame.columns}
    found = []
    for name in names:
        note, column = told.get(name), kept.get(name)
        text = (f"dropped: {note.text}" if note.dropped else note.text) if note else ""
        entry: dict[str, Any] = {"name": name, "note": text, "used": column is not None}
        if column is None:
            entry |= {"kind": "not used", "distinct": 0, "missing": 0.0, "summary": ""}
        else:
            distinct = len(pd.unique(column.values[~column.missing]))
            missing = float(column.missing.mean())
            entry |= {"kind": _KINDS[column.kind], "distinct": distinct, "missing": missing, "summary": summary(column)}
        found.append(entry)
    return found


def _about(frame: Frame, row: int, order: Sequence[int]) -> str:
    parts = []
    for place in list(order)[:3]:
        column = frame.columns[place]
        value = column.values[row]
        if column.missing[row]:
            text = "missing"
        elif column.kind == "date":
            text = _day(value)
        else:
            text = (
                shown(value, 20)
                if column.kind == "text"
                else ("true" if value else "false")
                if column.kind == "flag"
                else number(value)
            )
        parts.append(f"{shown(column.name, 20)} {text}")
    return ", ".join(parts)


def worst(
    target: Target, judged: Judged, frame: Frame, numbers: np.ndarray, order: Sequence[int]
) -> list[dict[str, Any]]:
    """The ten rows it got most wrong. frame: the judged rows; numbers: theirs in the file, from 1."""
    if target.task == "regression":
        bad = np.argsort(-np.abs(judged.true - judged.found))[:10]
        return [
            {"row": int(numbers[i]), "true": judged.true[i], "found": judged.found[i], "low": judged.low[i],
             "high": judged.high[i], "about": _about(frame, int(i), order)}
            for i in bad
        ]  # fmt: skip
    own = judged.chances[np.arange(len(judged.true)), judged.true.astype(int)]
    return [
        {"row": int(numbers[i]), "true": target.classes[int(judged.true[i])],
         "found": target.classes[int(judged.found[i])], "chance": own[i], "about": _about(frame, int(i), order)}
        for i in np.argsort(own)[:10]
    ]  # fmt: skip


def _errors(target: Target, found: np.ndarray) -> list[float]:
    """101 quantiles of the size of the error, or of one minus the chance given to the truth."""
    if target.task == "regression":
        size = np.abs(target.values - found)
    else:
        size = 1 - found[np.arange(len(found)), target.values]
    return np.quantile(size, np.linspace(0, 1, 101)).tolist()


def leaderboard(target: Target, i: int, outcome: Outcome) -> list[dict[str, Any]]:
    """mercer first, then each yardstick, best first; each scored on the rows that it predicted."""
    board: list[dict[str, Any]] = []
    ranks = main(target)
    for name, every in {"mercer": outcome.found, **outcome.others}.items():
        found = every[i]
        rows = np.flatnonzero(np.isfinite(found if found.ndim == 1 else found[:, 0]))
        if len(rows) < 2:
            continue
        known, values = target.take(rows), found[rows]
        seconds = outcome.seconds.get(name, outcome.seconds.get("folds", 0.0) if name == "mercer" else 0.0)
        share = len(rows) / len(outcome.judged())
        part = "" if share == 1 else f" on {percent(share, 0)} of the rows"
        each = by_fold(known, values, outcome.folds[rows], ranks)
        board.append({
            "name": name + part, "scores": score(known, values, ranks), "error": spread(each), "rows": len(rows),
            "seconds": seconds, "each": list(each.items()), "errors": _errors(known, values),
        })  # fmt: skip
    return board[:1] + sorted(board[1:], key=lambda row: -row["scores"][ranks])


def never(target: Target, judged: Judged) -> list[tuple[str, int]]:
    """The classes that no judged row was predicted to be of, rarest first, and how many rows they have."""
    if target.task == "regression":
        return []
    rows, said = (np.bincount(v.astype(int), minlength=len(target.classes)) for v in (judged.true, judged.found))
    gone = np.flatnonzero((rows > 0) & (said == 0))
    return [(target.classes[c], int(rows[c])) for c in gone[np.argsort(rows[gone], kind="stable")]]


def coverage(target: Target, measured: Measured, groups: np.ndarray | None = None) -> dict[str, Any]:
    """What the 90 % bands or sets held. unsure: the share of rows whose class has too few of them to promise.

    groups: of each judged row; it is groups, and not rows, that vouch for the promise then.
    """
    size = (
        f"{count(len(measured.inside), 'judged row') if groups is None else 'so few groups'} cannot bound them"
        if not math.isfinite(measured.size)
        else f"the median band is {number(measured.size)} wide"
        if target.task == "regression"
        else f"a set has {number(measured.size)} classes on average"
    )
    if measured.least is not None:
        code, share, rows = measured.least
        size += f"; least often held: {shown(target.classes[code], 24)} ({percent(share, 0)} of {count(rows, 'row')})"
    if measured.few:
        names = [f"{shown(target.classes[code], 24)} ({rows})" for code, rows in measured.few[:3]]
        more = f" and {len(measured.few) - 3} more" if len(measured.few) > 3 else ""
        size += f"; too few rows of {', '.join(names)}{more} to promise"
    curve = {"nominal": LEVELS.tolist(), "measured": measured.curve}
    share, votes = float(measured.inside.mean()), len(measured.inside) if groups is None else len(np.unique(groups))
    sure = binomtest(round(share * votes), votes).proportion_ci(0.95)
    return {
        "nominal": 0.9,
        "infinite": target.task == "regression" and not math.isfinite(measured.size),
        "between": [float(sure.low), float(sure.high)],
        "measured": share,
        "groups": None if groups is None else votes,
        "rows": len(measured.inside),
        "unsure": sum(rows for _, rows in measured.few) / len(measured.inside),
        "size": size,
        "curve": curve,
    }


def data_sentence(frame: Frame, notes: Sequence[Note], total: int) -> str:
    """Rows and columns used, in a sentence."""
    kinds = [c.kind for c in frame.columns]
    words = {"number": "number", "flag": "true/false column", "date": "date", "text": "category or text column"}
    parts = [count(kinds.count(k), word) for k, word in words.items() if k in kinds]
    rows = f"All {count(total, 'row')}" if frame.rows == total else f"{count(frame.rows, 'row')} of {total:,}"
    text = f"{rows} were used, with {count(len(kinds), 'column')}: {', '.join(parts)}."
    dropped = [n.column for n in notes if n.dropped]
    return text + (f" Not used: {listed(dropped)}." if dropped else "")
