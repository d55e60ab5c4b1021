"""VecchiaGaussianProcess: Gaussian process regression from each row's nearest earlier rows, at any number of rows."""

from __future__ import annotations

import copy
import logging
import math
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from mercer.errors import DataError
from mercer.kernel import Kernel
from mercer.kernels import Matern, Scaled
from mercer.learn import plan as planning
from mercer.learn.answers import as_given
from mercer.learn.arguments import count, inside, positive, usual
from mercer.learn.copies import Repeats
from mercer.learn.sequential import COPIES, Conditionals, Nearby, Observed, height
from mercer.learn.state import Saved
from mercer.learn.table import Scaler, Target, read
from mercer.learn.tune import Climb, Clock, learn

log = logging.getLogger("mercer")

START = 0.1  # noise before anything is learned
STAGES = ((4_000, 25, 0.6), (32_000, 8, 0.9))  # conditionals, steps and share of the time of each stage of learning
FIRST = 0.3  # share of the time for a first sight of the kernel on a few hundred rows
SPREAD = 5.0  # of the prior of log lengthscales: thousands of conditionals need no help
CALIBRATED = 20_000  # rows left out to make intervals


class VecchiaGaussianProcess(RegressorMixin, Saved, BaseEstimator):
    """Gaussian process regression by Vecchia's likelihood of the responses: y = f(x) + e, f ~ GP(0, k), any n.

    log p(y) = sum_i log p(y_i | y of its nearest earlier rows), coarse to fine in the kernel's own coordinates.
    kernel: a psd Kernel, or None: a variance times the best of Matern 1/2, 3/2 and 5/2, a lengthscale for each column.
    noise: > 0, variance of e; None: learned. neighbours: >= 1; n - 1 of them make it exact. learn, standardize,
    time_budget, progress, random_state: as in GaussianProcessRegressor.
    Fitted: kernel_, noise_ (both for standardised data), plan_. Cost: 2e-6 s (neighbours / 10)^2 or so for each row
    and step of learning, on at most 32,000 conditionals; neighbours^3 / 3 flops for each predicted point.
    Error: rows beyond the nearest are ignored; more noise needs more neighbours.
    Source [vecchia1988], [katzfuss2021], [schafer2021, thm. 2.1].
    """

    _fitted: tuple[str, ...] = (
        "kernel_", "noise_", "plan_", "scaler_", "target_", "_vector", "_data", "_rows", "_scores",
    )  # fmt: skip

    def __init__(
        self,
        kernel: Any = None,
        noise: float | None = None,
        *,
        neighbours: int = 30,
        learn: bool = True,
        standardize: bool | None = None,
        time_budget: float | None = None,
        progress: Any = None,
        random_state: Any = None,
    ):
        self.kernel, self.noise, self.neighbours, self.learn = kernel, noise, neighbours, learn
        self.standardize, self.time_budget = standardize, time_budget
        self.progress, self.random_state = progress, random_state

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

    def _check(self) -> None:
        positive("noise", self.noise)
        count("neighbours", self.neighbours, 1)
        usual(self)

    def fit(self, X: Any, y: Any) -> VecchiaGaussianProcess:
        """Learn from X: n d and y: n or n c. Raises DataError naming the first NaN or infinity."""
        self._check()
        clock = Clock.of(self.time_budget)
        table, y = read(self, X, y, reset=True)
        if len(table) < 2:
            raise DataError("VecchiaGaussianProcess got 1 sample; expected at least 2 rows to learn from")
        generator = torch.Generator().manual_seed(int(check_random_state(self.random_state).randint(2**31 - 1)))
        target = np.asarray(y, dtype=np.float64)
        self._vector = target.ndim == 1
        ours = self.kernel is None if self.standardize is None else bool(self.standardize)
        self.scaler_ = Scaler.fit(table) if ours else Scaler.identity(table.shape[1])
        self.target_, scaled = Target.fit(target.reshape(len(table), -1), ours or self.learn)
        x = self.scaler_(table)
        twins = Repeats.of(x)
        if twins is None:
            kept = np.arange(len(x))
            data = Observed(x, scaled, torch.ones(len(x), dtype=torch.float64), scaled.new_zeros(scaled.shape[1]))
        else:
            kept, sizes = twins.picked, twins.sizes
            data = Observed(
                x[kept], twins.means(scaled), 1 / sizes, twins.squares(scaled),
                float((sizes - 1).sum()), float(sizes.log().sum()),
            )  # fmt: skip
        self._data, self._rows = data, len(table)
        steps = self._learn(data, clock, generator)
        self._serve()
        self._calibrate(torch.from_numpy(self.target_.forward(target.reshape(len(table), -1)[kept])), generator)
        k = self._near.data.x.shape[0] if self.neighbours >= len(data.x) else self.neighbours
        plan = planning.Plan(
            "vecchia", len(table), landmarks=k, seconds=clock.used(), interrupted=clock.interrupted, steps=steps,
            memory=height(k + 1) * 8 * COPIES * (k + 1) ** 2 + 24 * len(table) * (k + 1),
        )  # fmt: skip
        self.plan_ = planning.Plan(**{**plan.as_dict(), "sentence": self._sentence(plan)})
        return self

    @staticmethod
    def _sentence(plan: planning.Plan) -> str:
        early = "; learning was interrupted and the best kernel so far was kept" if plan.interrupted else ""
        return (
            f"{plan.rows:,} rows, each given the {plan.landmarks} nearest before it, {plan.steps} steps of learning, "
            f"{plan.memory / 2**20:,.0f} MiB planned, {plan.seconds:.1f} s{early}"
        )

    def _learn(self, data: Observed, clock: Clock, generator: torch.Generator) -> int:
        d = data.x.shape[1]
        wide = torch.full((d,), max(math.sqrt(d), 1.0), dtype=torch.float64)
        noise = START if self.noise is None else float(self.noise)
        mine: list[Kernel] = [Scaled(Matern(nu, wide), 1.0) for nu in (0.5, 1.5, 2.5)]
        candidates = mine if self.kernel is None else [copy.deepcopy(self.kernel)]
        self.kernel_, self.noise_, steps = candidates[-1], noise, 0
        if self.learn and not bool((data.y == data.y[0]).all()):
            first = learn(
                candidates, noise, data.x, data.y, clock, generator, profile=False, share=FIRST,
                keep_noise=self.noise is not None, progress=self.progress,
                shares=(data.shares, torch.zeros_like(data.shares)),
            )  # fmt: skip
            target = Conditionals(first.kernel.requires_grad_(True), first.noise, data, self.neighbours)
            target.keep_noise, steps = self.noise is not None, first.steps
            for rows, most, share in STAGES:
                if clock.interrupted or (rows > STAGES[0][0] and len(data.x) <= STAGES[0][0]):
                    break
                target.draw(rows, generator)
                climb = Climb(target, clock, share, self.progress, SPREAD)
                climb.run(most)
                steps += climb.steps
            self.kernel_, self.noise_ = target.kernel, math.exp(target.log_noise)
        self.kernel_.requires_grad_(False)
        log.info("learned %r, noise %.3g", self.kernel_, self.noise_)
        return steps

    def _serve(self) -> None:
        self._near = Nearby(self.kernel_, self.noise_, self._data)

    def _calibrate(self, true: Tensor, generator: torch.Generator) -> None:
        """Sizes of what left-out rows were missed by, in their predicted deviations."""
        rows = torch.randperm(len(true), generator=generator)[:CALIBRATED]
        k = min(self.neighbours, len(self._data.x) - 1)
        if not k:
            self._scores = np.zeros((0, true.shape[1]))
            return
        mean, variance = self._near.left_out(rows, k)
        self._scores = ((true[rows] - mean).abs() / (variance + self.noise_).sqrt()[:, None]).sort(0).values.numpy()

    def _predicted(self, X: Any) -> tuple[np.ndarray, np.ndarray]:
        """(mean `n c` in units of y, variance of f `n 1` on the common scale: squares of units may be no numbers)."""
        check_is_fitted(self, "kernel_")
        x = self.scaler_(read(self, X, reset=False)[0])
        mean, variance = self._near.predict(x, min(self.neighbours, len(self._data.x)))
        return self.target_.back(mean.numpy()), variance.numpy()[:, None]

    def _shaped(self, X: Any, values: np.ndarray) -> Any:
        return as_given(X, values[:, 0] if self._vector else values)

    def predict(self, X: Any, return_std: bool = False, return_cov: bool = False) -> Any:
        """Mean of f at X: q d; also its standard deviation, or the covariance `q q` (`q q c` of several outputs).

        The noise is not in them. With return_cov the points are taken one after the other, each given its nearest rows
        and the points of X before it, and the mean is the one that goes with that.
        """
        if return_std and return_cov:
            raise ValueError("return_std and return_cov are both True; expected at most one of them")
        if return_cov:
            check_is_fitted(self, "kernel_")
            x = self.scaler_(read(self, X, reset=False)[0])
            mean, covariance = self._near.together(x, min(self.neighbours, len(self._data.x)))
            full = covariance.numpy()[..., None] * self.target_.scale**2
            return self._shaped(X, self.target_.back(mean.numpy())), as_given(X, full[..., 0] if self._vector else full)
        found, variance = self._predicted(X)
        mean = self._shaped(X, found)
        return (mean, self._shaped(X, np.sqrt(variance) * self.target_.scale)) if return_std else mean

    def predict_interval(self, X: Any, coverage: float = 0.9) -> tuple[Any, Any]:
        """(lower, upper) that hold a new y with this chance: predicted deviations, times what left-out rows ask for."""
        inside("coverage", coverage)
        mean, variance = self._predicted(X)
        n = len(self._scores)
        place = math.ceil((n + 1) * coverage)
        q = self._scores[place - 1] if place <= n else np.full(mean.shape[1], np.inf)
        half = q * np.sqrt(variance + self.noise_) * self.target_.scale
        return self._shaped(X, mean - half), self._shaped(X, mean + half)

    def log_predictive_density(self, X: Any, y: Any) -> Any:
        """log p(y | its nearest rows) at new X: q d and y: q or q c, noise included, of the shape of y."""
        mean, variance = self._predicted(X)
        target = np.asarray(read(self, X, y, reset=False)[1], dtype=np.float64).reshape(mean.shape)
        root = np.sqrt(variance + self.noise_) * self.target_.scale
        return self._shaped(X, -0.5 * (((target - mean) / root) ** 2 + math.log(2 * math.pi)) - np.log(root))

    def log_marginal_likelihood(self, theta: np.ndarray | None = None, eval_gradient: bool = False) -> Any:
        """log p(y | X, theta) by all conditionals of the (standardised) rows, summed over outputs; with its gradient.

        theta: logarithms of the kernel's parameters, in order, then of the noise; the order of the rows is theirs.
        """
        check_is_fitted(self, "kernel_")
        kernel = copy.deepcopy(self.kernel_).requires_grad_(True)
        target = Conditionals(kernel, self.noise_, self._data, self.neighbours)
        if theta is not None:
            target.theta = np.asarray(theta, dtype=np.float64)
        target.draw(len(self._data.x), torch.Generator())
        value, slope = target.evaluate(gradient=eval_gradient)
        return (value, slope) if eval_gradient else value

    def _restored(self, parts: dict[str, Any]) -> None:
        self._serve()
