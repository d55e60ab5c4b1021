"""GaussianProcessRegressor: exact Gaussian processes by Cholesky or CG, and landmarks above what these hold."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import torch
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from mercer.budget import memory_budget, mib
from mercer.errors import MemoryBudgetError, NotPositiveDefiniteError, StructureError
from mercer.kernel import Kernel
from mercer.learn import plan as planning
from mercer.learn.answers import as_given
from mercer.learn.landmarks import block_rows
from mercer.learn.likelihood import Likelihood
from mercer.learn.pathwise import FunctionSamples, sample_posterior
from mercer.learn.regress import KernelRegressor
from mercer.learn.solve import FLOOR, Fitted, whole
from mercer.learn.stochastic import StochasticLikelihood, Whole
from mercer.learn.tune import LAST, Climb, Clock
from mercer.linalg import Cholesky

METHODS = (None, "exact", "cg", "landmarks")
STEPS = 40  # of learning on all rows, where time allows
BOUND = 10.0  # times the rounding error of a difference of two variances: what may be clipped to zero


class GaussianProcessRegressor(KernelRegressor):
    """Gaussian process regression: y = f(x) + e, f ~ GP(0, k), e ~ N(0, noise).

    kernel: a psd Kernel, or None: a variance times the best of Laplace, Matern 5/2 and Gaussian, a lengthscale for
    each column. noise: > 0, variance of e; None: learned. method: "exact" (Cholesky), "cg" (all rows, by products
    with K alone), "landmarks", or None: exact up to 5,000 rows where the budget holds it, landmarks above.
    Other parameters as in KernelRidge. Fitted: kernel_, noise_ (for standardised data), plan_, conformal_, left_out_.
    Cost: n^3 / 3 flops; by CG about 100 products with K, and 20 with a column for each row whose variance is asked;
    of m landmarks n m^2 flops. Error: none, but "cg": means to 1e-8, variances at most 1e-3 of themselves too large;
    "landmarks": the variance is that of their model plus the part of the prior they do not see, so never too small.
    Source [rasmussen2006, alg. 2.1], [gardner2018], [quinonero2005, sec. 5].
    """

    _profile: bool = False
    _noise_name = "noise"
    _fitted: tuple[str, ...] = ("_roots", "_shares")

    def __init__(
        self,
        kernel: Any = None,
        noise: float | None = None,
        *,
        method: str | None = None,
        learn: bool = True,
        standardize: bool | None = None,
        time_budget: float | None = None,
        progress: Any = None,
        random_state: Any = None,
    ):
        self.kernel, self.noise, self.method = kernel, noise, method
        self.learn, self.standardize = learn, standardize
        self.time_budget, self.progress, self.random_state = time_budget, progress, random_state

    def _check(self) -> None:
        super()._check()
        if self.method not in METHODS:
            raise ValueError(f"method is {self.method!r}; expected one of {METHODS}")

    def _choose(self, kernel: Kernel, x: Tensor, outputs: int, clock: Clock) -> planning.Plan:
        n = len(x)
        if self.method == "exact":
            need = planning.COPIES * 8 * n * n
            if need > memory_budget():
                raise MemoryBudgetError(
                    f"the factor of {n:,} rows needs {mib(need)}, the budget is {mib(memory_budget())}: take "
                    'method="cg" or "landmarks", or raise the budget with mercer.memory(...)'
                )
            return planning.Plan("cholesky", n, memory=need)
        if self.method == "cg":
            rank = max(min(1500, n // 8, memory_budget() // (32 * n)), 1)
            return planning.Plan("cg", n, landmarks=rank, memory=24 * n * rank)
        chosen = super()._choose(kernel, x, outputs, clock)
        if self.method is None and chosen.algorithm in ("cholesky", "nystrom"):
            return chosen
        return planning.landmarks(n, planning.LANDMARKS)  # variances of many rows need a factor

    def _noises(self) -> Tensor:
        """The noise of each training row, or of each place that rows share."""
        n = self.plan_.rows
        return self.noise_ * (torch.ones(n, dtype=torch.float64) if self._shares is None else self._shares)

    def _learned(self, x: Tensor, y: Tensor, clock: Clock, generator: torch.Generator) -> tuple[Kernel, float]:
        kernel, noise = super()._learned(x, y, clock, generator)
        if self.method != "cg" or not self.learn or len(x) <= LAST or clock.over(0.7) or bool((y == y[0]).all()):
            return kernel, noise
        share = self._share(noise)
        part = (x, y) if share is None else (x, y, share, torch.zeros(len(x), dtype=torch.float64))
        target = StochasticLikelihood(kernel.requires_grad_(True), noise, [part], profile=False)
        target.keep_noise = self.noise is not None
        target.least = max(self._least, FLOOR)
        cost = planning.USUAL * len(x) ** 2  # counted where no seconds were given
        Climb(target, clock, 0.7, self.progress, self._spread, cost=cost).run(STEPS)
        return kernel, math.exp(target.log_noise)

    def _solved(
        self, kernel: Kernel, noise: float, x: Tensor, y: Tensor, plan: planning.Plan, clock: Clock,
        generator: torch.Generator,
    ) -> Fitted:  # fmt: skip
        if plan.algorithm != "cg":
            return super()._solved(kernel, noise, x, y, plan, clock, generator)
        found = whole(kernel, noise, x, y, plan, self._factors(len(x)), generator, clock, self._shares)
        noises = torch.full((len(x),), found.noise, dtype=torch.float64)
        noises = noises if self._shares is None else noises * self._shares
        engine = Whole.of(kernel, x, noises, plan.landmarks, columns=y.shape[1])
        answer = engine.solve(y, start=found.weights.double())
        steps = found.plan.iterations + answer.iterations
        done = dataclasses.replace(found.plan, residual=answer.residual, iterations=steps)
        return dataclasses.replace(found, points=x, weights=answer.value, plan=done)

    def _factors(self, n: int) -> list[float]:
        return [] if self.learn else super()._factors(n)  # the likelihood's noise is the one the variance means

    def _fit(self, table: np.ndarray, y: np.ndarray) -> tuple[Tensor, Tensor, np.ndarray]:
        x, scaled, kept = super()._fit(table, y)
        if self._repeats is not None:
            squares = self._repeats.squares(torch.from_numpy(self.target_.forward(y))).numpy()
            self._beside = min(self._within / self.noise_, 1.0), squares, self._repeats.sizes.numpy()
        self._data = (x, scaled) if self._shares is None else (x, scaled, self._shares, torch.zeros(len(x)))
        if self._factor is not None:
            self._roots = [self._factor.lower]
        else:
            self._roots = [] if self._by_cg else self._centre_roots(x)
        return x, scaled, kept

    @torch.no_grad()
    def _centre_roots(self, x: Tensor) -> list[Tensor]:
        """Factors of K_mm and of K_mn K_nm / noise + K_mm, the matrices of the variance of the landmarks' model."""
        z = self._points.double()
        middle = self.kernel_.block(z, z)
        middle.diagonal().add_(self.plan_.jitter)
        total = self.noise_ * middle
        heavy = torch.ones(len(x), 1, dtype=torch.float64) if self._shares is None else 1 / self._shares[:, None]
        size = block_rows(len(z))
        for rows, weight in zip(x.split(size), heavy.split(size), strict=True):
            block = self.kernel_.block(rows, z)
            total += block.mT @ (weight * block)
        return [Cholesky().factor(middle).lower, Cholesky().factor(total).lower]

    @property
    def _by_cg(self) -> bool:
        return self.plan_.algorithm == "cg"

    def _engine(self, columns: int) -> Whole:
        """K + noise of the training rows, which are the points where all of them are."""
        points = self._points.double()
        return Whole.of(self.kernel_, points, self._noises(), self.plan_.landmarks, columns=columns)

    @torch.no_grad()
    def _uncertainty(self, x: Tensor) -> Tensor:
        """The posterior variance of f at scaled x, `n`; never negative."""
        points = self._points.double()
        size = block_rows(len(points))
        engine = self._engine(min(size, len(x))) if self._by_cg and len(x) else None
        size = size if engine is None else min(size, engine.columns)
        found = []
        for rows in x.split(size):
            prior = self.kernel_.diagonal(rows)
            cross = self.kernel_.block(points, rows)
            if engine is not None:
                z, r, _ = engine.explained(cross, prior)
                found.append((prior - (z * (cross + r)).sum(0)).clamp_min(0))
                continue
            seen = torch.linalg.solve_triangular(self._roots[0], cross, upper=False).square().sum(0)
            rest = self._positive(prior - seen, prior)
            if len(self._roots) == 2:
                known = torch.linalg.solve_triangular(self._roots[1], cross, upper=False).square().sum(0)
                rest = rest + self.noise_ * known
            found.append(rest)
        return torch.cat(found) if found else torch.zeros(0, dtype=torch.float64)

    def _positive(self, rest: Tensor, prior: Tensor) -> Tensor:
        """Variances, of which those below zero by rounding are zero."""
        eps = len(self._points) * torch.finfo(torch.float64).eps
        bound = BOUND * eps * (1 + float(prior.max()) / self.noise_) * prior
        if bool((rest < -bound - 1e-12).any()):
            worst = float(rest.min())
            raise NotPositiveDefiniteError(f"the predicted variance is {worst:.3g}, below rounding: add noise", worst)
        return rest.clamp_min(0)

    @torch.no_grad()
    def _covariance(self, x: Tensor) -> Tensor:
        """The posterior covariance of f at scaled x, `n n`."""
        points = self._points.double()
        prior, cross = self.kernel_.block(x, x), self.kernel_.block(points, x)
        if self._by_cg:
            z, r, _ = self._engine(len(x)).explained(cross, prior.diagonal())
            found = prior - cross.mT @ z - z.mT @ r
            return (found + found.mT) / 2
        seen = torch.linalg.solve_triangular(self._roots[0], cross, upper=False)
        found = prior - seen.mT @ seen
        if len(self._roots) == 2:
            known = torch.linalg.solve_triangular(self._roots[1], cross, upper=False)
            found += self.noise_ * (known.mT @ known)
        return found

    def predict(self, X: Any, return_std: bool = False, return_cov: bool = False) -> Any:
        """Mean of f at X: n d, in units of y; with return_std also its standard deviation, with return_cov its
        covariance, n n (n n c where y has c outputs); noise not included."""
        mean = super().predict(X)
        if return_std and return_cov:
            raise ValueError("return_std and return_cov are both True; ask for one of them")
        if not return_std and not return_cov:
            return mean
        table, _ = self._read(X, reset=False)
        x = self.scaler_(table)
        if return_std:
            found = self._uncertainty(x).sqrt().numpy()[:, None] * self.target_.scale
        else:
            found = self._covariance(x).numpy()[..., None] * np.square(self.target_.scale)
        return mean, as_given(X, found[..., 0] if self._vector else found)

    def sample_functions(self, count: int = 1, random_state: Any = None, frequencies: int = 1000) -> FunctionSamples:
        """Functions drawn from the posterior of f, to be called with any X: n d -> values `n count` in units of y.

        `n c count` for c outputs; the same functions in every call; differentiable in a torch X where the kernel has
        a spectrum. frequencies: of each function's prior. Means and covariances over draws are exact for any number
        of them; where the kernel has no spectrum the prior is drawn by Cholesky on training rows and X.
        Cost: one solve with `count` columns. Source [wilson2020, eq. 13].
        """
        check_is_fitted(self, "kernel_")
        return sample_posterior(self, count, frequencies, random_state)

    @property
    def theta_(self) -> np.ndarray:
        """Logarithms of the kernel's parameters, in order, then of the noise."""
        check_is_fitted(self, "kernel_")
        flat = [p.detach().flatten().numpy() for p in self.kernel_.parameters()]
        return np.concatenate([*flat, [math.log(self.noise_)]])

    def log_marginal_likelihood(
        self, theta: np.ndarray | None = None, eval_gradient: bool = False, return_error: bool = False
    ) -> Any:
        """log p(y | X, theta) of the (standardised) training data, summed over outputs; theta as `theta_`.

        With eval_gradient also the gradient in theta. Exact up to 5,000 rows and where the method is; else by random
        signs, whose standard errors (of the value, of the gradient) return_error adds: zeros where it is exact.
        The share of the noise that twins have each for themselves is held; rows whose twins are exact copies count
        once. Raises StructureError on a model without its training data.
        """
        check_is_fitted(self, "kernel_")
        if not hasattr(self, "_data"):
            raise StructureError(
                "a model made from its state has no training targets: fit it to ask for its likelihood"
            )
        present = self.theta_
        kernel = self.kernel_.requires_grad_(True)
        target: Likelihood | StochasticLikelihood = Likelihood(kernel, self.noise_, [self._data], profile=False)
        if self._factor is None and (self._by_cg or len(self._data[0]) > planning.EXACT_ROWS):
            target = StochasticLikelihood(kernel, self.noise_, [self._data], profile=False, spread=return_error)
        try:
            value, slope = target.evaluate(theta, gradient=eval_gradient)
        finally:
            target.theta = present
            kernel.requires_grad_(False)
        if self._shares is not None and self._beside[0] > 0:
            own, squares, sizes = self._beside
            noise = own * math.exp(present[-1] if theta is None else theta[-1])
            free = float((sizes - 1).sum())
            value -= 0.5 * float(squares.sum()) / noise
            value -= 0.5 * len(squares) * (free * math.log(2 * math.pi * noise) + float(np.log(sizes).sum()))
            slope[-1] += 0.5 * float(squares.sum()) / noise - 0.5 * len(squares) * free
        error, errors = 0.0, np.zeros(len(present))
        if isinstance(target, StochasticLikelihood):
            error, errors = target.error, target.errors
        if eval_gradient:
            return (value, slope, error, errors) if return_error else (value, slope)
        return (value, error) if return_error else value
