"""NeighbourRidge: kernel ridge regression that solves, for each new point, the system of its nearest rows only."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from scipy.spatial import cKDTree
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from mercer.errors import DataError
from mercer.kernel import Kernel
from mercer.kernels import Matern
from mercer.learn import plan as planning
from mercer.learn.answers import as_given
from mercer.learn.arguments import count, positive, usual
from mercer.learn.conformal import LocalConformal
from mercer.learn.copies import Repeats
from mercer.learn.state import Saved
from mercer.learn.table import Scaler, Target, read
from mercer.learn.tune import Clock

WIDTHS = (0.5, 2.0, 8.0, 32.0)  # lengthscales tried, in distances to the farthest neighbour
NOISES = (0.1, 1e-2, 0.3, 1e-3, 3e-2, 1.0)  # the usual first, as time may run out
CHUNK = 4096  # points solved at once
ROWS = 2000  # left out to compare lengthscales and noises


def local(kernel: Kernel, noise: float, x: Tensor, rows: Tensor, points: Tensor, y: Tensor) -> Tensor:
    """Ordinary kriging of x: n d from its own rows: m + k^T A^-1 (y - m), A = K + noise I, m = 1^T A^-1 y / 1^T A^-1 1.

    rows: n k, which of points: N d (values y: N c) serve each point -> n c. Source [cressie1993, eq. 3.2.6].
    """
    near, values = points[rows], y[rows]
    a = kernel.block(near, near)
    a.diagonal(dim1=-2, dim2=-1).add_(noise)
    across = kernel.block(x[:, None], near).mT
    ones = torch.ones_like(across)
    solved = torch.cholesky_solve(torch.cat([across, ones], -1), torch.linalg.cholesky(a))
    weights, plain = solved[..., :1], solved[..., 1:]
    rest = (1 - weights.sum(-2, keepdim=True)) / plain.sum(-2, keepdim=True)
    return ((weights + rest * plain).mT @ values).squeeze(-2)


class Neighbourhoods:
    """Rows in a tree by their learned coordinates, ready to serve predictions. points: n d; y: n c, float64."""

    def __init__(self, kernel: Kernel, noise: float, points: Tensor, y: Tensor):
        self.kernel, self.noise, self.points, self.y = kernel, noise, points, y
        self.tree = cKDTree(self._place(points))

    def _place(self, x: Tensor) -> np.ndarray:
        scale = getattr(self.kernel, "lengthscale", None)
        return (x / scale.detach()).numpy() if isinstance(scale, Tensor) else x.numpy()

    @torch.no_grad()
    def _serve(self, x: Tensor, k: int, own: Tensor | None = None) -> Tensor:
        found = [torch.zeros(0, self.y.shape[1], dtype=torch.float64)]
        for at, part in enumerate(x.split(CHUNK)):
            more = k if own is None else k + 1
            rows = torch.from_numpy(self.tree.query(self._place(part), more, workers=-1)[1]).reshape(len(part), -1)
            if own is not None:  # a twin may come before the row itself, or in its place
                self_ = rows == own[at * CHUNK : at * CHUNK + len(part), None]
                self_[~self_.any(1), -1] = True
                rows = rows[~self_].reshape(len(part), k)
            found.append(local(self.kernel, self.noise, part, rows, self.points, self.y))
        return torch.cat(found)

    def predict(self, x: Tensor, k: int) -> Tensor:
        """x: n d from its k nearest rows -> n c."""
        return self._serve(x, k)

    def left_out(self, rows: Tensor, k: int) -> Tensor:
        """Rows predicted from their k nearest others; a row at the same place is one of these."""
        return self._serve(self.points[rows], k, rows)


class NeighbourRidge(RegressorMixin, Saved, BaseEstimator):
    """Kernel ridge regression with an unknown local mean, each point from its nearest rows: for 1 to 3 columns.

    f(x) = m(x) + k(x, near) (K + alpha I)^-1 (y - m(x)), near: the rows closest to x in the learned coordinates.
    kernel: a psd Kernel, or None: the best of Matern 1/2, 3/2 and 5/2 with a lengthscale for each column.
    alpha: > 0, relative to the kernel's diagonal; None: learned. neighbours: 2 or more.
    time_budget: seconds for learning, soft. random_state: of draws of rows.
    Fitted: kernel_, alpha_ (for standardised data), plan_, conformal_, left_out_ (rows from their neighbours alone).
    Cost: neighbours^3 / 3 flops for each predicted point, none to fit beside the learning.
    Error: rows beyond the nearest are ignored, which the screening effect makes small for short lengthscales.
    Source [vecchia1988], [cressie1993, eq. 3.2.6].
    """

    _fitted: tuple[str, ...] = ("kernel_", "alpha_", "plan_", "scaler_", "target_", "vector_", "_x", "_y", "conformal_")

    def __init__(
        self,
        kernel: Any = None,
        alpha: float | None = None,
        *,
        neighbours: int = 20,
        time_budget: float | None = None,
        random_state: Any = None,
    ):
        self.kernel, self.alpha, self.neighbours = kernel, alpha, neighbours
        self.time_budget, self.random_state = time_budget, random_state

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

    def fit(self, X: Any, y: Any) -> NeighbourRidge:
        """Learn from X: n d and y: n or n c. Raises DataError naming the first NaN or infinity."""
        usual(self)
        positive("alpha", self.alpha)
        count("neighbours", self.neighbours, 2)
        clock = Clock.of(self.time_budget)
        table, y = read(self, X, y, reset=True)
        if len(table) < 3:
            raise DataError(f"NeighbourRidge got {len(table)} samples; expected at least 3 rows to learn from")
        target = np.asarray(y, dtype=np.float64)
        self.vector_ = target.ndim == 1
        self.scaler_ = Scaler.fit(table)
        self.target_, self._y = Target.fit(target.reshape(len(table), -1), True)
        self._x = self.scaler_(table)
        twins = Repeats.of(self._x)  # they would predict each other
        kept = np.arange(len(table)) if twins is None else twins.picked
        self._x, self._y = self._x[kept], self._y if twins is None else twins.means(self._y)
        self._learn(clock)
        self._near = Neighbourhoods(self.kernel_, self.alpha_, self._x, self._y)
        k = self._served()
        left_out = self.target_.back(self._near.left_out(torch.arange(len(kept)), k).numpy())
        everywhere = left_out if twins is None else left_out[twins.place]
        self.left_out_ = everywhere[:, 0] if self.vector_ else everywhere
        wrong = target.reshape(len(table), -1)[kept] - left_out
        self.conformal_ = LocalConformal(random_state=0).fit(self._x.numpy(), wrong)
        plan = planning.Plan(
            "neighbours", len(kept), landmarks=k, seconds=clock.used(), interrupted=clock.interrupted,
            memory=CHUNK * 8 * k * (2 * k + table.shape[1] + 4),
        )  # fmt: skip
        self.plan_ = planning.Plan(**{**plan.as_dict(), "sentence": self._sentence(plan)})
        return self

    @staticmethod
    def _sentence(plan: planning.Plan) -> str:
        memory = f"{plan.memory / 2**20:,.0f} MiB planned, {plan.seconds:.1f} s"
        return (
            f"each point from its {plan.landmarks} nearest of {plan.rows:,} rows, solved exactly by Cholesky, {memory}"
        )

    def _learn(self, clock: Clock) -> None:
        """Smoothness, lengthscales and noise of the least error of left-out rows, each from its own neighbours."""
        generator = torch.Generator().manual_seed(int(check_random_state(self.random_state).randint(2**31 - 1)))
        order, k = torch.randperm(len(self._x), generator=generator), min(self.neighbours, len(self._x) - 1)
        radius = float(np.median(cKDTree(self._x.numpy()).query(self._x[order[:ROWS]].numpy(), k + 1)[0][:, -1]))
        unit = torch.ones(self._x.shape[1], dtype=torch.float64) * (radius or 1.0)
        made = [Matern(nu, unit * wide) for nu in (0.5, 1.5, 2.5) for wide in WIDTHS]
        noises = NOISES if self.alpha is None else (float(self.alpha),)
        few, more = order[: ROWS // 3], order[:ROWS]
        candidates: list[Kernel] = list(made) if self.kernel is None else [self.kernel]
        tried: list[tuple[float, int, float]] = []
        for noise in noises:
            for i, kernel in enumerate(candidates):
                if not (len(tried) >= len(candidates) and clock.over(0.5)):  # each has its turn
                    tried.append((self._error(kernel, noise, few), i, noise))
        _, place, self.alpha_ = min(tried)
        self.kernel_ = candidates[place] if self.kernel is None else copy.deepcopy(candidates[place])
        if self.kernel is None:
            self.kernel_ = self._refine(made[place], more, clock)
        self.kernel_.requires_grad_(False)

    def _refine(self, kernel: Matern, rows: Tensor, clock: Clock) -> Matern:
        """One lengthscale, then the noise, at a time, by factors: twice around."""
        best = self._error(kernel, self.alpha_, rows)
        turns = [*range(self._x.shape[1]), None] if self.alpha is None else range(self._x.shape[1])
        for factor in (2.0, 1.4):
            for turn in turns:
                for f in (factor, 1 / factor):
                    scale = kernel.lengthscale.detach().clone()
                    scale[turn if turn is not None else slice(0)] *= f
                    noise = self.alpha_ * (f if turn is None else 1.0)
                    changed = Matern(kernel.nu, scale)
                    error = self._error(changed, noise, rows)
                    if error < best:
                        best, kernel, self.alpha_ = error, changed, noise
                if clock.over():
                    return kernel
        return kernel

    def _error(self, kernel: Kernel, noise: float, rows: Tensor) -> float:
        """Mean squared error of rows left out."""
        near = Neighbourhoods(kernel, noise, self._x, self._y)
        return float((near.left_out(rows, self._served()) - self._y[rows]).square().mean())

    def _served(self) -> int:
        return min(self.neighbours, len(self._x) - 1)

    def coordinates(self, X: Any) -> Tensor:
        """The points that `kernel_` sees for rows of X, `n d` float64."""
        return self.scaler_(read(self, X, reset=False)[0])

    def _shaped(self, X: Any, values: np.ndarray) -> Any:
        return as_given(X, values[:, 0] if self.vector_ else values)

    def _predicted(self, x: Tensor) -> np.ndarray:
        return self.target_.back(self._near.predict(x, min(self.neighbours, len(self._x))).numpy())

    def predict(self, X: Any) -> Any:
        """Predictions for X: n d, of the shape of y; torch in, torch out."""
        check_is_fitted(self, "kernel_")
        return self._shaped(X, self._predicted(self.coordinates(X)))

    def predict_interval(self, X: Any, coverage: float = 0.9) -> tuple[Any, Any]:
        """(lower, upper) that hold a new y with this chance; wider where left-out residuals were larger."""
        check_is_fitted(self, "kernel_")
        x = self.coordinates(X)
        low, high = self.conformal_.interval(self._predicted(x), x.numpy(), coverage)
        return self._shaped(X, low), self._shaped(X, high)

    def _restored(self, parts: dict[str, Any]) -> None:
        self._near = Neighbourhoods(self.kernel_, self.alpha_, self._x, self._y)
