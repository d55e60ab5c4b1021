"""A long fit on disc: what it has come to, kept so that a fit that was killed goes on where it was."""

from __future__ import annotations

import hashlib
import json
import os
import time
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mercer.errors import DataError
from mercer.learn.rows import Rows

EVERY = 5.0  # seconds between two savings: what a kill may cost
BLOCK = 50_000  # rows that are hashed at once
FORMAT = 2


def _named(value: Any) -> str:
    """An argument in words that are the same in every process."""
    if isinstance(value, torch.Tensor | np.ndarray):
        array = np.ascontiguousarray(value.detach().cpu() if isinstance(value, torch.Tensor) else value)
        return f"{array.shape} {array.dtype} {hashlib.sha256(array.tobytes()).hexdigest()}"
    if isinstance(value, torch.nn.Module):
        return f"{value!r} {[p.tolist() for p in value.state_dict().values()]}"
    return type(value).__name__ if isinstance(value, np.random.RandomState) else repr(value)


def digest(estimator: Any, rows: Rows) -> str:
    """What tells one fit from another: the estimator, its arguments, and every row."""
    skip = {"checkpoint", "progress", "epochs", "max_iter", "time_budget"}  # more patience is no other fit
    arguments = {k: _named(v) for k, v in estimator.get_params(deep=False).items() if k not in skip}
    kind = [type(estimator).__name__, arguments, rows.x.shape, str(rows.x.dtype)]
    found = hashlib.sha256(json.dumps(kind).encode())
    for at in rows.blocks(BLOCK):
        found.update(np.ascontiguousarray(rows.x[at]).tobytes())
        if rows.y is not None:
            y = np.ascontiguousarray(rows.y[at])
            found.update(repr(y.tolist()).encode() if y.dtype.hasobject else y.tobytes())
    return found.hexdigest()


class Checkpoint:
    """One file that holds the state of one fit, replaced as a whole; without a path nothing is kept.

    Raises DataError when the file belongs to another fit (other rows or arguments) or is no checkpoint at all.
    """

    def __init__(self, path: str | os.PathLike[str] | None, owner: str):
        self.path, self._owner = None if path is None else Path(path), owner
        self._last = time.perf_counter()
        if self.path is not None and not self.path.parent.is_dir():
            raise DataError(f"checkpoint is {str(self.path)!r}: there is no folder {str(self.path.parent)!r}")

    def load(self) -> tuple[dict[str, Any], dict[str, torch.Tensor]] | None:
        """(JSON-able values, tensors) of the last saving, or None where there is none."""
        if self.path is None or not self.path.exists():
            return None
        try:
            with np.load(self.path, allow_pickle=False) as file:
                arrays = {name: torch.from_numpy(file[name]) for name in file.files if name != "values"}
                values = json.loads(file["values"].tobytes())
            owner, form = values.pop("owner"), values.pop("format")
        except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile, TypeError, AttributeError) as error:
            raise DataError(
                f"checkpoint {str(self.path)!r} is not one of mercer: {error}; name another file"
            ) from error
        if owner != self._owner or form != FORMAT:
            raise DataError(
                f"checkpoint {str(self.path)!r} belongs to another fit (other rows, arguments or version); "
                "name another file, or delete it to begin again"
            )
        return values, arrays

    def save(self, values: Mapping[str, Any], arrays: Mapping[str, torch.Tensor], *, now: bool = False) -> None:
        """Replace the file, at most every few seconds unless `now`."""
        if self.path is None or not (now or time.perf_counter() - self._last >= EVERY):
            return
        header = json.dumps({**values, "owner": self._owner, "format": FORMAT}).encode()
        beside = self.path.with_name(f"{self.path.name}.{os.getpid()}.part")
        try:
            with beside.open("wb") as file:
                plain: dict[str, Any] = {name: value.detach().numpy() for name, value in arrays.items()}
                np.savez(file, **plain, values=np.frombuffer(header, dtype=np.uint8))
                file.flush()
                os.fsync(file.fileno())
            os.replace(beside, self.path)
        finally:
            beside.unlink(missing_ok=True)
        self._last = time.perf_counter()
