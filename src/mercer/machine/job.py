"""A kernel's program on given points, run by the compiled core: products, gradients and log row sums."""

from __future__ import annotations

import ctypes
import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mercer.kernel import Step
from mercer.machine import library, threads
from mercer.machine.schedule import SYMMETRIC, indices, rounds, row_count, stretches
from mercer.numerics import centre
from mercer.numerics.forward import dual
from mercer.statistic import Statistic

STATISTICS = {Statistic.SQUARED_DISTANCE: 0, Statistic.DISTANCE: 1, Statistic.L1_DISTANCE: 2, Statistic.DOT: 3}
NAMES, PARTS = {torch.float32: "float", torch.float64: "double"}, {None: 0, "lower": 1, "upper": 2}
STRIP = 6  # rows that the core takes at once
PACKED = 2**23  # bytes of packed columns and one strip of values that `normal` may hold for each thread
SHORT = 2e6  # entries of the matrix, weighed by what each takes, below which threads are not worth their start


class OutOfRange(Exception):
    """Distances overflow: the core leaves such points to torch."""


@dataclass(frozen=True)
class Factor:
    """The points of one statistic, `... n d` and `... m d`, and what scales their columns: (d,) or None."""

    x: Tensor
    y: Tensor
    scale: Tensor | None
    statistic: Statistic

    def detached(self) -> Factor:
        """The same without a graph; points that are one tensor on both sides stay one."""
        x = self.x.detach()
        y = x if self.y is self.x else self.y.detach()
        return Factor(x, y, None if self.scale is None else self.scale.detach(), self.statistic)

    def swapped(self) -> Factor:
        """The same with rows and columns exchanged."""
        return Factor(self.y, self.x, self.scale, self.statistic)


def known(program: Sequence[Step] | None) -> bool:
    """Whether the core runs such a program."""
    if not program:
        return False
    depth = highest = 0
    for step in program:
        if step.op not in library.OPS or (step.statistic and step.statistic not in STATISTICS):
            return False
        if step.statistic is not None and STATISTICS[step.statistic] not in library.ON.get(step.op, (0, 1)):
            return False
        depth += -1 if step.op in ("add", "multiply") else 0 if step.op == "scale" else 1
        highest = max(highest, depth)
    factors = sum(step.statistic is not None for step in program)
    return len(program) <= library.STEPS and 0 < factors <= library.FACTORS and highest <= library.DEPTH


def prepare(program: Sequence[Step], x: Tensor, y: Tensor) -> tuple[list[Factor], Tensor]:
    """(the factors on these points, all parameters as one float64 vector), differentiable."""
    factors, numbers = [], []
    for step in program:
        numbers += [torch.as_tensor(p, dtype=torch.float64).reshape(()) for p in step.parameters]
        if step.statistic is not None:
            left, right = (x, y) if step.points is None else step.points(x, y)
            scale = step.scale
            fits = left.shape[-1] == right.shape[-1] and left.dtype == right.dtype and not dual(left, right, scale)
            if not fits or (scale is not None and scale.ndim and scale.shape[-1] != left.shape[-1]):
                raise OutOfRange  # the definition says what is wrong, or does it
            factors.append(Factor(left, right, scale, step.statistic))
    return factors, torch.stack(numbers) if numbers else torch.zeros(0, dtype=torch.float64)


class Run:
    """The program on prepared factors; each method is one pass over all pairs. No gradient is tracked here.

    part: None, "lower" or "upper". row_bias, column_bias: `... n`, `... m`, added to a dot product.
    """

    def __init__(
        self, program: Sequence[Step], factors: Sequence[Factor], parameters: Tensor, part: str | None = None,
        row_bias: Tensor | None = None, column_bias: Tensor | None = None,
    ):  # fmt: skip
        self.program, self.parameters, self.part = program, parameters.detach().tolist(), part
        self.factors = [f.detached() for f in factors]
        self.row_bias, self.column_bias = row_bias, column_bias
        self.steps = self._steps()

    @property
    def mT(self) -> Run:
        """The transpose: rows and columns exchange their roles."""
        part = {None: None, "lower": "upper", "upper": "lower"}[self.part]
        other = Run.__new__(Run)
        other.program, other.parameters, other.steps, other.part = self.program, self.parameters, self.steps, part
        other.factors = [f.swapped() for f in self.factors]
        other.row_bias, other.column_bias = self.column_bias, self.row_bias
        return other

    def _steps(self) -> ctypes.Array:
        steps, place, factor = (library.Step * len(self.program))(), 0, 0
        for to, step in zip(steps, self.program, strict=True):
            to.op = library.OPS.index(step.op)
            for i in range(len(step.parameters)):
                to.p[i], place = self.parameters[place], place + 1
            if step.statistic is not None:
                to.factor, factor = factor, factor + 1
        return steps

    def product(self, v: Tensor, n: int) -> Tensor:
        """K v: v `... m r` -> `... n r`."""
        if self.symmetric(v, n):
            return self._both_sides(v, n)
        out = v.new_empty(*self._batch(v), n, v.shape[-1])
        self._launch("product", n, v, out=out)
        return out

    def symmetric(self, v: Tensor, n: int) -> bool:
        """Whether every entry of the matrix may serve its transpose as well, and there are enough to gain by it."""
        same = all(f.x is f.y for f in self.factors) and self.part is None
        return same and self.row_bias is None and self.column_bias is None and not self._batch(v) and n >= SYMMETRIC

    def _both_sides(self, v: Tensor, n: int) -> Tensor:
        """K(x, x) v from half of the entries.

        Rows are cut into an even number of blocks that meet in rounds, as teams of a league do: no two pairs of a
        round share a block, so threads never write to one place, and sums are taken in the order of the rounds.
        """
        core, stop = library.core(), threads.Stop()
        if core is None:
            raise OutOfRange
        name = NAMES[v.dtype]
        sums = torch.zeros(n, v.shape[-1], dtype=torch.float64)
        job, alive = self._job(n, n, v, None, None, (), (), torch.Size(), stop)
        job.sums = sums.data_ptr()
        blocks = stretches(n)

        def task(what: str, rows: tuple[int, int], columns: tuple[int, int]) -> Callable[[], None]:
            call = getattr(core, f"mercer_{what}_{name}")
            return functools.partial(_call, call, job, alive, *rows, None, columns)

        threads.run([task("product", b, b) for b in blocks], stop)
        for pairs in rounds(len(blocks)):
            threads.run([task("both", blocks[i], blocks[j]) for i, j in pairs], stop)
        return sums.to(v.dtype)

    def normal(self, v: Tensor, n: int, weights: Tensor | None) -> Tensor:
        """K^T (weights * (K v)): v m r, weights n r; every entry of K is formed once. Only without a batch."""
        core, stop, m, r = library.core(), threads.Stop(), v.shape[-2], v.shape[-1]
        width = sum(f.x.shape[-1] for f in self.factors) + STRIP + 2 * r
        if core is None or self._batch(v) or self.part is not None or m * width * v.element_size() > PACKED:
            raise OutOfRange
        if weights is not None and (weights.shape != (n, r) or weights.dtype != v.dtype):
            raise OutOfRange
        job, alive = self._job(n, m, v, None, None, (), (), torch.Size(), stop)
        if weights is not None:
            weights = weights if weights.stride(-1) == 1 else weights.contiguous()
            job.weights, job.weights_stride = weights.data_ptr(), weights.stride(0)
        call = getattr(core, f"mercer_normal_{NAMES[v.dtype]}")
        parts = stretches(n)
        sums = torch.zeros(len(parts), m, r, dtype=torch.float64)

        def task(place: int) -> None:
            own = library.Job.from_buffer_copy(job)
            own.sums = sums[place].data_ptr()
            _call(call, own, alive, *parts[place], None, (0, m))

        threads.run([functools.partial(task, place) for place in range(len(parts))], stop)
        return sums.sum(0).to(v.dtype)

    def block(self, n: int, m: int, like: Tensor) -> Tensor:
        """The matrix itself, `... n m`."""
        out = like.new_empty(*self._batch(), n, m)
        self._launch("block", n, like.new_zeros(m, 0), out=out)
        return out

    def softmax(self, v: Tensor, n: int) -> tuple[Tensor, Tensor]:
        """(K v with every row of K divided by its sum, the logarithms of these sums `... n 1`), in one pass.

        Only for the exponential of a dot product.
        """
        out = v.new_empty(*self._batch(v), n, v.shape[-1])
        sums = torch.empty(*self._batch(v), n, 1, dtype=torch.float64)
        self._launch("softmax", n, v, out=out, sums=sums)
        return out, sums.to(v.dtype)

    def gradient(self, left: Tensor, v: Tensor, points: Sequence[bool]) -> tuple[list[Tensor | None], Tensor]:
        """Derivatives of sum_ij (left_i . v_j) k_ij: by the scaled points of the rows, and by the steps' numbers.

        left: ... n r, v: ... m r. Returns (`... n d` for each factor, None where its `points` is False; steps x 2: the
        sum over pairs of the derivative by log gain, and what the step keeps beside it).
        """
        n = left.shape[-2]
        slopes = [
            v.new_empty(*self._batch(v), n, f.x.shape[-1]) if want else None
            for f, want in zip(self.factors, points, strict=True)
        ]
        shares = self._launch("gradient", n, v, left=left, slopes=slopes)
        return slopes, shares

    def _batch(self, *others: Tensor) -> torch.Size:
        shapes = [t.shape[:-2] for f in self.factors for t in (f.x, f.y)]
        return torch.broadcast_shapes(*shapes, *(t.shape[:-2] for t in others))

    def _launch(
        self, what: str, n: int, v: Tensor, out: Tensor | None = None, left: Tensor | None = None,
        slopes: Sequence[Tensor | None] = (), sums: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        core = library.core()
        if core is None:
            raise OutOfRange
        call = getattr(core, f"mercer_{what}_{NAMES[v.dtype]}")
        stop, batch, m = threads.Stop(), self._batch(v), v.shape[-2]
        width = sum(f.x.shape[-1] for f in self.factors) + v.shape[-1] + 8
        entries = float(n) * m * max(math.prod(batch), 1) * width / 16
        inline = entries < SHORT
        rows = max(n, 1) if inline else row_count(n, math.prod(batch))
        tasks: list[Callable[[], None]] = []
        shares: list[Tensor] = []
        for index in indices(batch):
            job, alive = self._job(n, m, v, out, left, slopes, index, batch, stop)
            if sums is not None:
                job.sums = sums[index].data_ptr()
            for first in range(0, n, rows):
                share = torch.zeros(len(self.program), 2, dtype=torch.float64)
                shares.append(share)
                last = min(first + rows, n)
                kept = share if what == "gradient" else None
                tasks.append(functools.partial(_call, call, job, alive, first, last, kept, (0, m)))
        threads.run(tasks, stop, inline)
        return torch.stack(shares).sum(0) if shares else torch.zeros(len(self.program), 2, dtype=torch.float64)

    def _job(
        self, n: int, m: int, v: Tensor, out: Tensor | None, left: Tensor | None, slopes: Sequence[Tensor | None],
        index: tuple[int, ...], batch: torch.Size, stop: threads.Stop,
    ) -> tuple[library.Job, list[object]]:  # fmt: skip
        """The call for one matrix of the batch, and what must stay alive while it runs."""
        alive: list[object] = [stop, self.steps]

        def pick(t: Tensor) -> Tensor:
            t = t.expand(*batch, *t.shape[-2:])[index] if batch else t
            t = t if t.stride(-1) == 1 or t.shape[-1] <= 1 else t.contiguous()
            alive.append(t)
            return t

        factors = (library.Factor * max(len(self.factors), 1))()
        alive.append(factors)
        for place, (to, f) in enumerate(zip(factors, self.factors, strict=False)):
            x = pick(f.x)
            y = x if f.y is f.x else pick(f.y)
            to.x, to.y, to.d, to.statistic = x.data_ptr(), y.data_ptr(), x.shape[-1], STATISTICS[f.statistic]
            to.x_stride, to.y_stride = x.stride(0), y.stride(0)
            if f.scale is not None:
                scale = f.scale.to(torch.float64).expand(x.shape[-1]).contiguous()
                alive.append(scale)
                to.scale = scale.data_ptr()
            if f.statistic is not Statistic.DOT and m:
                middle = centre(y).to(torch.float64).reshape(-1)
                alive.append(middle)
                to.centre = middle.data_ptr()
            slope = slopes[place] if slopes else None
            to.dx = slope[index].data_ptr() if slope is not None else None
        job = library.Job(ctypes.addressof(factors), ctypes.addressof(self.steps), len(self.factors), len(self.steps))
        job.n, job.m, job.r, job.part, job.stop = n, m, v.shape[-1], PARTS[self.part], stop.address
        here = pick(v)
        job.v, job.v_stride = here.data_ptr(), here.stride(0)
        if out is not None:
            job.out, job.out_stride = out[index].data_ptr(), out.stride(-2)
        if left is not None:
            here = pick(left)
            job.left, job.left_stride = here.data_ptr(), here.stride(0)
        for name in ("row_bias", "column_bias"):
            bias = getattr(self, name)
            if bias is not None:
                bias = pick(bias[..., None])[:, 0].contiguous()
                alive.append(bias)
                setattr(job, name, bias.data_ptr())
        return job, alive


def _call(
    call: Callable, job: library.Job, alive: object, first: int, last: int, share: Tensor | None,
    columns: tuple[int, int],
) -> None:  # fmt: skip
    own = library.Job.from_buffer_copy(job)
    own.first, own.last, (own.begin, own.end) = first, last, columns
    own.shares = None if share is None else share.data_ptr()
    outcome = call(ctypes.byref(own))
    if outcome == library.NO_MEMORY:
        raise MemoryError("no memory for the buffers of one thread of a kernel product")
    if outcome == library.OUT_OF_RANGE:
        raise OutOfRange
