"""conv against torch: seconds of every method on forty shapes, what was chosen, and the headline ratios.

python benchmarks/convolution.py [--threads 2]
python benchmarks/convolution.py --seconds processor    # of one thread, for a machine with other work
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from mercer.machine.rates import rates
from mercer.operators.convolve import METHODS, conv
from mercer.operators.stencil import stencil
from mercer.operators.stencil_plan import choose

TORCH = {1: torch.nn.functional.conv1d, 2: torch.nn.functional.conv2d, 3: torch.nn.functional.conv3d}
GRID = [  # batch, channels in, out, sizes, taps, groups
    *[(1, 64, 64, (56, 56), (k, k), 64) for k in (3, 7, 13, 15, 21, 31, 51)],
    *[(4, 64, 64, (28, 28), (k, k), 64) for k in (3, 7, 13, 31)],
    *[(1, 64, 64, (112, 112), (k, k), 64) for k in (7, 31)],
    *[(8, 96, 96, (14, 14), (k, k), 96) for k in (5, 7, 13, 27)],
    *[(2, 32, 32, (57, 43), (k, j), 32) for k, j in ((1, 11), (11, 1), (5, 31))],
    *[(1, 64, 64, (length,), (k,), 64) for length in (1024, 16384) for k in (3, 31, 128, 512, 1024)],
    *[(1, 8, 8, (length,), (length,), 8) for length in (1024, 4096, 16384)],
    *[(1, 64, 64, (4096,), (k,), 1) for k in (3, 64, 1024)],
    *[(1, 64, 64, (56, 56), (k, k), 1) for k in (3, 7)],
    *[(1, 16, 16, (24, 24, 24), (k, k, k), 16) for k in (3, 7)],
]


def seconds(task: Callable[[], object], clock: Callable[[], float], most: float = 1.0) -> float:
    """The median of up to seven runs after one that does not count, fewer where they are long."""
    start = clock()
    task()
    first = clock() - start
    times = []
    for _ in range(7 if first < most / 7 else 2):
        start = clock()
        task()
        times.append(clock() - start)
    return statistics.median(times)


def case(shape: tuple, seed: int = 0) -> tuple[Tensor, Tensor, int]:
    batch, inputs, outputs, sizes, taps, groups = shape
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, inputs, *sizes, generator=generator)
    w = torch.randn(outputs, inputs // groups, *taps, generator=generator) / (inputs // groups * len(taps)) ** 0.5
    return x, w, groups


def operations(shape: tuple) -> dict[str, Callable[[str], Callable[[], Tensor]]]:
    """forward, input_grad and weight_grad by a named method."""
    x, w, groups = case(shape)
    s, _ = stencil(x, w, 1, "same", 1, groups, "zero")
    g = torch.randn(x.shape[0], w.shape[0], *s.out, generator=torch.Generator().manual_seed(1))

    def of(name: str) -> dict[str, Callable[[], Tensor]]:
        method = METHODS[name]
        return {
            "forward": lambda: method.forward(x, w, s),
            "input_grad": lambda: method.input_grad(g, w, s),
            "weight_grad": lambda: method.weight_grad(x, g, s, tuple(w.shape)),
        }

    return {
        op: lambda name, op=op: of(choose(op, {"input_grad": g}.get(op, x), w, s, name))[op]
        for op in ("forward", "input_grad", "weight_grad")
    }


def grid(clock: Callable[[], float]) -> None:
    print(f"{'shape':<52}{'operation':<13}{'chosen':<15}{'ms':>8}{'best':>15}{'ms':>9}{'ratio':>7}")
    worst = []
    for shape in GRID:
        batch, inputs, outputs, sizes, taps, groups = shape
        names = ["direct"] + (["channels_last"] if groups == inputs == outputs else []) + ["fft"]
        names += ["overlap"] if len(sizes) == 1 else []
        for op, by in operations(shape).items():
            found = {name: seconds(by(name), clock) for name in names}
            x, w, _ = case(shape)
            s, _ = stencil(x, w, 1, "same", 1, groups, "zero")
            chosen = choose(op, x, w, s, "auto")
            best = min(found, key=lambda name: found[name])
            worst.append(found[chosen] / found[best])
            text = f"{batch} x {inputs} -> {outputs}, {sizes}, taps {taps}, groups {groups}"
            print(
                f"{text:<52} {op:<13}{chosen:<15}{1e3 * found[chosen]:>8.2f}{best:>15}{1e3 * found[best]:>9.2f}"
                f"{worst[-1]:>7.2f}", flush=True,
            )  # fmt: skip
    within = sum(ratio <= 1.3 for ratio in worst)
    print(f"{within} of {len(worst)} choices take at most 1.3 times the best method's time; the worst {max(worst):.2f}")


def against_torch(clock: Callable[[], float]) -> None:
    print(f"{'shape':<52}{'':<20}{'torch, ms':>10}{'mercer, ms':>11}{'ratio':>7}{'error':>9}")
    shapes = [*[(1, 64, 64, (56, 56), (k, k), 64) for k in (7, 13, 15, 31, 51)]]
    shapes += [(1, 8, 8, (n,), (n,), 8) for n in (1024, 4096, 16384)]
    for shape in shapes:
        x, w, groups = case(shape)
        long = len(shape[3]) == 1
        boundary = "causal" if long else "zero"
        pad = (shape[4][0] - 1, 0) if long else (shape[4][1] // 2,) * 4

        def theirs(x: Tensor, w: Tensor, pad: tuple = pad, groups: int = groups, long: bool = long) -> Tensor:
            if long:
                return TORCH[1](torch.nn.functional.pad(x, pad), w, groups=groups)
            return TORCH[2](x, w, padding=pad[0], groups=groups)

        def ours(x: Tensor, w: Tensor, boundary: str = boundary, groups: int = groups) -> Tensor:
            return conv(x, w, groups=groups, boundary=boundary)

        exact = theirs(x.double(), w.double())
        error = float((ours(x, w) - exact).abs().max() / exact.abs().max())
        for what in ("forward", "forward, backward"):
            run = {}
            for name, f in (("torch", theirs), ("mercer", ours)):
                a, b = (t.clone().requires_grad_(what != "forward") for t in (x, w))

                def task(f: Callable = f, a: Tensor = a, b: Tensor = b, what: str = what) -> object:
                    y = f(a, b)
                    return torch.autograd.grad(y.sum(), (a, b)) if what != "forward" else y

                run[name] = seconds(task, clock)
            text = f"{shape[0]} x {shape[1]}, {shape[3]}, taps {shape[4]}, depthwise"
            print(
                f"{text:<52}{what:<20}{1e3 * run['torch']:>10.2f}{1e3 * run['mercer']:>11.2f}"
                f"{run['torch'] / run['mercer']:>7.1f}{error:>9.0e}", flush=True,
            )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", choices=("wall", "processor"), default="wall")
    arguments = parser.parse_args()
    torch.set_num_threads(1 if arguments.seconds == "processor" else arguments.threads)
    clock = time.thread_time if arguments.seconds == "processor" else time.perf_counter
    print(
        f"{platform.machine()}, torch {torch.__version__}, {torch.get_num_threads()} threads; rates: {rates().source}"
    )
    with torch.no_grad():
        grid(clock)
    against_torch(clock)


if __name__ == "__main__":
    main()
