"""Pivoted Cholesky: a low-rank piece of a psd operator from a few of its rows, and which rows they were."""

from __future__ import annotations

import torch
from torch import Tensor

from mercer.operator import Operator

ROUNDING = 8  # rounding of an entry of K, in eps; each column of F that is subtracted from it adds one more


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
    once from the same diagonal (random only); a draw that has become redundant is rejected. A pivot that is rounding,
    (r + 8) eps K_ii in the dtype of K, is refused.
    Cost: rank rows of K and n rank^2 flops. Source [harbrecht2012, alg. 1], [chen2025, alg. 1], [epperly2024, alg. 3].
    """
    diagonal = k.diagonal().clamp_min(0)
    left, rank = diagonal.clone(), min(rank, k.shape[-1])
    eps = torch.finfo(left.dtype).eps
    out, pivots = left.new_zeros(k.shape[-1], rank), torch.zeros(rank, dtype=torch.long, device=left.device)
    done = 0
    while done < rank and float(left.sum()) > 0:
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
            pivot, left[chosen] = float(column[chosen]), 0
            if pivot <= (done + ROUNDING) * eps * float(diagonal[chosen]):
                continue
            pivots[done], out[:, done] = chosen, column / pivot**0.5
            left = (left - out[:, done].square()).clamp_min_(0)
            left[chosen] = 0
            done += 1
        if done == base:
            break  # a whole draw was rounding
    return out[:, :done], pivots[:done]
