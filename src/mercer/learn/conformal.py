"""LocalConformal: intervals from out-of-fold residuals, wider where residuals are larger."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from mercer.errors import DataError, ShapeError
from mercer.kernels import Gaussian
from mercer.learn.arguments import inside
from mercer.learn.clock import Clock, one_thread
from mercer.learn.state import Saved
from mercer.learn.table import Scaler, plain, refuse_gaps
from mercer.learn.tune import learn

ROWS, SEEN = 800, 500  # from which the local scale, and the relevance of each column, are learned
ENOUGH = 60  # rows below which no relevance is learned
KEPT = 20_000  # scores kept
PATIENCE, PROMISED = 4.0, 6  # counted seconds when nobody said, and steps whatever the time, to learn the relevance
WIDTHS, RIDGES, SHRINK = (0.5, 1.0, 2.0, 4.0), (0.3, 1.0, 3.0, 10.0, 30.0), (0.0, 0.5, 1.0)
WIDEST = 20.0  # no place is believed to be this many times noisier or quieter than the middle


def _squared(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    centre = b.mean(0)
    return torch.cdist(a - centre, b - centre).square()


def _table(x: Any) -> np.ndarray:
    table = np.asarray(plain(x), dtype=np.float64)
    return table[:, None] if table.ndim == 1 else table


class LocalConformal(Saved):
    """Prediction intervals of locally varying width that hold the truth as often as promised.

    interval = prediction -+ q s(x): s is a kernel ridge of log |residual| on up to 800 rows, its smoothness chosen
    by leave-one-out; q is the conformal quantile of |residual| / s. Where s does not help it is a constant.
    scale: put columns on a robust common scale first. random_state: of the rows that s is learned from.
    time_budget: seconds, soft, for learning which columns matter to s; None: counted steps.
    Error: coverage is coverage -+ 1 / (n + 1) on average for exchangeable rows, s apart. Infinite width when
    n is too small for the coverage. Source [lei2018, sec. 5.2], [vovk2005].
    """

    _fitted: tuple[str, ...] = ("scaler", "relevance", "points", "weights", "width", "unit", "shrink", "scores")

    def __init__(self, scale: bool = True, random_state: int | None = 0, time_budget: float | None = None):
        self.scale, self.random_state, self.time_budget = scale, random_state, time_budget

    def fit(self, x: Any, residuals: Any) -> LocalConformal:
        """x: n d; residuals: n or n c, true minus predicted, of rows that the predictor did not see."""
        table, wrong = _table(x), _table(residuals)
        if table.ndim != 2 or wrong.ndim != 2:
            raise ShapeError(f"LocalConformal.fit: x is {table.shape}, residuals {wrong.shape}; expected n d and n c")
        if len(table) != len(wrong) or not len(wrong):
            raise ShapeError(
                f"LocalConformal.fit: {len(table)} rows of x, {len(wrong)} residuals; expected as many, and > 0"
            )
        refuse_gaps(table, "x")
        refuse_gaps(wrong, "residuals")
        self.scaler = Scaler.fit(table) if self.scale else Scaler.identity(table.shape[1])
        z = self.scaler(table)
        self.relevance = torch.ones(z.shape[1], dtype=torch.float64)
        random = np.random.default_rng(self.random_state)
        order = random.permutation(len(z))
        rows = np.sort(order[:ROWS])
        target = torch.from_numpy(np.log(np.abs(wrong) + self._floor(wrong)))
        target = target - target.mean(0)
        if len(z) >= ENOUGH:
            self._weigh(z[order[:SEEN]], target[order[:SEEN]])
        self.points = z[rows] * self.relevance
        self._smooth(target[rows])
        local = self._log_scale(z)
        local[rows] = self._left_out
        kept = random.permutation(len(z))[:KEPT]
        self._choose(local[kept].numpy(), wrong[kept])
        return self

    @staticmethod
    def _floor(wrong: np.ndarray) -> np.ndarray:
        return 1e-3 * np.abs(wrong).mean(0) + 1e-300

    def _weigh(self, z: torch.Tensor, t: torch.Tensor) -> None:
        """Columns by how much they move log |residual|: inverse lengthscales of a Gaussian kernel, learned."""
        start = Gaussian(torch.full((z.shape[1],), max(math.sqrt(z.shape[1]), 1.0), dtype=torch.float64))
        if not bool((t != t[0]).any()):
            return
        generator = torch.Generator().manual_seed(0)
        clock = Clock.of(self.time_budget, PATIENCE)
        found = learn([start], 3.0, z, t, clock, generator, least=0.1, spread=0.7, promised=PROMISED).kernel
        inverse = 1 / found.get_parameter("log_lengthscale").detach().exp()
        self.relevance = inverse / inverse.square().mean().sqrt()

    def _smooth(self, t: torch.Tensor) -> None:
        """Lengthscale and ridge of the least leave-one-out error, for each a few values."""
        n = len(t)
        distance = _squared(self.points, self.points)
        self.unit = float(distance.sum() / max(n * (n - 1), 1)) or 1.0
        best = math.inf
        for width in WIDTHS:
            with one_thread():
                values, vectors = torch.linalg.eigh(torch.exp(-0.5 * distance / (width**2 * self.unit)))
            turned = vectors.mT @ t
            for ridge in RIDGES:
                gain = 1 / (values.clamp_min(0) + ridge)
                weights = vectors @ (gain[:, None] * turned)
                left_out = t - weights / (vectors.square() @ gain)[:, None]
                error = float((t - left_out).square().mean())
                if error < best:
                    best, self.width, self.weights, self._left_out = error, width, weights, left_out

    def _log_scale(self, z: torch.Tensor) -> torch.Tensor:
        found = []
        for part in (z * self.relevance).split(1024):
            near = torch.exp(-0.5 * _squared(part, self.points) / (self.width**2 * self.unit))
            found.append(near @ self.weights)
        return torch.cat(found) if found else torch.zeros(0, self.weights.shape[1], dtype=torch.float64)

    def _choose(self, local: np.ndarray, wrong: np.ndarray) -> None:
        """How far to trust the local scale: the least interval score at 90 %, output by output."""
        limit = math.log(WIDEST)
        shrink, scores = [], []
        for c in range(wrong.shape[1]):
            best = (math.inf, 0.0, np.sort(wrong[:, c]))
            for share in SHRINK:
                s = np.exp(np.clip(share * local[:, c], -limit, limit))
                q = float(np.quantile(np.abs(wrong[:, c]) / s, 0.9))
                excess = np.maximum(np.abs(wrong[:, c]) - q * s, 0)
                score = float(np.mean(2 * q * s + 20 * excess))
                if score < best[0] * (0.995 if share else 1.0):
                    best = (score, share, np.sort(wrong[:, c] / s))
            shrink.append(best[1])
            scores.append(best[2])
        self.shrink, self.scores = np.array(shrink), np.stack(scores, 1)

    def _known(self, x: Any) -> np.ndarray:
        """x as a table of the columns that were fitted."""
        if not hasattr(self, "scores"):
            raise DataError("LocalConformal is not fitted: call fit(x, residuals) first")
        table, columns = _table(x), self.points.shape[1]
        if table.ndim != 2 or table.shape[1] != columns:
            raise ShapeError(f"LocalConformal: x is {table.shape}; expected n x {columns}, as it was fitted")
        refuse_gaps(table, "x")
        return table

    def spread(self, x: Any) -> np.ndarray:
        """s(x), `n c`: how noisy each place is, relative to the middle."""
        table, limit = self._known(x), math.log(WIDEST)
        return np.exp(np.clip(self.shrink * self._log_scale(self.scaler(table)).numpy(), -limit, limit))

    def interval(self, prediction: Any, x: Any, coverage: float = 0.9) -> tuple[np.ndarray, np.ndarray]:
        """(lower, upper) around predictions, of their shape. coverage: in (0, 1)."""
        inside("coverage", coverage)
        middle, table = np.asarray(plain(prediction), dtype=np.float64), self._known(x)
        outputs = self.scores.shape[1]
        if middle.shape != (len(table), outputs) and not (outputs == 1 and middle.shape == (len(table),)):
            expected = f"{len(table)} x {outputs}, a row for each of x and a column for each residual"
            raise ShapeError(f"LocalConformal.interval: prediction is {middle.shape}; expected {expected}")
        refuse_gaps(middle.reshape(len(table), outputs), "prediction")
        n = len(self.scores)
        place = math.ceil((n + 1) * coverage)
        size = np.sort(np.abs(self.scores), 0)
        q = size[place - 1] if place <= n else np.full(size.shape[1], np.inf)
        half = (q * self.spread(x)).reshape(middle.shape)
        return middle - half, middle + half

    def pit(self, prediction: Any, x: Any, true: Any) -> np.ndarray:
        """Where the truth falls in its predicted distribution, 0 to 1, of the shape of `true`."""
        true = np.asarray(plain(true), dtype=np.float64)
        wrong = (true - np.asarray(plain(prediction), dtype=np.float64)).reshape(len(true), -1) / self.spread(x)
        n = len(self.scores)
        found = [np.searchsorted(self.scores[:, c], wrong[:, c], side="right") for c in range(wrong.shape[1])]
        return ((np.stack(found, 1) + 0.5) / (n + 1)).reshape(true.shape)
