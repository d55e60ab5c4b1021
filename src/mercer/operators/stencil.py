"""Where the taps of a convolution stand on a grid: sizes, padding, boundaries, in one to three axes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from mercer.errors import ShapeError

BOUNDARIES = ("zero", "circular", "reflect", "causal")


@dataclass(frozen=True)
class Stencil:
    """y(s) = sum over o of w(o) x(s stride + o dilation - left), x zero beyond its grid (periodic with `wrap`).

    sizes: of x; taps: of w; every field but groups and wrap holds one number for each axis.
    """

    sizes: tuple[int, ...]
    taps: tuple[int, ...]
    left: tuple[int, ...]
    right: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    wrap: bool = False

    @property
    def reach(self) -> tuple[int, ...]:
        """Grid steps from the first tap to the last."""
        return tuple(d * (k - 1) for d, k in zip(self.dilation, self.taps, strict=True))

    @property
    def padded(self) -> tuple[int, ...]:
        return tuple(n + a + b for n, a, b in zip(self.sizes, self.left, self.right, strict=True))

    @property
    def full(self) -> tuple[int, ...]:
        """Sizes of y at stride 1."""
        return tuple(n - r for n, r in zip(self.padded, self.reach, strict=True))

    @property
    def out(self) -> tuple[int, ...]:
        return tuple(-(-n // s) for n, s in zip(self.full, self.stride, strict=True))

    def bare(self) -> Stencil:
        """Of an x that holds its padding."""
        none = (0,) * len(self.sizes)
        return replace(self, sizes=self.padded, left=none, right=none)

    def lifted(self) -> Stencil:
        """With an axis of one point before the others."""
        one, none = (1,), (0,)
        return replace(
            self, sizes=one + self.sizes, taps=one + self.taps, left=none + self.left, right=none + self.right,
            stride=one + self.stride, dilation=one + self.dilation,
        )  # fmt: skip

    def pad(self, x: Tensor) -> Tensor:
        """x with its zeros around it; negative widths cut."""
        widths = [w for pair in zip(reversed(self.left), reversed(self.right), strict=True) for w in pair]
        return torch.nn.functional.pad(x, widths) if any(widths) else x

    def cut(self, x: Tensor) -> Tensor:
        """What lies inside the padding."""
        for axis, (n, a) in enumerate(zip(self.sizes, self.left, strict=True), start=2):
            x = x.narrow(axis, a, n)
        return x


def each(name: str, value: Any, axes: int, least: int) -> tuple[int, ...]:
    """One whole number for each axis. Raises ValueError naming the argument."""
    many = tuple(value) if isinstance(value, Sequence | torch.Size) and not isinstance(value, str) else (value,) * axes
    fine = len(many) == axes and all(isinstance(v, int) and not isinstance(v, bool) and v >= least for v in many)
    if not fine:
        raise ValueError(f"{name} is {value!r}; expected a whole number >= {least}, or one for each of {axes} axes")
    return many


def boundaries(value: Any, axes: int) -> tuple[str, ...]:
    many = (value,) * axes if isinstance(value, str) else tuple(value)
    if len(many) != axes or any(b not in BOUNDARIES for b in many):
        raise ValueError(f"boundary is {value!r}; expected one of {BOUNDARIES}, or one for each of {axes} axes")
    return many


def widths(
    padding: Any, reach: Sequence[int], stride: Sequence[int], boundary: Sequence[str]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Points beyond both ends of each axis: none ("valid"), as many as keep the grid ("same"), or those given.

    A causal axis has all of them before its beginning. Raises ValueError.
    """
    if padding == "same":
        total = list(reach)
    elif padding == "valid":
        total = [0] * len(reach)
    elif isinstance(padding, str):
        raise ValueError(f"padding is {padding!r}; expected 'same', 'valid' or whole numbers >= 0")
    else:
        total = [2 * p for p in each("padding", padding, len(reach), 0)]
    left = tuple(t if b == "causal" else t // 2 for t, b in zip(total, boundary, strict=True))
    return left, tuple(t - a for t, a in zip(total, left, strict=True))


def places(n: int, left: int, right: int, boundary: str, device: torch.device) -> Tensor:
    """Which point of an axis of n stands at each place of the axis and its padding."""
    at = torch.arange(-left, n + right, device=device)
    if boundary == "circular":
        return at % n
    period = max(2 * (n - 1), 1)  # reflect: the ends stand once
    return (n - 1) - ((at % period) - (n - 1)).abs()


def stencil(
    x: Tensor, weight: Tensor, stride: Any, padding: Any, dilation: Any, groups: int, boundary: Any
) -> tuple[Stencil, tuple[str, ...]]:
    """The stencil of a call, its padding as asked for, and the boundary of each axis. Raises ShapeError, ValueError."""
    axes = weight.ndim - 2
    if axes not in (1, 2, 3):
        raise ShapeError(f"weight has shape {tuple(weight.shape)}; expected out x in/groups x 1 to 3 axes of taps")
    if x.ndim not in (axes + 1, axes + 2):
        raise ShapeError(f"x has shape {tuple(x.shape)}; expected (batch) x in x {axes} grid axes, as weight has")
    if not isinstance(groups, int) or groups < 1 or weight.shape[0] % groups:
        raise ValueError(f"groups is {groups!r}; expected a divisor of weight.out = {weight.shape[0]}")
    if x.shape[-axes - 1] != groups * weight.shape[1]:
        raise ShapeError(
            f"x.in is {x.shape[-axes - 1]}, weight.in/groups {weight.shape[1]} with {groups} groups: expected "
            f"{groups * weight.shape[1]} channels"
        )
    kinds, taps = boundaries(boundary, axes), tuple(weight.shape[2:])
    steps, spread = each("stride", stride, axes, 1), each("dilation", dilation, axes, 1)
    reach = [d * (k - 1) for d, k in zip(spread, taps, strict=True)]
    left, right = widths(padding, reach, steps, kinds)
    found = Stencil(tuple(x.shape[-axes:]), taps, left, right, steps, spread, groups)
    if min(found.full) < 1 or min(taps) < 1 or min(found.sizes) < 1:
        beyond = f"the grid {found.sizes} padded to {found.padded}"
        raise ShapeError(f"weight has {taps} taps at dilation {spread}, which reach beyond {beyond}")
    return found, kinds
