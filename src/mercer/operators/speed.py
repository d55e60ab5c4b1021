"""Predicted seconds of a product, from the kernel's program and this machine's rates."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mercer.kernel import Kernel, Step
from mercer.machine.rates import rates
from mercer.numerics.distance import DIRECT_COLUMNS
from mercer.statistic import Statistic

NANO = 1e-9
STATISTICS = {Statistic.L1_DISTANCE: "absolute", Statistic.DOT: "dot", Statistic.PER_AXIS: "absolute"}
BLOCK_ROWS = 4096  # rows for which the core packs the columns once


def call_seconds() -> float:
    """What any product takes at least."""
    return NANO * rates()("call", torch.float32)


def fft_seconds(flops: float, passing: float, dtype: torch.dtype) -> float:
    """Of transforms, and of so many numbers that are padded, multiplied or copied beside them."""
    return NANO * (flops * rates()("fft.flop", dtype) + passing * rates()("fft.pass", dtype))


def widths(program: Sequence[Step], x: Tensor) -> list[int]:
    """Columns of each step's statistic; 0 for steps without one."""
    found = []
    with torch.no_grad():
        one = x[..., :1, :]
        for step in program:
            points = one if step.points is None else step.points(one, one)[0]
            found.append(points.shape[-1] if step.statistic is not None else 0)
    return found


def core_seconds(program: Sequence[Step], x: Tensor, pairs: float, columns: float, rhs: int) -> float:
    """Of a product in the compiled core: pairs of points n m (times the batch), columns m."""
    rate, dtype = rates(), x.dtype
    each = (rhs - 1) * rate("core.rhs", dtype)
    packed = 0.0
    for step, d in zip(program, widths(program, x), strict=True):
        if step.statistic is None:
            each += rate("core.step", dtype)
            continue
        kind = STATISTICS.get(step.statistic) or ("direct" if d <= DIRECT_COLUMNS else "expanded")
        each += rate(f"core.{step.op}", dtype) + d * rate(f"core.{kind}", dtype)
        packed += d * rate("core.point", dtype)
    blocks = max(pairs / max(columns, 1) / BLOCK_ROWS, 1.0)
    return call_seconds() + NANO * (pairs * each + columns * blocks * packed) / rate.threads(dtype)


def tile_seconds(kernel: Kernel, x: Tensor, pairs: float, rhs: int) -> float:
    """Of a product in torch tiles; rhs 0: of forming the matrix."""
    rate, dtype = rates(), torch.float64 if x.dtype == torch.float64 else torch.float32
    each = rhs * rate("tiles.rhs", dtype) + (rate("tiles.many", dtype) if rhs > 1 else 0.0)
    program = kernel.program()
    if program is None:
        each += rate("tiles.other", dtype) + x.shape[-1] * rate("tiles.expanded", dtype)
    for step, d in zip(program or [], widths(program or [], x), strict=True):
        if step.statistic is None:
            each += rate("tiles.step", dtype)
            continue
        exact = step.statistic is Statistic.DISTANCE or dtype == torch.float64 or d == 1
        kind = STATISTICS.get(step.statistic) or ("direct" if d <= DIRECT_COLUMNS and exact else "expanded")
        name = f"tiles.{step.op}"
        each += rate(name if rate.known(name) else "tiles.other", dtype) + d * rate(f"tiles.{kind}", dtype)
    return call_seconds() + NANO * pairs * each / rate.threads(dtype)


def fresh_seconds(numbers: float, dtype: torch.dtype) -> float:
    """Of touching so many numbers of fresh memory for the first time."""
    return NANO * numbers * rates()("dense.make", dtype)


def dense_seconds(numbers: float, rhs: int, dtype: torch.dtype) -> float:
    """Of a product with a stored matrix of so many numbers."""
    rate = rates()
    more = (rhs - 1) * rate("dense.rhs", dtype) / rate.threads(dtype)
    return call_seconds() / 5 + NANO * numbers * (rate("dense.read", dtype) + more)
