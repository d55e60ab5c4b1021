"""A function of one pairwise statistic whose derivatives are given, so that they are right where autograd's are not.

Profiles such as (1 + r) exp(-r) with r = sqrt(s) are smooth at s = 0 although the square root is not. Each link of the
chain is the derivative of the one before it, so gradients of any order are finite and exact at coincident points.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Link = Callable[[Tensor], Tensor]


class _Chain(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(s: Tensor, links: tuple[Link, ...]) -> Tensor:
        return links[0](s)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, tuple[Link, ...]], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])
        ctx.links = inputs[1]

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        return g * chain(ctx.saved_tensors[0], *ctx.links[1:]), None


def chain(s: Tensor, *links: Link) -> Tensor:
    """links[0](s), with links[1](s) as its derivative, links[2](s) as the derivative of that, and so on.

    The last link is differentiated by autograd; it should be finite everywhere.
    """
    return links[0](s) if len(links) == 1 else _Chain.apply(s, links)


def off_zero(link: Link) -> Link:
    """The link where s > 0, and 0 with zero derivatives at s = 0.

    For derivatives that grow without bound at zero distance but are always multiplied by a difference that vanishes
    there: the product's limit is 0, and so is the convention.
    """

    def safe(s: Tensor) -> Tensor:
        positive = s > 0
        return torch.where(positive, link(torch.where(positive, s, 1.0)), 0.0)

    return safe
