"""The model folder: safetensors and strict JSON, sealed by SHA-256, written whole or not at all."""

from __future__ import annotations

import ctypes
import glob
import hashlib
import json
import os
import shutil
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load, save

from mercer.app.exits import UsageError
from mercer.app.places import MANIFEST, WEIGHTS, check_folder, check_model, under
from mercer.app.schema import Manifest
from mercer.app.words import one_line, shown
from mercer.errors import DataError

_LARGEST_HEADER, _MOST_TENSORS, _LARGEST_JSON = 2**20, 4096, 64 * 2**20
_LARGEST = 1e152  # as in the schema
_MAY_BE_INFINITE = (".scaler.scale",)  # a scaler marks "leave the columns as they are" so
_EXCHANGE, _HERE = 2, -100  # renameat2(AT_FDCWD, ..., RENAME_EXCHANGE)


def sha256(data: bytes) -> str:
    """The hexadecimal SHA-256 of some bytes."""
    return hashlib.sha256(data).hexdigest()


def file_sha256(path: Path) -> str:
    """The hexadecimal SHA-256 of a file."""
    with path.open("rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()


def seal(manifest: dict) -> str:
    """The SHA-256 of a manifest's canonical JSON, without its own seal."""
    rest = {k: v for k, v in manifest.items() if k != "seal"}
    return sha256(json.dumps(rest, sort_keys=True, separators=(",", ":"), allow_nan=False).encode())


def _synced(path: Path, data: bytes) -> None:
    with path.open("wb") as target:
        target.write(data)
        target.flush()
        os.fsync(target.fileno())


def _sync_directory(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _exchange(new: Path, old: Path) -> bool:
    """Swap two folders in one step where the system can (Linux)."""
    swap = getattr(ctypes.CDLL(None), "renameat2", None)
    return swap is not None and swap(_HERE, os.fsencode(new), _HERE, os.fsencode(old), _EXCHANGE) == 0


def _put(new: Path, out: Path) -> None:
    _check_ours(out)  # again: the work took time
    if not out.exists():
        new.rename(out)
    elif _exchange(new, out):
        shutil.rmtree(new)
    else:
        aside = out.with_name(f".{out.name}.{os.getpid()}.old")
        out.rename(aside)
        new.rename(out)
        shutil.rmtree(aside)
    _sync_directory(out.parent)


def _alive(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _check_ours(out: Path) -> None:
    """Raises UsageError where replacing a folder would delete anything but a model."""
    if not out.is_dir() or not any(out.iterdir()):
        return
    where, mend = f"--out '{shown(out)}'", "choose another --out or remove it yourself"
    try:
        ours = {MANIFEST, *read_manifest(out).files}
    except DataError as error:
        raise UsageError(f"{where} holds a {MANIFEST} that is damaged or not of mercer; {mend}") from error
    for place in sorted(out.iterdir()):
        if place.name not in ours or not place.is_file():
            raise UsageError(f"{where} holds '{shown(place.name)}', which mercer did not write; {mend}")


def check_place(out: Path) -> None:
    """Raises UsageError where a model folder cannot be written: asked before the work, not after it."""
    check_folder(out)
    _check_ours(out)
    with staging(out):
        """Made and removed: the place can be written."""


@contextmanager
def staging(out: Path) -> Iterator[Path]:
    """A new folder beside `out`, removed at the end of the block unless it was put in place."""
    given, out = out, out.resolve()
    partial = out.with_name(f".{out.name[:100]}.{os.getpid()}.partial")
    out.parent.mkdir(parents=True, exist_ok=True)
    for left in out.parent.glob(f".{glob.escape(out.name[:100])}.*.partial"):  # of runs that were killed
        pid = left.name.split(".")[-2]
        if pid.isdigit() and left.name == f".{out.name[:100]}.{pid}.partial" and not _alive(pid):
            shutil.rmtree(left, ignore_errors=True)
    try:
        partial.mkdir()
        yield partial
    except OSError as error:
        if str(partial) not in str(error.filename):
            raise
        raise under(error, partial, given) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_folder(out: Path, manifest: dict, arrays: dict[str, np.ndarray], files: dict[str, bytes]) -> None:
    """Write a model folder in one step: an existing one is replaced whole, or kept if anything fails."""
    weights = save({name: np.ascontiguousarray(array) for name, array in arrays.items()})
    everything = {WEIGHTS: weights} | files
    manifest = manifest | {"files": {name: sha256(data) for name, data in sorted(everything.items())}}
    manifest = Manifest.model_validate(manifest | {"seal": ""}).model_dump(mode="json")
    manifest["seal"] = seal(manifest)
    text = json.dumps(manifest, indent=1, allow_nan=False, ensure_ascii=True)
    with staging(out) as partial:
        for name, data in everything.items():
            _synced(partial / name, data)
        _synced(partial / MANIFEST, text.encode())
        _sync_directory(partial)
        _put(partial, out.resolve())


def _refuse(folder: Path, what: str) -> DataError:
    return DataError(f"model folder '{shown(folder)}': {what}; fit again, or restore the folder from a copy")


def _unique(pairs: list[tuple[str, object]]) -> dict:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is repeated")
    return found


def _no_constant(text: str) -> float:
    raise ValueError(f"{text} is not JSON")


def strict_json(data: bytes) -> dict:
    """JSON with no repeated keys, no NaN and no infinity. Raises ValueError."""
    return json.loads(data.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)


def read_manifest(folder: Path) -> Manifest:
    """The checked model.json of a folder. Raises DataError where it is missing, altered or not of this schema."""
    check_model(folder)
    place = folder / MANIFEST
    if place.stat().st_size > _LARGEST_JSON:
        raise _refuse(folder, f"{MANIFEST} is larger than 64 MB")
    try:
        raw = strict_json(place.read_bytes())
        manifest = Manifest.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])[:80]
        raise _refuse(folder, f"{MANIFEST} is not valid at '{one_line(where)}' ({first['msg']})") from error
    except (ValueError, RecursionError) as error:
        raise _refuse(folder, f"{MANIFEST} is not valid JSON ({one_line(str(error), 80)})") from error
    if seal(raw) != manifest.seal:
        raise _refuse(folder, f"{MANIFEST} was altered (its SHA-256 seal does not match)")
    return manifest


def check_files(folder: Path, manifest: Manifest) -> None:
    """Raises DataError where a listed file is missing or is not what was written."""
    if WEIGHTS not in manifest.files:
        raise _refuse(folder, f"{MANIFEST} does not list {WEIGHTS}")
    for name, expected in manifest.files.items():
        place = folder / name
        if not place.is_file():
            raise _refuse(folder, f"{name} is missing")
        if file_sha256(place) != expected:
            raise _refuse(folder, f"{name} was altered (its SHA-256 does not match)")


def read_arrays(folder: Path) -> dict[str, np.ndarray]:
    """The arrays of a folder, its header refused above 1 MB or 4096 tensors before it is parsed."""
    data = (folder / WEIGHTS).read_bytes()
    size = struct.unpack("<Q", data[:8])[0] if len(data) >= 8 else 0
    if not 2 <= size <= _LARGEST_HEADER or size + 8 > len(data):
        raise _refuse(folder, f"{WEIGHTS} has a header of {size:,} bytes; expected 2 bytes to 1 MB")
    if data[8 : 8 + size].count(b"data_offsets") > _MOST_TENSORS:
        raise _refuse(folder, f"{WEIGHTS} lists more than {_MOST_TENSORS} tensors")
    try:
        arrays = load(data)
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise _refuse(folder, f"{WEIGHTS} cannot be read ({one_line(str(error), 80)})") from error
    for name, array in arrays.items():
        size = np.abs(array) if array.dtype.kind == "f" else np.zeros(1)
        if not ((size <= _LARGEST) | (name.endswith(_MAY_BE_INFINITE) & (size == np.inf))).all():
            raise _refuse(folder, f"{WEIGHTS} holds NaN, infinity or an absurd number in '{shown(name)}'")
    return arrays
