"""What the parts that fits are made of take on this machine: seconds and bytes, counted from what they do."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from mercer.assemble import assemble
from mercer.budget import memory_budget
from mercer.kernel import Kernel
from mercer.kernels import Matern
from mercer.learn.conformal import PATIENCE as WAIT
from mercer.learn.conformal import PROMISED as FEW
from mercer.learn.conformal import ROWS as WIDE
from mercer.learn.conformal import SEEN, WIDTHS
from mercer.learn.draw import DRAWN
from mercer.learn.landmarks import block_rows
from mercer.learn.likelihood import Likelihood
from mercer.learn.metric import FEW as LEAST
from mercer.learn.metric import GLANCE, HELD, LEAST_ROWS, LOOK, MOST_COLUMNS, NOISES, PATIENT
from mercer.learn.plan import COPIES, Speed, pair_seconds
from mercer.learn.refine import ROWS as JUDGED
from mercer.learn.refine import SHARES, STRETCH
from mercer.learn.solve import FOLDS
from mercer.learn.tune import FIRST, LAST, PROMISED, SMALL
from mercer.learn.unseen import FOLDS as PARTS
from mercer.learn.unseen import flattered
from mercer.machine.rates import rates
from mercer.operators.vecchia import sequence

SLOW = 2.0  # a factorisation takes so many times the seconds of a product of as many flops
EIGH = 9.0  # flops of all eigenpairs for each cubed row [golub2013, sec. 8.3]
STARTS, CLIMB, CLOSE = 2.0, 27, 30  # gradients of a candidate: common factors, the climb; of the winner with more rows
COPIES_GRADIENT, NEAR = 9, 300  # matrices alive in a gradient; rows of a neighbourhood of few columns
ROOM, CALLS = 8, 3  # of float64 numbers for each of a table while it is scaled; tries of what is measured
ORDERED = 600  # rows whose order is timed


@dataclass(frozen=True)
class Need:
    """seconds and bytes of a part of a fit. a + b: one after the other."""

    seconds: float = 0.0
    memory: float = 0.0

    def __add__(self, other: Need) -> Need:
        return Need(self.seconds + other.seconds, max(self.memory, other.memory))

    def times(self, count: float) -> Need:
        """So many in turn."""
        return Need(count * self.seconds, self.memory)

    def beside(self, held: float) -> Need:
        """While so many bytes are held."""
        return Need(self.seconds, self.memory + held)


def _quickest(task: Callable[[], object], count: int = CALLS) -> float:
    """Seconds of processor time by each thread, so that other programs do not count."""
    found = []
    for _ in range(count):
        start = time.process_time()
        task()
        found.append(time.process_time() - start)
    return max(min(found), 1e-7)


@dataclass(frozen=True)
class Effort:
    """A table of n rows, d columns and so many outputs, a time budget, and what this machine does in a second.

    entry: seconds of one entry of a kernel matrix with its gradient; call: of an assembled product beside its pairs;
    order: of one row that is put in order with its neighbours.
    """

    kernel: Kernel
    n: int
    d: int
    outputs: int
    seconds: float
    speed: Speed
    entry: float
    call: float
    order: float

    @classmethod
    def measure(cls, kernel: Kernel, n: int, d: int, outputs: int, seconds: float, speed: Speed) -> Effort:
        """On some hundred rows, in a few tenths of a second."""
        g = torch.Generator().manual_seed(0)
        x = torch.randn(ORDERED, d, generator=g, dtype=torch.float64)
        y = torch.randn(ORDERED, 1, generator=g, dtype=torch.float64)
        usual = Matern(2.5, torch.full((d,), d**0.5, dtype=torch.float64))
        target = Likelihood(usual, 0.1, [(x[:SMALL], y[:SMALL])])
        step = _quickest(lambda: target.evaluate()) - SLOW * SMALL**3 / speed.flops
        some = x[:8].float()
        call = _quickest(lambda: assemble(kernel, some, some).matmul(some))
        order = _quickest(lambda: sequence(Matern(2.5, 1.0), x[:, :3].contiguous(), 10), 1) / ORDERED
        return cls(kernel, n, d, outputs, seconds, speed, max(step, 0.0) / SMALL**2, call, order)

    def multiplied(self, flops: float) -> float:
        """Seconds of a product of matrices."""
        return flops / self.speed.flops

    def factored(self, flops: float) -> float:
        """Seconds of a factorisation, of triangular systems with many columns."""
        return SLOW * flops / self.speed.flops

    def values(self, count: float) -> float:
        """Seconds of so many kernel values that are kept."""
        return count / self.speed.values

    def pair(self, columns: int, wide: bool = False) -> float:
        """Seconds of a pair of points in a product that keeps no kernel values; wide: float64."""
        return pair_seconds(self.kernel, self.d, columns, torch.float64 if wide else torch.float32)

    def product(self, rows: float, points: float, columns: int, wide: bool = False, times: float = 1) -> Need:
        """So many products of k(rows, points), by the cheaper of keeping the matrix (at most 512 MiB) and not."""
        size, dtype = (8, torch.float64) if wide else (4, torch.float32)
        lazy = times * (rows * points * self.pair(columns, wide) + self.call)
        stored = size * rows * points
        entry = (rates()("dense.read", dtype) + columns * rates()("dense.rhs", dtype)) / rates().threads(dtype)
        kept = self.values(rows * points) + times * rows * points * entry * 1e-9
        if stored <= min(memory_budget(), 2**29) and kept < lazy:
            return Need(kept, stored)
        return Need(lazy, 24.0 * columns * (rows + points))

    def eigenpairs(self, rows: float) -> Need:
        """All of a dense matrix."""
        return Need(EIGH * rows**3 / self.speed.flops, 48.0 * rows**2)

    def table(self) -> Need:
        """The table read and put on its scales."""
        numbers = self.n * (self.d + self.outputs)
        return Need(2e-8 * numbers, ROOM * 8.0 * numbers)

    def gradient(self, rows: float) -> float:
        """Seconds of a likelihood and its gradient."""
        return self.factored(rows**3) + rows**2 * self.entry

    def learning(self, rows: int, candidates: int, share: float, promised: int = PROMISED) -> Need:
        """Lengthscales by likelihood: every candidate on a few hundred rows, the best on a thousand; `tune.learn`."""

        def step(most: int) -> float:
            if self.d > 3 or rows <= most:
                return self.gradient(min(rows, most))
            return max(most // NEAR, 2) * self.gradient(NEAR)

        whole = candidates * (STARTS + CLIMB) * step(FIRST) + (CLOSE * step(LAST) if rows > FIRST else 0.0)
        least = candidates * (STARTS + promised) * self.gradient(min(rows, SMALL))
        most = min(rows, LAST)
        return Need(max(min(whole, share * self.seconds), min(whole, least)), COPIES_GRADIENT * 8.0 * most**2)

    def refining(self, rows: int) -> Need:
        """Noise and common factors by left-out rows; `refine`."""
        some = min(rows, JUDGED)
        variants = len(SHARES) * len(STRETCH) if rows <= 2 * JUDGED else 1
        return (self.eigenpairs(some) + Need(self.values(some**2))).times(variants)

    def sharpening(self, rows: int) -> Need:
        """A glance at a metric of its own; rounds that follow where it helps are not counted; `metric.sharpened`."""
        few = rows < LEAST_ROWS or flattered(rows, self.d * (self.d + 1) // 2)
        if few or not 2 <= self.d <= MOST_COLUMNS:
            return Need()
        kept = rows - min(rows // 5, HELD)
        most, landmarks, _ = GLANCE if kept > GLANCE[0] else LOOK
        kept = min(kept, most)
        fits = 3 + 2 * PATIENT + 1
        landmarks = min(landmarks, max(kept // 4, LEAST))
        return self.normal(kept, landmarks, 1 + len(NOISES)).times(fits)

    def normal(self, rows: float, landmarks: float, levels: int) -> Need:
        """Normal equations of landmarks, and those of the folds; `landmarks.normal`."""
        m, block = landmarks, block_rows(int(landmarks))
        took = self.values(2 * rows * m) + self.multiplied(2 * rows * m * m)
        took += (levels + FOLDS + 1) * self.factored(m**3 / 3)
        return Need(took, 8.0 * (FOLDS + 6) * m * m + 20.0 * min(block, rows) * m)

    def exact(self, rows: float, tries: int) -> Need:
        """A factor and the diagonal of its inverse, for each noise that is tried; `solve.exact`."""
        took = tries * self.factored(rows**3) + self.values(rows**2)
        return Need(took, COPIES * 8.0 * rows**2)

    def kernel_of(self, rows: int, share: float) -> Need:
        """All that KernelRidge learns before it solves; share: of the seconds."""
        return self.learning(rows, 3, share) + self.refining(rows) + self.sharpening(rows)

    def drawn(self, share: float) -> Need:
        """What a fit over many rows begins with: KernelRidge on a draw; `draw.begin`."""
        rows = min(self.n, DRAWN)
        read = Need(self.table().seconds, ROOM * 8.0 * rows * (self.d + self.outputs))
        return read + self.kernel_of(rows, 0.5 * share) + self.exact(rows, 3 if rows > LAST else 1)

    def intervals(self, rows: int) -> Need:
        """Where intervals are wider; `LocalConformal`."""
        some, seen = min(rows, WIDE), min(rows, SEEN)
        step = self.gradient(seen)
        most = max(0.5 * min(WAIT, 0.1 * self.seconds), FEW * step)
        relevance = Need(min((STARTS + CLIMB) * step, most), COPIES_GRADIENT * 8.0 * seen**2)
        return relevance + self.eigenpairs(some).times(len(WIDTHS))

    def again(self, numbers: int) -> float:
        """How many fits stand for one: few rows are left out before anything is learned; `unseen`."""
        return 1 + PARTS * (1 - 1 / PARTS) if flattered(self.n, numbers) else 1.0
