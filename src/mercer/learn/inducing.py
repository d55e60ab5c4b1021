"""Inducing points: a Gaussian process seen through its values at a few places, and the best q of those values."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mercer.errors import JitterWarning
from mercer.kernel import Kernel
from mercer.learn.likelihoods import Observation
from mercer.learn.spherical import SphericalFeatures
from mercer.learn.state import record
from mercer.linalg import Cholesky

RIDGE = 1e-8  # of the mean diagonal, where landmarks move: close ones would make gradients of rounding
LEAST = 1e-4  # rate of a step below which nothing is gained


@dataclass(frozen=True)
class Seen:
    """Rows as the landmarks see them. a: m b, L^-1 k(z, x); rest: b, k(x, x) - |a|^2 >= 0; y: b c; weight: of a row."""

    a: Tensor
    rest: Tensor
    y: Tensor
    weight: float = 1.0


@dataclass(frozen=True)
class Sums:
    """What a step needs: E log p of all rows, its slope in the mean `m c`, and -2 times that in the covariance."""

    expected: float
    slope: Tensor
    bend: Tensor
    bound: float


@record
@dataclass(frozen=True)
class Posterior:
    """q(v) = N(mean, (root root^T)^-1) of whitened inducing values v, u = L v; mean: m c, root: c m m, lower."""

    mean: Tensor
    root: Tensor

    @classmethod
    def prior(cls, m: int, outputs: int) -> Posterior:
        """q = N(0, I)."""
        unit = torch.eye(m, dtype=torch.float64)
        return cls(torch.zeros(m, outputs, dtype=torch.float64), unit.expand(outputs, m, m).clone())

    def divergence(self) -> float:
        """KL(q | N(0, I)), summed over outputs. Source [hensman2015, eq. 8]."""
        m, outputs = self.mean.shape
        inverse = torch.linalg.solve_triangular(self.root, torch.eye(m, dtype=torch.float64), upper=False)
        logdet = 2 * self.root.diagonal(dim1=-2, dim2=-1).log().sum()
        return 0.5 * float(inverse.square().sum() + self.mean.square().sum() - m * outputs + logdet)

    def at(self, a: Tensor, rest: Tensor) -> tuple[Tensor, Tensor]:
        """(mean, variance) of f - its prior mean, `b c`, with gradients to a and rest."""
        spread = torch.linalg.solve_triangular(self.root, a, upper=False)
        return a.mT @ self.mean, rest[:, None] + spread.square().sum(-2).mT

    def moved(self, sums: Sums, rate: float, concave: bool) -> Posterior | None:
        """A natural gradient step; None where rounding leaves no factor.

        P = root root^T goes to P + rate G, G = I + bend - P, plus rate^2 G P^-1 G / 2 where G may be indefinite, which
        keeps it definite. At rate 1 and a quadratic log p the step ends at the best q.
        Source [salimbeni2018, sec. 3], [lin2020, eq. 8].
        """
        unit = torch.eye(len(self.mean), dtype=torch.float64)
        present = self.root @ self.root.mT
        change = unit + sums.bend - present
        wanted = present + rate * change
        if not concave:
            half = torch.linalg.solve_triangular(self.root, change, upper=False)
            wanted = wanted + 0.5 * rate**2 * half.mT @ half
        root, info = torch.linalg.cholesky_ex(wanted)
        if bool(info.any()) or not bool(torch.isfinite(root).all()):
            return None
        rise = (sums.slope - self.mean).mT[..., None]
        return Posterior(self.mean + rate * torch.cholesky_solve(rise, root)[..., 0].mT, root)


class Inducing(nn.Module):
    """The sparse model: a kernel, landmarks z `m d`, an observation model and a constant prior mean `c`.

    ridge: added to k(z, z), relative to its mean diagonal; more is added by the policy of `Cholesky` where it has no
    factor. The bound stays one: u is then f(z) with a little noise. features: what u is where it is not f(z).
    """

    def __init__(
        self, kernel: Kernel, z: Tensor, observed: Observation, centre: Tensor, ridge: float,
        features: SphericalFeatures | None = None,
    ):  # fmt: skip
        super().__init__()
        self.kernel, self.observed, self.centre, self.ridge = kernel, observed, centre, ridge
        self.features = features
        self.z = nn.Parameter(z.clone())
        self.jitter = 0.0

    def lower(self) -> Tensor:
        """L with L L^T = k(z, z) + jitter, with gradients."""
        features, z = self.features, self.z
        gram = self.kernel.block(z, z) if features is None else features.gram(self.kernel, z)
        unit = torch.eye(len(gram), dtype=torch.float64)
        base = self.ridge * float(gram.detach().diagonal().mean())
        found, info = torch.linalg.cholesky_ex(gram + base * unit)
        self.jitter = base
        if not info and bool(torch.isfinite(found).all()):
            return found
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", JitterWarning)  # the amount is in the plan; the bound holds with it
            self.jitter += Cholesky().factor(gram + base * unit).jitter
        return torch.linalg.cholesky(gram + self.jitter * unit)

    def see(self, x: Tensor, y: Tensor, lower: Tensor, weight: float = 1.0) -> Seen:
        """Rows x: b d with observations y: b c; each stands for `weight` rows."""
        features, z = self.features, self.z
        cross = self.kernel.block(z, x) if features is None else features.cross(self.kernel, z, x)
        a = torch.linalg.solve_triangular(lower, cross, upper=False)
        return Seen(a, (self.kernel.diagonal(x) - a.square().sum(0)).clamp_min(0), y, weight)

    def latent(self, q: Posterior, seen: Seen) -> tuple[Tensor, Tensor]:
        """(mean, variance) of f, `b c`."""
        mean, variance = q.at(seen.a, seen.rest)
        return mean + self.centre, variance

    def bound(self, q: Posterior, seen: Seen) -> Tensor:
        """E log p(y | f) - KL, with gradients to all but q. Source [hensman2013, eq. 4], [hensman2015, eq. 9]."""
        return seen.weight * self.observed.expected(seen.y, *self.latent(q, seen)).sum() - q.divergence()


@torch.no_grad()
def sums(model: Inducing, q: Posterior, blocks: Iterable[Seen]) -> Sums:
    """One pass over the rows. Cost: for each row 4 m^2 flops, 2 m^2 more for each output beyond the first."""
    m, outputs = q.mean.shape
    expected = 0.0
    slope, bend = torch.zeros_like(q.mean), torch.zeros(outputs, m, m, dtype=torch.float64)
    for seen in blocks:
        value, first, second = model.observed.slopes(seen.y, *model.latent(q, seen))
        expected += seen.weight * float(value)
        slope += seen.weight * (seen.a @ first)
        for c in range(outputs):
            bend[c].addmm_(seen.a * second[:, c], seen.a.mT, alpha=-2 * seen.weight)
    return Sums(expected, slope, bend, expected - q.divergence())


@dataclass(frozen=True)
class Settled:
    """q, the bound there, the moves it took, and what the last one gained (0 where q is known to be the best)."""

    q: Posterior
    bound: float
    steps: int
    gain: float


def settle(
    model: Inducing, q: Posterior, blocks: Callable[[], Iterable[Seen]], steps: int, tolerance: float,
    stop: Callable[[], bool] = lambda: False,
) -> Settled:  # fmt: skip
    """Climb to the best q for the model as it is: natural gradient steps, halved until the bound does not fall.

    tolerance: the gain in nats below which it is there. stop: asked between the steps.
    """
    here, gain, done = sums(model, q, blocks()), math.inf, 0
    if model.observed.conjugate:
        best = q.moved(here, 1.0, True)
        if best is not None:
            return Settled(best, sums(model, best, blocks()).bound, 1, 0.0)
    rate = 1.0
    while done < steps and gain > tolerance and not (done and stop()):
        there, new = None, None
        while rate > LEAST:
            new = q.moved(here, rate, model.observed.concave)
            there = None if new is None else sums(model, new, blocks())
            if there is not None and there.bound >= here.bound - tolerance:
                break
            there, rate = None, rate / 2
        if there is None or new is None:
            break  # no direction rises beyond rounding
        gain, q, here, rate, done = there.bound - here.bound, new, there, min(1.0, 2 * rate), done + 1
    return Settled(q, here.bound, done, gain)
