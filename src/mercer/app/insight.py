"""What the model has learned: which columns matter, how predictions move with each, and the kernel's spectrum."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from mercer.app.columns import Column
from mercer.app.fitting import Outcome, Trained
from mercer.app.frame import Frame
from mercer.app.heads import kernel_matrix, predict
from mercer.app.scores import main, score
from mercer.app.targets import Target
from mercer.learn.metric import directions, metric_of

_ROWS, _BACKGROUND, _POINTS, _SPECTRUM_ROWS = 600, 48, 24, 600
_MOST_CURVES, _MOST_COLUMNS = 6, 60
_CELLS = 2**21  # of coordinates predicted at once: many columns of few rows are slow one by one
_SHARES = 8  # columns whose share of the distance is shown
_DIRECTIONS, _PARTS, _FAINT = 3, 6, 0.15  # combinations shown, coordinates of each, and the least beside the largest
_MOVES = 30_000  # rows predicted to see how far predictions move with each column
Bands = Callable[[Frame, list[np.ndarray]], list[tuple[np.ndarray, np.ndarray] | None]]


def _replaced(frame: Frame, place: int, values: np.ndarray) -> Frame:
    old = frame.columns[place]
    columns = list(frame.columns)
    columns[place] = Column(old.name, old.kind, values, old.format)
    return Frame(columns, frame.rows)


def importance(outcome: Outcome, frame: Frame, targets: Sequence[Target], seed: int) -> list[list[float]]:
    """For each target and column: the fall of the main score when the column is shuffled among rows not trained on."""
    rng = np.random.default_rng(seed)
    rows = np.sort(rng.permutation(outcome.held)[:_ROWS])
    judge, goals = outcome.judge, [t.take(rows) for t in targets]
    if judge is None or len(rows) < 5:
        return []
    inside = frame.take(rows)
    ranks = [main(t) for t in targets]
    x, sources = judge.encoder.encode(inside), judge.encoder.sources()
    first = predict(judge.heads, judge.classes, x)
    usual = [score(t, f, r)[r] for t, f, r in zip(goals, first, ranks, strict=True)]
    falls = []
    for place in range(min(len(frame.columns), _MOST_COLUMNS)):
        moved = x.copy()
        moved[:, sources == place] = x[rng.permutation(len(rows))][:, sources == place]  # cells are coded one by one
        found = predict(judge.heads, judge.classes, moved)
        falls.append([u - score(t, f, r)[r] for u, t, f, r in zip(usual, goals, found, ranks, strict=True)])
    return np.array(falls).T.tolist()


def relevance(trained: Trained, seed: int = 0) -> list[float]:
    """For each column the share of how far predictions move when it alone takes the value of another row.

    The mean size of the change, relative to the spread of the predictions, over a sample of the training rows and all
    targets; a column's coordinates move together.
    """
    sources, sample = trained.encoder.sources(), trained.encoder.sample
    columns = len(trained.encoder.encoders)
    rows = sample[: int(np.clip(_MOVES // columns, 12, len(sample)))] if len(sample) > 12 else sample
    if len(rows) < 2:
        return []
    rng = np.random.default_rng(seed)
    usual = predict(trained.heads, trained.classes, rows)
    spreads = [max(float(f.std(0).mean()), 1e-300) for f in usual]
    moves = np.zeros(columns)
    turns = rng.integers(1, len(rows), size=columns)  # a turn leaves no row with its own value
    for places in np.array_split(np.arange(columns), max(columns * rows.size // _CELLS, 1)):
        moved = np.tile(rows, (len(places), 1, 1))
        for copied, place in zip(moved, places, strict=True):
            copied[:, sources == place] = np.roll(rows, turns[place], axis=0)[:, sources == place]
        found = predict(trained.heads, trained.classes, moved.reshape(-1, rows.shape[1]))
        for f, u, s in zip(found, usual, spreads, strict=True):
            gap = np.abs(f.reshape(len(places), *u.shape) - u)
            moves[places] += gap.reshape(len(places), -1).mean(1) / s / len(usual)
    return (moves / max(float(moves.sum()), 1e-300)).tolist()


def _grid(column: Column) -> tuple[np.ndarray, list[str] | None]:
    present = column.values[~column.missing]
    if column.kind == "text":
        common = pd.Series(present, dtype=object).value_counts().index[:8]
        return np.array(list(common), dtype=object), [str(v) for v in common]
    if column.kind == "flag":
        return np.array([0.0, 1.0]), ["false", "true"]
    distinct = np.unique(present)
    if len(distinct) <= _POINTS:
        return distinct, None
    low, high = np.quantile(present, [0.01, 0.99])
    return np.linspace(low, high, _POINTS), None


def _curve(
    trained: Trained, frame: Frame, place: int, target: int, bands: Bands, rng: np.random.Generator
) -> dict[str, Any]:
    column = frame.columns[place]
    grid, labels = _grid(column)
    rows = rng.permutation(frame.rows)[:_BACKGROUND]
    every = frame.take(np.tile(rows, len(grid)))
    moved = _replaced(every, place, np.repeat(grid, len(rows)))
    found = trained.predict(moved)
    shape = (len(grid), len(rows))
    values = found[target]
    if trained.classes[target]:
        values = values[:, -1] if trained.classes[target] == 2 else values.max(1)
    curve: dict[str, Any] = {"column": column.name, "kind": column.kind, "mean": values.reshape(shape).mean(1).tolist()}
    band = bands(moved, found)[target]
    if band is not None:
        curve["low"], curve["high"] = (side.reshape(shape).mean(1).tolist() for side in band)
    if labels is None:
        present = column.values[~column.missing]
        inside = present[(present >= grid[0]) & (present <= grid[-1])]
        curve["at"], curve["rug"] = grid.tolist(), rng.permutation(inside)[:150].tolist()
        if column.kind == "date":
            curve["at"], curve["rug"] = ([v / 86400 / 365.25 + 1970 for v in curve[k]] for k in ("at", "rug"))
    return curve | ({"labels": labels} if labels is not None else {})


def responses(
    trained: Trained, frame: Frame, order: Sequence[int], target: int, bands: Bands, seed: int
) -> list[dict[str, Any]]:
    """Average predictions along the columns that matter most, the others as they are in a sample of rows."""
    rng = np.random.default_rng(seed)
    return [_curve(trained, frame, place, target, bands, rng) for place in list(order)[:_MOST_CURVES]]


@dataclass(frozen=True)
class Spectrum:
    """Eigenvalues of the kernel on a sample of rows, largest first, and the effective dimension of the fit there."""

    eigenvalues: list[float]
    dimension: float
    rows: int


def spectrum(trained: Trained, frame: Frame, seed: int) -> Spectrum | None:
    """Of the first learner's kernel. The noise is scaled so that the sample stands for all rows."""
    rows = np.random.default_rng(seed).permutation(frame.rows)[:_SPECTRUM_ROWS]
    gram = kernel_matrix(trained.heads[0].model, trained.encoder.encode(frame.take(rows)))
    if gram is None:
        return None
    matrix, noise = gram
    values = np.maximum(np.linalg.eigvalsh(matrix)[::-1], 0.0)
    noise = max(noise * len(rows) / frame.rows, 1e-12)
    return Spectrum(values.tolist(), float((values / (values + noise)).sum()), len(rows))


def distance(trained: Trained) -> dict[str, Any] | None:
    """What the first learner's kernel takes as distance: the share of each column, and of leading combinations.

    shares: of the squared distance of two rows on average, by the diagonal of the kernel's metric, largest first;
    directions: where a metric was learned, its eigenvectors for coordinates in deviations, strongest first.
    """
    rows, model = trained.encoder.sample, trained.heads[0].model
    if len(rows) < 2:
        return None
    spread = model.coordinates(rows).std(0).numpy()
    matrix = spread[:, None] * metric_of(model.kernel_, len(spread)).numpy() * spread
    total = max(float(np.trace(matrix)), 1e-300)
    each = np.zeros(len(trained.encoder.encoders))
    np.add.at(each, trained.encoder.sources(), np.diag(matrix) / total)
    shares = [[trained.encoder.encoders[i].column, float(each[i])] for i in np.argsort(-each)[:_SHARES]]
    found: dict[str, Any] = {"shares": shares, "directions": []}
    if directions(model.kernel_):
        values, vectors = np.linalg.eigh(matrix)
        labels = trained.encoder.labels()
        for value, vector in list(zip(values[::-1], vectors.T[::-1], strict=True))[:_DIRECTIONS]:
            order = np.argsort(-np.abs(vector))[:_PARTS]
            first = vector[order[0]]
            clear = [i for i in order if abs(vector[i]) > _FAINT * abs(first)]
            parts = [[labels[i], float(np.sign(first) * vector[i])] for i in clear]
            found["directions"].append({"share": float(value / total), "parts": parts})
    return found


def coordinates(frame: Frame) -> tuple[int, int] | None:
    """Two columns that are places: a pair with such names, or the only two columns, both numbers."""
    numbers = {c.name.strip().lower(): i for i, c in enumerate(frame.columns) if c.kind == "number"}
    for first, second in (
        ("longitude", "latitude"),
        ("lon", "lat"),
        ("lng", "lat"),
        ("x", "y"),
        ("easting", "northing"),
    ):
        if first in numbers and second in numbers:
            return numbers[first], numbers[second]
    return (0, 1) if len(frame.columns) == 2 == len(numbers) else None
