"""Pivoted Cholesky: a low-rank piece of a psd operator from a few of its rows, and which rows they were."""

from __future__ import annotations

import torch
from torch import Tensor

from mercer.operator import Operator

STOP = 1e-12  # of the trace: what is left of the diagonal is rounding


def rows(k: Operator, index: Tensor) -> Tensor:
    """The chosen rows of an operator as a matrix, `len(index) m`."""
    part = k[index]
    return part if isinstance(part, Tensor) else part.dense()


@torch.no_grad()
def pivoted_cholesky(
    k: Operator, rank: int, random: bool = False, generator: torch.Generator | None = None, block: int = 1
) -> tuple[Tensor, Tensor]:
    """F: n r with F F^T close to K, and the r pivots; r <= rank, less where K is exhausted.

    Each pivot has the largest remaining diagonal, or is drawn in proportion to it (random). block: pivots drawn at
    once from the same diagonal (random only); a draw that has become redundant is rejected.
    Cost: rank rows of K and n rank^2 flops. Source [harbrecht2012, alg. 1], [chen2025, alg. 1], [epperly2024, alg. 3].
    """
    left = k.diagonal().clone()
    total, rank = float(left.sum()), min(rank, k.shape[-1])
    out, pivots = left.new_zeros(k.shape[-1], rank), left.new_zeros(rank, dtype=torch.long)
    done = 0
    while done < rank and float(left.sum()) > STOP * total:
        count = min(block if random else 1, rank - done, int((left > 0).sum()))
        drawn = torch.multinomial(left, count, generator=generator) if random else left.argmax().reshape(1)
        base, weight = done, left[drawn].clone()
        columns = (rows(k, drawn) - out[drawn, :base] @ out[:, :base].mT).mT
        luck = torch.rand(count, generator=generator, dtype=left.dtype) if random and count > 1 else None
        for step in range(count):
            chosen = drawn[step]
            if luck is not None and float(left[chosen]) < float(luck[step] * weight[step]):
                continue  # its neighbours in this draw already explain it
            column = columns[:, step] - out[:, base:done] @ out[chosen, base:done]
            pivots[done], out[:, done] = chosen, column / column[chosen].clamp_min(1e-30).sqrt()
            left = (left - out[:, done].square()).clamp_min_(0)
            left[chosen] = 0
            done += 1
    return out[:, :done], pivots[:done]
