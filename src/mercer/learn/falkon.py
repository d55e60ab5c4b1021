"""FalkonRegressor: kernel ridge on landmarks for any number of rows, by conjugate gradients or running sums."""

from __future__ import annotations

import math
import numbers
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from mercer.errors import DataError, MercerWarning
from mercer.learn.answers import IntervalRegressor
from mercer.learn.base import CALIBRATION, START
from mercer.learn.conformal import LocalConformal
from mercer.learn.draw import Start, begin
from mercer.learn.landmarked import FalkonEstimator
from mercer.learn.passes import Passes
from mercer.learn.rows import Rows
from mercer.learn.solve import FLOOR
from mercer.learn.sums import Sums
from mercer.learn.task import Task, fits, landmarks, open_fit, weights_of
from mercer.learn.walk import Walk

ENOUGH = 50  # held-out rows that may choose among penalties near one that was learned
NEAR, WIDE = (0.1, 0.3, 1.0, 3.0), (1e-3, 1e-2, 0.1, 1.0, 10.0, 100.0)  # multiples of a learned noise; of none


class FalkonRegressor(IntervalRegressor, FalkonEstimator):
    """Kernel ridge on landmarks z: f(x) = k(x, z) w, (K_mn K_nm + alpha K_mm) w = K_mn y, rows read in blocks.

    kernel, learn, standardize, progress, random_state: as in KernelRidge, learned on a draw of 2,000 rows. landmarks:
    how many rows are drawn (`selection` "uniform", or "pivoted": by randomly pivoted Cholesky), or an array `m d`.
    alpha: > 0; None: chosen on held-out rows, all in one solve. precision: "mixed" (float32, residuals in float64) or
    "double"; None: by the size. tolerance: of the residual in Falkon's coordinates. early_stopping: end where held-out
    rows say so. validation_fraction: of rows held out, at most 20,000; None: none. checkpoint: a file to go on from.
    Fitted: kernel_, alpha_, landmarks_, jitter_, residual_, n_iter_, history_ (iteration, residual, held-out error,
    seconds), stopped_, validation_error_. Cost: 2 n m kernel values each iteration, m^3 (1 + alphas) / 3 flops.
    Memory: about 8 m^2 (6 + alphas) bytes and a quarter of the budget. Raises ConvergenceWarning, MemoryBudgetError.
    Source [rudi2017, alg. 1].
    """

    _fitted: tuple[str, ...] = ("_vector", "_intervals", "_sums")

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
        tolerance: float = 1e-4,
        max_iter: int = 100,
        early_stopping: bool = True,
        validation_fraction: float | None = 0.1,
        time_budget: float | None = None,
        checkpoint: Any = None,
        progress: Any = None,
        random_state: Any = None,
    ):
        self.kernel, self.landmarks, self.alpha, self.selection, self.learn = kernel, landmarks, alpha, selection, learn
        self.standardize, self.precision, self.tolerance = standardize, precision, tolerance
        self.max_iter, self.early_stopping = max_iter, early_stopping
        self.validation_fraction, self.time_budget, self.checkpoint = validation_fraction, time_budget, checkpoint
        self.progress, self.random_state = progress, random_state

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> FalkonRegressor:
        """Learn from X: n d (arrays, frames, tensors, memory maps) and y: n or n c; rows of weight 0 do not count."""
        self._check()
        rows = self._read(X, y)
        if rows.y is not None:
            self._vector = rows.y.ndim == 1
        fit = open_fit(self, rows, weights_of(sample_weight, rows), self._seed())
        found = fit.task
        self._sums: Sums | None = None
        levels = self._levels(found)
        fits(len(found.z), len(levels))
        with torch.no_grad():
            middle, jitter = found.middle()
            goal = found.start.target
            passes = self._passes(
                found, len(levels) * len(goal.centre), lambda at: torch.from_numpy(goal.taught(rows.targets(at)))
            )
            white = found.whitening(middle, passes.total).at(levels)
            judge = self._judge(found, passes) if len(found.held) else None
            solver = Walk(
                passes, white, levels, judge, self._patience(fit, self.early_stopping), fit.save, self.progress
            )
            if fit.state is not None:
                solver.resume(*fit.state)
            weights = solver.run()
        fit.save(*solver.state(), now=True)
        self._keep(found, weights, jitter)
        self._report(solver, solver.residual, "a residual")
        self._calibrate(found)
        return self

    def _levels(self, found: Task) -> list[float]:
        """Penalties to try."""
        if self.alpha is not None:
            return [float(self.alpha)]
        noise, held = found.start.noise, len(found.held)
        if noise is None and not held:
            raise ValueError("alpha is None and learn=False: held-out rows must choose it; give a validation_fraction")
        base, factors = (START, WIDE) if noise is None else (noise, NEAR if held >= ENOUGH else (1.0,))
        size = float(found.kernel.diagonal(found.z[:100].double()).mean())
        floor = FLOOR * size if self.precision == "mixed" else 0.0
        return sorted({max(base * factor, floor) for factor in factors})

    def _judge(self, found: Task, passes: Passes) -> Callable[[Tensor], Tensor]:
        """Held-out mean squared errors of weights `m (k c)` of k levels."""
        y = torch.from_numpy(found.start.target.taught(found.rows.targets(found.held)))
        k, share = self._held(found, passes)

        def errors(w: Tensor) -> Tensor:
            wrong = k.matmul(w.to(k.dtype)).double().reshape(len(y), -1, y.shape[1]) - y[:, None]
            return (share[:, None] * wrong.square().mean(2)).sum(0)

        return errors

    def _calibrate(self, found: Task) -> None:
        """Residuals of held-out rows, from which intervals are made when one is asked for."""
        scores = self._scores(found.rows, found.held)
        true = found.start.target.forward(found.rows.targets(found.held))
        self._seen = self._local(found.rows.take(found.held), scores), true - scores
        self._intervals: LocalConformal | None = None

    def _local(self, table: np.ndarray, scores: np.ndarray) -> np.ndarray:
        return np.concatenate([self._common(table).numpy(), scores], 1)

    @property
    def conformal_(self) -> LocalConformal:
        """The intervals' widths, learned from held-out residuals when first asked for."""
        check_is_fitted(self, "kernel_")
        if self._intervals is None:
            where, wrong = self._seen
            if not len(wrong):
                raise DataError("intervals need held-out rows: fit with a validation_fraction")
            seconds = None if self.time_budget is None else CALIBRATION * self.time_budget
            self._intervals = LocalConformal(scale=False, random_state=0, time_budget=seconds).fit(where, wrong)
        return self._intervals

    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None) -> FalkonRegressor:
        """Add rows to the sums K_mn K_nm and K_mn y, in float64, and solve; any split of the rows gives the same model.

        The first call chooses what does not come with the sums: kernel, scales, alpha and landmarks, from its rows.
        After a fit, what it learned and chose stays, its rows do not count (and a warning says so).
        Intervals come from left-out residuals of each piece. Cost: n m^2 + m^3 / 3 flops each call.
        """
        self._check()
        sums: Sums | None = getattr(self, "_sums", None)
        fresh = sums is None
        rows = self._read(X, y, reset=fresh)
        rows.refuse_gaps()
        weight = weights_of(sample_weight, rows, 2 if fresh else 0)
        if sums is None:
            sums = self._sums = self._begin_sums(rows, weight)
        target, table = rows.targets(np.arange(len(rows))), rows.take(np.arange(len(rows)))
        if target.shape[1] != sums.right.shape[1]:
            raise DataError(f"y has {target.shape[1]} outputs; the rows before had {sums.right.shape[1]}")
        x, goal = self.scaler_(table), torch.from_numpy(self.target_.taught(target))
        heavy = None if weight is None else torch.from_numpy(weight)[:, None]
        sums.add(x, goal, heavy)
        if math.isnan(sums.level):
            sums.choose(x, goal, heavy, [START * factor for factor in WIDE])
        self.alpha_ = sums.level
        self._weights = sums.solve()
        scores = torch.from_numpy(self._scores(rows))
        where = torch.from_numpy(self._local(table, scores.numpy()))
        sums.judge(x, goal, heavy, self._weights, where)
        self._seen, self._intervals = (sums.where.numpy(), sums.wrong.numpy()), None
        return self

    def _begin_sums(self, rows: Rows, weight: np.ndarray | None) -> Sums:
        """What the first rows decide for all, or what a fit decided."""
        seed = self._seed()
        if hasattr(self, "kernel_"):
            warnings.warn(MercerWarning("partial_fit keeps what fit learned and chose, not its rows"), stacklevel=3)
            start, z = Start(self.kernel_, self.alpha_, self.scaler_, self._common, self.target_), self.landmarks_
        else:
            keep = np.ones(len(rows), dtype=bool) if weight is None else weight > 0
            start = begin(self, rows, keep, seed, self.time_budget)
            z = landmarks(self, rows, keep, start, seed, torch.float64)
            if isinstance(self.landmarks, numbers.Integral) and len(z) < int(self.landmarks):
                few = f"partial_fit keeps the {len(z)} landmarks that its first rows gave, not {self.landmarks}"
                warnings.warn(MercerWarning(f"{few}; begin with more rows, or give landmarks"), stacklevel=3)
        fits(len(z), 1)
        found = Task(rows, weight, np.empty(0, dtype=bool), np.empty(0, dtype=np.int64), seed, start, z)
        middle, jitter = found.middle()
        outputs = len(start.target.centre)
        self._keep(found, torch.zeros(len(z), outputs, dtype=torch.float64), jitter)
        self._vector = rows.y is not None and rows.y.ndim == 1
        level = start.noise if self.alpha is None else float(self.alpha)
        return Sums(start.kernel, z, middle, math.nan if level is None else level, outputs, seed)

    def _answers(self, X: Any) -> tuple[np.ndarray, Callable[[], np.ndarray]]:
        check_is_fitted(self, "kernel_")
        rows = self._read(X, None, reset=False)
        scores = self._scores(rows)
        return scores, lambda: self._local(rows.take(slice(None)), scores)

    def _widths(self) -> LocalConformal:
        return self.conformal_

    def _ready(self) -> None:
        if len(self._seen[1]):
            self._intervals = self.conformal_

    def _restored(self, parts: dict[str, Any]) -> None:
        self._seen = np.zeros((0, 0)), np.zeros((0, self._weights.shape[1]))
