"""First gradients of products that the compiled core makes, by everything they depend on."""

from __future__ import annotations

import torch
from torch import Tensor

from mercer.kernel import Step
from mercer.machine.job import Factor, Run, prepare
from mercer.numerics import centre
from mercer.operators.tiled import Tiled
from mercer.statistic import Statistic


def runs(tiled: Tiled) -> tuple[list[Step], list[Factor], Tensor, Run]:
    """(the program, its factors and parameters as functions of what is differentiable, and how to run it)."""
    program = tiled.kernel.program() or []
    factors, parameters = prepare(program, tiled.x, tiled.y)
    bias = None if tiled.log_scale is None else -tiled.log_scale.detach()[..., 0]
    rows, cols = (None, bias) if tiled.transposed else (bias, None)
    return program, factors, parameters, Run(program, factors, parameters, tiled.part, rows, cols)


def gradients(
    tiled: Tiled, inputs: list[Tensor], out: Tensor | None, needs: list[bool], g: Tensor
) -> list[Tensor | None]:
    """The gradient of every input that needs one: x, y, v, the logarithms of row factors, the parameters."""
    found: list[Tensor | None] = [None] * len(inputs)
    v = inputs[2]
    with torch.enable_grad():
        program, factors, parameters, run = runs(tiled)
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
        left, right = g, v
        if both:
            v = v.expand(*g.shape[:-2], *v.shape[-2:])  # points with a batch may meet vectors without one
            left, right = torch.cat([g, v], -1), torch.cat([v, g], -1)
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
