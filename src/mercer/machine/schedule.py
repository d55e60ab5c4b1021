"""How the pairs of points of a product are shared out: by the sizes alone, so that sums have the same bits anywhere."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

LEAST_ROWS, TASKS = 1248, 64  # rows of a task, which packs all columns once; and how many tasks there are at most
SYMMETRIC, SYMMETRIC_ROWS, MOST_PAIRS = 3000, 5000, 32  # rows from which half the entries do; of half a pair; pairs


def row_count(n: int, batch: int) -> int:
    """Rows of one task. They depend on the sizes alone, so that sums over tasks have the same bits on any machine."""
    rows = max(-(-n * batch // TASKS), LEAST_ROWS)
    return min(-(-rows // 6) * 6, max(n, 1))


def stretches(n: int) -> list[tuple[int, int]]:
    """An even number of stretches of rows, by the size alone; none of no rows."""
    if not n:
        return []
    count = min(max(n // SYMMETRIC_ROWS, 1), MOST_PAIRS) * 2
    size = -(-n // count)
    return [(i, min(i + size, n)) for i in range(0, n, size)]


def rounds(count: int) -> Iterator[list[tuple[int, int]]]:
    """All pairs of `count` blocks in rounds of disjoint pairs: one stays, the others go round a circle."""
    teams = [*range(count), *([-1] if count % 2 else [])]
    for _ in range(len(teams) - 1):
        pairs = zip(teams[: len(teams) // 2], reversed(teams[len(teams) // 2 :]), strict=True)
        yield [(min(i, j), max(i, j)) for i, j in pairs if min(i, j) >= 0]
        teams = [teams[0], teams[-1], *teams[1:-1]]


def indices(batch: torch.Size) -> Iterator[tuple[int, ...]]:
    if not batch:
        yield ()
        return
    for flat in range(math.prod(batch)):
        index = []
        for size in reversed(batch):
            flat, place = divmod(flat, size)
            index.append(place)
        yield tuple(reversed(index))
