"""Weights of rows by a kernel, in log space: the rows of the largest kernel value, and means weighted by it."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from mercer.budget import memory_budget
from mercer.kernel import Kernel
from mercer.kernels import Gaussian, InverseMultiquadric, Laplace, Matern, RationalQuadratic

FALLING = (Gaussian, InverseMultiquadric, Matern, RationalQuadratic)  # with the Euclidean distance of coordinates
ROWS, COLUMNS = 1024, 4096  # the largest tile
COPIES = 8  # of a tile, while its logarithms are formed and merged


class Nearest:
    """For rows x the `count` points of the largest k(x, point), and log k there; ties in any order.

    A kernel that falls with a distance of its coordinates asks a tree (beyond 15 columns scikit-learn looks at all);
    any other one is looked through in tiles. points: n d float64.
    """

    def __init__(self, kernel: Kernel, points: Tensor):
        self.kernel, self.points = kernel, points
        self.search: NearestNeighbors | None = None
        if isinstance(kernel, (*FALLING, Laplace)):
            metric = "manhattan" if isinstance(kernel, Laplace) else "euclidean"
            self.search = NearestNeighbors(metric=metric).fit(self._place(points))

    def _place(self, x: Tensor) -> object:
        return self.kernel.coordinates(x).detach().numpy()  # type: ignore[operator]

    def __call__(self, x: Tensor, count: int, own: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x: m d -> (rows of points `m count`, log k `m count`). own: m, the row that x is and does not count."""
        more = count if own is None else count + 1
        if self.search is None:
            rows, logs = self._looked(x, more)
        else:
            found = self.search.kneighbors(self._place(x), more, return_distance=False)
            rows = torch.from_numpy(found)
            logs = torch.cat([
                self.kernel.log_block(x[at][:, None], self.points[rows[at]])[:, 0]
                for at in torch.arange(len(x)).split(height(self.kernel, x.shape[1], count))
            ]) if len(x) else torch.zeros(0, more, dtype=x.dtype)  # fmt: skip
        if own is None:
            return rows, logs
        self_ = rows == own[:, None]
        self_[~self_.any(1), -1] = True  # as many twins came before it
        return rows[~self_].reshape(-1, count), logs[~self_].reshape(-1, count)

    def _looked(self, x: Tensor, count: int) -> tuple[Tensor, Tensor]:
        rows, logs = [torch.zeros(0, count, dtype=torch.long)], [torch.zeros(0, count, dtype=x.dtype)]
        for part in x.split(height(self.kernel, x.shape[1], min(len(self.points), COLUMNS))):
            best = part.new_zeros(len(part), 0)
            at = torch.zeros(len(part), 0, dtype=torch.long)
            for start, tile in tiles(self.kernel, part, self.points):
                both = torch.cat([best, tile], 1)
                where = torch.cat([at, torch.arange(start, start + tile.shape[1]).expand(len(part), -1)], 1)
                best, chosen = both.topk(min(count, both.shape[1]), 1)
                at = where.gather(1, chosen)
            rows.append(at)
            logs.append(best)
        return torch.cat(rows), torch.cat(logs)


def height(kernel: Kernel, d: int, width: int) -> int:
    """Rows of a tile that is so many points wide, within the memory budget."""
    numbers = memory_budget() // (8 * COPIES) - width * kernel.workspace(d)
    return int(min(max(numbers // (width + kernel.workspace(d)), 1), ROWS))


def tiles(kernel: Kernel, x: Tensor, points: Tensor) -> Iterator[tuple[int, Tensor]]:
    """(first column, log k of x and that many points), from left to right."""
    for start in range(0, len(points), COLUMNS):
        yield start, kernel.log_block(x, points[start : start + COLUMNS])


def weighted(logs: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """(means of values `m k c` with weights exp(logs) `m k`, whether a row has any weight at all `m`)."""
    known = logs.amax(1) > -math.inf
    shares = torch.softmax(torch.where(known[:, None], logs, 0.0), 1)
    return (shares[:, None] @ values).squeeze(1), known


def everywhere(kernel: Kernel, x: Tensor, points: Tensor, values: Tensor, own: Tensor | None) -> tuple[Tensor, Tensor]:
    """`weighted` with every point but `own`, in tiles whose sums are kept relative to the largest weight so far."""
    columns = torch.cat([values, torch.ones_like(values[:, :1])], 1)
    means, known = [torch.zeros(0, values.shape[1], dtype=x.dtype)], [torch.zeros(0, dtype=torch.bool)]
    for at in torch.arange(len(x)).split(height(kernel, x.shape[1], min(len(points), COLUMNS))):
        top = x.new_full((len(at), 1), -math.inf)
        sums = x.new_zeros(len(at), columns.shape[1])
        for start, tile in tiles(kernel, x[at], points):
            if own is not None:
                mine = own[at] - start
                here = (mine >= 0) & (mine < tile.shape[1])
                tile[here.nonzero()[:, 0], mine[here]] = -math.inf
            higher = torch.maximum(top, tile.amax(1, keepdim=True))
            base = torch.where(higher == -math.inf, 0.0, higher)
            sums = sums * (top - base).exp() + (tile - base).exp() @ columns[start : start + COLUMNS]
            top = higher
        known.append(top[:, 0] > -math.inf)
        means.append(sums[:, :-1] / torch.where(known[-1], sums[:, -1], 1.0)[:, None])
    return torch.cat(means), torch.cat(known)
