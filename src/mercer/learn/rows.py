"""Rows of a table that may be larger than memory: read a block at a time, in a seeded order, checked as they pass."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from sklearn.utils.validation import check_consistent_length, validate_data
from torch import Tensor

from mercer.errors import DataError, ShapeError
from mercer.learn.table import plain, refuse_words

STRETCH, PARTS = 64, 10_000  # rows read together where the order is shuffled; a table has no fewer stretches than this
SAMPLE = 20_000  # rows that stand for all where a scale or a digest is needed


def _sound(block: np.ndarray) -> bool:
    """Whether the sum is finite, which is cheap to ask; where it overflowed the numbers themselves decide."""
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.isfinite(block.sum()))


class Rows:
    """x: n d and y: n c or None, arrays in memory or memory-mapped; nothing is copied but the block at hand.

    Blocks come as float32 or float64 tensors, as asked. Raises DataError naming the row and column of the first NaN
    or infinity of a block when it is read.
    """

    def __init__(self, x: np.ndarray, y: np.ndarray | None = None, names: np.ndarray | None = None):
        self.x, self.y, self._names = x, y, names

    @classmethod
    def read(cls, estimator: Any, x: Any, y: Any = None, *, reset: bool, classes: bool = False) -> Rows:
        """Checked the scikit-learn way, without a copy of numeric arrays. classes: y holds labels of any kind."""
        if reset and y is None:
            raise DataError(f"{type(estimator).__name__} requires y to be passed, but the target y is None")
        x, y = plain(x), plain(y)
        refuse_words(x, "X")
        table = validate_data(estimator, x, dtype=[np.float64, np.float32], ensure_all_finite=False, reset=reset)
        if y is not None:
            if not classes:
                refuse_words(y, "y")
            y = np.asarray(y)
            check_consistent_length(table, y)
            if y.ndim not in (1, 2) or (classes and y.ndim > 1 and y.shape[1] > 1):
                raise ShapeError(f"y has shape {y.shape}; expected {'n' if classes else 'n or n c'}")
        return cls(table, y, getattr(estimator, "feature_names_in_", None))

    def __len__(self) -> int:
        return len(self.x)

    @property
    def columns(self) -> int:
        return int(self.x.shape[1])

    def take(self, at: np.ndarray | slice) -> np.ndarray:
        """Rows of x, `... d` float64."""
        found = np.array(self.x[at], dtype=np.float64)
        if not _sound(found):
            self._refuse(found, "X", at)
        return found

    def targets(self, at: np.ndarray | slice) -> np.ndarray:
        """Rows of y, `... c` float64."""
        if self.y is None:
            raise DataError("these rows have no y")
        found = np.array(self.y[at], dtype=np.float64).reshape(-1, 1 if self.y.ndim == 1 else self.y.shape[1])
        if not _sound(found):
            self._refuse(found, "y", at)
        return found

    def _refuse(self, block: np.ndarray, what: str, at: np.ndarray | slice) -> None:
        """The error of a block, with the row counted in the whole table."""
        bad = np.flatnonzero(~np.isfinite(block).all(1))
        if not len(bad):
            return  # only the sum overflowed
        row = int(np.arange(len(self))[at][bad[0]])
        column = int(np.flatnonzero(~np.isfinite(block[bad[0]]))[0])
        kind = "NaN" if np.isnan(block[bad[0], column]) else "infinity"
        label = f" ({self._names[column]!r})" if self._names is not None and what == "X" else ""
        raise DataError(f"{what} holds {kind} at row {row}, column {column}{label}; fill or drop it")

    def refuse_gaps(self) -> None:
        """Look through all rows once, before hours are spent. Raises DataError at the first NaN or infinity."""
        for block in self.blocks(SAMPLE):
            self.take(block)
            if self.y is not None and self.y.dtype.kind in "fiu":
                self.targets(block)

    def sample(self, many: int = SAMPLE) -> np.ndarray:
        """Places of at most so many rows, evenly spread, in order."""
        return np.unique(np.linspace(0, len(self) - 1, min(many, len(self))).astype(np.int64))

    def blocks(self, size: int) -> Iterator[slice]:
        """All rows in order, so many at a time."""
        for start in range(0, len(self), size):
            yield slice(start, min(start + size, len(self)))

    def shuffled(self, size: int, seed: int, keep: np.ndarray | None = None) -> Iterator[np.ndarray]:
        """Places of all rows (or of those of the mask `keep`) in an order that the seed decides, so many at a time.

        Long tables are read in stretches of up to 64 neighbours, as discs like it; a block holds stretches from
        everywhere, so that a sorted table does no harm.
        """
        stretch = max(1, min(STRETCH, len(self) // PARTS))
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(-(-len(self) // stretch), generator=generator).numpy()
        waiting = np.empty(0, dtype=np.int64)
        for few in np.array_split(order, max(len(order) * stretch // size, 1)):
            places = (few[:, None] * stretch + np.arange(stretch)).ravel()
            places = places[places < len(self)]
            waiting = np.concatenate([waiting, places if keep is None else places[keep[places]]])
            while len(waiting) >= size:
                yield waiting[:size]
                waiting = waiting[size:]
        if len(waiting):
            yield waiting


def tensor(block: np.ndarray, dtype: torch.dtype = torch.float32) -> Tensor:
    """A block as a tensor of its own."""
    return torch.from_numpy(block).to(dtype)
