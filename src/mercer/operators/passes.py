"""Products of one-statistic kernels in torch where no gradient is wanted: points prepared once, one buffer each."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from mercer.budget import memory_budget
from mercer.kernel import Kernel, ProfileKernel
from mercer.machine.threads import Stop, run
from mercer.numerics.distance import Pairs
from mercer.numerics.elementary import LOG2_E
from mercer.numerics.forward import dual
from mercer.numerics.matmul import outer_products
from mercer.statistic import Statistic

SQUARED = {Statistic.SQUARED_DISTANCE: False, Statistic.DISTANCE: True}  # and whether the profile has a kink
STRIPES = 16  # threads at most


def copies(x: Tensor, y: Tensor) -> int:
    """Bytes of the points as `product` prepares them: moved, scaled, and packed with their norms."""
    return (x.shape[-2] + y.shape[-2]) * (3 * x.shape[-1] + 4) * x.element_size()


def servable(kernel: Kernel, *tensors: Tensor) -> bool:
    """Whether `product` does it: one statistic, no batch, no gradient, outside torch.func, room for copies."""
    if not isinstance(kernel, ProfileKernel) or kernel.statistic not in (*SQUARED, Statistic.DOT):
        return False
    if any(t.ndim != 2 or t.dtype not in (torch.float32, torch.float64) for t in tensors):
        return False
    if len({t.dtype for t in tensors}) > 1 or torch._C._are_functorch_transforms_active():
        return False
    if 2 * copies(tensors[0], tensors[1]) > memory_budget() or dual(*tensors, *kernel.parameters()):
        return False
    return not torch.is_grad_enabled() or not any(t.requires_grad for t in (*tensors, *kernel.parameters()))


@torch.no_grad()
def product(kernel: ProfileKernel, x: Tensor, y: Tensor, v: Tensor, height: int, width: int) -> Tensor:
    """k(x, y) v in tiles of height x width: x `n d`, y `m d`, v `m r` -> `n r`."""
    u, w = kernel._points(x, y)
    pairs = Pairs(u, w, SQUARED[kernel.statistic]) if kernel.statistic in SQUARED else None
    op, *numbers = kernel.native() or (None,)
    factor = float(numbers[0]) * LOG2_E if op == "exponential" and pairs is not None else None
    n, m = len(u), len(w)
    out, stop = v.new_zeros(n, v.shape[-1]), Stop()

    def stripes(starts: range) -> None:
        with torch.no_grad():  # a setting of each thread
            buffer = v.new_empty(height * width)
            for i in starts:
                rows = slice(i, min(i + height, n))
                total = torch.zeros(rows.stop - i, v.shape[-1], dtype=torch.float64, device=v.device)
                for j in range(0, m, width):
                    if stop:
                        return
                    cols = slice(j, min(j + width, m))
                    high, wide = rows.stop - i, cols.stop - j
                    tile = buffer[: high * wide].view(high, wide)
                    s = outer_products(u[rows], w[cols], tile) if pairs is None else pairs.tile(rows, cols, tile)
                    block = kernel.profile(s) if factor is None else s.mul_(factor).exp2_()
                    total += block @ v[cols]
                out[rows] = total

    starts = range(0, n, height)
    size = max(-(-len(starts) // STRIPES), 1)
    tasks = [functools.partial(stripes, starts[k : k + size]) for k in range(0, len(starts), size)]
    run(tasks, stop, inline=len(tasks) < 2 or torch.get_num_threads() < 2 or v.device.type != "cpu")
    return out
