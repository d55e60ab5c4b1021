"""What the regressors share: fit, predict and intervals in the units and the container of the caller."""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from sklearn.utils.validation import check_is_fitted

from mercer.learn.answers import IntervalRegressor
from mercer.learn.base import KernelEstimator
from mercer.learn.conformal import LocalConformal
from mercer.learn.unseen import left_out


class KernelRegressor(IntervalRegressor, KernelEstimator, ABC):
    """Base of the regressors: not public."""

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

    def _answers(self, X: Any) -> tuple[np.ndarray, Callable[[], np.ndarray]]:
        check_is_fitted(self, "kernel_")
        x = self.scaler_(self._read(X, reset=False)[0])
        scores = self._scores(x)
        return scores, lambda: self._local(x, scores)

    def _widths(self) -> LocalConformal:
        return self.conformal_

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
