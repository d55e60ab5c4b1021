"""FalkonClassifier: kernel logistic regression on landmarks for any number of rows, by Newton's method."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from mercer.learn.answers import CalibratedClassifier
from mercer.learn.base import START
from mercer.learn.calibrate import Calibration
from mercer.learn.classify import encoded
from mercer.learn.landmarked import FalkonEstimator
from mercer.learn.newton import Newton, Odds
from mercer.learn.passes import Passes
from mercer.learn.solve import FLOOR
from mercer.learn.task import Task, fits, open_fit, weights_of
from mercer.learn.whitening import Whitening

LOWEST = 1e-3  # of the noise that least squares learned: where the path of penalties of the log loss ends
SEEN = 4  # rows for each centre that tell the curvature of the log loss
CURVE = 0.25  # the second derivative of the log loss, at most: a noise of least squares as a penalty of log odds


class FalkonClassifier(CalibratedClassifier, FalkonEstimator):
    """Kernel logistic regression on landmarks, rows read in blocks: least log loss + alpha / 2 |f|^2.

    f = k(., z) w, without an intercept: log odds of the second of two classes, or the full softmax of one column for
    each class, all of them in each Newton step. alpha: > 0; None: the one of the decreasing path of penalties that
    held-out rows like best. tolerance: of the root mean square change of the log odds by another Newton step.
    max_iter: Newton steps. Probabilities are calibrated on held-out rows (not with validation_fraction=None).
    There is no partial_fit: its second derivatives move with the weights, so sums of rows that are gone do not do.
    All other parameters and attributes as in FalkonRegressor. Fitted: classes_, calibration_ too.
    Cost: about ten passes of 4 n m kernel values for each of some ten to thirty steps, 2 m^3 flops for each class.
    Raises ConvergenceWarning, MemoryBudgetError, DataError when there is one class only.
    Source [marteauferey2019, sec. 3 and 4].
    """

    _fitted: tuple[str, ...] = ("classes_", "calibration_")

    def __init__(
        self,
        kernel: Any = None,
        landmarks: Any = 1000,
        alpha: float | None = None,
        *,
        selection: str = "uniform",
        learn: bool = True,
        standardize: bool | None = None,
        precision: str | None = None,
        tolerance: float = 1e-3,
        max_iter: int = 100,
        validation_fraction: float | None = 0.1,
        time_budget: float | None = None,
        checkpoint: Any = None,
        progress: Any = None,
        random_state: Any = None,
    ):
        self.kernel, self.landmarks, self.alpha, self.selection, self.learn = kernel, landmarks, alpha, selection, learn
        self.standardize, self.precision, self.tolerance = standardize, precision, tolerance
        self.max_iter, self.validation_fraction = max_iter, validation_fraction
        self.time_budget, self.checkpoint = time_budget, checkpoint
        self.progress, self.random_state = progress, random_state

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> FalkonClassifier:
        """Learn from X: n d (arrays, frames, tensors, memory maps) and labels y: n."""
        self._check()
        rows = self._read(X, y, classes=True)
        self.classes_, codes = encoded(rows.y)
        rows.y, odds = codes, Odds(len(self.classes_))
        fit = open_fit(self, rows, weights_of(sample_weight, rows), self._seed(), codes, odds.classes)
        found = fit.task
        fits(len(found.z), odds.columns)
        with torch.no_grad():
            middle, jitter = found.middle()
            passes = self._passes(found, odds.columns, lambda at: torch.from_numpy(codes[at]).double()[:, None])
            root = torch.linalg.cholesky(middle).mT
            sample = torch.cat(list(found.sampled(root, SEEN * len(root))))
            alpha, lowest = self._path(found)
            judge = self._judge(found, passes, odds, codes) if len(found.held) else None
            solver = Newton(
                passes, Whitening(root, root), sample, odds, alpha, lowest, judge, self._patience(fit, True), fit.save,
                self.progress,
            )  # fmt: skip
            if fit.state is not None:
                solver.resume(*fit.state)
            weights = solver.run()
        fit.save(*solver.state(), now=True)
        self._keep(found, weights, jitter)
        self._report(solver, solver.change, "a change")
        self.calibration_ = Calibration(1.0, np.zeros(odds.classes))
        if len(found.held):
            self.calibration_ = Calibration.fit(
                self._each_class(self._scores(rows, found.held)), codes[found.held], 0.0
            )
        return self

    def _path(self, found: Task) -> tuple[float | None, float]:
        """(the penalty or None, the lowest that may be tried)."""
        noise = found.start.noise
        size = float(found.kernel.diagonal(found.z[:100].double()).mean())
        lowest = max(LOWEST * (START if noise is None else noise), FLOOR * size)
        if self.alpha is not None or len(found.held):
            return self.alpha, lowest
        if noise is None:
            raise ValueError("alpha is None and learn=False: held-out rows must choose it; give a validation_fraction")
        return CURVE * noise, lowest

    def _judge(self, found: Task, passes: Passes, odds: Odds, codes: np.ndarray) -> Callable[[Tensor], float]:
        """Held-out log loss of weights."""
        k, share = self._held(found, passes)
        true = torch.from_numpy(codes[found.held])
        return lambda w: float((share * odds.losses(k.matmul(w.to(k.dtype)).double(), true)).sum())

    @staticmethod
    def _each_class(scores: np.ndarray) -> np.ndarray:
        return np.concatenate([-scores / 2, scores / 2], 1) if scores.shape[1] == 1 else scores

    def _logits(self, X: Any) -> np.ndarray:
        check_is_fitted(self, "kernel_")
        return self.calibration_.logits(self._each_class(self._scores(self._read(X, None, reset=False))))
