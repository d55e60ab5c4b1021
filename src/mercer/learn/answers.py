"""What estimators answer, in the units and the container of the caller: predictions, intervals, probabilities."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from sklearn.base import ClassifierMixin, RegressorMixin

from mercer.learn.calibrate import log_chances
from mercer.learn.conformal import LocalConformal
from mercer.learn.table import Target


def as_given(x: Any, value: np.ndarray) -> Any:
    """numpy, or a torch tensor of x's dtype and device when x is one."""
    if not isinstance(x, torch.Tensor):
        return value
    dtype = x.dtype if x.is_floating_point() else torch.float64
    return torch.as_tensor(value, dtype=dtype, device=x.device)


class IntervalRegressor(RegressorMixin, ABC):
    """Predictions and intervals from scores on the common scale of y: not public."""

    target_: Target
    _vector: bool  # y came without an axis of outputs

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

    @abstractmethod
    def _answers(self, X: Any) -> tuple[np.ndarray, Callable[[], np.ndarray]]:
        """(scores `n c` of the rows of X, what makes the places where the width of intervals is looked up)."""

    @abstractmethod
    def _widths(self) -> LocalConformal:
        """What holds the widths. Raises DataError where no row can tell them."""

    def _between(self, X: Any, coverage: float) -> tuple[np.ndarray, np.ndarray]:
        """(lower, upper) on the common scale of y."""
        scores, where = self._answers(X)
        return self._widths().interval(scores, where(), coverage)

    def _units(self, scores: np.ndarray) -> np.ndarray:
        found = self.target_.back(scores)
        return found[:, 0] if self._vector else found

    def predict(self, X: Any) -> Any:
        """Predictions for X: n d, of the shape of y; torch in, torch out."""
        return as_given(X, self._units(self._answers(X)[0]))

    def predict_interval(self, X: Any, coverage: float = 0.9) -> tuple[Any, Any]:
        """(lower, upper) that hold a new y with this chance; wider where left-out residuals were larger.

        Raises DataError where no rows were held out to tell how wide they must be.
        """
        low, high = self._between(X, coverage)
        return as_given(X, self._units(low)), as_given(X, self._units(high))


class CalibratedClassifier(ClassifierMixin, ABC):
    """Labels and probabilities from calibrated logits: not public."""

    classes_: np.ndarray

    @abstractmethod
    def _logits(self, X: Any) -> np.ndarray:
        """Calibrated logarithms of probabilities up to a constant, `n c`, of the rows of X."""

    def decision_function(self, X: Any) -> np.ndarray:
        """Log odds of the second class `n`, or log probabilities up to a constant `n c`."""
        logits = self._logits(X)
        return logits[:, 1] - logits[:, 0] if logits.shape[1] == 2 else logits

    def predict_proba(self, X: Any) -> Any:
        """Probabilities of classes_, `n c`; torch in, torch out."""
        return as_given(X, np.exp(log_chances(self._logits(X))))

    def predict(self, X: Any) -> np.ndarray:
        """The likeliest label of each row, `n`."""
        best = self._logits(X).argmax(1)
        return self.classes_[best]
