"""Chances of two classifiers, interpolated: a kernel smoother beside a head of any kind."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from mercer.errors import DataError
from mercer.learn.answers import as_given
from mercer.learn.arguments import count
from mercer.learn.classify import encoded
from mercer.learn.smoother import KernelSmootherClassifier
from mercer.learn.state import Saved
from mercer.learn.table import plain, read

SHARES = np.linspace(0.0, 1.0, 21)  # tried
LINEAR = ("classes_", "coef_", "intercept_", "n_features_in_")  # what a logistic regression has learned
EVEN = 0.5  # the share where rows do not tell


class InterpolatedClassifier(ClassifierMixin, Saved, BaseEstimator):
    """Chances p = share * smoother + (1 - share) * head: neighbours beside a linear head, or any other classifier.

    head: scikit-learn classifier with predict_proba; None: LogisticRegression. smoother: one too; None:
    KernelSmootherClassifier() on the columns as they are. share: 0 to 1, of the smoother; None: by the Brier score of
    both in the same folds, the share nearest to 0.5 that is within a standard error of the best; 0.5 where no class
    has two rows. folds: 2 or more, for that.
    Fitted: head_, smoother_, share_, scores_ (Brier score of left-out rows for each of 21 shares; None where none were
    left out), classes_. get_state knows mercer's own classifiers and LogisticRegression.
    Cost: folds + 1 fits of both. Source [jia2021].
    """

    _fitted: tuple[str, ...] = ("classes_", "share_", "scores_", "smoother_")

    def __init__(
        self,
        head: Any = None,
        smoother: Any = None,
        *,
        share: float | None = None,
        folds: int = 5,
        random_state: Any = None,
    ):
        self.head, self.smoother, self.share = head, smoother, share
        self.folds, self.random_state = folds, random_state

    def fit(self, X: Any, y: Any) -> InterpolatedClassifier:
        """Learn from X: n d and labels y: n. Raises DataError when there is one class only."""
        if self.share is not None and not 0 <= self.share <= 1:
            raise ValueError(f"share is {self.share!r}; expected a number from 0 to 1, or None")
        count("folds", self.folds, 2)
        x, y = read(self, X, y, reset=True, classes=True)
        if len(x) < 2:
            raise DataError("InterpolatedClassifier got 1 sample; expected at least 2 rows to learn from")
        self.classes_, codes = encoded(y)
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        self.scores_ = None
        self.share_ = self.share if self.share is not None else self._by_left_out(x, codes, seed)
        self.smoother_, self.head_ = self._smoother(seed).fit(x, codes), self._head().fit(x, codes)
        return self

    def _head(self) -> Any:
        return LogisticRegression(max_iter=2000) if self.head is None else clone(self.head)

    def _smoother(self, seed: int) -> Any:
        if self.smoother is None:
            return KernelSmootherClassifier(standardize=False, random_state=seed)
        return clone(self.smoother)

    def _by_left_out(self, x: np.ndarray, codes: np.ndarray, seed: int) -> float:
        """Rows of classes with one row teach in every fold and are never judged."""
        counts = np.bincount(codes)
        judged = np.flatnonzero(counts[codes] > 1)
        if not len(judged):
            return EVEN
        alone = np.flatnonzero(counts[codes] == 1)
        near, far = (np.zeros((len(x), len(counts))) for _ in range(2))
        many = min(self.folds, int(counts[counts > 1].min()))
        for rows, out in StratifiedKFold(many, shuffle=True, random_state=seed).split(judged, codes[judged]):
            kept, left = np.concatenate([judged[rows], alone]), judged[out]
            if len(np.unique(codes[kept])) < 2:
                return EVEN
            near[left] = self._chances(self._smoother(seed).fit(x[kept], codes[kept]), x[left])
            far[left] = self._chances(self._head().fit(x[kept], codes[kept]), x[left])
        one = np.eye(len(counts))[codes]
        each = np.stack([np.square(w * near + (1 - w) * far - one).sum(1)[judged] for w in SHARES])
        scores = self.scores_ = each.mean(1)
        more = each - each[scores.argmin()]
        fine = SHARES[more.mean(1) <= more.std(1) / np.sqrt(len(judged))]
        return float(fine[np.abs(fine - EVEN).argmin()])

    def _chances(self, model: Any, x: np.ndarray) -> np.ndarray:
        """Of all classes `n c`, from a model of codes that may not have seen each."""
        found = np.zeros((len(x), len(self.classes_)))
        found[:, model.classes_] = model.predict_proba(x)
        return found

    def predict_proba(self, X: Any) -> Any:
        """Chances of classes_, `n c`; torch in, torch out."""
        check_is_fitted(self, "share_")
        x = read(self, X, reset=False)[0]
        near, far = self._chances(self.smoother_, x), self._chances(self.head_, x)
        return as_given(X, self.share_ * near + (1 - self.share_) * far)

    def predict(self, X: Any) -> np.ndarray:
        """The likeliest label of each row, `n`."""
        chances = plain(self.predict_proba(X))
        return self.classes_[chances.argmax(1)]

    def _pieces(self) -> dict[str, Any]:
        if type(self.head_) is not LogisticRegression:
            return {"head": self.head_}
        return {"head": {name: getattr(self.head_, name) for name in LINEAR}}

    def _restored(self, parts: dict[str, Any]) -> None:
        self.head_ = parts["head"]
        if isinstance(self.head_, dict):
            self.head_ = LogisticRegression(max_iter=2000)
            vars(self.head_).update(parts["head"])
