"""Gaussian processes on all rows by products with K alone: solves, variances with a bound, sampled likelihoods."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mercer.assemble import assemble
from mercer.budget import memory_budget
from mercer.errors import ConvergenceWarning
from mercer.kernel import Kernel
from mercer.learn.likelihood import Evidence, Part, gaussian, slopes
from mercer.linalg import CG, SLQ, NystromPreconditioner, Refined, logdet
from mercer.operator import Operator
from mercer.operators import Shifted
from mercer.solver import Solution

RANK, PROBES = 500, 16  # rows that precondition; random signs
GROUPS = 8  # of probes, from whose gradients the standard error of the gradient comes
PRODUCTS = 60  # of a typical run of CG: what a stored matrix is worth
INNER, STEPS = 1e-3, 500  # what a round of float32 iterations is asked for
LOOSE = 1e-4  # residual of random probes: far below what their number leaves to chance
ACCURACY = 1e-3  # of a variance: how much too large it may be
FIRST, ROUNDS = 0.03, 6  # tolerance of the first round of a variance, and rounds at most
BYTES, COPIES = 8, 12  # of a number; of each right-hand side while it is solved for
FLOOR = 1e-10  # of the prior variance: below it a variance is rounding


class Whole:
    """A = K + diag(noise) with K: n n known by its products, in float64 and, for most of the work, in float32.

    rank: rows of K in the preconditioner P^-1 = (F F^T + diag(noise))^-1; since K - F F^T is psd, P^-1 >= A^-1.
    """

    def __init__(self, k: Operator, close: Operator, noise: Tensor, rank: int, seed: int):
        generator, n = torch.Generator().manual_seed(seed), max(k.shape[-1], 1)
        rank = max(min(rank, n // 2, memory_budget() // (2 * BYTES * n)), 1)
        self.columns = max(memory_budget() // (COPIES * BYTES * n), 1)  # right-hand sides that fit at once
        self.a, self.close = Shifted(k, noise), Shifted(close, noise.float())
        self.p = NystromPreconditioner(rank, generator).prepare(self.a)

    @classmethod
    @torch.no_grad()
    def of(cls, kernel: Kernel, x: Tensor, noise: Tensor, rank: int = RANK, seed: int = 0, columns: int = 1) -> Whole:
        """For K = k(x, x), x: n d float64; columns: of the right-hand sides to come."""
        k = assemble(kernel, x, rhs=columns, products=PRODUCTS)
        return cls(k, assemble(kernel, x.float(), rhs=columns, products=PRODUCTS), noise, rank, seed)

    @torch.no_grad()
    def solve(self, b: Tensor, tolerance: float = 1e-8, start: Tensor | None = None) -> Solution:
        """A^-1 b for b: n c float64 to this residual, measured in float64."""
        solver = Refined(CG(self.p, INNER, STEPS), self.close, tolerance)
        return solver.solve(solver.prepare(self.a), b, start)

    @torch.no_grad()
    def explained(self, cross: Tensor, prior: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(z, r, left) with z close to A^-1 c for each column c of `cross`: n m, r = c - A z.

        c^T A^-1 c = z^T (c + r) + r^T A^-1 r, whose last term is never negative and at most left = r^T P^-1 r: a
        variance prior - z^T (c + r) is never too small, and too large by less than `left`. Iterations go on until
        that is a thousandth of the variance; ConvergenceWarning where they do not get there.
        """
        z, r = torch.zeros_like(cross), cross.clone()
        live, tolerance = torch.ones(cross.shape[1], dtype=torch.bool), FIRST
        for _ in range(ROUNDS):
            inner = CG(self.p, tolerance, STEPS)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)  # what counts is measured below
                step = inner.solve(inner.prepare(self.close), r[:, live].float()).value
            z[:, live] += step.double()
            r[:, live] = cross[:, live] - self.a.matmul(z[:, live])
            left = (r * self.p.matmul(r)).sum(0).clamp_min(0)
            variance = prior - (z * (cross + r)).sum(0)
            goal = torch.maximum(ACCURACY * (variance - left), FLOOR * prior)
            live = left > goal
            if not bool(live.any()):
                return z, r, left
            tolerance = min(max(0.5 * float((goal / left)[live].min().sqrt()), 1e-5), 0.1)
        worst = float(left.max())
        message = f"variances may be too large by up to {worst:.1e} (prior {float(prior.max()):.1e}): more noise helps"
        warnings.warn(ConvergenceWarning(message, worst, ROUNDS), stacklevel=3)
        return z, r, left


class StochasticLikelihood(Evidence):
    """log p(y | x) as `Likelihood` has it, from products with K = k(x, x) alone: n^2 numbers are never formed.

    y^T A^-1 y by conjugate gradients, log det A by stochastic Lanczos quadrature, and the gradient of both from one
    differentiable product with K, tr(A^-1 dK) as the mean of (A^-1 L z)^T dK L^-T z over random signs z, where
    P = L L^T preconditions. The signs are the same in every call, so that two values differ by less than their error.
    error: standard error of the last value; errors: of the entries of its gradient, where `spread` is set.
    Cost: about 40 products with K, and two more for the gradient (16 more with `spread`).
    Error: of the random part falls as 1 / sqrt(probes), and is stated; the rest is within `tolerance`.
    Source [gardner2018, sec. 4], [ubaru2017].
    """

    def __init__(
        self, kernel: Kernel, noise: float, parts: Sequence[Part], profile: bool = True, probes: int = PROBES,
        rank: int = RANK, tolerance: float = 1e-7, seed: int = 0, spread: bool = False,
    ):  # fmt: skip
        if probes < GROUPS or probes % GROUPS:
            raise ValueError(f"probes is {probes}; expected a multiple of {GROUPS}")
        super().__init__(kernel, noise, parts, profile)
        self.probes, self.rank, self.tolerance, self.seed, self.spread = probes, rank, tolerance, seed, spread
        self.error, self.errors = math.nan, np.empty(0)

    def evaluate(self, theta: np.ndarray | None = None, gradient: bool = True) -> tuple[float, np.ndarray]:
        self._squares: list[tuple[float, np.ndarray]] = []
        found = super().evaluate(theta, gradient)
        self.error = math.sqrt(sum(value for value, _ in self._squares))
        self.errors = np.sqrt(np.sum([slope for _, slope in self._squares], 0))
        return found

    def _part(self, part: Part, gradient: bool) -> tuple[float, list[Tensor]]:
        x, y = part[:2]
        leaves, noise = self._leaves(part, gradient)
        columns = y.shape[1] + self.probes
        whole = Whole.of(self.kernel, x, noise.detach(), self.rank, self.seed, columns)
        live = assemble(self.kernel, x, rhs=columns)  # one product: what is differentiated is not kept
        value, grads, square, squares = self.sampled(whole, live, noise, y, leaves, gradient)
        self._squares.append((square, squares))
        return value, grads

    def sampled(
        self, whole: Whole, live: Operator, noise: Tensor, y: Tensor, leaves: list[Tensor], gradient: bool
    ) -> tuple[float, list[Tensor], float, np.ndarray]:
        """(value, gradient in the leaves, squared standard errors of both) for K = live, a function of the leaves."""
        n, outputs = y.shape
        generator = torch.Generator().manual_seed(self.seed + 1)
        weights = whole.solve(y, self.tolerance).value
        slq = SLQ(whole.p, self.probes, generator=generator)
        with torch.no_grad():
            volume = logdet(whole.a, slq)
        with torch.set_grad_enabled(gradient):
            seen = live.matmul(weights)
        rest = y - seen.detach() - noise.detach()[:, None] * weights
        fit = (weights * (y + rest)).sum(0)  # y^T A^-1 y up to the square of the residual
        value, scale = gaussian(fit, float(volume.value), n, self.profile)
        square = (0.5 * outputs) ** 2 * float(volume.samples.var()) / self.probes
        if not gradient:
            return value, [], square, np.empty(0)
        half = 0.5 * weights / scale
        certain = slopes([(seen, half), (noise, (half * weights).sum(1))], leaves, again=True)
        z = slq.draw(whole.a)
        right, solved = whole.p.whiten_mT(z), whole.solve(whole.p.root(z), LOOSE).value
        drawn = []
        for group in torch.arange(self.probes).chunk(GROUPS if self.spread else 1):
            down = -0.5 * outputs / len(group) * solved[:, group]
            product = live.matmul(right[:, group])
            drawn.append(slopes([(product, down), (noise, (down * right[:, group]).sum(1))], leaves, again=True))
        means = [torch.stack(each).mean(0) for each in zip(*drawn, strict=True)]
        squares = np.full(sum(p.numel() for p in leaves), math.nan)
        if self.spread:
            flat = torch.stack([torch.cat([g.double().flatten() for g in each]) for each in drawn])
            squares = flat.var(0).numpy() / GROUPS
        return value, [a + b for a, b in zip(certain, means, strict=True)], square, squares
