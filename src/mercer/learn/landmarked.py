"""What the Falkon learners share: checks, passes over the rows, reports, predictions a block at a time."""

from __future__ import annotations

import warnings
from abc import ABC
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.utils import check_random_state
from torch import Tensor

from mercer.assemble import assemble
from mercer.errors import ConvergenceWarning, DataError
from mercer.learn.arguments import count, positive, share, usual
from mercer.learn.newton import Newton
from mercer.learn.passes import MANY, Passes
from mercer.learn.rows import Rows
from mercer.learn.state import Saved
from mercer.learn.task import Fit, Task
from mercer.learn.walk import Patience, Walk
from mercer.operator import Operator

PREDICTED = 2**16  # rows predicted at once


class FalkonEstimator(Saved, BaseEstimator, ABC):
    """Base of the Falkon learners: not public."""

    kernel: Any
    landmarks: Any
    alpha: float | None
    selection: str
    learn: bool
    precision: str | None
    tolerance: float
    max_iter: int
    validation_fraction: float | None
    time_budget: float | None
    checkpoint: Any
    progress: Any
    random_state: Any
    _fitted: tuple[str, ...] = (
        "kernel_", "alpha_", "scaler_", "_common", "target_", "landmarks_", "_weights", "jitter_",
    )  # fmt: skip
    _sometimes: tuple[str, ...] = ("residual_", "n_iter_", "stopped_", "history_", "validation_error_")

    def _check(self) -> None:
        for name, options in (("selection", ("uniform", "pivoted")), ("precision", (None, "mixed", "double"))):
            if getattr(self, name) not in options:
                raise ValueError(f"{name} is {getattr(self, name)!r}; expected one of {options}")
        usual(self)
        positive("alpha", self.alpha)
        positive("tolerance", self.tolerance, optional=False, below=1)
        share("validation_fraction", self.validation_fraction)
        count("max_iter", self.max_iter, 1)

    def _read(self, x: Any, y: Any, *, classes: bool = False, reset: bool = True) -> Rows:
        rows = Rows.read(self, x, y, reset=reset, classes=classes)
        if reset and len(rows) < 2:
            raise DataError(f"{type(self).__name__} got 1 sample; expected at least 2 rows to learn from")
        return rows

    def _seed(self) -> int:
        return int(check_random_state(self.random_state).randint(2**31 - 1))

    def _passes(self, found: Task, columns: int, target: Callable[[np.ndarray], Tensor]) -> Passes:
        return Passes(found.kernel, found.rows, found.keep, found.start.scaler, found.z, target, found.weight, columns)

    def _held(self, found: Task, passes: Passes) -> tuple[Operator, Tensor]:
        """(k of the held-out rows and the landmarks, the shares `n` of these rows in a mean)."""
        k = assemble(found.kernel, passes.read(found.held), found.z, rhs=passes.columns, products=MANY)
        heavy = np.ones(len(found.held)) if found.weight is None else found.weight[found.held]
        return k, torch.from_numpy(heavy / heavy.sum())

    def _patience(self, fit: Fit, early: bool) -> Patience:
        return Patience(float(self.tolerance), int(self.max_iter), early, fit.clock)

    def _keep(self, found: Task, weights: Tensor, jitter: float) -> None:
        """The fitted attributes that all of them have."""
        self.kernel_, self.scaler_, self.jitter_ = found.kernel, found.start.scaler, jitter
        self.landmarks_, self._weights = found.z.double(), weights
        self._common, self.target_ = found.start.common, found.start.target

    def _report(self, solver: Walk | Newton, residual: float, what: str) -> None:
        """How far it came; a missed tolerance is a warning."""
        self.alpha_, self.residual_, self.n_iter_ = solver.level, residual, solver.steps
        early = solver.patience.clock.interrupted  # while the kernel was learned; the rest was finished
        self.stopped_ = "interrupted" if early else solver.stopped
        self.history_, self.validation_error_ = solver.history, solver.error
        if solver.stopped in ("tolerance", "held-out", "interrupted"):
            return
        why = {"iterations": "max_iter", "time": "time_budget", "rounding": "rounding"}[solver.stopped]
        more = "precision='double' or a larger alpha goes further" if why == "rounding" else f"raise {why}"
        message = f"{type(self).__name__} stopped by {why} after {solver.steps} iterations at {what} of {residual:.1e}"
        message = f"{message}, tolerance {self.tolerance:.1e}; {more}"
        warnings.warn(ConvergenceWarning(message, residual, solver.steps), stacklevel=3)

    @torch.no_grad()
    def _scores(self, rows: Rows, at: np.ndarray | None = None) -> np.ndarray:
        """k(x, landmarks) weights, `n c` float64, a block of rows at a time."""
        many = len(rows) if at is None else len(at)
        found = np.zeros((many, self._weights.shape[1]))
        for start in range(0, many, PREDICTED):
            here = slice(start, min(start + PREDICTED, many))
            x = self.scaler_(rows.take(here if at is None else at[here]))
            found[here] = assemble(self.kernel_, x, self.landmarks_).matmul(self._weights).numpy()
        return found
