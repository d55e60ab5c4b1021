"""Softmax: exp of a dot product with rows that sum to one, in one pass over the pairs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mercer.claims import NO_CLAIMS
from mercer.machine import core
from mercer.machine.job import OutOfRange
from mercer.operator import Cost, Normalised, Operator
from mercer.operators.slopes import gradients, runs
from mercer.operators.speed import core_seconds
from mercer.operators.tiled import Tiled


class Softmax(Operator):
    """diag(1 / (K 1)) K for K = exp(dot product), in the compiled core: softmax attention.

    Exponents are relative to the largest one of the row that was seen so far; a larger one scales down what was summed.
    First gradients take one more pass for each side from the logarithms of the row sums; higher ones are those of
    the two-pass definition. Cost: that of `Fused`. Error: that of the exponents. Source [milakov2018].
    """

    def __init__(self, tiled: Tiled):
        self.tiled = tiled
        self.shape, self.dtype, self.device = tiled.shape, tiled.dtype, tiled.device

    def _defined(self) -> Operator:
        return Normalised(self.tiled.stabilised())

    def matmul(self, v: Tensor) -> Tensor:
        if torch._C._are_functorch_transforms_active() or core() is None:
            return self._defined().matmul(v)
        parameters = [p for p in self.tiled.kernel.parameters() if p.requires_grad]
        try:
            return _Product.apply(self, self.tiled.x, self.tiled.y, v, *parameters)
        except OutOfRange:
            return self._defined().matmul(v)

    @property
    def mT(self) -> Operator:
        return self._defined().mT

    def cost(self, rhs: int = 1) -> Cost:
        n, m = self.shape[-2:]
        pairs = float(self.shape.numel())
        seconds = core_seconds(self.tiled.kernel.program() or [], self.tiled.x, pairs, m, rhs + 1)
        return Cost(0, self.tiled.cost(rhs).apply, 2.0**22 * torch.get_num_threads() + 8.0 * n, 0.0, seconds)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, op: Softmax, x: Tensor, y: Tensor, v: Tensor, *rest: Tensor) -> Tensor:
        out, sums = runs(op.tiled)[3].softmax(v, op.shape[-2])
        ctx.op = op
        ctx.save_for_backward(x, y, v, out, sums, *rest)
        return out

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        op, needs = ctx.op, list(ctx.needs_input_grad[1:])
        x, y, v, out, sums, *rest = ctx.saved_tensors
        inputs, tiled = [x, y, v, *rest], op.tiled
        if tiled.x is tiled.y:  # the gradient by x then counts both sides
            needs[1] = False
        again = torch.is_grad_enabled()
        if not again:
            # with P the rows that sum to one: d P_ij = P_ij (d s_ij - sum_k P_ik d s_ik), s the dot products
            scaled = Tiled(tiled.kernel, tiled.x, tiled.y, NO_CLAIMS, tiled.part, sums)
            left = torch.cat([g, -(g * out).sum(-1, keepdim=True)], -1)
            right = torch.cat([v, torch.ones_like(v[..., :1])], -1)
            asked = [*needs[:3], False, *needs[3:]]
            try:
                found = gradients(scaled, [x, y, right, sums, *rest], None, asked, left)
            except OutOfRange:
                pass
            else:
                by_v = found[2]
                found[2] = None if by_v is None else by_v[..., :-1].contiguous()
                return (None, *found[:3], *found[4:])
        wanted = [t for t, need in zip(inputs, needs, strict=True) if need]
        with torch.enable_grad():
            defined = op._defined().matmul(v)
        got = iter(torch.autograd.grad(defined, wanted, g, create_graph=again, allow_unused=True))
        return (None, *(next(got) if need else None for need in needs))
