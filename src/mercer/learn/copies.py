"""Rows that share their place with others: they teach by their mean, and are left out together."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mercer.linalg import Cholesky

FAR = 0.01  # chance explains less than one meeting in a hundred
SEEN = 5000  # rows from which the chance of agreeing is estimated
HALVINGS = 12
DOUBT = 10  # degrees of freedom that a spread of zero is worth


def hashed(table: np.ndarray) -> np.ndarray:
    """A number for each row, `n`, that equal rows share and others, as good as ever, do not."""
    bits = (np.ascontiguousarray(table, dtype=np.float64) + 0.0).view(np.uint64)  # -0.0 + 0.0 is 0.0
    total = np.zeros(len(table), dtype=np.uint64)
    for column in bits.T:
        total = (total ^ column) * np.uint64(0x9E3779B97F4A7C15)
        total ^= total >> np.uint64(29)
    return total


def _codes(table: np.ndarray) -> np.ndarray:
    """A number for each row, `n`, that equal rows share and others do not."""
    total = hashed(table)
    _, first, found = np.unique(total, return_index=True, return_inverse=True)
    if not np.array_equal(table[first[found]], table):  # two rows of one hash: as good as never
        found = np.unique(table, axis=0, return_inverse=True)[1]
    return found.reshape(-1)


def _agreeing(codes: np.ndarray) -> float:
    """How many pairs of rows share a code."""
    sizes = np.bincount(codes).astype(np.float64)
    return float((sizes * (sizes - 1)).sum()) / 2


def _chance(values: np.ndarray) -> float:
    """The share of pairs of rows that agree in one column."""
    k = len(values)
    return _agreeing(np.unique(values, return_inverse=True)[1].reshape(-1)) / max(k * (k - 1) / 2, 1)


@dataclass(frozen=True)
class Repeats:
    """Places x that were observed several times. place: of each of the n rows; sizes: rows of each of the g places.

    picked: one row of each place, drawn at random: what stands for a new row at a new place.
    """

    place: np.ndarray
    sizes: Tensor
    picked: np.ndarray

    @classmethod
    def of(cls, x: Tensor) -> Repeats | None:
        """None where no two rows of x: n d meet, or where they meet as discrete columns do.

        Discrete: there are no more places than the root of the rows, or the columns, taken apart, explain a
        hundredth of the meetings. A new row then is at a place that was seen, and every row counts for itself.
        """
        n, table = len(x), x.numpy()
        codes = _codes(table)
        _, first = np.unique(codes, return_index=True)
        if len(first) == n or len(first) ** 2 <= n:
            return None
        some = first[:: max(1, len(first) // SEEN)]
        expected = float(np.prod([_chance(column[some]) for column in table.T])) * n * (n - 1) / 2
        if expected >= FAR * _agreeing(codes):
            return None
        order = np.argsort(first)  # places in the order of their first rows
        number = np.empty_like(order)
        number[order] = np.arange(len(first))
        place = number[codes]
        shuffled = np.random.default_rng(0).permutation(n)
        picked = shuffled[np.unique(place[shuffled], return_index=True)[1]]
        return cls(place, torch.from_numpy(np.bincount(place).astype(np.float64)), picked)

    def means(self, y: Tensor) -> Tensor:
        """The mean of y: n c at each place, `g c`."""
        total = y.new_zeros(len(self.sizes), y.shape[1]).index_add_(0, torch.from_numpy(self.place), y)
        return total / self.sizes[:, None]

    def squares(self, y: Tensor) -> Tensor:
        """Squared distances of y: n c from the means of their places, summed, `c`."""
        return (y - self.means(y)[torch.from_numpy(self.place)]).square().sum(0)

    def within(self, y: Tensor) -> float:
        """The variance of y: n c at one place, pooled; too small rather than too large where few rows tell it."""
        return float(self.squares(y).mean()) / (len(self.place) - len(self.sizes) + DOUBT)

    def own(self, gram: Tensor, y: Tensor, noise: float, within: float, rows: Tensor) -> float:
        """The share of the noise that twins have each for themselves, given its variance `within` in units of y.

        gram: the kernel's matrix of some places `rows`; y: their means. Noise is relative to the kernel, whose scale
        is that of the likelihood: y^T A^-1 y / n, A = gram + noise shares. Halving of [0, 1].
        """
        low, high, sizes = 0.0, 1.0, self.sizes[rows]
        for _ in range(HALVINGS):
            own = (low + high) / 2
            a = gram.clone()
            a.diagonal().add_(noise * ((1 - own) + own / sizes))
            scale = float((y * Cholesky().factor(a).solve(y)).mean())
            low, high = (own, high) if own * noise * scale < within else (low, own)
        return 1.0 if low > 1 - 2 / 2**HALVINGS else (low + high) / 2

    def shares(self, within: float, noise: float) -> Tensor:
        """The noise of the means as a share of the noise of a row, of which `within` differs between twins."""
        own = min(within / noise, 1.0)
        return (1 - own) + own / self.sizes
