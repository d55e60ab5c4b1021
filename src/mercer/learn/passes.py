"""Passes over rows that may be larger than memory: products of k(rows, landmarks), a block of rows at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mercer.assemble import assemble
from mercer.budget import memory, memory_budget
from mercer.kernel import Kernel
from mercer.learn.rows import Rows
from mercer.learn.table import Scaler
from mercer.operator import Operator

KEEP, BLOCK = 4, 16  # shares of the memory budget: of rows that stay in memory, of a block that does not
LEAST, MOST = 1024, 2**17  # rows of a block
MANY = 60  # products of a solve
STORED = 2**29  # bytes of K that are kept at most


@dataclass(frozen=True)
class Part:
    """Some rows x and K of them and the landmarks; their targets `n c` and weights `n 1` (None for one), float64."""

    x: Tensor
    k: Operator
    y: Tensor
    weight: Tensor | None

    def heavy(self, v: Tensor) -> Tensor:
        """v of the rows times their weights."""
        return v if self.weight is None else self.weight.to(v.dtype) * v


class Passes:
    """K = k(x, z) and y of the rows of the mask `keep`, by products that never form K beyond the memory budget.

    z: m d in the coordinates and the dtype of the products; target: y of the places of rows, `n c` float64; weight:
    of all rows, or None; columns: right-hand sides at once. Scaled rows stay in memory where they and what is made
    of them take at most a quarter of the memory budget, and are read again for each product otherwise. `wide` products
    are those of the same points (rounded to the dtype of z) in float64.
    """

    def __init__(
        self, kernel: Kernel, rows: Rows, keep: np.ndarray, scaler: Scaler, z: Tensor,
        target: Callable[[np.ndarray], Tensor], weight: np.ndarray | None, columns: int,
    ):  # fmt: skip
        self.kernel, self.rows, self.keep, self.scaler, self.z = kernel, rows, keep, scaler, z
        self.target, self.weight, self.columns = target, weight, columns
        self.count = int(keep.sum())
        self.total = float(self.count if weight is None else weight[keep].sum())
        wide = 24 + z.element_size()  # a row as it is read, scaled, pressed and rounded; vectors of its products
        self.row_bytes = wide * rows.columns + 48 * columns
        self.kept: Part | None = None
        stored = z.element_size() * rows.columns + 48 * columns
        if self.count * stored <= memory_budget() // KEEP:
            self.kept = self._all()

    def _size(self) -> int:
        return int(min(MOST, max(LEAST, memory_budget() // (BLOCK * self.row_bytes))))

    def read(self, at: np.ndarray | slice) -> Tensor:
        """Rows as the kernel sees them, in the dtype of the landmarks."""
        return self.scaler(self.rows.take(at)).to(self.z.dtype)

    def _blocks(self) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
        for block in self.rows.blocks(self._size()):
            kept = self.keep[block]
            if not kept.any():
                continue
            at = np.flatnonzero(kept) + block.start
            x = self.read(block)
            x = x if kept.all() else x[torch.from_numpy(kept)]
            weight = None if self.weight is None else torch.from_numpy(self.weight[at])[:, None]
            yield x, self.target(at), weight

    def _all(self) -> Part:
        x, done = self.z.new_empty(self.count, self.rows.columns), 0
        y, weight = [], []
        for block, goal, heavy in self._blocks():
            x[done : done + len(block)] = block
            done += len(block)
            y.append(goal)
            weight += [] if heavy is None else [heavy]
        with memory(min(memory_budget(), STORED)):  # K itself only where it is small, however much room there is
            k = assemble(self.kernel, x, self.z, rhs=self.columns, products=MANY)
        return Part(x, k, torch.cat(y), torch.cat(weight) if weight else None)

    def __iter__(self) -> Iterator[Part]:
        if self.kept is not None:
            yield self.kept
            return
        for x, y, weight in self._blocks():
            yield Part(x, assemble(self.kernel, x, self.z, rhs=self.columns), y, weight)

    def wide(self) -> Iterator[Part]:
        """The same rows and landmarks in float64, a block at a time."""
        if self.z.dtype == torch.float64:
            yield from self
            return
        z = self.z.double()
        for x, y, weight in self._blocks() if self.kept is None else self._pieces(self.kept):
            points = x.double()
            yield Part(points, assemble(self.kernel, points, z, rhs=self.columns), y, weight)

    def _pieces(self, part: Part) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
        size = self._size()
        for start in range(0, len(part.x), size):
            at = slice(start, start + size)
            yield part.x[at], part.y[at], None if part.weight is None else part.weight[at]

    def project(self) -> Tensor:
        """K^T D y, `m c`, in float64."""
        found: Tensor | float = 0.0
        for part in self.wide():
            found = found + part.k.mT.matmul(part.heavy(part.y))
        return torch.as_tensor(found)

    def normal(self, w: Tensor, wide: bool = False) -> Tensor:
        """K^T D K w, `m c` float64; wide: by float64 products."""
        found = torch.zeros_like(w)
        for part in self.wide() if wide else self:
            v = w.to(part.k.dtype)
            heavy = None if part.weight is None else part.weight.to(v.dtype).expand(-1, v.shape[1])
            found += part.k.normal(v, heavy).double()
        return found
