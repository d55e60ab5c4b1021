"""GaussianProcessRegressor: exact Gaussian processes, and kernel centres above what a factor can hold."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from mercer.errors import NotPositiveDefiniteError, StructureError
from mercer.kernel import Kernel
from mercer.learn import plan as planning
from mercer.learn.centres import block_rows
from mercer.learn.likelihood import Likelihood
from mercer.learn.regress import KernelRegressor, as_given
from mercer.learn.tune import Clock
from mercer.linalg import Cholesky

BOUND = 10.0  # times the rounding error of a difference of two variances: what may be clipped to zero


class GaussianProcessRegressor(KernelRegressor):
    """Gaussian process regression: y = f(x) + e, f ~ GP(0, k), e ~ N(0, noise).

    kernel: a psd Kernel, or None: a variance times the best of Laplace, Matern 5/2 and Gaussian, a lengthscale for
    each column. noise: > 0, variance of e; None: learned. Other parameters as in KernelRidge.
    Fitted: kernel_, noise_ (both for standardised data), plan_, conformal_, left_out_. Cost: n^3 / 3 flops up to
    5,000 rows; above, m kernel centres: n m^2 flops. Error: above 5,000 rows the variance is that of the m-centre
    model plus the part of the prior that the centres do not see, so it is never too small there.
    Source [rasmussen2006, alg. 2.1], [quinonero2005, sec. 5].
    """

    _profile: bool = False
    _noise_name = "noise"

    def __init__(
        self,
        kernel: Any = None,
        noise: float | None = None,
        *,
        learn: bool = True,
        standardize: bool | None = None,
        time_budget: float | None = None,
        progress: Any = None,
        random_state: Any = None,
    ):
        self.kernel, self.noise, self.learn, self.standardize = kernel, noise, learn, standardize
        self.time_budget, self.progress, self.random_state = time_budget, progress, random_state

    def _choose(self, kernel: Kernel, x: Tensor, outputs: int, clock: Clock) -> planning.Plan:
        chosen = super()._choose(kernel, x, outputs, clock)
        if chosen.algorithm in ("cholesky", "nystrom"):
            return chosen
        return planning.centres(len(x), planning.CENTRES)  # a variance needs a factor, which CG has not

    def _factors(self, n: int) -> list[float]:
        return [] if self.learn else super()._factors(n)  # the likelihood's noise is the one the variance means

    def _fit(self, table: np.ndarray, y: np.ndarray) -> tuple[Tensor, Tensor, np.ndarray]:
        x, scaled, kept = super()._fit(table, y)
        if self._repeats is not None:
            squares = self._repeats.squares(torch.from_numpy(self.target_.forward(y))).numpy()
            self._beside = min(self._within / self.noise_, 1.0), squares, self._repeats.sizes.numpy()
        self._data = (x, scaled) if self._shares is None else (x, scaled, self._shares, torch.zeros(len(x)))
        self._roots = [self._factor.lower] if self._factor is not None else self._centre_roots(x)
        return x, scaled, kept

    @torch.no_grad()
    def _centre_roots(self, x: Tensor) -> list[Tensor]:
        """Factors of K_mm and of K_mn K_nm / noise + K_mm, the matrices of the variance of the centres' model."""
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

    @torch.no_grad()
    def _variance(self, x: Tensor) -> Tensor:
        """The posterior variance of f at scaled x, `n`; never negative."""
        points = self._points.double()
        found = []
        for rows in x.split(block_rows(len(points))):
            prior = self.kernel_.diagonal(rows)
            cross = self.kernel_.block(points, rows)
            seen = torch.linalg.solve_triangular(self._roots[0], cross, upper=False).square().sum(0)
            rest = prior - seen
            n = len(points)
            bound = BOUND * n * torch.finfo(torch.float64).eps * (1 + float(prior.max()) / self.noise_) * prior
            if bool((rest < -bound - 1e-12).any()):
                worst = float(rest.min())
                raise NotPositiveDefiniteError(
                    f"the predicted variance is {worst:.3g}, below rounding: add noise", worst
                )
            rest = rest.clamp_min(0)
            if len(self._roots) == 2:
                known = torch.linalg.solve_triangular(self._roots[1], cross, upper=False).square().sum(0)
                rest = rest + self.noise_ * known
            found.append(rest)
        return torch.cat(found) if found else torch.zeros(0, dtype=torch.float64)

    def predict(self, X: Any, return_std: bool = False) -> Any:
        """Mean of f at X: n d; with return_std also its standard deviation, noise not included, in units of y."""
        mean = super().predict(X)
        if not return_std:
            return mean
        table, _ = self._read(X, reset=False)
        deviation = self._variance(self.scaler_(table)).sqrt().numpy()[:, None] * self.target_.scale
        return mean, as_given(X, deviation[:, 0] if self._vector else deviation)

    @property
    def theta_(self) -> np.ndarray:
        """Logarithms of the kernel's parameters, in order, then of the noise."""
        check_is_fitted(self, "kernel_")
        flat = [p.detach().flatten().numpy() for p in self.kernel_.parameters()]
        return np.concatenate([*flat, [math.log(self.noise_)]])

    def log_marginal_likelihood(self, theta: np.ndarray | None = None, eval_gradient: bool = False) -> Any:
        """log p(y | X, theta) of the (standardised) training data, summed over outputs; theta as `theta_`.

        With eval_gradient also the gradient in theta. The share of the noise that twins have each for themselves is
        held; rows whose twins are exact copies count once. Raises StructureError on a model without its training data.
        """
        check_is_fitted(self, "kernel_")
        if not hasattr(self, "_data"):
            raise StructureError(
                "a model made from its state has no training targets: fit it to ask for its likelihood"
            )
        present = self.theta_
        kernel = self.kernel_.requires_grad_(True)
        target = Likelihood(kernel, self.noise_, [self._data], profile=False)
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
        return (value, slope) if eval_gradient else value

    def get_state(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """(JSON-able values, arrays) of the fitted model, with the factors that the variance needs."""
        values, arrays = super().get_state()
        roots = {f"root.{i}": root.numpy() for i, root in enumerate(self._roots)}
        return values, arrays | roots

    @classmethod
    def from_state(cls, values: dict[str, Any], arrays: dict[str, np.ndarray]) -> GaussianProcessRegressor:
        """The fitted model that `get_state` described."""
        found = super().from_state(values, arrays)
        found._roots = [torch.tensor(arrays[key]) for key in ("root.0", "root.1") if key in arrays]
        return found
