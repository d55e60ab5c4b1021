"""KernelConv: a stationary kernel on a regular grid, applied as a convolution."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from scipy.fft import next_fast_len
from torch import Tensor, nn

from mercer.claims import Claim
from mercer.errors import ShapeError, StructureError
from mercer.kernel import Kernel

DIRECT_OFFSETS = 64  # up to here a direct sum beats the transforms
_CONV = {1: nn.functional.conv1d, 2: nn.functional.conv2d, 3: nn.functional.conv3d}


class KernelConv(nn.Module):
    """The kernel operator on a regular grid: out(s) = weight sum_o k(o spacing, 0) x(s - o), offsets |o| <= reach.

    kernel: stationary; it stays live, so its lengthscale trains. spacing: > 0, one number per grid axis, in the units
    of the lengthscale; its length d is the number of grid axes. reach: grid steps per axis, or None for the whole grid.
    boundary: "zero" (nothing beyond the grid) or "circular" (periodic; with reach None each point acts once, from its
    nearest image, half way round half from either side). weight: of one grid point, default prod(spacing).
    method: "direct" (d <= 3), "fft" or "auto". Every leading axis of x is a batch axis.
    Cost: direct 2 prod(2 reach + 1) flops a point; fft about 10 log2(points). Raises StructureError if k is not
    stationary.
    """

    def __init__(
        self,
        kernel: Kernel,
        spacing: float | Sequence[float] = 1.0,
        reach: int | Sequence[int] | None = None,
        boundary: str = "zero",
        weight: float | None = None,
        method: str = "auto",
    ):
        super().__init__()
        if Claim.STATIONARY not in kernel.claims:
            raise StructureError(f"KernelConv needs a stationary kernel, {kernel!r} depends on more than x - y")
        self.kernel = kernel
        self.spacing = (float(spacing),) if isinstance(spacing, int | float) else tuple(float(s) for s in spacing)
        d = len(self.spacing)
        self.reach = None if reach is None else (reach,) * d if isinstance(reach, int) else tuple(reach)
        if not self.spacing or min(self.spacing) <= 0:
            raise ValueError(f"spacing is {spacing}; expected numbers > 0, one per grid axis")
        if self.reach is not None and (len(self.reach) != d or min(self.reach) < 0):
            raise ValueError(f"reach is {reach}; expected None or whole numbers >= 0 for each of {d} axes")
        if boundary not in ("zero", "circular"):
            raise ValueError(f"boundary is {boundary!r}; expected 'zero' or 'circular'")
        if method not in ("auto", "direct", "fft") or (method == "direct" and d > 3):
            raise ValueError(f"method is {method!r}; expected 'auto', 'fft', or 'direct' for up to 3 grid axes")
        self.boundary, self.method = boundary, method
        self.weight = math.prod(self.spacing) if weight is None else float(weight)

    def _window(self, sizes: Sequence[int]) -> tuple[int, ...]:
        """The largest offset along each axis."""
        if self.boundary == "circular":
            return tuple(n // 2 for n in sizes) if self.reach is None else self.reach
        full = tuple(n - 1 for n in sizes)
        return full if self.reach is None else tuple(min(r, f) for r, f in zip(self.reach, full, strict=True))

    def taps(self, sizes: Sequence[int], like: Tensor) -> Tensor:
        """weight k(o spacing, 0) for every offset o of a grid of these sizes, axis i from -reach_i to reach_i."""
        window = self._window(sizes)
        axes = [torch.arange(-r, r + 1, dtype=torch.float64) * h for r, h in zip(window, self.spacing, strict=True)]
        offsets = torch.cartesian_prod(*axes).reshape(-1, len(axes)).to(dtype=like.dtype, device=like.device)
        values = self.kernel.block(offsets, torch.zeros_like(offsets[:1]))[..., 0]
        found = self.weight * values.reshape([2 * r + 1 for r in window])
        if self.boundary == "circular" and self.reach is None:
            for axis, n in enumerate(sizes):
                if n % 2 == 0:  # half way round is reached from both sides
                    share = torch.ones(n + 1, dtype=like.dtype, device=like.device)
                    share[0] = share[-1] = 0.5
                    found = found * share.reshape([-1 if i == axis else 1 for i in range(len(sizes))])
        return found

    def forward(self, x: Tensor) -> Tensor:
        """x: ... *sizes -> ... *sizes, the last d axes being the grid."""
        d = len(self.spacing)
        if x.ndim < d:
            raise ShapeError(f"x has shape {tuple(x.shape)}; expected {d} grid axes at the end, one per spacing")
        sizes = x.shape[x.ndim - d :]
        if not x.numel():
            return x
        working = x.to(torch.float32) if x.dtype in (torch.float16, torch.bfloat16) else x
        taps = self.taps(sizes, working)
        small = d <= 3 and taps.numel() <= DIRECT_OFFSETS
        direct = self.method == "direct" or (self.method == "auto" and small)
        flat = working.reshape(-1, 1, *sizes)
        out = self._direct(flat, taps) if direct else self._fft(flat, taps)
        return out.reshape(x.shape).to(x.dtype)

    def _direct(self, x: Tensor, taps: Tensor) -> Tensor:
        sizes, reach = x.shape[2:], [(t - 1) // 2 for t in taps.shape]
        for axis, (n, r) in enumerate(zip(sizes, reach, strict=True), start=2):
            if self.boundary == "circular":
                x = x.index_select(axis, torch.arange(-r, n + r, device=x.device) % n)
        padding = 0 if self.boundary == "circular" else tuple(reach)
        flipped = taps.flip(list(range(taps.ndim)))[None, None]  # torch correlates; a convolution runs backwards
        return _CONV[taps.ndim](x, flipped, padding=padding)

    def _fft(self, x: Tensor, taps: Tensor) -> Tensor:
        sizes, reach = x.shape[2:], [(t - 1) // 2 for t in taps.shape]
        axes = list(range(2, x.ndim))
        if self.boundary == "circular":
            length = list(sizes)
        else:  # room for what runs over one end, so that it does not come back at the other
            length = [next_fast_len(n + r, real=True) for n, r in zip(sizes, reach, strict=True)]
        kernel = taps
        for axis, (n, r) in enumerate(zip(length, reach, strict=True)):
            at = torch.arange(-r, r + 1, device=x.device) % n
            shape = [n if i == axis else size for i, size in enumerate(kernel.shape)]
            kernel = kernel.new_zeros(shape).index_add(axis, at, kernel)
        spectrum = torch.fft.rfftn(x, s=length, dim=axes) * torch.fft.rfftn(kernel)
        out = torch.fft.irfftn(spectrum, s=length, dim=axes)  # s: without it an odd last axis comes back one short
        return out[(..., *(slice(0, n) for n in sizes))]

    def extra_repr(self) -> str:
        return f"spacing={self.spacing}, reach={self.reach}, boundary={self.boundary!r}, method={self.method!r}"
