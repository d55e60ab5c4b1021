"""Fused: a tiled operator whose products run in the compiled core."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from mercer.assemble import Request, rule
from mercer.budget import memory_budget
from mercer.claims import NO_CLAIMS
from mercer.feature import FeatureMap
from mercer.kernel import Kernel
from mercer.machine import core
from mercer.machine.job import OutOfRange, Run, known
from mercer.machine.schedule import SYMMETRIC, stretches
from mercer.numerics.forward import dual
from mercer.operator import Cost, Operator
from mercer.operators.slopes import gradients, runs
from mercer.operators.softmax import Softmax
from mercer.operators.speed import core_seconds, widths
from mercer.operators.tiled import Tiled
from mercer.statistic import Statistic

DTYPES = (torch.float32, torch.float64)
HALF = 0.65  # the time of a product of which each entry serves its transpose too, to that of all entries
THREAD_BYTES = 2**22  # buffers of one thread: packed points, one strip of values, sums
LEAST_ROWS = 160  # rows and columns that a thread packs at least, however wide they are


class Fused(Operator):
    """A `Tiled` operator on the CPU whose kernel is made of profiles that the compiled core knows.

    No entry of the matrix leaves the caches. Products, their transposes and first gradients run in the core; higher
    gradients, and whatever else is asked, are the tiled operator's own. Cost: that of `Tiled`, several times faster;
    memory a few MiB for each thread, and where K is symmetric the sums in float64, a few columns at a time where the
    budget asks for it. Error: sums are accumulated in float64; values are within 6 eps of
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

    def normal(self, v: Tensor, weights: Tensor | None = None) -> Tensor:
        tensors = (self.tiled.x, self.tiled.y, v, *self.tiled.kernel.parameters())
        tracked = dual(v, weights) or (torch.is_grad_enabled() and any(t.requires_grad for t in tensors))
        if tracked or self.tiled.log_scale is not None or v.ndim != 2:
            return super().normal(v, weights)
        if 8.0 * v.numel() * len(stretches(self.shape[-2])) > self._room(v.shape[-1]):  # sums of each stretch of rows
            return super().normal(v, weights)
        try:
            return runs(self.tiled)[3].normal(v, self.shape[-2], weights)
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
        memory = self._buffers(rhs)
        if tiled.x is tiled.y and tiled.part is None and n >= SYMMETRIC:
            seconds *= HALF
            memory += 8.0 * n * min(self._columns(rhs), rhs)
        return Cost(0, tiled.cost(rhs).apply, memory, 0.0, seconds)

    def _buffers(self, rhs: int) -> float:
        """Bytes that the threads hold."""
        width = sum(widths(self.tiled.kernel.program() or [], self.tiled.x)) + 1
        each = max(THREAD_BYTES, LEAST_ROWS * (width * self.dtype.itemsize + 16 * rhs))
        return float(each * torch.get_num_threads())

    def _room(self, rhs: int) -> float:
        """Bytes that the memory budget leaves beside them."""
        return memory_budget() - self._buffers(rhs)

    def _columns(self, rhs: int) -> int:
        """Right-hand sides whose sums in float64 the budget has room for at once."""
        return max(int(self._room(rhs) // (8 * max(self.shape[-2], 1))), 1)

    def _product(self, run: Run, v: Tensor) -> Tensor:
        """K v, where half of the entries do for the whole as many columns at a time as the budget has room for."""
        n, rhs = self.shape[-2], v.shape[-1]
        width = self._columns(rhs) if run.symmetric(v, n) else rhs
        if width >= rhs:
            return run.product(v, n)
        out = v.new_empty(n, rhs)
        for start in range(0, rhs, width):
            out[:, start : start + width] = run.product(v[:, start : start + width], n)
        return out

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
            return runs(self.tiled)[3].block(n, m, tiled.x)
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

    def normalised(self) -> Operator:
        return Softmax(self.tiled) if self._exponential() else super().normalised()

    def _exponential(self) -> bool:
        """Whether this is exp of a dot product on some points, whose rows the core divides by their sums."""
        program = self.tiled.kernel.program() or []
        if len(program) != 1 or program[0].op != "exponential" or program[0].statistic is not Statistic.DOT:
            return False
        return self.tiled.log_scale is None and bool(self.shape[-2] and self.shape[-1]) and core() is not None

    @torch.no_grad()
    def _log_sums(self) -> Tensor | None:
        if not self._exponential():
            return None
        try:
            return runs(self.tiled)[3].softmax(self.tiled.x.new_zeros(self.shape[-1], 0), self.shape[-2])[1]
        except OutOfRange:
            return None

    def _select(self, rows: Tensor, cols: Tensor) -> Operator:
        part = self.tiled._select(rows, cols)
        return Fused(part) if isinstance(part, Tiled) else part


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, op: Fused, x: Tensor, y: Tensor, v: Tensor, *rest: Tensor) -> Tensor:
        out = op._product(runs(op.tiled)[3], v)
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
                return (None, *gradients(op.tiled, inputs, out, needs, g.contiguous()))
            except OutOfRange:
                pass
        wanted = [t for t, need in zip(inputs, needs, strict=True) if need]
        with torch.enable_grad():
            defined = op.tiled.matmul(v)
        got = iter(torch.autograd.grad(defined, wanted, g, create_graph=again, allow_unused=True))
        return (None, *(next(got) if need else None for need in needs))


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
        if x.device.type == "cpu" and x.dtype in DTYPES and not isinstance(kernel, FeatureMap):
            request.decline("Fused", "this kernel is not made of what it runs" if core() else "no compiled core here")
        return None
    claims = kernel.claims if request.square else NO_CLAIMS
    return Fused(Tiled(kernel, x, x if request.square else request.y.points, claims))
