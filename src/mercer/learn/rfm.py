"""Recursive feature machines: kernel ridge and classification in the metric that their own gradients ask for."""

from __future__ import annotations

import copy
from abc import ABC
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from mercer.kernel import Kernel
from mercer.kernels import Matern
from mercer.learn.base import START, KernelEstimator
from mercer.learn.classify import KernelClassification
from mercer.learn.metric import Data, Recursion, Stage, metric_of
from mercer.learn.regress import KernelRegressor
from mercer.learn.solve import FLOOR
from mercer.learn.tune import Clock
from mercer.learn.unseen import flattered

HELD, MOST = 0.2, 4000  # share of the rows that choose the round, and at most so many
ROWS, LANDMARKS = 20_000, 1000  # rows that the rounds learn from, and their landmarks
SHARE = 0.6  # of the seconds, for the rounds


class _Recursive(KernelEstimator, ABC):
    """What both machines do in place of learning lengthscales."""

    _fitted: tuple[str, ...] = ("iteration_", "history_")
    learn = True  # a metric is always learned
    metric: str
    power: float
    iterations: int

    def _check(self) -> None:
        super()._check()
        if self.metric not in ("full", "diagonal"):
            raise ValueError(f"metric is {self.metric!r}; expected 'full' or 'diagonal'")
        if not isinstance(self.power, Real) or not 0 < float(self.power) <= 1:
            raise ValueError(f"power is {self.power!r}; expected a number in (0, 1]")
        if not isinstance(self.iterations, Integral) or int(self.iterations) < 0:
            raise ValueError(f"iterations is {self.iterations!r}; expected a whole number >= 0")

    def _flattered(self, rows: int, columns: int) -> bool:
        numbers = columns * (columns + 1) // 2 if self.metric == "full" else columns
        return self.iterations > 0 and flattered(rows, numbers)

    def _learned(self, x: Tensor, y: Tensor, clock: Clock, generator: torch.Generator) -> tuple[Kernel, float]:
        given, d = self._given(), x.shape[1]
        noise = START if given is None else float(given)
        kernel = Matern(0.5, float(max(d, 1)) ** 0.5) if self.kernel is None else copy.deepcopy(self.kernel)
        kernel.requires_grad_(False)
        self.iteration_, self.history_ = 0, []
        if bool((y == y[0]).all()) or len(x) < 5:
            return kernel, noise
        order = torch.randperm(len(x), generator=generator)[:ROWS]
        out = max(1, min(int(HELD * len(order)), MOST))
        held, kept = order[:out], order[out:]
        share = self._share(noise)
        data = Data(x[kept], y[kept], x[held], self._truth[held], None if share is None else share[kept])
        seed = int(torch.randint(2**31 - 1, (1,), generator=generator))
        full, least = self.metric == "full", max(self._least, FLOOR)
        run = Recursion(data, full, LANDMARKS, clock, seed, least, given is None, float(self.power))
        best: Stage | None = None
        try:
            for stage in run.rounds(kernel, noise, int(self.iterations)):
                self.history_.append(stage.error)
                if best is None or stage.error < best.error:
                    best, self.iteration_ = stage, len(self.history_) - 1
                if self.progress is not None:
                    self.progress("mean square of held-out errors", stage.error)
                if clock.over(SHARE):
                    break
        except KeyboardInterrupt:
            clock.interrupted = True
        return (kernel, noise) if best is None else (best.kernel, best.noise)

    @property
    def metric_(self) -> np.ndarray:
        """M of the squared distance (x - y)^T M (x - y) that the kernel takes, `d d`, for standardised columns."""
        check_is_fitted(self, "kernel_")
        return metric_of(self.kernel_, self.n_features_in_).numpy()


class RecursiveFeatureMachine(_Recursive, KernelRegressor):
    """Kernel ridge regression in a learned metric: k sees (x - y)^T M (x - y), M from the fit's own gradients.

    Each round fits on landmarks and sets M to the average gradient outer product of the fit to a power; held-out
    rows (a fifth) choose the round, the lengthscale and, where alpha is None, the noise, for a fit of all rows.
    kernel: a psd Kernel, or None: Matern 1/2, exp(-distance). metric: "full", or "diagonal": one number a column.
    power: in (0, 1]; 1 is that of the first paper, 1/2 keeps directions that matter less. iterations: rounds, >= 0.
    Other parameters and attributes as in KernelRidge; also metric_ (`d d`, for standardised columns), iteration_, the
    round that was kept, and history_, the mean squares of held-out rows of each, in units of y's variance.
    Cost: per round two or three fits of at most 16,000 rows on 1,000 landmarks, 2 n m^2 flops each.
    Source [radhakrishnan2024, alg. 1], [beaglehole2025, sec. 2].
    """

    def __init__(
        self,
        kernel: Any = None,
        alpha: float | None = None,
        *,
        metric: str = "full",
        power: float = 0.5,
        iterations: int = 5,
        standardize: bool | None = None,
        time_budget: float | None = None,
        progress: Any = None,
        random_state: Any = None,
    ):
        self.kernel, self.alpha, self.standardize = kernel, alpha, standardize
        self.metric, self.power, self.iterations = metric, power, iterations
        self.time_budget, self.progress, self.random_state = time_budget, progress, random_state


class RecursiveFeatureClassifier(_Recursive, KernelClassification):
    """Classifier with calibrated probabilities in a learned metric: RecursiveFeatureMachine on class membership.

    Rounds are judged by the squares of held-out memberships; then as KernelClassifier: a logistic map of left-out
    scores, or kernel logistic regression in the metric, where left-out rows have a smaller log loss by it.
    Parameters and metric_, iteration_, history_ as in RecursiveFeatureMachine, other attributes as in
    KernelClassifier. Cost: that of RecursiveFeatureMachine with one output for each class.
    Source [radhakrishnan2024, alg. 1], [beaglehole2025, sec. 2].
    """

    def __init__(
        self,
        kernel: Any = None,
        alpha: float | None = None,
        *,
        metric: str = "full",
        power: float = 0.5,
        iterations: int = 5,
        standardize: bool | None = None,
        time_budget: float | None = None,
        progress: Any = None,
        random_state: Any = None,
    ):
        self.kernel, self.alpha, self.standardize = kernel, alpha, standardize
        self.metric, self.power, self.iterations = metric, power, iterations
        self.time_budget, self.progress, self.random_state = time_budget, progress, random_state
