"""Reading and writing tables: CSV, Parquet and Arrow files through pyarrow."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Collection
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.feather
import pyarrow.ipc
import pyarrow.parquet

from mercer.app.places import SUFFIXES, check_output, check_table, under
from mercer.app.words import count, listed, shown
from mercer.errors import DataError

NULLS = (
    "",
    "NA",
    "N/A",
    "n/a",
    "na",
    "#N/A",
    "NaN",
    "nan",
    "-nan",
    "NULL",
    "null",
    "None",
    "none",
    "NONE",
    "<NA>",
    "?",
)
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
MOST_COLUMNS = 5_000


def _is_utf16(head: bytes) -> bool:
    """A byte order mark, or plain letters with a zero before or after each."""
    marked = head[:2] in (b"\xff\xfe", b"\xfe\xff") and head[:4] != b"\xff\xff\xff\xff"
    return marked or (len(head) > 3 and any(head[::2]) != any(head[1::2]))


def _format(path: Path, head: bytes) -> str:
    if head[:4] == b"PAR1":
        return "parquet"
    if head[:6] in (b"ARROW1", b"FEA1") or head[:4] == b"\xff\xff\xff\xff":
        return "arrow"
    if _is_utf16(head):
        raise DataError(f"'{shown(path)}' is UTF-16 text; save it as UTF-8")
    found = SUFFIXES.get(path.suffix.lower(), "csv" if head.isascii() and b"\0" not in head else "")
    if found in ("parquet", "arrow"):
        raise DataError(f"'{shown(path)}' is not a {found} file although its name ends in {path.suffix}")
    if not found or b"\0" in head:
        raise DataError(f"'{shown(path)}' is not a table; expected a CSV, Parquet or Arrow file")
    return "csv"


def _separator(path: Path, head: bytes) -> str:
    if path.suffix.lower() == ".tsv":
        return "\t"
    first = head.split(b"\n", 1)[0]
    counts = {mark: first.count(mark.encode()) for mark in (",", ";", "\t", "|")}
    return max(counts, key=lambda mark: counts[mark])


def _is_binary(field: pa.Field) -> bool:
    return pa.types.is_binary(field.type)


def _not_utf8(path: Path) -> str:
    """A sentence on the first line of a file that is not UTF-8; nothing where every line is."""
    with path.open("rb") as source:
        for place, line in enumerate(source, 1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                near = line[max(error.start - 20, 0) : error.start + 20].decode("cp1252", "replace")
                return (
                    f"'{shown(path)}' is not UTF-8: line {place} holds '{shown(near)}', read as Latin-1 "
                    "(Windows-1252), which it probably is; save it as UTF-8"
                )
    return ""


def _ragged(path: Path, parse: pyarrow.csv.ParseOptions) -> str:
    """A sentence on the first line with more or fewer cells than the header; nothing where there is none."""
    found: list[pyarrow.csv.InvalidRow] = []

    def keep(row: pyarrow.csv.InvalidRow) -> str:
        found.append(row)
        return "error" if len(found) == 1 else "skip"

    parse.invalid_row_handler = keep
    try:
        pyarrow.csv.read_csv(path, pyarrow.csv.ReadOptions(use_threads=False), parse)
    except (pa.ArrowException, UnicodeError):
        if found:  # only reading without threads counts lines
            row = found[0]
            return (
                f"'{shown(path)}' line {row.number} has {count(row.actual_columns, 'cell')}, expected "
                f"{row.expected_columns} as in its header: '{shown(row.text)}'; mend that line, or quote a cell that "
                f"holds '{parse.delimiter}'"
            )
    return ""


def _with_decimal_commas(
    path: Path, table: pa.Table, text: Collection[str], parse: pyarrow.csv.ParseOptions
) -> pa.Table:
    """Columns of words that are numbers once a comma is read as the decimal mark, as those."""
    names = [f.name for f in table.schema if pa.types.is_string(f.type) and f.name not in text]
    if not names or len(set(table.column_names)) < table.num_columns:
        return table
    options = pyarrow.csv.ConvertOptions(
        null_values=list(NULLS), strings_can_be_null=True, quoted_strings_can_be_null=True, include_columns=names,
        decimal_point=",",
    )  # fmt: skip
    other = pyarrow.csv.read_csv(path, convert_options=options, parse_options=parse)
    for name in names:
        if pa.types.is_floating(other.schema.field(name).type):
            table = table.set_column(table.column_names.index(name), name, other.column(name))
    return table


def _read_csv(path: Path, head: bytes, text: Collection[str]) -> pa.Table:
    options = pyarrow.csv.ConvertOptions(
        null_values=list(NULLS), strings_can_be_null=True, quoted_strings_can_be_null=True,
        column_types={name: pa.string() for name in text},
    )  # fmt: skip
    parse = pyarrow.csv.ParseOptions(delimiter=_separator(path, head), newlines_in_values=b'"' in head)
    try:
        table = pyarrow.csv.read_csv(path, convert_options=options, parse_options=parse)
        foreign = [name for name, field in zip(table.column_names, table.schema, strict=True) if _is_binary(field)]
    except (pa.ArrowException, UnicodeError) as error:
        why = _not_utf8(path) or _ragged(path, parse)
        if not why:
            raise
        raise DataError(why) from error
    if foreign:
        raise DataError(
            _not_utf8(path) or f"'{shown(path)}' is not UTF-8 in column {listed(foreign)}; save it as UTF-8"
        )
    return table if parse.delimiter == "," else _with_decimal_commas(path, table, text, parse)


def _read_arrow(path: Path, head: bytes, text: Collection[str]) -> pa.Table:
    if head[:4] == b"\xff\xff\xff\xff":
        with pa.OSFile(str(path)) as source:
            return pyarrow.ipc.open_stream(source).read_all()
    return pyarrow.feather.read_table(path)


def _read_parquet(path: Path, head: bytes, text: Collection[str]) -> pa.Table:
    return pyarrow.parquet.ParquetFile(path).read()


_READERS: dict[str, Callable[[Path, bytes, Collection[str]], pa.Table]] = {
    "csv": _read_csv, "arrow": _read_arrow, "parquet": _read_parquet,
}  # fmt: skip


def read_table(path: Path, text: Collection[str] = ()) -> pa.Table:
    """The table in a file, its names checked; columns of a CSV file named in `text` are kept as text.

    Raises DataError where the file is no table, is empty or repeats a name; UsageError where it cannot be read.
    """
    head = check_table(path)
    try:
        table = _READERS[_format(path, head)](path, head, text)
        table.validate(full=True)
    except (pa.ArrowException, OSError, UnicodeError, RecursionError, KeyError) as error:
        raise DataError(f"'{shown(path)}' cannot be read as a table: {error}") from error
    return _checked(path, table)


def _checked(path: Path, table: pa.Table) -> pa.Table:
    repeated = [name for name, times in Counter(table.column_names).items() if times > 1]
    if repeated:
        raise DataError(f"'{shown(path)}' has several columns named {listed(repeated)}; give each its own name")
    if table.num_columns > MOST_COLUMNS:
        raise DataError(f"'{shown(path)}' has {table.num_columns:,} columns; expected at most {MOST_COLUMNS:,}")
    if table.num_rows == 0:
        raise DataError(f"'{shown(path)}' has no rows below its header; expected data")
    return table


def _defused(column: pa.ChunkedArray) -> pa.ChunkedArray:
    risky = pc.fill_null(pc.match_substring_regex(column, r"^[=+\-@\t\r]"), False)
    return pc.if_else(risky, pc.binary_join_element_wise(pa.scalar("'"), column, ""), column)


def without_formulas(table: pa.Table) -> pa.Table:
    """The table with an apostrophe before text (and names) that a spreadsheet would run as a formula."""
    columns = [_defused(c) if pa.types.is_string(c.type) else c for c in table.columns]
    names = [f"'{n}" if n.startswith(_FORMULA) else n for n in table.column_names]
    return pa.table(dict(zip(names, columns, strict=True)))


def replaced(path: Path, write: Callable[[Path], None]) -> None:
    """Write a file beside `path`, flush it to disk and rename it into place: `path` is old or new, never half."""
    partial = path.with_name(f".{path.name[:100]}.{os.getpid()}.partial")
    try:
        write(partial)
        with partial.open("rb+") as written:
            os.fsync(written.fileno())
        partial.replace(path)
    except OSError as error:
        raise under(error, partial, path) from error
    finally:
        partial.unlink(missing_ok=True)


def write_table(table: pa.Table, path: Path) -> None:
    """Write a table in the format that the name of the file asks for, in one step."""
    check_output(path)
    kind = SUFFIXES[path.suffix.lower()]

    def write(place: Path) -> None:
        if kind == "csv":
            separator = "\t" if path.suffix.lower() == ".tsv" else ","
            options = pyarrow.csv.WriteOptions(delimiter=separator)
            pyarrow.csv.write_csv(without_formulas(table), place, options)
        elif kind == "parquet":
            pyarrow.parquet.write_table(table, place)
        else:
            pyarrow.feather.write_feather(table, place, compression="uncompressed")

    replaced(path, write)


def size_of(table: pa.Table) -> str:
    """'442 rows x 11 columns'."""
    return f"{count(table.num_rows, 'row')} x {count(table.num_columns, 'column')}"
