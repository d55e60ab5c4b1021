"""Rows that a table holds more than once without having been observed more than once."""

from __future__ import annotations

import logging

import numpy as np
from torch import Tensor

log = logging.getLogger("mercer")

FAR = 0.01  # chance explains less than one in a hundred
ALWAYS = 0.95  # of the rows that meet: few may do so by chance
SEEN = 5000  # rows from which the chance of agreeing is estimated


def _codes(table: np.ndarray) -> np.ndarray:
    """A number for each row, `n`, that equal rows share and others do not."""
    bits = (np.ascontiguousarray(table, dtype=np.float64) + 0.0).view(np.uint64)  # -0.0 + 0.0 is 0.0
    total = np.zeros(len(table), dtype=np.uint64)
    for column in bits.T:
        total = (total ^ column) * np.uint64(0x9E3779B97F4A7C15)
        total ^= total >> np.uint64(29)
    _, first, found = np.unique(total, return_index=True, return_inverse=True)
    if not np.array_equal(table[first[found]], table):  # two rows of one hash: as good as never
        found = np.unique(table, axis=0, return_inverse=True)[1]
    return found.reshape(-1)


def _agreeing(codes: np.ndarray) -> float:
    """How many pairs of rows share a code."""
    sizes = np.bincount(codes).astype(np.float64)
    return float((sizes * (sizes - 1)).sum()) / 2


def _chance(values: np.ndarray) -> float:
    """The share of pairs of rows that agree in one column, or code."""
    k = len(values)
    return _agreeing(np.unique(values, return_inverse=True)[1].reshape(-1)) / max(k * (k - 1) / 2, 1)


def once(x: Tensor, y: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """(rows to learn from, sorted; for each of the n rows the place among them of the one that stands for it).

    Rows equal in x and y stand for one observation where chance cannot explain them: rows meet in all of x a
    hundred times as often as the columns, taken apart, let them; and rows that meet in x nearly always agree in y,
    or a hundred times as often as others do. Otherwise, as with few categories, or where an x was measured again,
    all rows count.
    x: n d; y: n c.
    """
    n, table, goal = len(x), x.numpy(), y.numpy()
    everything = np.arange(n)
    same = _codes(np.concatenate([table, goal], 1))
    _, first = np.unique(same, return_index=True)
    if len(first) == n:
        return everything, everything
    meet, met = _codes(table), _codes(goal)
    pairs, equal = _agreeing(meet), _agreeing(same)
    seen = first[:: max(1, len(first) // SEEN)]
    expected = float(np.prod([_chance(column[seen]) for column in table.T])) * n * (n - 1) / 2
    alike = equal / pairs
    if expected >= FAR * pairs or (alike < ALWAYS and _chance(met[seen]) >= FAR * alike):
        return everything, everything
    order = np.argsort(first)
    place = np.empty_like(order)
    place[order] = np.arange(len(first))
    log.info("%d of %d rows are exact copies of others: each observation counts once", n - len(first), n)
    return first[order], place[same]
