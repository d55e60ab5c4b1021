"""Where things are read and written, asked before anything heavy is imported and before the work."""

from __future__ import annotations

import os
from pathlib import Path

from mercer.app.exits import UsageError
from mercer.app.words import shown
from mercer.errors import DataError

WEIGHTS, MANIFEST = "model.safetensors", "model.json"
SUFFIXES = {".csv": "csv", ".tsv": "csv", ".txt": "csv", ".parquet": "parquet", ".pq": "parquet"}
SUFFIXES |= {".arrow": "arrow", ".feather": "arrow", ".ipc": "arrow"}
HEAD = 65_536  # bytes that tell what a file is
GENERATOR = b'<meta name="generator" content="mercer">'  # near the top of each report of ours


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as source:
            return source.read(HEAD)
    except OSError as error:
        raise UsageError(f"'{shown(path)}' cannot be read: {error.strerror}; check its permissions") from error


def check_table(path: Path) -> bytes:
    """The first bytes of a table file. Raises UsageError where it cannot be read, DataError where it is empty."""
    if path.is_dir():
        raise UsageError(f"'{shown(path)}' is a directory; give a CSV, Parquet or Arrow file")
    if not path.exists():
        raise UsageError(f"'{shown(path)}' does not exist; check the path")
    if not path.is_file():
        raise UsageError(f"'{shown(path)}' is not a regular file; write the table to a file first")
    head = _head(path)
    if not head.strip():
        raise DataError(f"'{shown(path)}' is empty; expected a header and rows")
    return head


def check_model(folder: Path) -> None:
    """Raises UsageError or DataError where a path is no model folder at all."""
    if not folder.exists():
        raise UsageError(f"model folder '{shown(folder)}' does not exist; check the path")
    if not (folder / MANIFEST).is_file():
        raise DataError(
            f"'{shown(folder)}' is not a model folder (it has no {MANIFEST}); give what `mercer fit --out` wrote"
        )


def check_folder(out: Path, *inputs: Path) -> None:
    """Raises UsageError where a model folder must not be written: a file, our own directory, one that is not ours."""
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out '{shown(out)}' is a file; give a folder")
    for table in inputs:
        if table.resolve().is_relative_to(out.resolve()):
            raise UsageError(f"--out '{shown(out)}' holds the table '{shown(table)}'; choose another --out")
    if Path.cwd().resolve().is_relative_to(out.resolve()):
        raise UsageError(f"--out '{shown(out)}' is the directory you are in, or holds it; give a folder of its own")
    if out.is_dir() and any(out.iterdir()) and not (out / MANIFEST).is_file():
        raise UsageError(
            f"--out '{shown(out)}' is a folder that mercer did not write; choose another --out or remove it yourself"
        )
    above = next(place for place in out.resolve().parents if place.exists())
    if not above.is_dir():
        raise UsageError(f"--out '{shown(out)}' is below '{shown(above)}', which is a file; choose another --out")
    if not os.access(above, os.W_OK):
        raise UsageError(f"--out '{shown(out)}': '{shown(above)}' cannot be written; choose another --out")


def under(error: OSError, hidden: Path, path: Path) -> OSError:
    """The error of writing to a hidden place, told of the path that was asked for."""
    text = os.strerror(error.errno) if error.errno else str(error).replace(str(hidden), str(path))
    return OSError(error.errno, text, str(path))


def check_apart(out: Path, *inputs: Path) -> None:
    """Raises UsageError where writing the file `out` would replace an input or change a model folder."""
    if out.exists() and any(given.exists() and out.samefile(given) for given in inputs):
        raise UsageError(f"output '{shown(out)}' is also an input; give another name")
    for home in (*out.resolve().parents, *out.absolute().parents):
        if (home / MANIFEST).is_file() and (home / WEIGHTS).is_file():
            raise UsageError(f"output '{shown(out)}' is inside the model folder '{shown(home)}'; give another place")


def _check_file(path: Path) -> None:
    if path.is_dir():
        raise UsageError(f"output '{shown(path)}' is a directory; give a file name in it")
    if not path.parent.is_dir():
        raise UsageError(
            f"output '{shown(path)}': the directory '{shown(path.parent)}' does not exist; create it first"
        )
    if not os.access(path.parent, os.W_OK):
        raise UsageError(f"output '{shown(path)}': '{shown(path.parent)}' cannot be written; choose another place")
    if path.exists() and not path.is_file():
        raise UsageError(f"output '{shown(path)}' is not a regular file; give another name")


def check_output(path: Path) -> None:
    """Raises UsageError where a table cannot be written to `path`."""
    if path.suffix.lower() not in SUFFIXES or path.suffix.lower() == ".txt":  # read by its content, but never written
        raise UsageError(f"output is '{shown(path)}'; expected a name that ends in .parquet, .csv or .arrow")
    _check_file(path)


def check_report(path: Path) -> None:
    """Raises UsageError where a report cannot be written to `path`, or would replace a file that is no report."""
    _check_file(path)
    check_apart(path)
    if path.exists() and GENERATOR not in _head(path):
        raise UsageError(
            f"output '{shown(path)}' is a file that mercer did not write; give another name or remove it yourself"
        )
