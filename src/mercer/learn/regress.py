"""What the regressors share: fit, predict and intervals in the units and the container of the caller."""

from __future__ import annotations

from abc import ABC
from typing import Any

import numpy as np
import torch
from sklearn.base import RegressorMixin
from sklearn.utils.validation import check_is_fitted

from mercer.learn.base import KernelEstimator
from mercer.learn.conformal import LocalConformal
from mercer.learn.unseen import left_out


def as_given(x: Any, value: np.ndarray) -> Any:
    """numpy, or a torch tensor of x's dtype and device when x is one."""
    if not isinstance(x, torch.Tensor):
        return value
    dtype = x.dtype if x.is_floating_point() else torch.float64
    return torch.as_tensor(value, dtype=dtype, device=x.device)


class KernelRegressor(RegressorMixin, KernelEstimator, ABC):
    """Base of the regressors: not public."""

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

    def fit(self, X: Any, y: Any) -> Any:
        """Learn from X: n d and y: n or n c. Raises DataError naming the first NaN or infinity."""
        self._check()
        table, y = self._read(X, y, reset=True)
        target = np.asarray(y, dtype=np.float64)
        self._vector = target.ndim == 1
        columns = target.reshape(len(table), -1)
        x, _, kept = self._fit(table, columns)
        if self._flattered(*table.shape) and not self.plan_.interrupted:
            self._unseen(table, columns)
        self.left_out_ = self._units(self._left_out.numpy())
        true = torch.from_numpy(self.target_.forward(columns[kept]))
        self._conformal(x, true, kept)
        return self

    def _unseen(self, table: np.ndarray, y: np.ndarray) -> None:
        """Left-out predictions of fits that learned nothing from the rows that they predict."""

        def judge(fresh: KernelRegressor, rows: np.ndarray, out: np.ndarray) -> np.ndarray:
            fresh._fit(table[rows], y[rows])
            found = fresh.target_.back(fresh._scores(fresh.scaler_(table[out])))
            return self.target_.forward(found)

        place = None if self._repeats is None else self._repeats.place
        found = left_out(self, np.zeros(len(table), dtype=int), place, judge)
        if found is not None:
            self._left_out = torch.from_numpy(found)

    def _units(self, scores: np.ndarray) -> np.ndarray:
        found = self.target_.back(scores)
        return found[:, 0] if self._vector else found

    def predict(self, X: Any) -> Any:
        """Predictions for X: n d, of the shape of y; torch in, torch out."""
        check_is_fitted(self, "kernel_")
        table, _ = self._read(X, reset=False)
        return as_given(X, self._units(self._scores(self.scaler_(table))))

    def predict_interval(self, X: Any, coverage: float = 0.9) -> tuple[Any, Any]:
        """(lower, upper) that hold a new y with this chance; wider where left-out residuals were larger."""
        check_is_fitted(self, "kernel_")
        table, _ = self._read(X, reset=False)
        x = self.scaler_(table)
        scores = self._scores(x)
        low, high = self.conformal_.interval(scores, self._local(x, scores), coverage)
        return as_given(X, self._units(low)), as_given(X, self._units(high))

    def get_state(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """(JSON-able values, arrays) of the fitted model: no pickle needed to store it."""
        check_is_fitted(self, "kernel_")
        values, arrays = self._state()
        local, more = self.conformal_.get_state()
        values |= {"vector": self._vector, "conformal": local}
        return values, arrays | {f"conformal.{key}": value for key, value in more.items()}

    @classmethod
    def from_state(cls, values: dict[str, Any], arrays: dict[str, np.ndarray]) -> Any:
        """The fitted model that `get_state` described; constructor arguments are the defaults."""
        found = cls()
        found._restore(values, arrays)
        found._vector = bool(values["vector"])
        part = {key.removeprefix("conformal."): a for key, a in arrays.items() if key.startswith("conformal.")}
        found.conformal_ = LocalConformal.from_state(values["conformal"], part)
        return found
