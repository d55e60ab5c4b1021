"""EigenPro's preconditioned steps: the steepest directions of least squares made as flat as the first left alone."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mercer.assemble import assemble
from mercer.budget import memory_budget
from mercer.claims import PSD
from mercer.kernel import Kernel
from mercer.linalg import Cholesky, NystromPreconditioner, Woodbury, randomised_eigenpairs
from mercer.operator import Operator
from mercer.operators import Dense

SUBSAMPLE, RANK = 2000, 700  # rows that the steepest directions are found on, and how many of them at most
DIRECT = 3000  # landmarks up to which their kernel is inverted; beyond, a low-rank inverse stands for it
LOWRANK = 1000  # rank of that inverse
SPARE = 20  # rows for each of these directions, whose noise is fitted as quickly as their signal
SMALL = 1000  # rows up to which all eigenpairs are quicker than a few
FRESH = 1000  # rows that a step is measured on
LEAST = 512  # rows of a batch: fewer take as long
EPS32 = torch.finfo(torch.float32).eps
SOUND = 1e-10  # for each row: eigenvalues below this part of the largest are not worth amplifying float32 products by


@dataclass(frozen=True)
class Top:
    """The largest eigenvalues of a covariance, and eigenvectors of the Gram matrix on the s rows it was taken from.

    values: q, of K / s; vectors: s q; tail: the next eigenvalue, to which the others are brought down.
    """

    values: Tensor
    vectors: Tensor
    tail: float

    @classmethod
    def of(
        cls, gram: Tensor, rank: int, generator: torch.Generator, rows: int | None = None, least: float = 0.0
    ) -> Top:  # fmt: skip
        """gram: s s, float64, or the covariance of so many rows times their number. Never into what is rounding.

        least: eigenvalues up to it are left alone.
        """
        s = len(gram) if rows is None else rows
        wanted = min(rank, len(gram) - 1)
        if len(gram) <= SMALL:
            values, vectors = torch.linalg.eigh(gram / s)
            values, vectors = values.flip(0)[: wanted + 1], vectors.flip(1)[:, : wanted + 1]
        else:
            found = randomised_eigenpairs(Dense(gram / s, PSD), wanted + 1, passes=6, generator=generator)
            values, vectors = found.values, found.vectors
        sound = int((values > s * SOUND * values[0].clamp_min(1e-300)).sum())
        kept = max(min(wanted, sound - 1, int((values > least).sum())), 0)
        return cls(values[:kept], vectors[:, :kept], float(values[kept].clamp_min(1e-300)))

    @property
    def share(self) -> Tensor:
        """What a step loses in each direction, `q`."""
        return 1 - self.tail / self.values


class Steps(ABC):
    """Preconditioned gradients for weights of landmarks. points: p d, float32, scaled; tail: as in Top."""

    kernel: Kernel
    points: Tensor
    tail: float

    def operator(self, x: Tensor, outputs: int) -> Operator:
        """k(x, points), for products with so many columns, once each way."""
        return assemble(self.kernel, x, self.points, rhs=outputs, products=2)

    @abstractmethod
    def move(self, w: Tensor, x: Tensor, places: Tensor | None, gradient: Tensor, scale: float) -> None:
        """Take a step on w. gradient: of the loss by the predictions (own) or by the weights, `m c` or `p c`."""

    @abstractmethod
    def gram(self, x: Tensor) -> Tensor:
        """The kernel among rows x: m d as the steps see it, `m m` float64."""

    def width(self, x: Tensor) -> tuple[float, float]:
        """(largest diagonal, largest eigenvalue / m) of `gram`."""
        found = self.gram(x)
        return float(found.diagonal().max()), float(torch.linalg.eigvalsh(found)[-1]) / len(found)


class Own(Steps):
    """Every row is a centre: the gradient lies in the span of the model, and only the subsample is corrected.

    Source [ma2019].
    """

    def __init__(
        self, kernel: Kernel, points: Tensor, at: Tensor, rank: int, generator: torch.Generator, batch: int = 0
    ):  # fmt: skip
        self.kernel, self.points, self.at = kernel, points, at
        self.sample = points[at]
        wide = self.sample.double()
        top = Top.of(kernel.block(wide, wide), rank, generator, least=worth(kernel, wide, batch))
        self.tail, self.vectors = top.tail, top.vectors
        self.weights = top.share / (top.values * len(at))

    def move(self, w: Tensor, x: Tensor, places: Tensor | None, gradient: Tensor, scale: float) -> None:
        if places is None:
            raise ValueError("Own.move: places of the rows among the landmarks are needed")
        seen = assemble(self.kernel, self.sample, x, rhs=gradient.shape[1]).matmul(gradient.float()).double()
        w.index_add_(0, places, gradient, alpha=-scale)
        w.index_add_(0, self.at, self.vectors @ (self.weights[:, None] * (self.vectors.mT @ seen)), alpha=scale)

    def gram(self, x: Tensor) -> Tensor:
        wide = x.double()
        seen = self.kernel.block(wide, self.sample.double()) @ self.vectors
        return self.kernel.block(wide, wide) - (seen * self.weights) @ seen.mT


class Apart(Steps):
    """Landmarks of their own: gradients are projected onto their span, by their inverse kernel or one close to it.

    The steepest directions are those of the projected kernel. Any metric that is positive has the same solution; up
    to 3,000 landmarks it is the exact projection, beyond a Nystrom factor of theirs and a ridge.
    Cost: p^3 flops and 8 p^2 bytes, or p rank^2 and 4 p rank. Source [abedsoltan2023].
    """

    def __init__(
        self, kernel: Kernel, points: Tensor, sample: Tensor, rank: int, generator: torch.Generator,
        direct: int = DIRECT, batch: int = 0,
    ):  # fmt: skip
        self.kernel, self.points = kernel, points
        self.least = worth(kernel, sample.double(), batch)
        p = len(points)
        self.direct = p <= direct and fitting(p, memory_budget())[0]
        if self.direct:
            self._exact(sample, rank, generator)
        else:
            self._close(sample, rank, generator)

    def _cross(self, x: Tensor) -> Tensor:
        """k(points, x) in float64, `p m`."""
        return self.kernel.block(self.points.double(), x.double())

    def _exact(self, sample: Tensor, rank: int, generator: torch.Generator) -> None:
        wide, s = self.points.double(), len(sample)
        middle = self.kernel.block(wide, wide)
        middle.diagonal().add_(len(wide) * EPS32 * float(middle.diagonal().mean()))
        lower = Cholesky().factor(middle).lower
        flat = torch.linalg.solve_triangular(lower, self._cross(sample), upper=False)
        if len(wide) <= s:  # the covariance is smaller than the Gram matrix, and its eigenvectors are what is wanted
            top = Top.of(flat @ flat.mT, rank, generator, s, self.least)
            across = top.vectors
        else:
            top = Top.of(flat.mT @ flat, rank, generator, least=self.least)
            across = flat @ top.vectors / (s * top.values).sqrt()
        inverse = torch.linalg.solve_triangular(lower, torch.eye(len(wide), dtype=torch.float64), upper=False)
        turned = inverse.mT @ across
        self.tail = top.tail
        self.matrix = (inverse.mT @ inverse).sub_((turned * top.share) @ turned.mT)

    def _close(self, sample: Tensor, rank: int, generator: torch.Generator) -> None:
        k = assemble(self.kernel, self.points, rhs=1, products=LOWRANK)
        room = memory_budget() // (64 * len(self.points))
        factor = NystromPreconditioner(max(min(LOWRANK, room, len(self.points)), 1), generator).factor(k)
        left = self.kernel.diagonal(self.points).double() - factor.double().square().sum(1)
        ridge = float(left.clamp_min(0).mean()) + len(factor) * EPS32 * float(self.kernel.diagonal(self.points).mean())
        self.metric = Woodbury(factor, ridge, torch.float64)
        sample = sample[: max(min(len(sample), room), 2)]
        cross = self._cross(sample)
        seen = self.metric.matmul(cross)
        top = Top.of(cross.mT @ seen, rank, generator, least=self.least)
        self.tail, self.share = top.tail, top.share
        self.across = (seen @ top.vectors) / (len(sample) * top.values).sqrt()

    def apply(self, h: Tensor) -> Tensor:
        """The preconditioner: h p c, float64."""
        if self.direct:
            return self.matrix @ h
        return self.metric.matmul(h) - self.across @ (self.share[:, None] * (self.across.mT @ h))

    def move(self, w: Tensor, x: Tensor, places: Tensor | None, gradient: Tensor, scale: float) -> None:
        w.sub_(self.apply(gradient), alpha=scale)

    def gram(self, x: Tensor) -> Tensor:
        cross = self._cross(x)
        return cross.mT @ self.apply(cross)


def fitting(p: int, budget: int) -> tuple[bool, int, int]:
    """What p landmarks leave room for: their inverse, landmarks of a factor in its place, rows that measure a step."""
    rows = budget // (64 * max(p, 1))
    return 32 * p * p <= budget, min(rows, LOWRANK), min(max(rows, 2), FRESH)


def largest(rows: int, most: int) -> int:
    """Rows of the largest batch: an epoch has at least eight steps."""
    return max(min(math.ceil(rows / 8), most), 1)


def worth(kernel: Kernel, sample: Tensor, batch: int) -> float:
    """The eigenvalue below which flattening slows the rest: a batch of m rows bears steps of m / (beta + m tail).

    beta: the largest diagonal. With a tail below beta / m a step shrinks what is left by less than a half. 0: any.
    """
    return float(kernel.diagonal(sample).max()) / batch if batch else 0.0


def spare(rank: int | None, rows: int, sample: int) -> int:
    """How many directions: as asked, or so few that their noise is a twentieth of what is learned."""
    return max(min(RANK, rows // SPARE, sample // 3), 1) if rank is None else rank


@dataclass(frozen=True)
class Pace:
    """batch: rows of a step; step: its size, for the mean gradient of a batch."""

    batch: int
    step: float


def pace(steps: Steps, fresh: Tensor, rows: int, batch: int | None, step: float | None, most: int) -> Pace:
    """Batch and step from the preconditioned kernel: the largest batch that is not wasted, a step that cannot diverge.

    fresh: rows as the stream brings them; rows: of an epoch; most: the largest batch. A batch of m rows bears
    m / (beta + (m - 1) tail), beta the largest diagonal, and beyond beta / tail rows gain nothing; what a batch of
    the stream shows, whose rows may be neighbours, corrects it. Source [ma2019].
    """
    beta, seen = steps.width(fresh)
    if batch is None:
        batch = int(np.clip(beta / max(steps.tail, 1e-300), LEAST, most))
        batch = min(batch, largest(rows, most))
    batch = min(batch, rows)
    if step is None:
        m = len(fresh)
        measured = seen / (beta / m + (m - 1) / m * steps.tail)
        step = batch / (beta + (batch - 1) * steps.tail) / max(measured, 0.5)
    return Pace(batch, step)
