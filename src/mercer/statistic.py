"""Statistic: the pairwise number through which most kernels see two points."""

from __future__ import annotations

from enum import Enum

from torch import Tensor

from mercer.numerics import absolute_distance, squared_distance


class Statistic(Enum):
    """What a kernel sees of a pair of points."""

    SQUARED_DISTANCE = "sum of squared differences"
    DISTANCE = "squared distance, for profiles with a kink at zero"
    L1_DISTANCE = "sum of absolute differences"
    DOT = "dot product"
    PER_AXIS = "one difference per axis; the profile's product over axes is the kernel"


def pairwise(statistic: Statistic, x: Tensor, y: Tensor, centred: bool = False) -> Tensor:
    """The statistic of every pair, `... n d, ... m d -> ... n m` (PER_AXIS is formed by the kernel, axis by axis).

    centred: the middle of y is at the origin already.
    """
    if statistic is Statistic.DOT:
        return x @ y.mT
    if statistic is Statistic.L1_DISTANCE:
        return absolute_distance(x, y)
    return squared_distance(x, y, kink=statistic is Statistic.DISTANCE, centred=centred)
