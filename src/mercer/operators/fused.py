"""Fused: a tiled operator whose products run in the compiled core."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from mercer.assemble import Request, rule
from mercer.claims import NO_CLAIMS
from mercer.feature import FeatureMap
from mercer.kernel import Kernel, Step
from mercer.machine import core
from mercer.machine.job import Factor, OutOfRange, Run, known, prepare
from mercer.machine.schedule import SYMMETRIC
from mercer.numerics import centre
from mercer.operator import Cost, Operator
from mercer.operators.speed import core_seconds
from mercer.operators.tiled import Tiled
from mercer.statistic import Statistic

DTYPES = (torch.float32, torch.float64)
HALF = 0.65  # the time of a product of which each entry serves its transpose too, to that of all entries
THREAD_BYTES = 2**22  # buffers of one thread: packed points, one strip of values, sums


class Fused(Operator):
    """A `Tiled` operator on the CPU whose kernel is made of profiles that the compiled core knows.

    No entry of the matrix leaves the caches. Products, their transposes and first gradients run in the core; higher
    gradients, and whatever else is asked, are the tiled operator's own. Cost: that of `Tiled`, several times faster;
    memory a few MiB for each thread. Error: sums are accumulated in float64; values are within 6 eps of
    the profile (Wendland 12) at a statistic whose own error docs/machine.md states.
    """

    def __init__(self, tiled: Tiled):
        self.tiled = tiled
        self.shape, self.dtype, self.device, self.claims = tiled.shape, tiled.dtype, tiled.device, tiled.claims

    def matmul(self, v: Tensor) -> Tensor:
        if torch._C._are_functorch_transforms_active() or core() is None:
            return self.tiled.matmul(v)
        parameters = [p for p in self.tiled.kernel.parameters() if p.requires_grad]
        bias = [] if self.tiled.log_scale is None else [self.tiled.log_scale]
        try:
            return _Product.apply(self, self.tiled.x, self.tiled.y, v, *bias, *parameters)
        except OutOfRange:
            return self.tiled.matmul(v)

    def runs(self) -> tuple[list[Step], list[Factor], Tensor, Run]:
        """(the program, its factors and parameters as functions of what is differentiable, and how to run it)."""
        tiled = self.tiled
        program = tiled.kernel.program() or []
        factors, parameters = prepare(program, tiled.x, tiled.y)
        bias = None if tiled.log_scale is None else -tiled.log_scale.detach()[..., 0]
        rows, cols = (None, bias) if tiled.transposed else (bias, None)
        return program, factors, parameters, Run(program, factors, parameters, tiled.part, rows, cols)

    def normal(self, v: Tensor, weights: Tensor | None = None) -> Tensor:
        tensors = (self.tiled.x, self.tiled.y, v, *self.tiled.kernel.parameters())
        tracked = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
        if tracked or self.tiled.log_scale is not None or v.ndim != 2:
            return super().normal(v, weights)
        try:
            return self.runs()[3].normal(v, self.shape[-2], weights)
        except OutOfRange:
            return super().normal(v, weights)

    @property
    def mT(self) -> Operator:
        return Fused(self.tiled.mT)

    def cost(self, rhs: int = 1) -> Cost:
        tiled = self.tiled
        n, m = self.shape[-2:]
        pairs = float(max(math.prod(self.shape[:-2]), 1)) * n * m
        seconds = core_seconds(tiled.kernel.program() or [], tiled.x, pairs, m, rhs)
        if tiled.x is tiled.y and tiled.part is None and n >= SYMMETRIC:
            seconds *= HALF
        return Cost(0, tiled.cost(rhs).apply, THREAD_BYTES * torch.get_num_threads(), 0.0, seconds)

    def dense(self) -> Tensor:
        tiled = self.tiled
        tracked = torch.is_grad_enabled() and any(
            t is not None and t.requires_grad for t in (tiled.x, tiled.y, tiled.log_scale, *tiled.kernel.parameters())
        )
        if tracked or torch._C._are_functorch_transforms_active() or core() is None:
            return tiled.dense()
        self._fits()
        try:
            n, m = self.shape[-2:]
            return self.runs()[3].block(n, m, tiled.x)
        except OutOfRange:
            return tiled.dense()

    def diagonal(self) -> Tensor:
        return self.tiled.diagonal()

    def tril(self) -> Operator:
        part = self.tiled.tril()
        return Fused(part) if isinstance(part, Tiled) else part

    def stabilised(self) -> Operator:
        tiled = self.tiled
        if tiled.log_scale is not None:
            return self
        scale = self._log_sums()
        if scale is None:
            return tiled.stabilised()
        return Fused(Tiled(tiled.kernel, tiled.x, tiled.y, NO_CLAIMS, tiled.part, scale))

    @torch.no_grad()
    def _log_sums(self) -> Tensor | None:
        program = self.tiled.kernel.program() or []
        if len(program) != 1 or program[0].op != "exponential" or program[0].statistic is not Statistic.DOT:
            return None
        n, m = self.shape[-2:]
        if not n or not m or core() is None:
            return None
        return self.runs()[3].log_sums(n, m, self.tiled.x)

    def _select(self, rows: Tensor, cols: Tensor) -> Operator:
        part = self.tiled._select(rows, cols)
        return Fused(part) if isinstance(part, Tiled) else part


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, op: Fused, x: Tensor, y: Tensor, v: Tensor, *rest: Tensor) -> Tensor:
        out = op.runs()[3].product(v, op.shape[-2])
        ctx.op = op
        ctx.save_for_backward(x, y, v, out if op.tiled.log_scale is not None else None, *rest)
        return out

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        op, needs = ctx.op, list(ctx.needs_input_grad[1:])
        x, y, v, out, *rest = ctx.saved_tensors
        inputs = [x, y, v, *rest]
        if op.tiled.x is op.tiled.y:  # the gradient by x then counts both sides
            needs[1] = False
        again = torch.is_grad_enabled()  # somebody differentiates this once more: the definition does that
        if not again:
            try:
                return (None, *_gradients(op, inputs, out, needs, g.contiguous()))
            except OutOfRange:
                pass
        wanted = [t for t, need in zip(inputs, needs, strict=True) if need]
        with torch.enable_grad():
            defined = op.tiled.matmul(v)
        got = iter(torch.autograd.grad(defined, wanted, g, create_graph=again, allow_unused=True))
        return (None, *(next(got) if need else None for need in needs))


def _gradients(
    op: Fused, inputs: list[Tensor], out: Tensor | None, needs: list[bool], g: Tensor
) -> list[Tensor | None]:
    """The gradient of every input that needs one: x, y, v, the logarithms of row factors, the parameters."""
    found: list[Tensor | None] = [None] * len(inputs)
    tiled, v = op.tiled, inputs[2]
    with torch.enable_grad():
        program, factors, parameters, run = op.runs()
    biased = tiled.log_scale is not None
    if needs[2] or (biased and needs[3]):
        back = run.mT.product(g, v.shape[-2])
        found[2] = back.sum_to_size(v.shape) if needs[2] else None
        if biased and needs[3] and out is not None:
            total = v * back if tiled.transposed else g * out
            found[3] = -total.sum(-1, keepdim=True).sum_to_size(inputs[3].shape)
    done = (2, 3) if biased else (2,)
    wanted = [i for i, need in enumerate(needs) if need and i not in done]
    if not wanted:
        return found
    same = tiled.x is tiled.y and tiled.part is None and not biased
    with torch.enable_grad():
        ends = _Ends(program, factors, parameters, same, biased)
    pairs = ends.slopes(run, g, v)
    if pairs:
        targets = [inputs[i] for i in wanted]
        got = torch.autograd.grad([e for e, _ in pairs], targets, [s for _, s in pairs], allow_unused=True)
        for i, value in zip(wanted, got, strict=True):
            found[i] = value
    return found


class _Ends:
    """What the core differentiates by: the scaled points of every factor, single lengthscales, the parameters.

    same: x is y, so that one pass over pairs serves both sides.
    """

    def __init__(
        self, program: list[Step], factors: list[Factor], parameters: Tensor, same: bool, biased: bool
    ):  # fmt: skip
        self.program, self.parameters, self.same = program, parameters, same
        self.steps = [i for i, step in enumerate(program) if step.statistic is not None]
        self.rows: list[Tensor | None] = []
        self.cols: list[Tensor | None] = []
        self.scales: list[Tensor | None] = []
        for f in factors:
            scale = f.scale
            single = scale is not None and scale.ndim == 0 and scale.requires_grad and not biased
            self.scales.append(scale if single else None)
            if single and scale is not None:
                scale = scale.detach()
            middle = 0 if f.statistic is Statistic.DOT or not f.y.shape[-2] else centre(f.y)
            both = f.x is f.y and same
            self.rows.append(_moved(f.x, middle, scale))
            self.cols.append(None if both else _moved(f.y, middle, scale))

    def slopes(self, run: Run, g: Tensor, v: Tensor) -> list[tuple[Tensor, Tensor]]:
        """(what, its gradient) for everything differentiable."""
        both = self.same and all(c is None for c in self.cols)
        left, right = (torch.cat([g, v], -1), torch.cat([v, g], -1)) if both else (g, v)
        rows, shares = run.gradient(left, right, [r is not None for r in self.rows])
        shares = shares / 2 if both else shares
        pairs = [(end, slope) for end, slope in zip(self.rows, rows, strict=True) if end is not None]
        if any(c is not None for c in self.cols):
            cols, _ = run.mT.gradient(v, g, [c is not None for c in self.cols])
            pairs += [(end, slope) for end, slope in zip(self.cols, cols, strict=True) if end is not None]
        found = [(end, slope.sum_to_size(end.shape).to(end.dtype)) for end, slope in pairs if slope is not None]
        for step, scale in zip(self.steps, self.scales, strict=True):
            if scale is not None:
                power = 1 if self.program[step].statistic is Statistic.L1_DISTANCE else 2
                found.append((scale, (power * shares[step, 0] / scale.detach()).to(scale.dtype)))
        if self.parameters.requires_grad:
            found.append((self.parameters, self._numbers(shares)))
        return found

    def _numbers(self, shares: Tensor) -> Tensor:
        """The gradient of the vector of all parameters, from the sums that each step kept."""
        slope, place = torch.zeros_like(self.parameters), 0
        for step, (first, second) in zip(self.program, shares, strict=True):
            if step.op == "power":
                slope[place], slope[place + 1] = first / self.parameters[place].detach(), second
            elif step.op == "polynomial":
                slope[place] = second
            elif step.op in ("scale", "constant"):
                slope[place] = first
            place += len(step.parameters)
        return slope


def _moved(points: Tensor, middle: Tensor | int, scale: Tensor | None) -> Tensor | None:
    """The scaled points, where anything in them is differentiable."""
    if not points.requires_grad and (scale is None or not scale.requires_grad):
        return None
    return points if scale is None else (points - middle) * scale.to(points.dtype)


def fusible(kernel: Kernel, x: Tensor) -> bool:
    """Kernels made of known profiles, on the CPU, where the compiled core is there."""
    if x.device.type != "cpu" or x.dtype not in DTYPES or isinstance(kernel, FeatureMap) or core() is None:
        return False
    return known(kernel.program())


@rule
def fused(request: Request) -> Operator | None:
    """Whatever the compiled core can run."""
    kernel, x = request.kernel, request.x.points
    if not fusible(kernel, x):
        return None
    claims = kernel.claims if request.square else NO_CLAIMS
    return Fused(Tiled(kernel, x, x if request.square else request.y.points, claims))
