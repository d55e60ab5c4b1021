"""Orders of points from coarse to fine, and the nearest points that come earlier in an order."""

from __future__ import annotations

import numpy as np
from scipy.spatial import cKDTree


def maximin(points: np.ndarray) -> np.ndarray:
    """Each point farthest from all before it [guinness2018]: n d -> n positions, the point nearest the mean first.

    Cost: n^2 comparisons, n log n distances for points that fill their space.
    """
    n = len(points)
    if not n:
        return np.zeros(0, dtype=np.int64)
    tree, order = cKDTree(points), np.empty(n, dtype=np.int64)
    far = np.full(n, np.inf)
    new = int(((points - points.mean(0)) ** 2).sum(1).argmin())
    for place in range(n):
        order[place] = new
        radius, far[new] = far[new], -1.0  # -1: already placed
        if np.isinf(radius):
            gap = np.sqrt(((points - points[new]) ** 2).sum(1))
            far = np.where(far < 0, far, np.minimum(far, gap))
        else:  # no point is farther from those before than the one just placed: others out of its reach stay
            at = np.asarray(tree.query_ball_point(points[new], radius), dtype=np.int64)
            gap = np.sqrt(((points[at] - points[new]) ** 2).sum(1))
            far[at] = np.where(far[at] < 0, -1.0, np.minimum(far[at], gap))
        new = int(far.argmax())
    return order


def earlier_neighbours(points: np.ndarray, count: int) -> np.ndarray:
    """The `count` nearest of the points that come before each: n d -> n count, -1 where there are too few."""
    n = len(points)
    found = np.full((n, count), -1, dtype=np.int64)
    if not count:
        return found
    first = min(n, max(2 * count, 64))
    for i in range(1, first):
        gap = ((points[:i] - points[i]) ** 2).sum(1)
        near = gap.argsort(kind="stable")[:count]
        found[i, : len(near)] = near
    start = first
    while start < n:  # twice as many points each time, so that about half of those near come before
        end = min(2 * start, n)
        tree, waiting, asked = cKDTree(points[:end]), np.arange(start, end), min(3 * count, end)
        while len(waiting):
            _, near = tree.query(points[waiting], asked)
            near = near.reshape(len(waiting), asked)
            before = near < waiting[:, None]
            rank = before.cumsum(1)
            done = (rank[:, -1] >= count) | (asked == end)
            at, column = np.nonzero(before & (rank <= count) & done[:, None])
            found[waiting[at], rank[at, column] - 1] = near[at, column]
            waiting, asked = waiting[~done], min(2 * asked, end)
        start = end
    return found
