"""EigenProRegressor and EigenProClassifier: kernel models trained by preconditioned stochastic gradients."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mercer.errors import DataError
from mercer.learn.answers import CalibratedClassifier, IntervalRegressor
from mercer.learn.base import CALIBRATION
from mercer.learn.calibrate import Calibration
from mercer.learn.classify import encoded
from mercer.learn.conformal import LocalConformal
from mercer.learn.descent import Logistic, Loss, Squared
from mercer.learn.draw import Start, begin, memberships
from mercer.learn.preconditioned import EigenProEstimator
from mercer.learn.rows import Rows
from mercer.learn.table import Target

FIRM = {"log": 0.0, "squared": 1.0}  # logarithm of the temperature that few held-out rows are drawn to


class EigenProRegressor(IntervalRegressor, EigenProEstimator):
    """Kernel least squares by preconditioned SGD over a stream of rows: f(x) = k(x, landmarks) w, no ridge.

    kernel, learn, standardize: as in KernelRidge, learned on a draw. landmarks: None, every row; how many rows to draw;
    or an array `p d`. rank: directions made flat; subsample: rows that show them; batch_size, step_size (for the mean
    gradient): all found from eigenvalues when None. epochs: at most. validation_fraction: of rows (at most 20,000)
    held out, which stop the descent after `patience` epochs without gain, and tell intervals.
    time_budget: seconds, soft. checkpoint: a file from which a killed fit goes on. progress, random_state.
    Fitted: kernel_, epochs_, history_ (epoch, error in scaled units, seconds), stopped_ ("patience", "converged",
    "epochs", "time", "interrupted", "diverged"), batch_size_, step_size_.
    Cost: 2 n p kernel values an epoch; memory p (d + rank) and 8 p^2 bytes to 3,000 landmarks, none for rows unless
    they are landmarks. Error: no noise remains, but directions of tiny eigenvalues take many epochs.
    Source [ma2019], [abedsoltan2023].
    """

    _fitted: tuple[str, ...] = ("_vector", "conformal_")

    def __init__(
        self,
        kernel: Any = None,
        landmarks: Any = None,
        *,
        rank: int | None = None,
        subsample: int = 2000,
        batch_size: int | None = None,
        step_size: float | None = None,
        epochs: int = 20,
        validation_fraction: float | None = 0.1,
        patience: int = 3,
        learn: bool = True,
        standardize: bool | None = None,
        time_budget: float | None = None,
        checkpoint: Any = None,
        progress: Any = None,
        random_state: Any = None,
    ):
        self.kernel, self.landmarks, self.rank, self.subsample = kernel, landmarks, rank, subsample
        self.batch_size, self.step_size, self.epochs = batch_size, step_size, epochs
        self.validation_fraction, self.patience = validation_fraction, patience
        self.learn, self.standardize, self.time_budget = learn, standardize, time_budget
        self.checkpoint, self.progress, self.random_state = checkpoint, progress, random_state

    def fit(self, X: Any, y: Any) -> EigenProRegressor:
        """Learn from X: n d and y: n or n c, arrays, memory maps or tables; blocks of rows are copied, never all."""
        rows = Rows.read(self, X, y, reset=True)
        self._vector = rows.y is not None and rows.y.ndim == 1
        self._fit(rows)
        self.conformal_ = self._intervals()
        return self

    def partial_fit(self, X: Any, y: Any) -> EigenProRegressor:
        """One pass over more rows. The first call learns the kernel and the scales; without `landmarks` rows are added.

        Landmarks are drawn from the first rows, until there are as many as asked.
        """
        fresh = not hasattr(self, "kernel_")
        rows = Rows.read(self, X, y, reset=fresh)
        if fresh:
            self._vector = rows.y is not None and rows.y.ndim == 1
        elif rows.y is None or rows.y.size != len(rows) * self._weights.shape[1]:
            raise DataError(f"y must have {self._weights.shape[1]} outputs, as in the first call")
        self._partial(rows)
        self.conformal_ = None
        return self

    def _begin(self, rows: Rows, keep: np.ndarray, seed: int) -> Start:
        return begin(self, rows, keep, seed, self._seconds())

    def _loss(self) -> Loss:
        return Squared()

    def _targets(self, rows: Rows, at: np.ndarray) -> Tensor:
        return torch.from_numpy(self.target_.taught(rows.targets(at)))

    def _outputs(self, rows: Rows) -> int:
        return rows.targets(slice(0, 1)).shape[1]

    def _intervals(self) -> LocalConformal | None:
        x, y = self._held
        if not len(x):
            return None
        scores = self._scores(x)
        seconds = None if self.time_budget is None else CALIBRATION * self.time_budget
        local = LocalConformal(scale=False, random_state=0, time_budget=seconds)
        return local.fit(self._local(x.double(), scores), y.numpy() - scores)

    def _answers(self, X: Any) -> tuple[np.ndarray, Callable[[], np.ndarray]]:
        x, scores = self._all_scores(X)
        return scores, lambda: self._local(x.double(), scores)

    def _widths(self) -> LocalConformal:
        if self.conformal_ is None:
            self.conformal_ = self._intervals()
        if self.conformal_ is None:
            raise DataError("intervals need held-out rows: fit with a validation_fraction")
        return self.conformal_

    def _ready(self) -> None:
        if self.conformal_ is None:
            self.conformal_ = self._intervals()


class EigenProClassifier(CalibratedClassifier, EigenProEstimator):
    """Kernel classifier by preconditioned SGD over a stream of rows, calibrated on held-out rows.

    loss: "log", the logistic loss (softmax for more than two classes) around the log odds of the classes; or
    "squared", least squares on class membership. All other parameters and costs as in EigenProRegressor, the outputs
    being the classes (one for two classes). Fitted: classes_, calibration_, and what EigenProRegressor has.
    Source [ma2019], [abedsoltan2023], [guo2017, sec. 4.2].
    """

    _fitted: tuple[str, ...] = ("classes_", "calibration_")

    def __init__(
        self,
        kernel: Any = None,
        landmarks: Any = None,
        *,
        loss: str = "log",
        rank: int | None = None,
        subsample: int = 2000,
        batch_size: int | None = None,
        step_size: float | None = None,
        epochs: int = 20,
        validation_fraction: float | None = 0.1,
        patience: int = 3,
        learn: bool = True,
        standardize: bool | None = None,
        time_budget: float | None = None,
        checkpoint: Any = None,
        progress: Any = None,
        random_state: Any = None,
    ):
        self.kernel, self.landmarks, self.loss, self.rank, self.subsample = kernel, landmarks, loss, rank, subsample
        self.batch_size, self.step_size, self.epochs = batch_size, step_size, epochs
        self.validation_fraction, self.patience = validation_fraction, patience
        self.learn, self.standardize, self.time_budget = learn, standardize, time_budget
        self.checkpoint, self.progress, self.random_state = checkpoint, progress, random_state

    def _check(self) -> None:
        super()._check()
        if self.loss not in FIRM:
            raise ValueError(f"loss is {self.loss!r}; expected 'log' or 'squared'")

    def fit(self, X: Any, y: Any) -> EigenProClassifier:
        """Learn from X: n d and labels y: n. Raises DataError when there is one class only."""
        rows = Rows.read(self, X, y, reset=True, classes=True)
        self.classes_, self._codes = encoded(rows.y)
        self._fit(rows, self._codes)
        return self._calibrate()

    def partial_fit(self, X: Any, y: Any, classes: Any = None) -> EigenProClassifier:
        """One pass over more rows; classes: all labels, at the first call, where its rows do not hold every one."""
        fresh = not hasattr(self, "kernel_")
        rows = Rows.read(self, X, y, reset=fresh, classes=True)
        given = classes if fresh else self.classes_
        self.classes_, self._codes = encoded(rows.y, given)
        self._partial(rows, self._codes)
        return self._calibrate()

    def _calibrate(self) -> EigenProClassifier:
        del self._codes
        x, y = self._held
        firm = FIRM[self.loss]
        self.calibration_ = Calibration(float(np.exp(firm)), np.zeros(len(self.classes_)))
        if len(x):
            member = self.target_.back(y.numpy()) if self.loss == "squared" else y.numpy()
            codes = (member[:, 0] > 0.5).astype(int) if member.shape[1] == 1 else member.argmax(1)
            self.calibration_ = Calibration.fit(self._each_class(self._scores(x)), codes, firm)
        return self

    def _begin(self, rows: Rows, keep: np.ndarray, seed: int) -> Start:
        many = len(self.classes_)
        found = begin(self, rows, keep, seed, self._seconds(), self._codes, many)
        if self.loss == "squared":
            return found
        share = (np.bincount(self._codes[keep], minlength=many) + 0.5) / (keep.sum() + 0.5 * many)
        odds = np.log(share) if many > 2 else np.log(share[1:] / share[:1])
        return dataclasses.replace(found, target=Target(odds, np.ones(len(odds))))  # log odds where f is zero

    def _loss(self) -> Loss:
        return Squared() if self.loss == "squared" else Logistic(torch.from_numpy(self.target_.centre))

    def _targets(self, rows: Rows, at: np.ndarray) -> Tensor:
        member = memberships(self._codes[at], len(self.classes_))
        return torch.from_numpy(self.target_.forward(member) if self.loss == "squared" else member)

    def _outputs(self, rows: Rows) -> int:
        return 1 if len(self.classes_) == 2 else len(self.classes_)

    def _each_class(self, scores: np.ndarray) -> np.ndarray:
        """One score for each class: memberships, or log odds up to a constant."""
        found = self.target_.back(scores)
        if found.shape[1] > 1:
            return found
        return np.concatenate([-found, found], 1) / (1 if self.loss == "squared" else 2)

    def _logits(self, X: Any) -> np.ndarray:
        _, scores = self._all_scores(X)
        return self.calibration_.logits(self._each_class(scores))
