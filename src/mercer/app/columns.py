"""One column of a table in one of four plain forms: number, flag, date (seconds since 1970) or text."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import skrub
from skrub.core import RejectColumn

from mercer.app.tables import NULLS
from mercer.app.words import shown
from mercer.errors import DataError

LARGEST = 1e150  # numbers beyond are taken as infinite: their squares would be
_SAMPLE = 5_000  # text values that decide whether a text column really holds numbers or dates


@dataclass(frozen=True)
class Column:
    """A named column. values: float64 with NaN for missing, or an object array of str and None where kind is text.

    format: how dates were written, where the file held them as text.
    infinite: how many cells of the whole column held an infinity or more than 1e150, which is taken as missing.
    """

    name: str
    kind: str
    values: np.ndarray
    format: str = ""
    infinite: int = 0

    @property
    def missing(self) -> np.ndarray:
        """True where there is no value."""
        return pd.isna(self.values)

    def take(self, rows: np.ndarray) -> Column:
        """The same column on the chosen rows."""
        return Column(self.name, self.kind, self.values[rows], self.format)


def _floats(data: pa.ChunkedArray) -> np.ndarray:
    return np.array(data.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False), dtype=np.float64)


def _seconds(data: pa.ChunkedArray) -> np.ndarray:
    """Temporal values as seconds; dates and timestamps since 1970 (UTC where they carry a zone)."""
    kind = data.type
    if pa.types.is_date(kind):
        data = data.cast(pa.timestamp("s"), safe=False)
    unit = data.type.unit
    count = data.cast(pa.int32() if pa.types.is_time32(kind) else pa.int64())
    return _floats(count) / {"s": 1.0, "ms": 1e3, "us": 1e6, "ns": 1e9}[unit]


def _strings(data: pa.ChunkedArray) -> np.ndarray:
    text = pc.utf8_trim_whitespace(data.cast(pa.string()))
    absent = pc.is_in(text, value_set=pa.array(NULLS))
    found = np.array(pc.if_else(absent, pa.scalar(None, pa.string()), text).to_pylist(), dtype=object)
    return found.reshape(len(data))


def _dictionary(data: pa.ChunkedArray) -> pa.ChunkedArray:
    return data.cast(data.type.value_type)


_IS = pa.types
_Rule = tuple[tuple[Callable[[pa.DataType], bool], ...], str, Callable[[pa.ChunkedArray], np.ndarray]]
_RULES: tuple[_Rule, ...] = (
    ((_IS.is_boolean,), "flag", _floats),
    ((_IS.is_integer, _IS.is_floating, _IS.is_decimal, _IS.is_null), "number", _floats),
    ((_IS.is_date, _IS.is_timestamp), "date", _seconds),
    ((_IS.is_time, _IS.is_duration), "number", _seconds),
    ((_IS.is_string, _IS.is_large_string, _IS.is_string_view), "text", _strings),
)


def to_column(name: str, data: pa.ChunkedArray) -> Column | None:
    """The column in plain form, infinite and huge numbers as missing; None for nested and binary types: not used."""
    while pa.types.is_dictionary(data.type):
        data = _dictionary(data)
    for tests, kind, read in _RULES:
        if any(fits(data.type) for fits in tests):
            values = read(data)
            infinite = np.abs(values) > LARGEST if kind != "text" else np.zeros(0, dtype=bool)
            if infinite.any():
                values[infinite] = np.nan
            return Column(name, kind, values, infinite=int(infinite.sum()))
    return None


def numbers_in(text: np.ndarray) -> np.ndarray:
    """Text as numbers; NaN where it is missing or is no number."""
    values = pd.to_numeric(pd.Series(text, dtype=object), errors="coerce").to_numpy(np.float64, copy=True)
    values[~(np.abs(values) <= LARGEST)] = np.nan
    return values


def dates_in(text: np.ndarray, form: str) -> np.ndarray:
    """Text as seconds since 1970; NaN where it is missing or not written in this form."""
    moments = pd.to_datetime(pd.Series(text, dtype=object), format=form, errors="coerce", utc=True)
    seconds = (moments - pd.Timestamp(0, tz="UTC")).dt.total_seconds()
    return seconds.to_numpy(np.float64)


def refined(column: Column) -> Column:
    """A text column whose every value is a number or a date, as that; any other column as it is.

    skrub decides (its ToFloat, then its ToDatetime, which also finds how dates are written); every value must agree.
    """
    present = column.values[~column.missing] if column.kind == "text" else []
    if len(present) == 0:
        return column
    sample = pd.Series(present[:: max(len(present) // _SAMPLE, 1)], dtype=object, name="text")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for kind, tool in (("number", skrub.ToFloat()), ("date", skrub.ToDatetime())):
            try:
                tool.fit_transform(sample)
            except RejectColumn:
                continue
            form = getattr(tool, "format_", None) or ""
            values = numbers_in(column.values) if kind == "number" else dates_in(column.values, form)
            if np.isnan(values).sum() == column.missing.sum():
                return Column(column.name, kind, values, form)
    return column


_IN_WORDS = {"number": "number", "flag": "true/false value", "date": "date", "text": "text value"}


def _cell(column: Column, row: int) -> str:
    value = column.values[row]
    if column.kind == "text":
        return shown(value)
    if column.kind == "date":
        moment = pd.to_datetime(value, unit="s", errors="coerce")
        return "a date" if pd.isna(moment) else moment.isoformat(sep=" ").removesuffix(" 00:00:00")
    return ("true" if value else "false") if column.kind == "flag" else f"{value:.12g}"


def _refuse(column: Column, bad: np.ndarray, kind: str) -> None:
    row, many = int(np.flatnonzero(bad)[0]), int(bad.sum())
    cells = "this cell or leave it empty" if many == 1 else f"the {many:,} such cells or leave them empty"
    raise DataError(
        f"column '{shown(column.name)}' held {_IN_WORDS[kind]}s when the model was trained, now row {row + 1} holds "
        f"'{_cell(column, row)}'; correct {cells}"
    )


def as_kind(column: Column, kind: str, form: str) -> Column:
    """A new table's column in the form it had at training time. Raises DataError naming the first bad cell."""
    if column.kind == kind:
        return column
    empty = column.missing
    if empty.all():
        absent = np.full(len(empty), None, object) if kind == "text" else np.full(len(empty), np.nan)
        return Column(column.name, kind, absent, form, column.infinite)
    if "date" in (kind, column.kind) and column.kind != "text":
        _refuse(column, ~empty, kind)
    if kind == "text":
        return Column(column.name, kind, _as_text(column), form, column.infinite)
    values = column.values
    if column.kind == "text":
        values = dates_in(column.values, form or "ISO8601") if kind == "date" else numbers_in(column.values)
        if kind == "flag":
            lower = pd.Series(column.values, dtype=object).str.lower()
            values = lower.map({"true": 1.0, "false": 0.0, "1": 1.0, "0": 0.0}).to_numpy(np.float64)
    bad = (np.isnan(values) if column.kind == "text" else ~np.isin(values, (0.0, 1.0)) & (kind == "flag")) & ~empty
    if bad.any():
        if kind == "number" and column.kind == "text":  # a word among decimal commas, not the first decimal comma
            words = np.isnan(numbers_in(pd.Series(column.values, dtype=object).str.replace(",", ".").to_numpy())) & bad
            bad = words if words.any() else bad
        _refuse(column, bad, kind)
    return Column(column.name, kind, values, form, column.infinite)


def _as_text(column: Column) -> np.ndarray:
    """Numbers and flags as the text a CSV file would hold."""
    words: list[str | None] = [
        None if np.isnan(v) else f"{v:.0f}" if v == int(v) else repr(float(v)) for v in column.values
    ]
    if column.kind == "flag":
        words = [None if w is None else ("true" if w == "1" else "false") for w in words]
    return np.array(words, dtype=object)
