"""KernelNovelty: how unlike the rows of training a row is, with a stated rate of false alarms."""

from __future__ import annotations

import math
import warnings
from typing import Any, cast

import numpy as np
import torch
from sklearn.base import OutlierMixin
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from mercer.budget import memory_budget
from mercer.errors import MercerWarning
from mercer.features import Nystrom
from mercer.features.nystrom import uniform_landmarks
from mercer.learn.arguments import count, positive
from mercer.learn.gram import GramEstimator, held
from mercer.learn.plan import EXACT_ROWS
from mercer.linalg import Cholesky


class KernelNovelty(OutlierMixin, GramEstimator):
    """One-class score: novel is what the training rows say little of; alarms on like rows come as rarely as stated.

    method: "variance", k(x, x) - k_x^T (K + alpha I)^-1 k_x, the inverse of a Christoffel function up to a constant; or
    "mean", |phi(x) - mean of phi|^2. alpha: > 0, in units of k. kernel: psd; None: Gaussian with the median distance.
    false_alarms: 0 to 1, the share of rows like those of training that may be called novel. rank: landmarks above
    5,000 rows. standardize: columns on a robust common scale; None: when kernel is None.
    Fitted: left_out_ (exact scores of training rows by fits without them; landmarks have none), offset_, kernel_.
    Cost: n^3 / 3 flops, 2 n^2 for a new row; above 5,000 rows n rank^2 and rank^2; "mean": n kernel values.
    Error: the rate holds for exchangeable rows on average, up to what one row changes.
    Source [askari2018], [rasmussen2006, eq. 2.26], [vovk2005], [bates2023].
    """

    _fitted: tuple[str, ...] = ("left_out_", "offset_", "_points")
    _sometimes: tuple[str, ...] = ("_lower", "_square")

    def __init__(
        self,
        kernel: Any = None,
        *,
        method: str = "variance",
        alpha: float = 0.1,
        false_alarms: float = 0.1,
        rank: int = 1000,
        standardize: bool | None = None,
        random_state: Any = None,
    ):
        self.kernel, self.method, self.alpha, self.false_alarms = kernel, method, alpha, false_alarms
        self.rank, self.standardize, self.random_state = rank, standardize, random_state

    @torch.no_grad()
    def fit(self, X: Any, y: Any = None) -> KernelNovelty:
        """Learn what is usual from X: n d; y is ignored."""
        if self.method not in ("variance", "mean"):
            raise ValueError(f"method is {self.method!r}; expected 'variance' or 'mean'")
        positive("alpha", self.alpha, optional=False)
        positive("false_alarms", self.false_alarms, optional=False, below=1)
        count("rank", self.rank, 1)
        x, _, generator = self._begin(X)
        n, self._map = len(x), cast(Nystrom | None, None)
        if self.method == "mean":
            left = self._mean(x)
        elif n <= EXACT_ROWS and held(n, 4):
            left = self._whole(x)
        else:
            left = self._landmarks(x, generator)
        self.left_out_ = left.clamp_min(0.0).sort().values.numpy()
        place = math.ceil((1 - self.false_alarms) * (len(left) + 1))
        if place > len(left):
            message = f"{len(left)} rows are too few for false alarms at {self.false_alarms}: nothing is called novel; "
            warnings.warn(MercerWarning(f"{message}give {math.ceil(1 / self.false_alarms) - 1} or more"), stacklevel=3)
        self.offset_ = -float(self.left_out_[place - 1]) if place <= len(left) else -math.inf
        return self

    def _mean(self, x: Tensor) -> Tensor:
        n = len(x)
        k = self._gram(x, 1, 1)
        each, own = k.matmul(torch.full((n, 1), 1 / n, dtype=torch.float64))[:, 0], k.diagonal()
        self._points, self._square = x, float(each.mean())
        others = (n * each - own) / (n - 1)  # the mean of k(x_i, x_j) over the other rows j
        square = (n * n * self._square - 2 * n * each + own) / (n - 1) ** 2
        return own - 2 * others + square

    def _whole(self, x: Tensor) -> Tensor:
        k = self._gram(x, 1, 2).dense().clone()
        k.diagonal().add_(self.alpha)
        self._points, self._lower = x, Cholesky().factor(k).lower
        return 1 / torch.cholesky_inverse(self._lower).diagonal() - self.alpha

    def _landmarks(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Landmarks are drawn uniformly, so that all other rows are like new ones."""
        n = len(x)
        rank = max(1, min(int(self.rank), n // 2, int((memory_budget() / 64) ** 0.5)))
        at = uniform_landmarks(x, rank, generator)
        self._points = x[at]
        features = Nystrom(self.kernel_, x[at])
        self._map = features
        gram = self.alpha * torch.eye(rank, dtype=torch.float64)
        for part in x.split(self._rows(rank)):
            phi = features.features(part)
            gram.addmm_(phi.mT, phi)
        self._lower = Cholesky().factor(gram).lower
        rest = torch.ones(n, dtype=torch.bool)
        rest[at] = False
        beyond, inside = self._parts(x[rest])
        share = inside / self.alpha  # the leverage of a row among all
        return beyond + inside / (1 - share).clamp_min(1e-12)

    @staticmethod
    def _rows(columns: int) -> int:
        """Rows whose kernel values with so many points are formed together."""
        return max(1, min(4096, memory_budget() // (32 * columns)))

    def _parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(k(x, x) minus what the points say, alpha times the leverage among the rows): their sum is the variance."""
        beyond, inside = [], []
        for part in x.split(self._rows(len(self._points))):
            own = self.kernel_.diagonal(part)
            if self._map is None:
                seen = torch.linalg.solve_triangular(self._lower, self.kernel_.block(self._points, part), upper=False)
                beyond.append(own - seen.square().sum(0))
                inside.append(torch.zeros_like(own))
            else:
                features = self._map.features(part)
                seen = torch.linalg.solve_triangular(self._lower, features.mT, upper=False)
                beyond.append((own - features.square().sum(1)).clamp_min(0.0))
                inside.append(self.alpha * seen.square().sum(0))
        return torch.cat(beyond), torch.cat(inside)

    @torch.no_grad()
    def _novelty(self, X: Any) -> np.ndarray:
        check_is_fitted(self, "offset_")
        x = self._seen(X)
        if self.method == "variance":
            beyond, inside = self._parts(x)
            found = beyond + inside
        else:
            weights = torch.full((len(self._points), 1), 1 / len(self._points), dtype=torch.float64)
            found = self.kernel_.diagonal(x) - 2 * self._times(x, self._points, weights)[:, 0] + self._square
        return found.clamp_min(0.0).numpy()

    def score_samples(self, X: Any) -> np.ndarray:
        """Minus the novelty of rows of X, `n`: larger is more usual."""
        return -self._novelty(X)

    def decision_function(self, X: Any) -> np.ndarray:
        """score_samples - offset_, `n`: below zero is novel."""
        return self.score_samples(X) - self.offset_

    def predict(self, X: Any) -> np.ndarray:
        """1 for usual rows and -1 for novel ones, `n`."""
        return np.where(self.decision_function(X) >= 0, 1, -1)

    def p_values(self, X: Any) -> np.ndarray:
        """Chances that a usual row looks as novel as this one, `n`: at most t with a chance of t for usual rows."""
        count = len(self.left_out_) - np.searchsorted(self.left_out_, self._novelty(X), side="left")
        return (1 + count) / (len(self.left_out_) + 1)

    def _pieces(self) -> dict[str, Any]:
        return {"landmarks": self._map is not None}

    def _restored(self, parts: dict[str, Any]) -> None:
        self._map = Nystrom(self.kernel_, self._points) if parts["landmarks"] else None
