"""Convolutions by Fourier transforms: of the whole grid at once, or of one long axis piece by piece."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from scipy.fft import next_fast_len
from torch import Tensor

from mercer.operators.stencil import Stencil
from mercer.operators.stencil_direct import depthwise

SHORT, LINE = 256, 64  # transforms up to here have many good lengths; longer ones like whole cache lines of rows
PIECE = 8  # reaches of the taps in a piece of an axis, about where work for each point is least


def length(n: int) -> int:
    """A length >= n whose real transform is quick: with factors 2, 3 and 5, and 64 among them where it is long."""
    return next_fast_len(n, real=True) if n < SHORT else LINE * next_fast_len(-(-n // LINE), real=True)


def lengths(s: Stencil) -> tuple[int, ...]:
    """Room for what runs over one end, so that it does not come back at the other."""
    if s.wrap:
        return s.sizes
    zipped = zip(s.sizes, s.left, s.right, s.full, strict=True)
    return tuple(length(max(n + max(a, b), m)) for n, a, b, m in zipped)


def _axes(t: Tensor) -> list[int]:
    return list(range(2, t.ndim))


def _spread(t: Tensor, sizes: Sequence[int], steps: Sequence[int], starts: Sequence[int]) -> Tensor:
    """t with its points some steps apart on a periodic grid of these sizes, from these starts; what meets adds up."""
    for axis, (n, d, a) in enumerate(zip(sizes, steps, starts, strict=True), start=2):
        many = t.shape[axis]
        if d == 1 and a == 0 and many <= n:
            continue  # the transform adds the zeros
        at = (torch.arange(many, device=t.device) * d + a) % n
        shape = [n if i == axis else size for i, size in enumerate(t.shape)]
        t = t.new_zeros(shape).index_add(axis, at, t)
    return t


def _taps(w: Tensor, s: Stencil, n: Sequence[int]) -> Tensor:
    """The spectrum of the taps at (o dilation - left)."""
    held = _spread(w, n, s.dilation, [-a for a in s.left])
    return torch.fft.rfftn(held, s=list(n), dim=_axes(w))


def _mixed(x: Tensor, w: Tensor, groups: int, transposed: bool = False) -> Tensor:
    """Spectra `b in ...` times `out in/groups ...`, or `b out ...` times its transpose."""
    if w.shape[1] == 1 and w.shape[0] == groups:
        return x * w[:, 0]
    rest = x.shape[2:]
    a = x.reshape(x.shape[0], groups, -1, math.prod(rest))
    b = w.reshape(groups, -1, w.shape[1], math.prod(rest))
    found = torch.einsum("bgof,goif->bgif" if transposed else "bgif,goif->bgof", a, b)
    return found.reshape(x.shape[0], -1, *rest)


def _back(spectrum: Tensor, n: Sequence[int]) -> Tensor:
    return torch.fft.irfftn(spectrum, s=list(n), dim=_axes(spectrum))  # s: else an odd last axis comes back one short


def forward(x: Tensor, w: Tensor, s: Stencil) -> Tensor:
    n = lengths(s)
    seen = torch.fft.rfftn(x, s=list(n), dim=_axes(x))
    out = _back(_mixed(seen, _taps(w, s, n).conj(), s.groups), n)
    keep: tuple[Any, ...] = tuple(slice(0, m, step) for m, step in zip(s.full, s.stride, strict=True))
    return out[(Ellipsis, *keep)]


def input_grad(g: Tensor, w: Tensor, s: Stencil) -> Tensor:
    n, none = lengths(s), (0,) * len(s.sizes)
    seen = torch.fft.rfftn(_spread(g, n, s.stride, none), s=list(n), dim=_axes(g))
    out = _back(_mixed(seen, _taps(w, s, n), s.groups, True), n)
    keep: tuple[Any, ...] = tuple(slice(0, m) for m in s.sizes)
    return out[(Ellipsis, *keep)]


def _together(x: Tensor, g: Tensor, s: Stencil, shape: Sequence[int]) -> Tensor:
    """Spectra of x and g: what each tap of w gets, summed over the batch."""
    if shape[1] == 1 and shape[0] == s.groups:
        return (x * g.conj()).sum(0)[:, None]
    rest = x.shape[2:]
    a = x.reshape(x.shape[0], s.groups, -1, math.prod(rest))
    b = g.reshape(g.shape[0], s.groups, -1, math.prod(rest)).conj()
    return torch.einsum("bgif,bgof->goif", a, b).reshape(shape[0], shape[1], *rest)


def weight_grad(x: Tensor, g: Tensor, s: Stencil, shape: tuple[int, ...]) -> Tensor:
    n, none = lengths(s), (0,) * len(s.sizes)
    seen = torch.fft.rfftn(x, s=list(n), dim=_axes(x))
    answer = torch.fft.rfftn(_spread(g, n, s.stride, none), s=list(n), dim=_axes(g))
    found = _back(_together(seen, answer, s, shape), n)
    for axis, (size, k, d, a) in enumerate(zip(n, s.taps, s.dilation, s.left, strict=True), start=2):
        found = found.index_select(axis, (torch.arange(k, device=found.device) * d - a) % size)
    return found


class Pieces:
    """One axis in overlapping pieces (overlap-save): the work grows with log(taps) in place of log(points)."""

    @staticmethod
    def plan(s: Stencil) -> tuple[int, int]:
        """Points of a piece and of what it adds to the answer."""
        size = length(min(max(PIECE * s.reach[0], 64), s.padded[0]) + s.reach[0])
        return size, size - s.reach[0]

    @staticmethod
    def _cut(x: Tensor, size: int, step: int, many: int) -> Tensor:
        """x: b c n -> b c many size, pieces that begin a step apart, with zeros after the end."""
        gap = (many - 1) * step + size - x.shape[-1]
        return torch.nn.functional.pad(x, (0, max(gap, 0))).unfold(-1, size, step)[:, :, :many]

    @classmethod
    def forward(cls, x: Tensor, w: Tensor, s: Stencil) -> Tensor:
        size, step = cls.plan(s)
        many = -(-s.full[0] // step)
        pieces = torch.fft.rfft(cls._cut(s.pad(x), size, step, many), n=size)
        taps = torch.fft.rfft(_spread(w, (size,), s.dilation, (0,)), n=size).conj()
        mixed = _mixed(pieces, taps[..., None, :].expand(*taps.shape[:-1], many, -1), s.groups)
        out = torch.fft.irfft(mixed, n=size)[..., :step].flatten(-2)
        return out[..., : s.full[0] : s.stride[0]]

    @classmethod
    def input_grad(cls, g: Tensor, w: Tensor, s: Stencil) -> Tensor:
        wide = _spread(g, s.full, s.stride, (0,)) if s.stride[0] > 1 else g
        far, a = s.reach[0], s.left[0]
        back = Stencil(
            (wide.shape[-1],), s.taps, (far - a,), (s.sizes[0] + a - s.full[0],), (1,), s.dilation, s.groups
        )  # fmt: skip
        flipped = w.flip(-1)
        if not depthwise(w, s):
            grouped = flipped.reshape(s.groups, -1, *w.shape[1:])
            flipped = grouped.transpose(1, 2).reshape(-1, grouped.shape[1], *w.shape[2:])
        return cls.forward(wide, flipped, back)

    @classmethod
    def weight_grad(cls, x: Tensor, g: Tensor, s: Stencil, shape: tuple[int, ...]) -> Tensor:
        size, step = cls.plan(s)
        many = -(-s.full[0] // step)
        wide = _spread(g, s.full, s.stride, (0,)) if s.stride[0] > 1 else g
        pieces = torch.fft.rfft(cls._cut(s.pad(x), size, step, many), n=size)
        answers = torch.fft.rfft(cls._cut(wide, step, step, many), n=size)
        found = torch.fft.irfft(_together(pieces, answers, s, shape).sum(-2), n=size)
        return found[..., : s.reach[0] + 1 : s.dilation[0]]
