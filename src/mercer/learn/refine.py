"""A second look at a learned kernel: fewer liberties, smoother, more or less noise, judged by leave-one-out error.

The likelihood of many lengthscales flatters itself on few rows. Pulling them together or stretching them costs one
eigendecomposition each, which gives the left-out predictions of every noise level in closed form.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from mercer.kernel import Kernel
from mercer.learn.clock import Clock, one_thread
from mercer.learn.tune import Pair

ROWS = 1000
SHARES, STRETCH = (1.0, 0.5, 0.0), (1.0, 2.0, 4.0)
NOISES = (1e-2, 3e-2, 0.1, 0.3, 1.0, 3.0, 10.0)
FLAGS = (4.0, 16.0, 64.0)
GAIN = 0.01  # of the error: less is not worth a change
Judge = Callable[[Tensor, Tensor], float | Tensor]


def _better(errors: Tensor, best: Tensor) -> bool:
    """Whether errors are less by a hundredth and, row by row, by more than the chance that these rows were drawn.

    Without the second, few hard rows choose among kernels that all others find worse.
    """
    gain = best - errors
    chance = float(gain.std()) / math.sqrt(len(gain)) if len(gain) > 1 else 0.0
    return float(gain.mean()) > max(GAIN * float(best.mean()), chance)


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


def _softer_flags(kernel: Kernel, x: Tensor) -> Iterator[Kernel]:
    """The kernel with the lengthscales of two-valued columns stretched.

    The likelihood likes to set rare rows apart by a flag, such as that a value was missing, as a stand-in for their
    larger noise; it then predicts them from each other alone.
    """
    flags = torch.tensor([len(column.unique()) <= 2 for column in x.mT])
    for factor in FLAGS if bool(flags.any()) and not bool(flags.all()) else ():
        found = copy.deepcopy(kernel)
        with torch.no_grad():
            for name, p in found.named_parameters():
                if name.endswith("log_lengthscale") and p.shape == flags.shape:
                    p[flags] += math.log(factor)
        yield found


def refine(
    kernel: Kernel,
    noise: float,
    x: Tensor,
    y: Tensor,
    judge: Judge,
    clock: Clock,
    least: float,
    flags_only: bool = False,
    known: Sequence[Pair] = (),
    share: Tensor | None = None,
    truth: Tensor | None = None,
) -> tuple[Kernel, float]:
    """(kernel, noise) of the least judge(left-out predictions n c, rows) among variants; x: n d, y: n c, <= 1000 rows.

    judge: the error of each row, or one for all. A variant must beat the best so far by more than chance.
    share: of the noise, `n`, where rows are means of twins, which are so left out together; truth: what is judged.
    flags_only: leave the noise and everything but two-valued columns as the likelihood of more rows has them.
    known: kernels with noises of their own that are judged as well, however late it is.
    Source [rasmussen2006, eq. 5.12].
    """
    d = torch.ones(len(x), 1, dtype=torch.float64) if share is None else share[:, None].rsqrt()
    best: Tensor | None = None
    chosen = (kernel, noise)
    free = [kernel] if flags_only else _variants(kernel)
    noises = [noise] if flags_only else [noise, *[max(noise * a, least) for a in NOISES if a != 1.0]]
    own = [(variant, [level]) for variant, level in known]
    more = ((variant, noises) for variant in itertools.chain(free, _softer_flags(kernel, x)))
    first = itertools.islice(more, 1)
    for place, (variant, levels) in enumerate(itertools.chain(first, own, more)):
        if place > len(own) and clock.over(0.6):
            break
        with torch.no_grad(), one_thread():
            values, vectors = torch.linalg.eigh(d * variant.block(x, x) * d.mT)
        turned = vectors.mT @ (d * y)
        for level in levels:
            gain = 1 / (values.clamp_min(0) + level)
            weights = vectors @ (gain[:, None] * turned)
            left_out = y - weights / (d * (vectors.square() @ gain)[:, None])
            found = judge(left_out, y if truth is None else truth)
            errors = torch.as_tensor(found, dtype=torch.float64).reshape(-1)
            if best is None or _better(errors, best):
                best, chosen = errors, (variant, level)
    return chosen
