"""Arc-cosine kernels of order 0 and 1."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mercer.claims import PSD, Claim
from mercer.kernel import Kernel, Step
from mercer.kernels.chain import chain, off_zero
from mercer.numerics import squared_distance
from mercer.shapes import shapes
from mercer.statistic import Statistic


def _angle(s: Tensor) -> Tensor:
    """The angle between two unit vectors at squared distance s: accurate at both ends, unlike acos of their product."""
    return 2 * torch.atan2(s.clamp(0, 4).sqrt(), (4 - s).clamp_min(0).sqrt())


# As functions of s = |u - v|^2 = 2 - 2 cos(angle), so d(angle)/ds = 1 / (2 sin(angle)).
_ZERO = (
    lambda s: 1 - _angle(s) / math.pi,
    lambda s: off_zero(lambda p: -1 / (math.pi * p.sqrt()))(s * (4 - s)),  # 0 at opposite vectors as well
)


def _norm(x: Tensor) -> Tensor:
    """|x|, `... n 1`, with all derivatives 0 at the zero vector."""
    square = x.square().sum(-1, keepdim=True)
    return torch.where(square == 0, 0.0, torch.where(square == 0, 1.0, square).sqrt())


def _one(s: Tensor) -> Tensor:
    angle = _angle(s)
    return (torch.sin(angle) + (math.pi - angle) * torch.cos(angle)) / math.pi


_ONE = (_one, lambda s: -0.5 * _ZERO[0](s), lambda s: -0.5 * _ZERO[1](s))


def _directions(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """x / |x| and y / |y|; a zero vector stays, and so is at a right angle to all."""
    u, v = (torch.where(n == 0, 0.0, t / torch.where(n == 0, 1, n)) for t, n in ((x, _norm(x)), (y, _norm(y))))
    return u, u if y is x else v


def _norms(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    size = _norm(x)
    return size, size if y is x else _norm(y)


class ArcCosine(Kernel):
    """Arc-cosine kernel: (1 / pi) |x|^order |y|^order J(t), t the angle between x and y.

    J_0 = pi - t, J_1 = sin t + (pi - t) cos t: infinitely many random step (order 0) or ReLU (order 1) features,
    2 E[step(w.x) step(w.y) (w.x)^order (w.y)^order] for standard normal w; step(0) = 1/2 at the zero vector.
    order: 0 or 1.
    Claims: symmetric, psd, positive. Source [cho2009, sec. 2].
    """

    claims = PSD | {Claim.POSITIVE}

    def __init__(self, order: int = 1):
        super().__init__()
        if order not in (0, 1):
            raise ValueError(f"ArcCosine.order is {order}; expected 0 or 1")
        self.order = order

    @shapes("x: ... n d, y: ... m d -> ... n m")
    def block(self, x: Tensor, y: Tensor) -> Tensor:
        size_x, size_y = _norms(x, y)
        u, v = _directions(x, y)
        nonzero = (size_x != 0) & (size_y != 0).mT
        near, far = (squared_distance(u, w, kink=True) for w in (v, -v))
        opposite = nonzero & (near > 2)  # there the angle is what it lacks of pi: exact at that end as well
        s = torch.where(nonzero, torch.where(opposite, far, near), 2.0)
        if self.order == 0:
            found = chain(s, *_ZERO)
            return torch.where(opposite, 1 - found, found)
        found = chain(s, *_ONE)
        return size_x * size_y.mT * torch.where(opposite, found - 1 + s / 2, found)

    def diagonal(self, x: Tensor) -> Tensor:
        square = x.square().sum(-1)
        return torch.where(square > 0, 1.0, 0.5).to(x) if self.order == 0 else square

    def program(self) -> list[Step] | None:
        angle = Step("arccosine", (self.order,), Statistic.DOT, _directions)
        if self.order == 0:
            return [angle]
        return [angle, Step("identity", (), Statistic.DOT, _norms), Step("multiply")]
