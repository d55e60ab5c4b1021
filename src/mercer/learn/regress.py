"""What the regressors share: fit, predict and intervals in the units and the container of the caller."""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from mercer.learn.answers import IntervalRegressor, as_given
from mercer.learn.base import CALIBRATION, KernelEstimator
from mercer.learn.conformal import LocalConformal
from mercer.learn.places import Places
from mercer.learn.unseen import left_out

SPARE = 0.05  # of a left-out residual: what a fit is believed to leave of it at least, where that is not exact


class KernelRegressor(IntervalRegressor, KernelEstimator, ABC):
    """Base of the regressors: not public."""

    _fitted: tuple[str, ...] = ("_vector", "conformal_", "places_")

    _at_places = False  # whether predictions at places that were observed use what was observed there
    places_: Places | None

    def fit(self, X: Any, y: Any) -> Any:
        """Learn from X: n d and y: n or n c. Raises DataError naming the first NaN or infinity."""
        self._check()
        table, y = self._read(X, y, reset=True)
        target = np.asarray(y, dtype=np.float64)
        self._vector = target.ndim == 1
        columns = target.reshape(len(table), -1)
        x, means, kept = self._fit(table, columns)
        if self._flattered(*table.shape) and not self.plan_.interrupted:
            self._unseen(table, columns)
        self.left_out_ = self._units(self._left_out.numpy())
        self.places_ = self._seen(x, means, columns, kept) if self._at_places else None
        del self._each, self._precision
        true = torch.from_numpy(self.target_.forward(columns[kept]))
        self._conformal(x, true, kept)
        return self

    def _seen(self, x: Tensor, means: Tensor, columns: np.ndarray, kept: np.ndarray) -> Places | None:
        """What is known of the places that rows share. Exact copies, y included, are no observations of their own."""
        twins, left = self._repeats, self._left_out[kept]
        if twins is None or self._shares is None or self._within <= 0:
            return None
        most = int(twins.sizes.argmax())
        own = float((1 - self._shares[most]) / (1 - 1 / twins.sizes[most]))
        return Places.learned(
            twins, x, self._each, self.target_.forward(columns), left.numpy(), own, self._spare(x, means, left),
            lambda places, scores: self._local(x[torch.from_numpy(places)], scores),
            None if self.time_budget is None else CALIBRATION * self.time_budget,
        )  # fmt: skip

    def _spare(self, x: Tensor, y: Tensor, left_out: Tensor) -> Tensor:
        """The share of each place's left-out residual that the fit of all places leaves of it, `g` in (0, 1].

        Exact where the solve is; else one for all, from places that both kinds of residuals are known of.
        """
        if self._precision is not None:
            return (getattr(self, f"{self._noise_name}_") * self._shares * self._precision).clamp_max(1.0)
        apart, own = y - left_out, y - torch.from_numpy(self._scores(x))
        share = float((apart * own).sum() / apart.square().sum().clamp_min(1e-300))
        return torch.full((len(x),), min(max(share, SPARE), 1.0), dtype=torch.float64)

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

    def _elsewhere(self, X: Any) -> tuple[Tensor, np.ndarray]:
        """(scaled x, scores `n c` as if all places were new)."""
        check_is_fitted(self, "kernel_")
        x = self.scaler_(self._read(X, reset=False)[0])
        return x, self._scores(x)

    def _answers(self, X: Any) -> tuple[np.ndarray, Callable[[], np.ndarray]]:
        x, scores = self._elsewhere(X)
        answers = scores if self.places_ is None else self.places_.drawn(self.places_.find(x.numpy()), scores)
        return answers, lambda: self._local(x, scores)

    def _between(self, X: Any, coverage: float) -> tuple[np.ndarray, np.ndarray]:
        x, scores = self._elsewhere(X)
        low, high = self.conformal_.interval(scores, self._local(x, scores), coverage)
        if self.places_ is not None:
            at = self.places_.find(x.numpy())
            rows = np.flatnonzero(at >= 0)
            middle = self.places_.drawn(at, scores)[rows]
            sides = self.places_.interval(at[rows], middle, self._local(x[torch.from_numpy(rows)], middle), coverage)
            for c in self.places_.helps:
                low[rows, c], high[rows, c] = sides[0][:, c], sides[1][:, c]
        return low, high

    def predict_new(self, X: Any) -> Any:
        """Predictions for X: n d as if none of its rows were at a place that training knows."""
        return as_given(X, self._units(self._elsewhere(X)[1]))

    def at_places(self, X: Any) -> np.ndarray:
        """Whether each row of X: n d is equal to training rows that its prediction uses, `n`."""
        x = self.coordinates(X)
        return np.zeros(len(x), dtype=bool) if self.places_ is None else self.places_.find(x.numpy()) >= 0

    def _widths(self) -> LocalConformal:
        return self.conformal_
