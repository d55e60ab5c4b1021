"""Products of thin float32 matrices by the quickest operation that this build of torch has."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable

import torch
from torch import Tensor

GAIN = 1.15  # how much quicker the other operation must be to be taken


def _plain(x: Tensor, y: Tensor) -> Tensor:
    return x @ y.mT


def _onednn(x: Tensor, y: Tensor) -> Tensor:
    # private to torch, hence the probe: several times quicker than the BLAS behind torch.mm on some processors
    return torch.ops.mkldnn._linear_pointwise(x, y, None, "none", [], "")


def _seconds(multiply: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor) -> float:
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        multiply(x, y)
        best = min(best, time.perf_counter() - start)
    return best


@functools.cache
def _quickest() -> Callable[[Tensor, Tensor], Tensor]:
    """Measured once, in about five milliseconds, on matrices of a tile's size."""
    x, y = (torch.arange(n * 12, dtype=torch.float32).reshape(n, 12) % 7 - 3 for n in (1024, 512))
    try:
        same = torch.equal(_onednn(x, y), _plain(x, y))  # whole numbers: no rounding
    except (AttributeError, RuntimeError, TypeError):
        return _plain  # this build has no such operation, or another signature
    return _onednn if same and GAIN * _seconds(_onednn, x, y) < _seconds(_plain, x, y) else _plain


def outer_products(x: Tensor, y: Tensor, out: Tensor | None = None) -> Tensor:
    """x y^T: `... n d, ... m d -> ... n m`. Not for autograd of the quicker operation: gradients are the caller's.

    out: where the plain product of two matrices goes, so that tile after tile stays in the caches.
    """
    plain = x.ndim != 2 or y.ndim != 2 or x.dtype != torch.float32 or x.device.type != "cpu" or not x.numel()
    if plain or not y.numel() or torch._C._are_functorch_transforms_active() or torch.is_grad_enabled():
        return _plain(x, y) if out is None or torch.is_grad_enabled() else torch.matmul(x, y.mT, out=out)
    multiply = _quickest()
    return torch.mm(x, y.mT, out=out) if multiply is _plain and out is not None else multiply(x, y)
