"""Cells that are unlike those of training: missing where none were, of new categories, far outside."""

from __future__ import annotations

import numpy as np
import pandas as pd

from mercer.app.columns import Column
from mercer.app.encoders import DateEncoder, Encoder, LevelEncoder, MeanEncoder, NumberEncoder

_NEVER = "\0\0"  # a category that no file holds
_FAR = 0.25  # of the range of training, beyond its ends: a number from there on is far outside


def unseen(encoder: Encoder, column: Column) -> np.ndarray:
    """True where a cell holds a category that was not there at training time."""
    if not isinstance(encoder, LevelEncoder | MeanEncoder):
        return np.zeros(len(column.values), dtype=bool)
    levels = encoder.levels if isinstance(encoder, LevelEncoder) else list(encoder.means)
    return ~column.missing & ~pd.Series(column.values, dtype=object).isin(levels).to_numpy()


def unknown(encoder: Encoder, column: Column) -> np.ndarray:
    """True where a cell is missing though none was in training, or holds a category never seen."""
    return (column.missing & (not encoder.absent)) | unseen(encoder, column)


def blank(encoder: Encoder) -> np.ndarray:
    """The coordinates of an unknown cell."""
    levels = isinstance(encoder, LevelEncoder | MeanEncoder)
    cell = np.array([_NEVER if levels else None], object) if encoder.kind == "text" else np.array([np.nan])
    return encoder.encode(Column(encoder.column, encoder.kind, cell))[0]


def outside(encoder: Encoder, column: Column) -> np.ndarray:
    """True where a number or date lies far outside the range of training."""
    if isinstance(encoder, NumberEncoder):
        low, high = encoder.low, encoder.high
    elif isinstance(encoder, DateEncoder):
        low, high = encoder.start, encoder.start + encoder.span
    else:
        return np.zeros(len(column.values), dtype=bool)
    reach = _FAR * (high - low)
    with np.errstate(invalid="ignore"):
        return ~column.missing & ((column.values < low - reach) | (column.values > high + reach))
