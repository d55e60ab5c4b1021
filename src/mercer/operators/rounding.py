"""How wrong rounding may make an entry of an exact operator: the bound of docs/machine.md on given points."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor

from mercer.assemble import Request, bounds
from mercer.claims import Claim
from mercer.kernel import Kernel, Product, ProfileKernel, Scaled, Sum, Warped
from mercer.numerics import centre
from mercer.numerics.distance import DIRECT_COLUMNS, HARMLESS, NEAR_FLOAT32, NEAR_FLOAT64
from mercer.operator import Operator
from mercer.operators.dense import Dense
from mercer.operators.fused import Fused, fusible
from mercer.statistic import Statistic

VALUES = 6  # eps that a profile is wrong by at its statistic, and
VALUES_OF = {"wendland": 12}
NUDGE = 1e-6  # relative change of a coordinate that shows how its rounding is passed on
SAMPLES = 8192  # values of the statistic at which a profile is looked at


class Bound(NamedTuple):
    """What |values| and their errors stay below."""

    largest: float
    error: float


class Side(NamedTuple):
    """The points of one side in scaled coordinates: their largest norm, and how far rounding may move one, in eps."""

    norm: float
    moved: float


def _side(kernel: ProfileKernel, points: Tensor, p: int) -> Side:
    norm = lambda t: float(t.norm(p, -1).max()) if t.numel() else 0.0  # noqa: E731
    u = kernel.coordinates(points)
    moved = norm(kernel.coordinates(points * (1 + NUDGE)) - u) / NUDGE
    own = type(kernel).coordinates is not ProfileKernel.coordinates  # such coordinates are rounded once more
    return Side(norm(u), moved + own * norm(u))


def _of_distance(kernel: ProfileKernel, s: Tensor, d: int, a: Side, b: Side, eps: float, in_core: bool) -> Tensor:
    """The error of squared distances s."""
    shift, size = eps * (a.moved + b.moved), a.norm**2 + b.norm**2
    double, kink = eps < 1e-10, kernel.statistic is Statistic.DISTANCE
    spread = size * eps > HARMLESS
    if d <= DIRECT_COLUMNS and (in_core or kink or double or d == 1 or spread):
        formed = (d + 2) * eps * s
    else:
        formed = torch.full_like(s, (d + 4) * eps * size)
        if kink or spread:  # near pairs are computed again from their differences
            near = s < (NEAR_FLOAT64 if double else NEAR_FLOAT32) * size
            formed = torch.where(near, (d + 4) * eps * s, formed)
    return formed + 2 * s.sqrt() * shift + shift**2


def _profile(kernel: ProfileKernel, x: Tensor, y: Tensor, eps: float, in_core: bool) -> Bound:
    statistic, d = kernel.statistic, kernel.coordinates(x[:1]).shape[-1]
    if Claim.STATIONARY in kernel.claims and len(y):
        middle = centre(y)
        x, y = x - middle, y - middle
    a, b = (_side(kernel, t, 1 if statistic is Statistic.L1_DISTANCE else 2) for t in (x, y))
    ends = torch.logspace(-12, 0, SAMPLES // 2, dtype=torch.float64), torch.linspace(0, 1, SAMPLES // 2).double()
    part, times, least = torch.cat(ends), 1, 0.0
    if statistic is Statistic.DOT:
        s, least = torch.cat([-part, part]) * a.norm * b.norm, -math.inf
        wrong = torch.full_like(s, eps * ((d + 2) * a.norm * b.norm + a.moved * b.norm + b.moved * a.norm))
    elif statistic is Statistic.L1_DISTANCE:
        s = part * (a.norm + b.norm)
        wrong = (d + 2) * eps * s + eps * (a.moved + b.moved)
    elif statistic is Statistic.PER_AXIS:
        s, times, least = torch.cat([-part, part]) * (a.norm + b.norm), d, -math.inf
        wrong = torch.full_like(s, eps * (a.moved + b.moved))
    else:
        s = (part * (a.norm + b.norm)).square()
        wrong = _of_distance(kernel, s, d, a, b, eps, in_core)
    value = kernel.profile(s)
    step = torch.maximum(
        (kernel.profile(s + wrong) - value).abs(), (kernel.profile((s - wrong).clamp_min(least)) - value).abs()
    )
    largest = float(value.abs().max())
    own = VALUES_OF.get(str((kernel.native() or ("",))[0]), VALUES) * eps * (value.abs() + largest / 10)
    return Bound(largest, times * float((step + own).max()))


def _angle(order: float, x: Tensor, y: Tensor, eps: float, in_core: bool) -> Bound:
    d = x.shape[-1]
    if order == 0:
        sine = (2 * (NEAR_FLOAT64 if eps < 1e-10 else NEAR_FLOAT32)) ** 0.5
        return Bound(1.0, (1 if in_core else 4) * (d + 4) * eps / sine + VALUES * eps)
    size = math.prod(float(t.norm(dim=-1).max()) if t.numel() else 0.0 for t in (x, y))
    return Bound(size, (2 * d + 12) * eps * size)


def _plus(parts: Sequence[Bound]) -> Bound:
    return Bound(sum(b.largest for b in parts), sum(b.error for b in parts))


def _times(parts: Sequence[Bound]) -> Bound:
    def join(a: Bound, b: Bound) -> Bound:
        return Bound(a.largest * b.largest, a.error * b.largest + b.error * (a.largest + a.error))

    return functools.reduce(join, parts)


def rounding(kernel: Kernel, x: Tensor, y: Tensor, eps: float, in_core: bool) -> Bound | None:
    """Of the entries of k on x, y: `n d`, `m d` in float64, computed with that eps.

    What a warp's own module rounds is not counted. None for kernels that are made of something else.
    """
    if isinstance(kernel, Sum | Product):
        parts = [rounding(cast(Kernel, part), x, y, eps, in_core) for part in kernel.parts]
        known = [part for part in parts if part is not None]
        if len(known) < len(parts):
            return None
        return _plus(known) if isinstance(kernel, Sum) else _times(known)
    if isinstance(kernel, Scaled):
        inner, factor = rounding(kernel.kernel, x, y, eps, in_core), float(kernel.variance)
        return inner and Bound(factor * inner.largest, factor * (inner.error + eps * inner.largest))
    if isinstance(kernel, Warped):
        return rounding(kernel.kernel, kernel.moved(x), kernel.moved(y), eps, in_core)
    program = kernel.program() or []
    if [step.op for step in program] == ["constant"]:
        value = abs(float(program[0].parameters[0]))
        return Bound(value, eps * value)
    angles = [float(step.parameters[0]) for step in program if step.op == "arccosine"]
    if angles:
        return _angle(angles[0], x, y, eps, in_core)
    if isinstance(kernel, ProfileKernel):
        return _profile(kernel, x, y, eps, in_core)
    return None


@bounds
@torch.no_grad()
def entry_error(request: Request, operator: Operator) -> float | None:
    """Relative to the largest of the diagonal; None where nothing is known."""
    dtype = request.x.points.dtype
    half = dtype not in (torch.float32, torch.float64)
    eps = torch.finfo(torch.float32 if half else dtype).eps
    x, y = (t.points.double().flatten(0, -2) for t in (request.x, request.y))
    in_core = isinstance(operator, Dense | Fused) and fusible(request.kernel, request.x.points)
    found = rounding(request.kernel, x, y, eps, in_core)
    if found is None:
        return None
    diagonal = float(request.kernel.diagonal(x).abs().max()) if len(x) else 0.0
    error = found.error / (diagonal or found.largest or 1.0)
    if getattr(operator, "pairs", None) is not None:  # an FFT's error is relative to the norm of a whole column
        size = sum(operator.shape[-2:])
        error += eps * math.log2(max(size, 2)) * size**0.5
    measured = getattr(operator, "error", 0.0)
    return error + (torch.finfo(dtype).eps if half else 0.0) + (measured if isinstance(measured, float) else 0.0)
