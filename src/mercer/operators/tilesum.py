"""Sums over tiles that never hold more than one tile, differentiable to any order in O(n) memory.

A tile function sees one stretch of rows and one stretch of columns and returns row outputs (summed over column
tiles), column outputs (summed over row tiles) and shared outputs (summed over both). The gradient of such a sum is
again such a sum, whose tile function is the vector-Jacobian product of the first, so one autograd.Function that
calls itself gives gradients, gradients of gradients, and so on, each by recomputing tiles.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mercer.machine.threads import Stop, run

GROUPS = 16  # the most threads that share a sum; each holds its own column outputs
SHORT = 2**17  # pairs that are done sooner than handed to a thread

Tensors = tuple[Tensor, ...]
TileFunction = Callable[[int, int, Tensors, Tensors], tuple[Tensors, Tensors, Tensors]]


@dataclass(frozen=True)
class Plan:
    """fn(i, j, rows, columns) for the tile that starts at row i and column j; `height` x `width` entries at most.

    rows, cols, shared: how many of the tensors belong to each kind. Row and column tensors are cut along axis -2.
    skip(i, last_row, j): True for tiles known to be zero.
    """

    fn: TileFunction
    n: int
    m: int
    height: int
    width: int
    rows: int
    cols: int
    shared: int
    skip: Callable[[int, int, int, int], bool] | None = None


def tile_sum(plan: Plan, tensors: Sequence[Tensor]) -> Tensors:
    """Run the plan over row tensors, column tensors and shared tensors, given in that order."""
    return _TileSum.apply(plan, *tensors)


def _cut(tensors: Sequence[Tensor], start: int, length: int) -> Tensors:
    return tuple(t.narrow(-2, start, length) for t in tensors)


def _add(total: list[Tensor] | None, part: Tensors) -> list[Tensor]:
    return list(part) if total is None else [a + b for a, b in zip(total, part, strict=True)]


@dataclass
class _Group:
    """Consecutive stripes of rows, summed on one thread."""

    stripes: range
    rows: list[list[Tensor]]
    cols: dict[int, list[Tensor] | None]
    shared: list[Tensor] | None = None


def _sum_group(plan: Plan, tensors: Sequence[Tensor], group: _Group, stop: Stop) -> None:
    row_in, col_in = tensors[: plan.rows], tensors[plan.rows : plan.rows + plan.cols]
    for i in group.stripes:
        high = min(plan.height, plan.n - i)
        here = _cut(row_in, i, high)
        row_total: list[Tensor] | None = None
        for j in range(0, max(plan.m, 1), plan.width):
            if stop:
                return
            wide = min(plan.width, plan.m - j)
            if row_total is not None and j in group.cols and plan.skip and plan.skip(i, high, j, wide):
                continue
            r, c, s = plan.fn(i, j, here, _cut(col_in, j, wide))
            row_total = _add(row_total, r)
            group.cols[j] = _add(group.cols.get(j), c)
            group.shared = _add(group.shared, s)
        group.rows.append(row_total or [])


def _run(plan: Plan, tensors: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Groups of stripes side by side; how they are cut depends on the sizes alone, and so do the bits of the sums."""
    starts = range(0, max(plan.n, 1), plan.height)
    size = -(-len(starts) // GROUPS)
    groups = [_Group(starts[k : k + size], [], {}) for k in range(0, len(starts), size)]
    stop, tracked = Stop(), torch.is_grad_enabled()

    def task(group: _Group) -> None:
        with torch.set_grad_enabled(tracked):  # a setting of each thread
            _sum_group(plan, tensors, group, stop)

    run([functools.partial(task, group) for group in groups], stop, inline=not _worth_threads(plan, tensors, groups))
    row_out = [part for group in groups for part in group.rows]
    cols: dict[int, list[Tensor] | None] = {}
    shared: list[Tensor] | None = None
    for group in groups:
        shared = _add(shared, tuple(group.shared or ()))
        for j, part in group.cols.items():
            cols[j] = _add(cols.get(j), tuple(part or ()))
    join = lambda parts: [p[0] if len(p) == 1 else torch.cat(p, -2) for p in zip(*parts, strict=True)]  # noqa: E731
    return join(row_out), join([cols[j] or [] for j in sorted(cols)]), shared or []


def _worth_threads(plan: Plan, tensors: Sequence[Tensor], groups: Sequence[_Group]) -> bool:
    """More than one group and thread, much work, on the CPU, outside torch.func (transforms belong to one thread)."""
    if len(groups) < 2 or torch.get_num_threads() < 2 or plan.n * plan.m < SHORT:
        return False
    if torch._C._are_functorch_transforms_active() or torch.is_inference_mode_enabled():
        return False
    return all(t.device.type == "cpu" for t in tensors)


class _TileSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, plan: Plan, *tensors: Tensor) -> Tensors:
        rows, cols, shared = _run(plan, tensors)
        ctx.plan, ctx.outputs = plan, (len(rows), len(cols), len(shared))
        ctx.save_for_backward(*tensors)
        return (*rows, *cols, *shared)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        tensors, needs = ctx.saved_tensors, ctx.needs_input_grad[1:]
        plan, inputs = _gradient_plan(ctx.plan, ctx.outputs, needs, tensors, grads)
        found = iter(tile_sum(plan, inputs))
        return (None, *[next(found) if need else None for need in needs])


def _gradient_plan(
    plan: Plan, outputs: tuple[int, int, int], needs: Sequence[bool], tensors: Sequence[Tensor], grads: Sequence[Tensor]
) -> tuple[Plan, list[Tensor]]:
    """The plan whose sum is the gradient of `plan`: inputs and output gradients in, gradients of `needs` out."""
    r, c, s = plan.rows, plan.cols, plan.shared
    ro, co, _ = outputs
    row_need, col_need, shared_need = needs[:r], needs[r : r + c], needs[r + c :]
    shared_in, shared_grads = tensors[r + c :], grads[ro + co :]

    def fn(i: int, j: int, rows: Tensors, cols: Tensors) -> tuple[Tensors, Tensors, Tensors]:
        higher = torch.is_grad_enabled()
        with torch.enable_grad():  # the pieces are fresh leaves, unless an outer gradient already tracks them
            row_in, col_in = (
                tuple(t if higher and t.requires_grad else t.detach().requires_grad_() for t in ts)
                for ts in (rows[:r], cols[:c])
            )
            found = plan.fn(i, j, row_in, col_in)
            wanted = [t for t, need in zip((*row_in, *col_in, *shared_in), needs, strict=True) if need]
            pairs = zip((*found[0], *found[1], *found[2]), (*rows[r:], *cols[c:], *shared_grads), strict=True)
            live = [(out, g) for out, g in pairs if out.requires_grad]
            got = (
                torch.autograd.grad(
                    [out for out, _ in live], wanted, [g for _, g in live], create_graph=higher, allow_unused=True
                )
                if live and wanted
                else [None] * len(wanted)
            )
        full = iter([torch.zeros_like(t) if g is None else g for t, g in zip(wanted, got, strict=True)])
        take = lambda need: tuple(next(full) for flag in need if flag)  # noqa: E731
        return take(row_need), take(col_need), take(shared_need)

    inputs = [*tensors[:r], *grads[:ro], *tensors[r : r + c], *grads[ro : ro + co], *shared_in, *shared_grads]
    counts = {"rows": r + ro, "cols": c + co, "shared": s + len(shared_grads)}
    return Plan(fn, plan.n, plan.m, plan.height, plan.width, skip=plan.skip, **counts), inputs
