"""A second look at a learned kernel: fewer liberties, smoother, more or less noise, judged by leave-one-out error.

The likelihood of many lengthscales flatters itself on few rows. Pulling them together or stretching them costs one
eigendecomposition each, which gives the left-out predictions of every noise level in closed form.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from mercer.kernel import Kernel
from mercer.learn.tune import Clock, one_thread

ROWS = 1000
SHARES, STRETCH = (1.0, 0.5, 0.0), (1.0, 2.0, 4.0)
NOISES = (1e-2, 3e-2, 0.1, 0.3, 1.0, 3.0, 10.0)
GAIN = 0.99  # of the error: less is not worth a change
Judge = Callable[[Tensor, Tensor], float]


def _variants(kernel: Kernel) -> Iterator[Kernel]:
    """The kernel with its lengthscales pulled towards their geometric mean and stretched by common factors."""
    names = [n for n, p in kernel.named_parameters() if n.endswith("log_lengthscale") and p.requires_grad]
    own = any(p.numel() > 1 for n, p in kernel.named_parameters() if n in names)
    for share in SHARES if own else SHARES[:1]:
        for factor in STRETCH if names else STRETCH[:1]:
            found = copy.deepcopy(kernel)
            with torch.no_grad():
                for name, p in found.named_parameters():
                    if name in names:
                        middle = p.mean()
                        p.copy_(middle + share * (p - middle) + torch.log(torch.tensor(factor)))
            yield found


def refine(
    kernel: Kernel, noise: float, x: Tensor, y: Tensor, judge: Judge, clock: Clock, least: float
) -> tuple[Kernel, float]:
    """(kernel, noise) of the least judge(left-out predictions n c, rows) among variants; x: n d, y: n c, <= 1000 rows.

    Source [rasmussen2006, eq. 5.12].
    """
    best, chosen = float("inf"), (kernel, noise)
    for place, variant in enumerate(_variants(kernel)):
        if place and clock.over(0.6):
            break
        with torch.no_grad(), one_thread():
            values, vectors = torch.linalg.eigh(variant.block(x, x))
        turned = vectors.mT @ y
        for level in [noise, *[max(noise * a, least) for a in NOISES if a != 1.0]]:
            gain = 1 / (values.clamp_min(0) + level)
            weights = vectors @ (gain[:, None] * turned)
            error = judge(y - weights / (vectors.square() @ gain)[:, None], y)
            if error < best * (GAIN if best < float("inf") and best > 0 else 1.0):
                best, chosen = error, (variant, level)
    return chosen
