"""Measuring how fast this machine is at the pieces of kernel products, once, for the planner."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch

from mercer.kernel import Kernel
from mercer.kernels import ArcCosine, Gaussian, Laplace, Linear, Matern, Polynomial, RationalQuadratic, Riesz, Wendland
from mercer.machine import core
from mercer.machine.rates import CALL, DEFAULTS, best, keep
from mercer.numerics import squared_distance
from mercer.operators import Fused, Tiled

PROFILES: dict[str, Kernel] = {
    "exponential": Gaussian(2.0), "matern12": Matern(0.5, 2.0), "matern32": Matern(1.5, 2.0),
    "matern52": Matern(2.5, 2.0), "power": RationalQuadratic(2.0, 0.7), "polynomial": Polynomial(3),
    "wendland": Wendland(9.0, 1, 64), "root": Riesz(), "identity": Linear(), "arccosine": ArcCosine(1),
}  # fmt: skip
ON_DOT = ("polynomial", "identity", "arccosine")
FEW, MANY = 6, 2**17  # rows and columns of a product whose time is that of packing the columns
WIDE = 6000  # points on each side of the product that shows what threads bring
FRESH = 2**24  # numbers of fresh memory
SIZE = 1536  # points on each side: large enough to fill the caches, small enough for a second in all


@contextmanager
def _alone() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.no_grad():
            yield
    finally:
        torch.set_num_threads(before)


def _task(kind: type, kernel: Kernel, d: int, rhs: int, dtype: torch.dtype, n: int, m: int) -> Callable[[], object]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, d, generator=generator, dtype=dtype) / d**0.5
    y = torch.randn(m, d, generator=generator, dtype=dtype) / d**0.5
    v = torch.randn(m, rhs, generator=generator, dtype=dtype)
    tiled = Tiled(kernel, x, y)
    op = Fused(tiled) if kind is Fused else tiled
    return lambda: op @ v


def _nanoseconds(kind: type, kernel: Kernel, d: int, rhs: int, dtype: torch.dtype) -> float:
    """Of one pair of points, in a product on one thread."""
    return 1e9 * best(_task(kind, kernel, d, rhs, dtype, SIZE, SIZE)) / SIZE**2


def _packing(found: dict[str, float], dtype: torch.dtype) -> float:
    """Nanoseconds for each coordinate of a column that the core packs."""
    seconds = best(_task(Fused, PROFILES["exponential"], 8, 1, dtype, FEW, MANY)) - CALL
    pairs = FEW * (found["core.exponential"] + 8 * found["core.expanded"])
    return max((1e9 * seconds / MANY - pairs) / 8, 0.05)


def _share(threads: int, dtype: torch.dtype) -> float:
    """What each further thread brings, of the ideal; the usual where there is one thread."""
    if threads < 2:
        return DEFAULTS["threads.share"][0]
    seconds = {}
    for count in (1, threads):
        torch.set_num_threads(count)
        task = _task(Fused if core() is not None else Tiled, PROFILES["exponential"], 3, 1, dtype, WIDE, WIDE)
        seconds[count] = best(task, clock=time.perf_counter)
    torch.set_num_threads(1)
    return min(max((seconds[1] / seconds[threads] - 1) / (threads - 1), 0.05), 1.0)


def _products(kind: type, room: str, dtype: torch.dtype) -> dict[str, float]:
    def at(name: str, d: int, rhs: int = 1) -> float:
        return _nanoseconds(kind, PROFILES[name], d, rhs, dtype)

    least = 1e-3
    found = {
        f"{room}.rhs": max((at("exponential", 8, 9) - at("exponential", 8)) / 8, least),
        f"{room}.expanded": max((at("exponential", 72) - at("exponential", 8)) / 64, least),
        f"{room}.dot": max((at("identity", 72) - at("identity", 8)) / 64, least),
        f"{room}.direct": max((at("matern32", 4) - at("matern32", 1)) / 3, least),
    }
    laplace = _nanoseconds(kind, Laplace(), 9, 1, dtype) - _nanoseconds(kind, Laplace(), 1, 1, dtype)
    found[f"{room}.absolute"] = max(laplace / 8, least)
    both = _nanoseconds(kind, Gaussian(2.0) + Gaussian(1.0), 3, 1, dtype)
    for name in PROFILES:
        statistic = "dot" if name in ON_DOT else "direct"
        if room == "tiles" and name == "exponential" and dtype == torch.float32:
            statistic = "expanded"
        own = at(name, 3) - 3 * found[f"{room}.{statistic}"] - (found[f"{room}.rhs"] if room == "tiles" else 0.0)
        found[f"{room}.{name}"] = max(own, least)
    statistic = "expanded" if room == "tiles" and dtype == torch.float32 else "direct"
    one = found[f"{room}.exponential"] + 3 * found[f"{room}.{statistic}"]
    found[f"{room}.step"] = max(both - 2 * one, 10 * least)
    return found


def _dense(dtype: torch.dtype) -> dict[str, float]:
    matrix = torch.ones(4096, 2048, dtype=dtype)
    one, many = torch.ones(2048, 1, dtype=dtype), torch.ones(2048, 9, dtype=dtype)
    read = 1e9 * best(lambda: matrix @ one) / matrix.numel()
    more = 1e9 * best(lambda: (many.mT @ matrix.mT).mT) / matrix.numel()
    make = 1e9 * best(lambda: torch.empty(FRESH, dtype=dtype).zero_()) / FRESH
    return {"dense.read": read, "dense.rhs": max((more - read) / 8, 1e-3), "dense.make": make}


def calibrate() -> Path:
    """Measure (some seconds; best on a quiet machine), keep, and use from now on. Returns the file."""
    pairs: list[dict[str, float]] = []
    threads = torch.get_num_threads()
    with _alone():
        for dtype in (torch.float32, torch.float64):
            found = {**_products(Tiled, "tiles", dtype), **_dense(dtype)}
            x = torch.linspace(-1, 1, SIZE * 4, dtype=dtype).reshape(SIZE, 4)
            each = 1e9 * best(partial(squared_distance, x, x, True)) / SIZE**2
            found["tiles.direct"] = max(each / 4, found["tiles.direct"])
            if core() is not None:
                found.update(_products(Fused, "core", dtype))
                found["core.point"] = _packing(found, dtype)
            found["threads.share"] = _share(threads, dtype)
            pairs.append(found)
    return keep({name: (single, pairs[1][name]) for name, single in pairs[0].items()})
