"""conv: convolutions of any size in one to three axes, by the algorithm that is quickest for their shape."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from mercer.errors import ShapeError
from mercer.operators import stencil_direct, stencil_fft, stencil_plan
from mercer.operators.stencil import Stencil, places, stencil

METHODS: dict[str, Any] = {
    "direct": stencil_direct, "channels_last": stencil_direct.Layout, "fft": stencil_fft,
    "overlap": stencil_fft.Pieces, "separable": stencil_direct.Separable, "shift": stencil_direct.Shifts,
}  # fmt: skip


HALF = (torch.float16, torch.bfloat16)


def _run(op: str, a: Tensor, b: Tensor, like: Tensor, s: Stencil, method: str, *more: Any) -> Tensor:
    name = stencil_plan.choose(op, a, like, s, method) if a.numel() else "direct"  # transforms refuse empty batches
    if name == "channels_last" and torch._C._are_functorch_transforms_active():
        name = "direct"  # vmap knows one layout
    if name in ("fft", "overlap") and a.dtype in HALF:
        return getattr(METHODS[name], op)(a.float(), b.float(), s, *more).to(a.dtype)
    return getattr(METHODS[name], op)(a, b, s, *more)


class _Correlate(torch.autograd.Function):
    """y(s) = sum over o of w(o) x(s stride + o dilation - left); its gradients are maps of the same kind."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, w: Tensor, s: Stencil, method: str) -> Tensor:
        return _run("forward", x, w, w, s, method)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Stencil, str], output: Tensor) -> None:
        x, w, ctx.s, ctx.method = inputs
        ctx.save_for_backward(x, w)
        ctx.save_for_forward(x, w)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        x, w = ctx.saved_tensors
        gx = _InputGrad.apply(g, w, ctx.s, ctx.method) if ctx.needs_input_grad[0] else None
        gw = _WeightGrad.apply(x, g, ctx.s, tuple(w.shape), ctx.method) if ctx.needs_input_grad[1] else None
        return gx, gw, None, None

    @staticmethod
    def jvp(ctx: Any, tx: Tensor, tw: Tensor, *_: None) -> Tensor:
        x, w = ctx.saved_tensors
        return _Correlate.apply(tx, w, ctx.s, ctx.method) + _Correlate.apply(x, tw, ctx.s, ctx.method)


class _InputGrad(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(g: Tensor, w: Tensor, s: Stencil, method: str) -> Tensor:
        return _run("input_grad", g, w, w, s, method)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Stencil, str], output: Tensor) -> None:
        g, w, ctx.s, ctx.method = inputs
        ctx.save_for_backward(g, w)

    @staticmethod
    def backward(ctx: Any, x: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        g, w = ctx.saved_tensors
        gg = _Correlate.apply(x, w, ctx.s, ctx.method) if ctx.needs_input_grad[0] else None
        gw = _WeightGrad.apply(x, g, ctx.s, tuple(w.shape), ctx.method) if ctx.needs_input_grad[1] else None
        return gg, gw, None, None


class _WeightGrad(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, g: Tensor, s: Stencil, shape: tuple[int, ...], method: str) -> Tensor:
        return _run("weight_grad", x, g, x.new_empty(1).expand(shape), s, method, shape)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Stencil, tuple[int, ...], str], output: Tensor) -> None:
        x, g, ctx.s, _, ctx.method = inputs
        ctx.save_for_backward(x, g)

    @staticmethod
    def backward(ctx: Any, w: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        x, g = ctx.saved_tensors
        gx = _InputGrad.apply(g, w, ctx.s, ctx.method) if ctx.needs_input_grad[0] else None
        gg = _Correlate.apply(x, w, ctx.s, ctx.method) if ctx.needs_input_grad[1] else None
        return gx, gg, None, None, None


def conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = "same",
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    *,
    boundary: str | Sequence[str] = "zero",
    method: str = "auto",
) -> Tensor:
    """y(s) = bias + sum over taps o of weight(o) x(s stride + o dilation - left), torch's convNd of 1 to 3 axes.

    x: (b) in *sizes; weight: out in/groups *taps; bias: out. padding: "same", "valid", or points at each end of an
    axis. boundary: what x is beyond its grid, for each axis: "zero", "circular", "reflect", or "causal": zeros, all of
    them before the first point. method: "auto" (the least predicted seconds, for each gradient too; `conv_plan` shows
    them), "direct", "channels_last", "fft", "overlap" (one axis), and for one channel a group "separable" (taps that
    are products over axes) and "shift" (few taps that are not zero).
    Cost: direct 2 prod(taps) flops for each entry of y and channel of a group; by transforms 5 log2(points) or so.
    Error: float rounding; of transforms absolute, a few eps |x| |weight|. Half precision is transformed in float32.
    Raises ShapeError for sizes that do not fit, ValueError for other arguments.
    """
    s, kinds = stencil(x, weight, stride, padding, dilation, groups, boundary)
    if method != "auto" and method not in METHODS:
        raise ValueError(f"method is {method!r}; expected 'auto' or one of {tuple(METHODS)}")
    _serves(method, x, weight, s)
    if bias is not None and tuple(bias.shape) != (weight.shape[0],):
        raise ShapeError(f"bias has shape {tuple(bias.shape)}; expected ({weight.shape[0]},), one for each weight.out")
    batch = x if x.ndim == weight.ndim else x[None]
    if all(b == "circular" for b in kinds) and padding == "same":
        round_ = replace(s, wrap=True)
        if stencil_plan.choose("forward", batch, weight, round_, method) == "fft":
            return _shaped(_Correlate.apply(batch, weight, round_, "fft"), bias, x, weight)
    for axis, (n, a, b, kind) in enumerate(zip(s.sizes, s.left, s.right, kinds, strict=True), start=2):
        if kind in ("circular", "reflect") and a + b:
            batch = batch.index_select(axis, places(n, a, b, kind, x.device))
    s = s if batch.shape[2:] == s.sizes else _held(s, kinds)
    return _shaped(_Correlate.apply(batch, weight, s, method), bias, x, weight)


def conv_plan(
    x: Tensor,
    weight: Tensor,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = "same",
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    *,
    boundary: str | Sequence[str] = "zero",
) -> dict[str, dict[str, float]]:
    """What `conv` would take: predicted seconds of each method, best first, for itself and both gradients.

    Arguments as in conv; x and weight are not read, so tensors on the device "meta" do. Seconds are of one thread.
    """
    s, _ = stencil(x, weight, stride, padding, dilation, groups, boundary)
    batch = x if x.ndim == weight.ndim else x[None]
    found = {op: stencil_plan.predicted(op, batch, weight, s) for op in ("forward", "input_grad", "weight_grad")}
    return {op: dict(sorted(seconds.items(), key=lambda pair: pair[1])) for op, seconds in found.items()}


def _held(s: Stencil, kinds: Sequence[str]) -> Stencil:
    """The stencil where x holds the padding of its circular and reflected axes."""
    here = [kind in ("circular", "reflect") for kind in kinds]
    choose = [
        (n + a + b, 0, 0) if inside else (n, a, b)
        for n, a, b, inside in zip(s.sizes, s.left, s.right, here, strict=True)
    ]
    sizes, left, right = (tuple(v) for v in zip(*choose, strict=True))
    return replace(s, sizes=sizes, left=left, right=right)


def _serves(method: str, x: Tensor, weight: Tensor, s: Stencil) -> None:
    """Raise TypeError for numbers that do not go together, ValueError for a method that is not for these taps."""
    if x.dtype != weight.dtype or not x.dtype.is_floating_point:
        raise TypeError(f"x is {x.dtype}, weight {weight.dtype}: expected one real floating type (no complex numbers)")
    if method == "overlap" and len(s.sizes) > 1:
        raise ValueError(f"method 'overlap' is for one axis, weight has {len(s.sizes)}: take 'fft'")
    if method in ("separable", "shift") and not stencil_direct.depthwise(weight, s):
        raise ValueError(f"method {method!r} is for one channel a group, weight has shape {tuple(weight.shape)}")


def _shaped(y: Tensor, bias: Tensor | None, x: Tensor, weight: Tensor) -> Tensor:
    if bias is not None:
        y = y + bias.reshape(-1, *[1] * (weight.ndim - 2))
    return y if x.ndim == weight.ndim else y[0]
