"""Forward-mode derivatives: whether tensors carry them."""

from __future__ import annotations

from torch import Tensor
from torch.autograd import forward_ad


def dual(*tensors: Tensor | None) -> bool:
    """Whether forward-mode derivatives ride on any of these, which the core would lose."""
    if forward_ad._current_level < 0:
        return False
    return any(t is not None and forward_ad.unpack_dual(t).tangent is not None for t in tensors)
