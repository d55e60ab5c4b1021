"""Variational Gaussian processes: any number of rows, and observations that are numbers, counts or labels."""

from __future__ import annotations

import math
import numbers
from abc import ABC
from typing import Any, Self

import numpy as np
import torch
from scipy.special import ndtri
from sklearn.base import ClassifierMixin, RegressorMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, column_or_1d
from torch import Tensor

from mercer.errors import DataError, ShapeError
from mercer.learn.answers import as_given
from mercer.learn.arguments import inside
from mercer.learn.likelihoods import Bernoulli, observation
from mercer.learn.rows import Rows
from mercer.learn.sparse import START, SparseProcess
from mercer.learn.table import Scaler, Target, deviation


class SparseRegressor(RegressorMixin, SparseProcess, ABC):
    """Base of regression on inducing points: not public."""

    likelihood: str = "gaussian"
    dof: float = 4.0
    target_: Target
    _vector: bool
    _fitted: tuple[str, ...] = ("target_", "_vector")

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

    def fit(self, X: Any, y: Any) -> Self:
        """Learn from X: n d and y: n or n c, arrays or memory maps. Raises DataError naming the first NaN."""
        self._check()
        if self.likelihood == "bernoulli":
            raise ValueError("likelihood 'bernoulli' is for labels: use VariationalGaussianProcessClassifier")
        if not (isinstance(self.dof, numbers.Real) and 2 < float(self.dof) < math.inf):
            raise ValueError(f"dof is {self.dof!r}; expected a number > 2, so that there is a variance")
        observed = observation(self.likelihood, START if self.noise is None else float(self.noise), float(self.dof))
        rows = Rows.read(self, X, y, reset=True)
        if len(rows) < 2:
            raise DataError(f"{type(self).__name__} got 1 sample; expected at least 2 rows to learn from")
        rows.refuse_gaps()
        self._vector = np.ndim(rows.y) == 1
        some = rows.targets(slice(0, len(rows)))
        outputs = some.shape[1]
        self.scaler_ = Scaler.fit(rows.take(rows.sample())) if self._ours() else Scaler.identity(rows.columns)
        moves = self._ours() or self.learn
        self.target_ = Target(np.zeros(outputs), np.ones(outputs))
        centre = torch.zeros(outputs, dtype=torch.float64)
        if self.likelihood == "poisson":
            self._counts(some)
            if moves:
                centre = torch.from_numpy(np.log(np.maximum(some.mean(0), 0.5 / len(some))))
        elif moves:
            self.target_ = self._scale(some)
        self._train(rows, observed, lambda at: torch.from_numpy(self._taught(rows.targets(at))), outputs, centre)
        return self

    def _scale(self, y: np.ndarray) -> Target:
        """Mean and deviation, or what outliers do not move: the median and the quartiles."""
        if self.likelihood == "student_t":
            low, centre, high = np.percentile(y, [25, 50, 75], axis=0)
            scale = np.where(high > low, (high - low) / 1.349, deviation(y, centre))
        else:
            return Target.fit(y)[0]
        tiny = scale <= 4 * np.finfo(np.float64).eps * np.abs(y).max(0)
        return Target(centre, np.where(tiny, 1.0, scale))

    @staticmethod
    def _counts(y: np.ndarray) -> None:
        bad = np.argwhere((y < 0) | (y != np.floor(y)))
        if len(bad):
            row, column = bad[0]
            raise DataError(f"y is {y[row, column]:g} at row {row}; likelihood 'poisson' takes counts 0, 1, 2, ...")

    def _scaled(self, y: np.ndarray) -> np.ndarray:
        return self.target_.forward(y)

    def _taught(self, y: np.ndarray) -> np.ndarray:
        return self.target_.taught(y)

    def _given(self, X: Any, value: np.ndarray) -> Any:
        return as_given(X, value[:, 0] if self._vector else value)

    def predict(self, X: Any, return_std: bool = False) -> Any:
        """E[y | x] in units of y, of its shape (for counts the rate); with return_std also the deviation of E[y | f].

        The deviation is that of the function, noise not included. Torch in, torch out.
        """
        mean, deviation = self._moments(X)
        found = self._given(X, self.target_.back(mean))
        return (found, self._given(X, deviation * self.target_.scale)) if return_std else found

    def _moments(self, X: Any) -> tuple[np.ndarray, np.ndarray]:
        mean, variance = self._latent(X)
        found, deviation = self._model.observed.moments(mean, variance)
        return found.numpy(), deviation.numpy()

    def predict_interval(self, X: Any, coverage: float = 0.9) -> tuple[Any, Any]:
        """(lower, upper) quantiles of the predictive distribution of y: equal chances are left out on both sides."""
        inside("coverage", coverage)
        mean, variance = (v.numpy() for v in self._latent(X))
        ends = [self._model.observed.quantile(p, mean, variance) for p in ((1 - coverage) / 2, (1 + coverage) / 2)]
        return self._given(X, self.target_.back(ends[0])), self._given(X, self.target_.back(ends[1]))

    def log_predictive_density(self, X: Any, y: Any) -> Any:
        """log p(y | x, the data) of each row, `n`, in units of y (of several outputs: their sum)."""
        mean, variance = self._latent(X)
        true = Rows.read(self, X, y, reset=False).targets(slice(None))
        if true.shape != tuple(mean.shape):
            raise ShapeError(f"y has shape {true.shape}; expected {tuple(mean.shape)}")
        if self.likelihood == "poisson":
            self._counts(true)
        each = self._model.observed.log_predictive(torch.from_numpy(self._scaled(true)), mean, variance).numpy()
        return as_given(X, (each - np.log(self.target_.scale)).sum(1))


class SparseClassifier(ClassifierMixin, SparseProcess, ABC):
    """Base of classification on inducing points: not public."""

    classes_: np.ndarray
    _fitted: tuple[str, ...] = ("classes_",)

    def _scaling(self, rows: Rows) -> Scaler:
        return Scaler.fit(rows.take(rows.sample()))

    def fit(self, X: Any, y: Any) -> Self:
        """Learn from X: n d and labels y: n. Raises DataError when there is one class only."""
        self._check()
        rows = Rows.read(self, X, y, reset=True, classes=True)
        if len(rows) < 2:
            raise DataError(f"{type(self).__name__} got 1 sample; expected at least 2 rows to learn from")
        labels = column_or_1d(rows.y, warn=True)
        if labels.dtype.kind == "f":
            rows.targets(slice(None))  # refuses gaps by name
        if labels.dtype == object and (missing := [i for i, v in enumerate(labels) if v is None or v != v]):
            raise DataError(f"y has no label at row {missing[0]}; drop such rows or name a class")
        check_classification_targets(labels)
        rows.refuse_gaps()
        self.classes_, codes = np.unique(labels, return_inverse=True)
        many = len(self.classes_)
        if many < 2:
            raise DataError(f"y holds one class only ({self.classes_.tolist()[0]!r}); a classifier needs at least two")
        self.scaler_ = self._scaling(rows) if self._ours() else Scaler.identity(rows.columns)
        share = np.bincount(codes, minlength=many)[1 if many == 2 else 0 :] / len(codes)
        moves = self._ours() or self.learn
        centre = torch.from_numpy(ndtri(share)) if moves else torch.zeros(len(share), dtype=torch.float64)
        wanted = np.array([1]) if many == 2 else np.arange(many)

        def signs(at: Any) -> Tensor:
            return torch.from_numpy(np.where(codes[at][:, None] == wanted, 1.0, -1.0))

        self._train(rows, Bernoulli(), signs, len(wanted), centre)
        return self

    def predict_proba(self, X: Any) -> Any:
        """Probabilities of classes_, `n c`; torch in, torch out."""
        mean, variance = self._latent(X)
        chance = torch.special.ndtr(mean / (1 + variance).sqrt()).numpy()
        if len(self.classes_) == 2:
            return as_given(X, np.concatenate([1 - chance, chance], 1))
        return as_given(X, chance / np.maximum(chance.sum(1, keepdims=True), 1e-300))

    def predict(self, X: Any) -> np.ndarray:
        """The likeliest label of each row, `n`."""
        check_is_fitted(self, "kernel_")
        mean, variance = self._latent(X)
        score = (mean / (1 + variance).sqrt()).numpy()
        return self.classes_[(score[:, 0] > 0).astype(int) if score.shape[1] == 1 else score.argmax(1)]

    def log_predictive_density(self, X: Any, y: Any) -> Any:
        """log p(y | x, the data) of each label, `n`. Raises DataError naming a label that was not learned."""
        chances = self.predict_proba(X)
        found = chances.numpy() if isinstance(chances, torch.Tensor) else chances
        place = {label: i for i, label in enumerate(self.classes_.tolist())}
        labels = np.asarray(y).tolist()
        if len(labels) != len(found):
            raise ShapeError(f"y has {len(labels)} labels; expected {len(found)}")
        unknown = [label for label in labels if label not in place]
        if unknown:
            raise DataError(f"label {unknown[0]!r} was not learned; classes_ has {self.classes_.tolist()}")
        picked = found[np.arange(len(labels)), [place[label] for label in labels]]
        return as_given(X, np.log(np.maximum(picked, 1e-300)))


class VariationalGaussianProcess(SparseRegressor):
    """Gaussian process regression on inducing points: q(u) = N(m, S) at m landmarks, learned by the evidence bound.

    likelihood: "gaussian", "student_t" (heavy tails; dof > 2 is held) or "poisson" (counts, rate exp(f)). kernel: a psd
    Kernel, or None: a variance times Matern 5/2 or Gaussian, a lengthscale for each column. noise: > 0, variance (or
    squared scale) of standardised y; None: learned. landmarks: how many, points m d, or SphericalFeatures. batch_size,
    epochs: above 4,000 rows. tolerance: rise of the bound, in nats for each row, below which learning ends.
    Fitted: kernel_, noise_, landmarks_ (scaled units), bound_ (ELBO of scaled y, never above the log evidence),
    history_, plan_. Cost: about 12 n m^2 flops a step or an epoch; m^2 numbers beside the batch, whatever n.
    Error: of q, in KL, the evidence less bound_; none with Gaussian noise and all rows as landmarks.
    Source [titsias2009], [hensman2013], [hensman2015], [salimbeni2018].
    """

    def __init__(
        self,
        kernel: Any = None,
        likelihood: str = "gaussian",
        *,
        noise: float | None = None,
        dof: float = 4.0,
        landmarks: Any = 300,
        batch_size: int = 1000,
        epochs: int = 20,
        learn: bool = True,
        standardize: bool | None = None,
        tolerance: float = 1e-3,
        time_budget: float | None = None,
        progress: Any = None,
        random_state: Any = None,
    ):
        self.kernel, self.likelihood, self.noise, self.dof = kernel, likelihood, noise, dof
        self.landmarks, self.batch_size, self.epochs, self.learn = landmarks, batch_size, epochs, learn
        self.standardize, self.tolerance, self.time_budget = standardize, tolerance, time_budget
        self.progress, self.random_state = progress, random_state


class VariationalGaussianProcessClassifier(SparseClassifier):
    """Gaussian process classification on inducing points: p(y = 1 | f) = Phi(f), Phi the normal distribution function.

    Two classes have one f; of more, each has its own against all others, and their chances are divided by their sum.
    Parameters as in VariationalGaussianProcess. Fitted: classes_, kernel_, landmarks_, bound_, history_, plan_.
    Cost: that of VariationalGaussianProcess with one output for each class beyond two, and Gauss-Hermite sums.
    Error: of q, in KL, the evidence less bound_; that of one against all others is not bounded.
    Source [hensman2015, sec. 4], [salimbeni2018].
    """

    def __init__(
        self,
        kernel: Any = None,
        *,
        landmarks: Any = 300,
        batch_size: int = 1000,
        epochs: int = 20,
        learn: bool = True,
        standardize: bool | None = None,
        tolerance: float = 1e-3,
        time_budget: float | None = None,
        progress: Any = None,
        random_state: Any = None,
    ):
        self.kernel, self.landmarks, self.batch_size, self.epochs, self.learn = (
            kernel,
            landmarks,
            batch_size,
            epochs,
            learn,
        )
        self.standardize, self.tolerance, self.time_budget = standardize, tolerance, time_budget
        self.progress, self.random_state = progress, random_state
