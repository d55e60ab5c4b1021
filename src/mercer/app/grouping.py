"""Rows that belong together: the groups that a user names, and a quick look for groups that nobody named."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
import pyarrow as pa
import torch

from mercer.app.columns import Column, to_column
from mercer.app.encoders import is_wording
from mercer.app.exits import UsageError
from mercer.app.fitting import repeated
from mercer.app.frame import Frame, TableEncoder
from mercer.app.targets import Target
from mercer.app.words import closest, count, fixed, listed, shown
from mercer.errors import DataError
from mercer.kernels import Matern

_ROWS, _EACH, _COLUMNS, _TRIED = 450, 20, 60, 4  # of the quick look: rows, rows of a level, other columns, candidates
_FEW = 12  # rows of a level up to which the level by itself may be what the model has learned
_DROP, _WORSE = 0.25, 2.0  # a fall of the explained share that is said, where the squared error grows by this as well
_SECONDS = 1.0


def group_codes(table: pa.Table, name: str, targets: Sequence[str]) -> tuple[np.ndarray, list[str]]:
    """(the group of each row of the table, sentences). A row whose cell is missing is a group of its own.

    Raises UsageError where the column is a target; DataError where it is not there, has no plain form or one value.
    """
    if name in targets:
        raise UsageError(f"--group '{shown(name)}' is a target; expected a column that says which rows belong together")
    if name not in table.column_names:
        hint = closest(name, [n for n in table.column_names if n not in targets])
        raise DataError(
            f"there is no column '{shown(name)}' to group by{hint}; the table has {listed(table.column_names, 8)}"
        )
    column = to_column(name, table.column(name))
    if column is None:
        kind = table.schema.field(name).type
        raise DataError(f"group '{shown(name)}' holds {kind}; expected numbers, text, dates or true/false")
    codes, levels = pd.factorize(column.values)
    lost = np.flatnonzero(codes < 0)
    codes[lost] = len(levels) + np.arange(len(lost))
    groups = len(levels) + len(lost)
    if groups < 2:
        one = f": always '{shown(column.values[0], 20)}'" if len(levels) else ""
        raise DataError(f"group '{shown(name)}' is one group{one}; expected two or more")
    said = [f"judged on new groups: {groups:,} of '{shown(name)}' in {count(len(codes), 'row')}, none in two folds"]
    if len(lost):
        said.append(f"{count(len(lost), 'row')} without '{shown(name)}': each is a group of its own")
    if groups == len(codes):
        said.append(f"column '{shown(name)}' differs in every row, so --group changes nothing but that it is not used")
    return codes.astype(np.int64), said


def _candidates(frame: Frame) -> list[tuple[Column, np.ndarray]]:
    """Columns that might say which rows belong together, and the level of each row, most levels first."""
    found = []
    for column in frame.columns:
        gone = column.missing
        whole = column.kind == "number" and bool((column.values[~gone] == np.floor(column.values[~gone])).all())
        if gone.mean() > 0.5 or not (whole or (column.kind == "text" and not is_wording(column.values[~gone]))):
            continue
        codes, levels = pd.factorize(column.values)
        if 5 <= len(levels) <= (~gone).sum() / 2:
            found.append((column, codes, len(levels)))
    return [pair[:2] for pair in sorted(found, key=lambda f: -f[2])[:_TRIED]]


def _sample(codes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Rows of levels drawn by chance, up to _EACH of a level: whole families, where single rows would have no kin."""
    order = rng.permutation(np.flatnonzero(codes >= 0))
    table = pd.DataFrame({"row": order, "code": codes[order]})
    table = table[table.groupby("code").cumcount() < _EACH]
    turn = rng.permutation(int(codes.max()) + 1)
    return table.iloc[np.argsort(turn[table["code"]], kind="stable")[:_ROWS]]["row"].to_numpy()


def _same(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two columns name the same levels by other words."""
    one, other = pd.factorize(a)[0], pd.factorize(b)[0]
    pairs = len(np.unique(np.stack([one, other]), axis=1).T)
    return pairs == len(np.unique(one)) == len(np.unique(other))


def _kernels(x: np.ndarray, codes: np.ndarray, few: bool) -> Iterator[np.ndarray]:
    points = torch.from_numpy((x - x.mean(0)) / np.maximum(x.std(0), 1e-9))
    kin = (codes[:, None] == codes[None, :]).astype(np.float64)
    for reach in (0.5, 2.0):
        with torch.no_grad():
            matrix = 1.0 + Matern(2.5, reach * max(x.shape[1], 1) ** 0.5).block(points, points).numpy()
        yield from ([matrix, matrix + kin] if few else [matrix])


def _left_out(matrix: np.ndarray, y: np.ndarray, codes: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Residuals of kernel ridge with each row left out, and with its whole level: exact, without fitting again."""
    values, vectors = np.linalg.eigh(matrix)
    blocks = [np.flatnonzero(codes == code) for code in np.unique(codes)]
    for noise in (0.01, 0.1, 1.0):
        inverse = (vectors / (np.maximum(values, 0.0) + noise)) @ vectors.T
        weights, apart = inverse @ y, np.empty_like(y)
        for rows in blocks:
            apart[rows] = np.linalg.solve(inverse[np.ix_(rows, rows)], weights[rows])
        yield weights / np.diagonal(inverse)[:, None], apart


def _explained(y: np.ndarray, residual: np.ndarray) -> float:
    return float(1 - (residual**2).sum() / max(((y - y.mean(0)) ** 2).sum(), 1e-12))


def _right(target: Target, y: np.ndarray, residual: np.ndarray) -> float:
    """The share of rows whose class would be predicted."""
    found = y - residual
    if found.shape[1] == 1:
        middle = (y.max() + y.min()) / 2
        return float(((found > middle) == (y > middle)).mean())
    return float((found.argmax(1) == y.argmax(1)).mean())


def _judged(frame: Frame, column: Column, codes: np.ndarray, target: Target) -> tuple[float, str]:
    """(how much less is explained of new levels, the scores in words), for one candidate; 0 where it is little."""
    rows = _sample(codes, np.random.default_rng(0))
    few = bool(np.bincount(codes[codes >= 0]).mean() <= _FEW)
    others = [c for c in frame.columns if c is not column and not (c.kind == "text" and _same(c.values, column.values))]
    step = max(len(others) // _COLUMNS, 1)
    part = Frame([c for c in others[::step] if not c.take(rows).missing.all()], frame.rows).take(rows)
    if part.columns:
        rows = rows[np.unique(repeated(part), return_index=True)[1]]  # twins share a fold as it is
    family, known = codes[rows], target.take(rows)
    if len(rows) < 30 or len(np.unique(family)) < 5 or len(np.unique(known.values)) < 2:
        return 0.0, ""
    y = known.matrix()
    whole = Frame(others[::step] + ([column] if column.kind == "number" and few else []), frame.rows).take(rows)
    x = TableEncoder.fit(whole, y, 0)[1] if whole.columns else np.zeros((len(rows), 1))
    pairs = [pair for k in _kernels(x, family, few) for pair in _left_out(k, y, family)]
    here, new = (min((pair[i] for pair in pairs), key=lambda r: float((r**2).sum())) for i in (0, 1))
    alike, apart = _explained(y, here), _explained(y, new)
    if alike - apart < _DROP or 1 - apart < _WORSE * (1 - alike):
        return 0.0, ""
    if target.task == "regression":
        return alike - apart, f"R² {fixed(apart, 2)} instead of {fixed(alike, 2)}"
    return alike - apart, f"accuracy {_right(known, y, new):.2f} instead of {_right(known, y, here):.2f}"


def unsaid(frame: Frame, targets: Sequence[Target]) -> list[str]:
    """A sentence where rows of one level are so alike that folds which part them promise too much of new levels.

    Kernel ridge of fixed kernels on at most 450 rows, within a second: what is said of a table is a warning, no score.
    """
    started, best = time.monotonic(), (0.0, "", "")
    for column, codes in _candidates(frame):
        for target in targets[:2]:
            if time.monotonic() - started > _SECONDS / 2:
                break
            fall, scores = _judged(frame, column, codes, target)
            best = max(best, (fall, column.name, scores))
    _, name, scores = best
    if not scores:
        return []
    return [
        f"rows of one '{shown(name)}' are alike: a model judged on new ones does much worse ({scores} by a quick "
        f"check); if predictions are for new ones, give --group '{shown(name)}'"
    ]
