"""Which algorithm a convolution takes: the least predicted seconds, for itself and for each of its gradients."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mercer.machine.rates import rates
from mercer.operators import stencil_fft
from mercer.operators.speed import NANO
from mercer.operators.stencil import Stencil
from mercer.operators.stencil_direct import depthwise, factors
from mercer.operators.transform import fft_flops

WORTH = 0.6  # of the best other's seconds: below, the values of taps are looked at for a quicker way
FEW, LOOK = 16, 1e-3  # taps, and seconds, from which on that may pay


def _transforms(count: float, n: tuple[int, ...], dtype: torch.dtype) -> float:
    return NANO * count * fft_flops(math.prod(n)) * rates()("conv.flop", dtype)


def _spectral(op: str, s: Stencil, b: int, i: int, o: int, dtype: torch.dtype) -> float:
    """Transforms of x, y and w, and what is multiplied between them."""
    n = stencil_fft.lengths(s)
    many = b * (i + o) + o * i // s.groups
    products = math.prod(n) / 2 * b * o * (i // s.groups)
    return _transforms(many, n, dtype) + NANO * products * _mixing(i, o, s, dtype)


def _mixing(i: int, o: int, s: Stencil, dtype: torch.dtype) -> float:
    return 0.0 if i == o == s.groups else rates()("conv.mix", dtype)


def _pieces(op: str, s: Stencil, b: int, i: int, o: int, dtype: torch.dtype) -> float:
    size, step = stencil_fft.Pieces.plan(s)
    many = -(-s.full[0] // step)
    if op == "input_grad":
        i, o = o, i
    products = size / 2 * many * b * o * (i // s.groups)
    count = many * b * (i + o) + o * i // s.groups
    return _transforms(count, (size,), dtype) + NANO * products * _mixing(i, o, s, dtype)


def predicted(op: str, x: Tensor, w: Tensor, s: Stencil) -> dict[str, float]:
    """Seconds of every method that serves this operation ("forward", "input_grad", "weight_grad"), on one thread."""
    rate = rates()
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    b, i, o = x.shape[0], w.shape[1] * s.groups, w.shape[0]
    single = depthwise(w, s)
    points = b * (i * math.prod(s.padded) + o * math.prod(s.out))
    sums = float(b) * o * (i // s.groups) * math.prod(s.out) * math.prod(s.taps)
    kind = "weight" if op == "weight_grad" else "tap"
    found = {}
    if single:
        found["direct"] = points * rate("conv.point", dtype) + sums * rate(f"conv.{kind}", dtype)
        found["channels_last"] = points * rate("conv.last.point", dtype) + sums * rate(f"conv.last.{kind}", dtype)
    else:
        found["direct"] = points * rate("conv.point", dtype) + sums * rate("conv.dense", dtype)
    call = NANO * rate("call", dtype) / 4
    found = {name: call + NANO * value for name, value in found.items()}
    transformable = x.dtype in (torch.float32, torch.float64)
    if transformable:
        found["fft"] = 2 * call + _spectral(op, s, b, i, o, dtype)
    if transformable and len(s.sizes) == 1 and not s.wrap and stencil_fft.Pieces.plan(s)[1] < s.full[0]:
        found["overlap"] = 3 * call + _pieces(op, s, b, i, o, dtype)
    return {"fft": found["fft"]} if s.wrap and transformable else found


def _by_values(op: str, x: Tensor, w: Tensor, s: Stencil, least: float) -> str | None:
    """Ways that the values of the taps allow, where they may pay."""
    if least < LOOK or math.prod(s.taps) < FEW or not depthwise(w, s) or op == "weight_grad":
        return None
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return None
    rate, b = rates(), x.shape[0]
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    numbers = b * w.shape[0] * math.prod(s.padded)
    call = NANO * rate("call", dtype)
    flipping = op == "forward" or max(s.stride) == 1
    lines = call * len(s.taps) + NANO * numbers * (
        2 * len(s.taps) * rate("conv.point", dtype) + sum(s.taps) * rate("conv.tap", dtype)
    )
    if flipping and len(s.taps) > 1 and lines < WORTH * least and factors(w) is not None:
        return "separable"
    each = call / 8 + NANO * numbers * rate("conv.shift", dtype)
    if 2 * each < WORTH * least and int((w != 0).any(0).sum()) * each < WORTH * least:
        return "shift"
    return None


def choose(op: str, x: Tensor, w: Tensor, s: Stencil, method: str) -> str:
    """The method to take. One that was named serves every operation that it can."""
    if method == "separable" and (op == "weight_grad" or (op == "input_grad" and max(s.stride) > 1)):
        method = "auto"
    if method == "shift" and op == "weight_grad":
        method = "auto"
    if method != "auto":
        return method
    seconds = predicted(op, x, w, s)
    best = min(seconds, key=lambda name: seconds[name])
    return _by_values(op, x, w, s, seconds[best]) or best
