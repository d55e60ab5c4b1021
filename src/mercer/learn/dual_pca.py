"""Kernel PCA by dualisation: no eigenvectors of the Gram matrix, rows that bear outliers, few rows that bear all.

W = sum_i h_i phi_i^T (s directions in feature space, one row h_i of H for each row of the table) is the polar factor of
the gradient of a convex objective of its projections y_i = W phi_i. Iterating H <- g(Y), Y = K H (H^T K H)^(-1/2)
climbs that objective (difference of convex functions); losses differ in the factor g that scales the rows of Y.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mercer.claims import PSD, Claims
from mercer.operator import Cost, Operator

TINY = 1e-12  # of the largest eigenvalue of H^T K H: directions below it are rounding
STARTS, TRIAL = 12, 15  # random starts of a loss with several optima, and steps after which the best one goes on
SETTLED = 1e-6  # of the weights of the spatial median: what moves in its last step
KEPT = 0.75  # of the rows, those nearest to a space, say which start goes on
NEAR = 0.02  # of the median length: where a residual begins to count linearly while starts compete


class Centred(Operator):
    """D (I - 1 c^T) K (I - c 1^T) D: the Gram of rows d_i (phi_i - sum_j c_j phi_j), with sum c = 1 and D = diag(d).

    Cost: that of K, and 4 n operations for each column.
    """

    claims: Claims = PSD

    def __init__(self, k: Operator, centre: Tensor, lengths: Tensor | None = None):
        self.k, self.c, self.d = k, centre[:, None], None if lengths is None else lengths[:, None]
        self.shape, self.dtype, self.device = k.shape, k.dtype, k.device

    def spread(self, v: Tensor) -> Tensor:
        """The coefficients of the phi_i: (I - c 1^T) D v."""
        v = v if self.d is None else self.d * v
        return v - self.c * v.sum(-2, keepdim=True)

    def matmul(self, v: Tensor) -> Tensor:
        w = self.k.matmul(self.spread(v))
        w = w - (self.c * w).sum(-2, keepdim=True)
        return w if self.d is None else self.d * w

    @property
    def mT(self) -> Operator:
        return self

    def cost(self, rhs: int = 1) -> Cost:
        return self.k.cost(rhs) + Cost(0, 6.0 * self.shape[-1] * rhs, 0)

    def dense(self) -> Tensor:
        k = self.k.dense()
        side = k @ self.c
        k = k - side - side.mT + (self.c * side).sum()
        return k if self.d is None else self.d * k * self.d.mT

    def diagonal(self) -> Tensor:
        side = self.k.matmul(self.c)
        found = self.k.diagonal() - 2 * side[:, 0] + (self.c * side).sum()
        found = found.clamp_min(0.0)
        return found if self.d is None else self.d[:, 0].square() * found


@dataclass(frozen=True)
class Dual:
    """Orthonormal directions W = sum_i basis_i phi_i: basis `n s`, and each row's factor g `n`.

    projections: W phi_i, `n s`; value: the objective (larger is better); change: sine of the last turn of the space.
    """

    basis: Tensor
    projections: Tensor
    factors: Tensor
    value: float
    threshold: float
    change: float
    iterations: int
    converged: bool


@dataclass(frozen=True)
class Loss:
    """What the sum over rows of f(y_i) is made of. name: square, huber, capped or epsilon; squares: |phi_i|^2, `n`.

    square: |y|^2 / 2. huber: minus Huber's function of the residual (|phi|^2 - |y|^2)^(1/2): rows far from the space
    count linearly. capped: Huber's function of |y|. epsilon: (|y| - epsilon)_+^2 / 2: rows of small |y| have g = 0.
    """

    name: str
    threshold: float
    squares: Tensor

    def __call__(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """(g `... n`, the objective `...`) for projections `... n s`; each f is convex in W, and its slope is g y."""
        t, seen = self.threshold, y.square().sum(-1)
        if self.name == "square":
            return torch.ones_like(seen), seen.sum(-1) / 2
        if self.name == "huber":
            miss = (self.squares - seen).clamp_min(0.0).sqrt()
            value = torch.where(miss <= t, miss.square() / 2, t * miss - t * t / 2)
            return t / miss.clamp_min(t), -value.sum(-1)
        length = seen.sqrt()
        if self.name == "capped":
            value = torch.where(length <= t, seen / 2, t * length - t * t / 2)
            return t / length.clamp_min(t), value.sum(-1)
        beyond = (length - t).clamp_min(0.0)
        return beyond / length.clamp_min(1e-300), beyond.square().sum(-1) / 2

    def trimmed(self, y: Tensor) -> Tensor:
        """Minus the sum of the smallest three quarters of residuals, `... n s -> ...`: what outliers cannot move."""
        miss = (self.squares - y.square().sum(-1)).clamp_min(0.0).sqrt()
        return -miss.sort(-1).values[..., : max(1, int(KEPT * miss.shape[-1]))].sum(-1)


def _whiten(a: Operator, h: Tensor) -> tuple[Tensor, Tensor]:
    """(Y = A H R, R = (H^T A H)^(-1/2)) for each of the starts h: b n s, in one product."""
    b, n, s = h.shape
    g = a.matmul(h.permute(1, 0, 2).reshape(n, b * s)).reshape(n, b, s).permute(1, 0, 2)
    inner = h.mT @ g
    values, u = torch.linalg.eigh((inner + inner.mT) / 2)
    live = values > TINY * values[:, -1:].clamp_min(1e-300)
    root = torch.where(live, values.clamp_min(1e-300).rsqrt(), 0.0)
    r = (u * root[:, None]) @ u.mT
    return g @ r, r


@torch.no_grad()
def climb(a: Operator, loss: Loss, start: Tensor, tolerance: float, most: int) -> Dual:
    """Steps from `start` (b n s) until the space turns by less than tolerance, or `most` of them.

    Of several starts the one goes on that, after a few steps, lies nearest to most rows. Each step goes a little
    further in the direction of the last one, and forgets it when the objective falls.
    """
    h = last = start
    best, old, speed, change, step = torch.full((len(start),), -torch.inf, dtype=start.dtype), None, 1.0, 1.0, 0
    while True:
        step += 1
        y, r = _whiten(a, h)
        factors, value = loss(y)
        if len(h) > 1 and step >= TRIAL:
            at = int(loss.trimmed(y).argmax())
            h, y, r, factors, value = (v[at : at + 1] for v in (h, y, r, factors, value))
            last, best, speed, old = h, value, 1.0, None
        if old is not None:
            turn = torch.linalg.svdvals(r @ (h.mT @ old))  # cosines between this space and the last one
            rank = int(torch.linalg.matrix_rank(r[0]))  # of rows that do not span s directions
            change = float((1 - turn[:, max(rank, 1) - 1].square()).clamp_min(0.0).sqrt().max())
        if (change <= tolerance and len(h) == 1) or step >= most:
            break
        fresh, grown = factors[..., None] * y, bool((value >= best).all())
        speed = (1 + (1 + 4 * speed * speed) ** 0.5) / 2 if grown else 1.0
        push = (speed - 1) / (speed + 2) if grown else 0.0
        h, last, old, best = fresh + push * (fresh - last), fresh, y, torch.maximum(best, value)
    at = int(loss.trimmed(y).argmax()) if len(h) > 1 else 0
    h, y, r = h[at], y[at], r[at]
    return Dual(h @ r, y, factors[at], float(value[at]), loss.threshold, change, step, change <= tolerance)


def robust_centre(k: Operator, centre: bool = True, most: int = 200) -> tuple[Tensor, Tensor]:
    """(coefficients c of the point sum_j c_j phi_j of least total distance to all rows; factors d of the lengths).

    d = min(1, median length / length) of the rows around that point: no row is longer than half of the rows are.
    centre: False leaves the origin, c = 0. Cost: a product of K for each of Weiszfeld's iterations.
    Source [locantore1999, sec. 3], [kim2012, sec. 4].
    """
    n, diagonal = k.shape[-1], k.diagonal()
    c, length = torch.full((n,), 1 / n if centre else 0.0, dtype=k.dtype), diagonal.sqrt()
    for _ in range(most if centre else 0):
        side = k.matmul(c[:, None])[:, 0]
        length = (diagonal - 2 * side + c @ side).clamp_min(0.0).sqrt()
        fresh = 1 / length.clamp_min(1e-3 * float(length.median()) + 1e-300)
        fresh = fresh / fresh.sum()
        moved, c = float((fresh - c).abs().sum()), fresh
        if moved < SETTLED:
            break
    middle = length.median()
    return c, torch.where(length > middle, middle / length.clamp_min(1e-300), 1.0)


def starts(n: int, s: int, most: int, generator: torch.Generator) -> Tensor:
    """Spaces to begin at, `up to 12, n s`: all rows with random weights, then the spans of s rows each."""
    found = torch.zeros(min(STARTS, most), n, s, dtype=torch.float64)
    found[0] = torch.randn(n, s, generator=generator, dtype=torch.float64)
    for i in range(1, len(found)):
        found[i, torch.randperm(n, generator=generator)[:s], torch.arange(s)] = 1.0
    return found


def usual_threshold(name: str, found: Dual, squares: Tensor) -> float:
    """The median residual (huber) or the median length of projections (capped, epsilon) of a first solution."""
    seen = found.projections.square().sum(1)
    wanted = (squares - seen).clamp_min(0.0) if name == "huber" else seen
    return float(wanted.sqrt().median()) or float(squares.max().sqrt()) or 1.0


def principal(found: Dual) -> tuple[Tensor, Tensor]:
    """(eigenvalues `s`, basis `n s`): the space's axes in the order of the variance of the rows, by their factors."""
    g = found.factors
    values, turn = torch.linalg.eigh(found.projections.mT @ (g[:, None] * found.projections))
    return values.flip(0) * (len(g) / g.sum()), found.basis @ turn.flip(1)
