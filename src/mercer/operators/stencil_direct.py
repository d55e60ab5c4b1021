"""Convolutions as sums over taps: torch's own, in either memory layout, by shifts, by one axis after the other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from mercer.operators.stencil import Stencil

CONV: dict[int, Callable[..., Tensor]] = {
    1: torch.nn.functional.conv1d,
    2: torch.nn.functional.conv2d,
    3: torch.nn.functional.conv3d,
}
LAST = {2: torch.channels_last, 3: torch.channels_last_3d}
WIDE = 7  # zeros on a side from which on torch's depthwise convolution on CPUs leaves its quick path


def depthwise(w: Tensor, s: Stencil) -> bool:
    """Whether each channel has its own taps and none other's."""
    return w.shape[1] == 1 and w.shape[0] == s.groups


def _torch(x: Tensor, w: Tensor, s: Stencil) -> Tensor:
    own = s.left == s.right and min(s.left) >= 0 and not (depthwise(w, s) and max(s.left) >= WIDE)
    padding = s.left if own else 0
    return CONV[len(s.sizes)](x if own else s.pad(x), w, None, s.stride, padding, s.dilation, s.groups)


def _backward(g: Tensor, x: Tensor, w: Tensor, s: Stencil, which: int) -> Tensor:
    none = [0] * len(s.sizes)
    mask = [which == 0, which == 1, False]
    found: Any = torch.ops.aten.convolution_backward(
        g, x, w, None, list(s.stride), none, list(s.dilation), False, none, s.groups, mask
    )
    return found[which]


def forward(x: Tensor, w: Tensor, s: Stencil) -> Tensor:
    return _torch(x, w, s)


def input_grad(g: Tensor, w: Tensor, s: Stencil) -> Tensor:
    """What the gradient g of y makes of x: the transposed map."""
    if depthwise(w, s) and max(s.stride) == 1:  # torch's own is slower, and far slower with many taps
        return _torch(g, w.flip(list(range(2, w.ndim))), turned(s))
    bare = s.bare()
    shape = (g.shape[0], w.shape[1] * s.groups, *bare.sizes)
    return s.cut(_backward(g, g.new_empty(1).expand(shape), w, bare, 0))


def turned(s: Stencil) -> Stencil:
    """The stencil of the transposed map of stride 1: taps in the opposite order."""
    left = tuple(r - a for r, a in zip(s.reach, s.left, strict=True))
    right = tuple(r - b for r, b in zip(s.reach, s.right, strict=True))
    return replace(s, sizes=s.full, left=left, right=right)


def weight_grad(x: Tensor, g: Tensor, s: Stencil, shape: tuple[int, ...]) -> Tensor:
    """What the gradient g of y makes of w."""
    wide, bare = s.pad(x), s.bare()
    if shape[1] == 1 and shape[0] == s.groups:  # g as taps: steps and dilations change places
        many = x.shape[0] * s.groups
        signal, taps = wide.reshape(1, many, *wide.shape[2:]), g.reshape(many, 1, *g.shape[2:])
        found = CONV[len(s.sizes)](signal, taps, None, s.dilation, 0, s.stride, many)
        keep: tuple[Any, ...] = tuple(slice(0, k) for k in s.taps)
        found = found[(Ellipsis, *keep)]
        return found.reshape(x.shape[0], s.groups, 1, *s.taps).sum(0)
    return _backward(g, wide, g.new_empty(1).expand(shape), bare, 1)


def channels_last(t: Tensor) -> Tensor:
    return t.contiguous(memory_format=LAST[t.ndim - 2])


class Layout:
    """The same sums with channels next to one another in memory; a single axis gets another beside it."""

    @staticmethod
    def _lift(s: Stencil, *tensors: Tensor) -> tuple[Stencil, list[Tensor]]:
        if len(s.sizes) == 1:
            s, tensors = s.lifted(), tuple(t.unsqueeze(2) for t in tensors)
        return s, [channels_last(t) for t in tensors]

    @staticmethod
    def _plain(t: Tensor, s: Stencil) -> Tensor:
        return (t.squeeze(2) if len(s.sizes) == 1 else t).contiguous()

    @classmethod
    def forward(cls, x: Tensor, w: Tensor, s: Stencil) -> Tensor:
        high, (a, b) = cls._lift(s, x, w)
        return cls._plain(forward(a, b, high), s)

    @classmethod
    def input_grad(cls, g: Tensor, w: Tensor, s: Stencil) -> Tensor:
        high, (a, b) = cls._lift(s, g, w)
        return cls._plain(input_grad(a, channels_last(b), high), s)

    @classmethod
    def weight_grad(cls, x: Tensor, g: Tensor, s: Stencil, shape: tuple[int, ...]) -> Tensor:
        high, (a, b) = cls._lift(s, x, g)
        wide = shape if high is s else (*shape[:2], 1, *shape[2:])
        if depthwise(g.new_empty(1).expand(wide), high):
            found = weight_grad(a.contiguous(), b.contiguous(), high, wide)
        else:
            found = weight_grad(a, b, high, wide)
        return cls._plain(found, s)


class Shifts:
    """Depthwise sums over the taps that are not zero for some channel."""

    @staticmethod
    def _taps(w: Tensor) -> list[tuple[int, ...]]:
        return [tuple(t) for t in (w != 0).any(0)[0].nonzero().tolist()]

    @staticmethod
    def _seen(tap: tuple[int, ...], s: Stencil) -> tuple[Any, ...]:
        zipped = zip(tap, s.dilation, s.out, s.stride, strict=True)
        return (Ellipsis, *(slice(o * d, o * d + (m - 1) * step + 1, step) for o, d, m, step in zipped))

    @classmethod
    def forward(cls, x: Tensor, w: Tensor, s: Stencil) -> Tensor:
        wide = s.pad(x)
        out = x.new_zeros(*x.shape[:2], *s.out)
        for tap in cls._taps(w):
            out.addcmul_(wide[cls._seen(tap, s)], column(w, tap))
        return out

    @classmethod
    def input_grad(cls, g: Tensor, w: Tensor, s: Stencil) -> Tensor:
        wide = g.new_zeros(*g.shape[:2], *s.padded)
        for tap in cls._taps(w):
            wide[cls._seen(tap, s)].addcmul_(g, column(w, tap))
        return s.cut(wide)


def column(w: Tensor, tap: tuple[int, ...]) -> Tensor:
    """One tap of every channel, to multiply a signal by."""
    at: tuple[Any, ...] = tap
    return w[(slice(None), 0, *at)].reshape(1, -1, *[1] * len(tap))


def factors(w: Tensor) -> list[Tensor] | None:
    """w: c 1 *taps as a product of one factor `c k` for each axis, or None where that is not so to rounding."""
    channels, axes = w.shape[0], w.ndim - 2
    flat = w.reshape(channels, -1)
    peak = flat.abs().argmax(1)
    top = flat.gather(1, peak[:, None])[:, 0]
    safe = torch.where(top == 0, torch.ones_like(top), top)
    found, rest = [], peak
    at: list[Tensor] = []
    for size in reversed(w.shape[2:]):
        at.insert(0, rest % size)
        rest = rest // size
    for axis in range(axes):
        line = w[:, 0].movedim(axis + 1, -1)
        others = [at[i] for i in range(axes) if i != axis]
        found.append(line[(torch.arange(channels, device=w.device), *others)] / (1 if axis == 0 else safe[:, None]))
    product = found[0].reshape(channels, -1)
    for factor in found[1:]:
        product = (product[:, :, None] * factor[:, None, :]).reshape(channels, -1)
    slack = 8 * torch.finfo(w.dtype).eps
    return found if bool(((product - flat).abs() <= slack * top.abs()[:, None]).all()) else None


class Separable:
    """Depthwise taps that are a product over axes: one axis after the other."""

    @staticmethod
    def forward(x: Tensor, w: Tensor, s: Stencil) -> Tensor:
        parts = factors(w)
        if parts is None:
            raise ValueError("method is 'separable'; the taps of some channel are no product over axes")
        axes = len(s.sizes)
        for axis in sorted(range(axes), key=lambda i: -s.stride[i]):
            own = [[1] * axes, [0] * axes, [0] * axes, [1] * axes, [1] * axes]
            for held, given in zip(own, (s.taps, s.left, s.right, s.stride, s.dilation), strict=True):
                held[axis] = given[axis]
            taps, left, right, stride, dilation = (tuple(v) for v in own)
            one = Stencil(tuple(x.shape[2:]), taps, left, right, stride, dilation, s.groups)
            x = _torch(x, parts[axis].reshape(-1, 1, *one.taps), one)
        return x

    @classmethod
    def input_grad(cls, g: Tensor, w: Tensor, s: Stencil) -> Tensor:
        return cls.forward(g, w.flip(list(range(2, w.ndim))), turned(s))
