"""Measuring how fast this machine is at the pieces of kernel products, once, for the planner."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mercer.kernel import Kernel
from mercer.kernels import ArcCosine, Gaussian, Laplace, Linear, Matern, Polynomial, RationalQuadratic, Riesz, Wendland
from mercer.machine import core
from mercer.machine.rates import DEFAULTS, best, keep
from mercer.operators import Dense, Fused, Tiled, Toeplitz, stencil_direct, stencil_fft
from mercer.operators.stencil import stencil
from mercer.operators.transform import fft_flops, fft_length

PROFILES: dict[str, Kernel] = {
    "exponential": Gaussian(2.0), "matern12": Matern(0.5, 2.0), "matern32": Matern(1.5, 2.0),
    "matern52": Matern(2.5, 2.0), "power": RationalQuadratic(2.0, 0.7), "polynomial": Polynomial(3),
    "wendland": Wendland(9.0, 1, 64), "root": Riesz(), "identity": Linear(), "arccosine": ArcCosine(1),
}  # fmt: skip
ON_DOT = ("polynomial", "identity", "arccosine")
FEW, MANY = 6, 2**17  # rows and columns of a product whose time is that of packing the columns
WIDE = 12_288  # points on each side of the product that shows what threads bring
LARGE = 2**25  # numbers of a matrix, or of fresh memory: more than caches hold
SIZES: dict[type[Fused | Tiled], int] = {
    Tiled: 2048,
    Fused: 4096,
}  # points on each side, so that a call's overhead is little of what is measured
LENGTH = 2**18  # points of a line
CHANNELS, SIDE = 64, 56  # of an image


@contextmanager
def _alone() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.no_grad():
            yield
    finally:
        torch.set_num_threads(before)


def _task(
    kind: type[Fused | Tiled], kernel: Kernel, d: int, rhs: int, dtype: torch.dtype, n: int, m: int
) -> Callable[[], object]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, d, generator=generator, dtype=dtype) / d**0.5
    y = torch.randn(m, d, generator=generator, dtype=dtype) / d**0.5
    v = torch.randn(m, rhs, generator=generator, dtype=dtype)
    tiled = Tiled(kernel, x, y)
    op = Fused(tiled) if kind is Fused else tiled
    return lambda: op @ v


def _nanoseconds(kind: type[Fused | Tiled], kernel: Kernel, d: int, rhs: int, dtype: torch.dtype) -> float:
    """Of one pair of points, in a product on one thread."""
    size = SIZES[kind]
    few = best(_task(kind, kernel, d, rhs, dtype, 8, 8), 20)
    return 1e9 * (best(_task(kind, kernel, d, rhs, dtype, size, size), 7) - few) / size**2


def _packing(found: dict[str, float], dtype: torch.dtype) -> float:
    """Nanoseconds for each coordinate of a column that the core packs."""
    seconds = best(_task(Fused, PROFILES["exponential"], 8, 1, dtype, FEW, MANY)) - found["call"] / 1e9
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


def _products(kind: type[Fused | Tiled], room: str, dtype: torch.dtype) -> dict[str, float]:
    def at(name: str, d: int, rhs: int = 1) -> float:
        return _nanoseconds(kind, PROFILES[name], d, rhs, dtype)

    least = 1e-3
    one, some, more = (at("exponential", 8, rhs) for rhs in (1, 8, 24))
    each = max((more - some) / 16, least)
    found = {
        f"{room}.rhs": each,
        f"{room}.expanded": max((at("exponential", 72) - one) / 64, least),
        f"{room}.dot": max((at("identity", 72) - at("identity", 8)) / 64, least),
        f"{room}.direct": max((at("matern12", 4) - at("matern12", 2)) / 2, least),
    }
    if room == "tiles":
        found["tiles.many"] = max(some - one - 7 * each, least)
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
    part = found[f"{room}.exponential"] + 3 * found[f"{room}.{statistic}"]
    found[f"{room}.step"] = max(both - 2 * part, 10 * least)
    return found


def _dense(dtype: torch.dtype) -> dict[str, float]:
    """With the threads at hand, which share the way to memory; what further columns cost on one."""
    matrix = Dense(torch.ones(LARGE // 2048, 2048, dtype=dtype))
    one, many = torch.ones(2048, 1, dtype=dtype), torch.ones(2048, 17, dtype=dtype)
    read = 1e9 * best(lambda: matrix @ one, clock=time.perf_counter) / LARGE
    with _alone():
        more = best(lambda: matrix @ many) - best(lambda: matrix @ one)
    make = 1e9 * best(lambda: torch.empty(LARGE, dtype=dtype).zero_()) / LARGE
    return {"dense.read": read, "dense.rhs": max(1e9 * more / LARGE / 16, 1e-3), "dense.make": make}


def _transforms(dtype: torch.dtype) -> dict[str, float]:
    """Of flops of real transforms, and of numbers that pass beside them in a Toeplitz product."""
    line = torch.linspace(0, 1, LENGTH, dtype=dtype)
    op, v = Toeplitz(line), line[:, None]
    length = fft_length(2 * LENGTH)
    signal = torch.ones(length, dtype=dtype)
    there = 1e9 * best(lambda: torch.fft.irfft(torch.fft.rfft(signal), length), clock=time.perf_counter)
    product = 1e9 * best(lambda: op @ v, clock=time.perf_counter)
    return {
        "fft.flop": there / (2 * fft_flops(length)),
        "fft.pass": max((product - there) / (3 * length), 0.05),
    }


def _convolutions(dtype: torch.dtype) -> dict[str, float]:
    """Of a number that passes and of a sum over taps, in convolutions of one channel a group and of all channels."""

    def took(method: Any, op: str, x: Tensor, w: Tensor, groups: int) -> tuple[float, float, float]:
        s, _ = stencil(x, w, 1, "same", 1, groups, "zero")
        shape = tuple(w.shape)
        tasks = {"forward": lambda: method.forward(x, w, s), "weight": lambda: method.weight_grad(x, x, s, shape)}
        return 1e9 * best(tasks[op], 7), 2.0 * x.numel(), x.numel() * w[0].numel()

    x, found = torch.ones(1, CHANNELS, SIDE, SIDE, dtype=dtype), {}
    for prefix, method in (("conv", stencil_direct), ("conv.last", stencil_direct.Layout)):
        for op, name in (("forward", "tap"), ("weight", "weight")):
            few, many = (took(method, op, x, torch.ones(CHANNELS, 1, k, k, dtype=dtype), CHANNELS) for k in (5, 15))
            each = max((many[0] - few[0]) / (many[2] - few[2]), 1e-3)
            found[f"{prefix}.{name}"] = each
            if op == "forward":
                found[f"{prefix}.point"] = max((few[0] - each * few[2]) / few[1], 1e-2)
    taps = torch.ones(CHANNELS, CHANNELS, 3, 3, dtype=dtype)
    whole, points, sums = took(stencil_direct, "forward", x, taps, 1)
    found["conv.dense"] = max((whole - found["conv.point"] * points) / sums, 1e-3)
    seen, mixer = torch.fft.rfft(x.reshape(1, CHANNELS, -1)), torch.fft.rfft(x.reshape(1, CHANNELS, -1))
    mixer = mixer.expand(CHANNELS, CHANNELS, -1).contiguous()
    mixed = best(lambda: torch.einsum("bif,oif->bof", seen, mixer))
    found["conv.mix"] = 1e9 * mixed / mixer.numel()
    s, _ = stencil(x, torch.ones(CHANNELS, 1, 15, 15), 1, "same", 1, CHANNELS, "zero")
    n, wide = stencil_fft.lengths(s), torch.ones(CHANNELS, 1, 15, 15, dtype=dtype)
    whole = best(lambda: stencil_fft.forward(x, wide, s), 7)
    found["conv.flop"] = 1e9 * whole / (3 * CHANNELS * fft_flops(n[0] * n[1]))
    out, one = torch.zeros_like(x), torch.ones(1, CHANNELS, 1, 1, dtype=dtype)
    found["conv.shift"] = 1e9 * best(lambda: out.addcmul_(x, one)) / x.numel()
    return found


def calibrate() -> Path:
    """Measure (about twenty seconds; best on a quiet machine), keep, and use from now on. Returns the file."""
    pairs: list[dict[str, float]] = []
    threads = torch.get_num_threads()
    for dtype in (torch.float32, torch.float64):
        with torch.no_grad():
            found = {**_dense(dtype), **_transforms(dtype)}
        with _alone():
            small = _task(Tiled if core() is None else Fused, PROFILES["exponential"], 3, 1, dtype, 8, 8)
            found["call"] = 1e9 * best(small, 50)
            found.update(_products(Tiled, "tiles", dtype))
            if core() is not None:
                found.update(_products(Fused, "core", dtype))
                found["core.point"] = _packing(found, dtype)
            found.update(_convolutions(dtype))
            found["threads.share"] = _share(threads, dtype)
        pairs.append(found)
    return keep({name: (single, pairs[1][name]) for name, single in pairs[0].items()})
