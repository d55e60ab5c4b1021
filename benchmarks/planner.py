"""Predicted against measured seconds of kernel products, on thirty cases that the rates were not measured on.

python benchmarks/planner.py            # calibrates first; best on a quiet machine
python benchmarks/planner.py --as-is    # with the rates that are there
"""

from __future__ import annotations

import statistics
import sys
import time

import torch

from mercer.app.calibrate import calibrate
from mercer.domain import Line
from mercer.kernels import ExpDot, Gaussian, Laplace, Matern, Periodic, Polynomial, RationalQuadratic
from mercer.machine import core
from mercer.machine.rates import rates
from mercer.operator import Operator
from mercer.operators import Dense, Fused, Tiled

F, D = torch.float32, torch.float64


def points(n: int, d: int, dtype: torch.dtype, seed: int) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=dtype) / d**0.5


def cases() -> list[tuple[str, Operator, int, torch.dtype]]:
    """(what, operator, right-hand sides, dtype)."""
    shapes = [
        (Gaussian(1.0), 12_000, 12_000, 2, 1, F), (Gaussian(1.0), 20_000, 5_000, 6, 1, F),
        (Gaussian(1.0), 8_000, 8_000, 20, 1, F), (Gaussian(1.0), 6_000, 6_000, 150, 1, F),
        (Gaussian(1.0), 12_000, 12_000, 3, 5, F), (Gaussian(1.0), 8_000, 8_000, 12, 20, F),
        (Gaussian(1.0), 8_000, 8_000, 3, 1, D), (Matern(1.5), 10_000, 10_000, 3, 1, F),
        (Matern(2.5), 10_000, 10_000, 8, 2, F), (Matern(0.5), 8_000, 8_000, 2, 1, D),
        (RationalQuadratic(1.0, 2.0), 8_000, 8_000, 4, 1, F), (Laplace(2.0), 10_000, 10_000, 5, 1, F),
        (Polynomial(2), 10_000, 10_000, 30, 1, F), (ExpDot(), 8_000, 8_000, 64, 16, F),
        (Gaussian(1.0) + Matern(1.5), 8_000, 8_000, 3, 1, F), (Gaussian(1.0) * Periodic(), 8_000, 8_000, 2, 1, F),
    ]  # fmt: skip
    found: list[tuple[str, Operator, int, torch.dtype]] = []
    for kernel, n, m, d, r, dtype in shapes:
        tiled = Tiled(kernel, points(n, d, dtype, 0), points(m, d, dtype, 1))
        text = f"{type(kernel).__name__} {n:,} x {m:,}, d {d}, {str(dtype)[6:]}"
        if core() is not None:
            found.append((f"Fused {text}", Fused(tiled), r, dtype))
        if len(found) < 24 and n * m < 7e7:
            found.append((f"Tiled {text}", tiled, r, dtype))
    for n, m, r, dtype in ((6_000, 6_000, 1, F), (3_000, 9_000, 1, D), (5_000, 5_000, 16, F)):
        found.append((f"Dense {n:,} x {m:,}, {str(dtype)[6:]}", Dense(points(n, m, dtype, 0)), r, dtype))
    for n in (20_000, 300_000):
        found.append((f"Toeplitz {n:,}", Gaussian(5.0)(Line(n)), 1, torch.get_default_dtype()))
    return found[:30]


def measured(op: Operator, v: torch.Tensor) -> float:
    op @ v
    times = []
    for _ in range(5):
        start = time.perf_counter()
        op @ v
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def main() -> None:
    torch.set_num_threads(2)
    if "--as-is" not in sys.argv:
        calibrate()
    print(f"2 threads; rates {rates().source}")
    print(f"{'case':<58}{'rhs':>5}{'predicted':>11}{'measured':>10}{'ratio':>7}")
    ratios = []
    for name, op, r, dtype in cases():
        v = torch.randn(op.shape[-1], r, generator=torch.Generator().manual_seed(2), dtype=dtype)
        with torch.no_grad():
            predicted, took = op.cost(r).seconds(1) - op.cost(r).seconds(0), measured(op, v)  # a warm product
        ratios.append(predicted / took)
        print(f"{name:<58}{r:>5}{predicted:>11.4f}{took:>10.4f}{ratios[-1]:>7.2f}", flush=True)
    within = sum(1 / 1.3 <= ratio <= 1.3 for ratio in ratios)
    print(f"{within} of {len(ratios)} predictions within 30 % of the measured time")


if __name__ == "__main__":
    main()
