"""KernelClassifier: kernel ridge on class membership or kernel logistic regression, calibrated on left-out scores."""

from __future__ import annotations

import dataclasses
import math
from abc import ABC
from typing import Any

import numpy as np
import torch
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, column_or_1d
from torch import Tensor

from mercer.errors import DataError
from mercer.kernel import Kernel
from mercer.learn import logistic
from mercer.learn.answers import CalibratedClassifier
from mercer.learn.base import KernelEstimator
from mercer.learn.calibrate import Calibration, log_chances
from mercer.learn.table import Target, refuse_gaps
from mercer.learn.tune import Clock
from mercer.learn.unseen import left_out

EARLY, LATE = 0.7, 0.35  # of the seconds: for learning the kernel, and at least for log odds


def encoded(y: Any, known: Any = None) -> tuple[np.ndarray, np.ndarray]:
    """(the labels in order, which of them each row has). known: the labels, where y need not hold all.

    Raises DataError where one is missing or unknown, or all are the same.
    """
    labels = column_or_1d(y, warn=True)
    if labels.dtype == object and (missing := [i for i, v in enumerate(labels) if v is None or v != v]):
        raise DataError(f"y has no label at row {missing[0]} ({labels[missing[0]]}); drop such rows or name a class")
    if labels.dtype.kind == "f":
        refuse_gaps(labels[:, None], "y")
    check_classification_targets(labels)
    classes, codes = np.unique(labels, return_inverse=True)
    if known is not None:
        own, classes = classes, np.unique(np.asarray(known))
        if len(strange := np.setdiff1d(own, classes)):
            raise DataError(f"y holds {strange.tolist()[0]!r}, which is not one of the classes {classes.tolist()}")
        codes = np.searchsorted(classes, own)[codes]
    if len(classes) < 2:
        only = classes.tolist()[0]
        only = f"{only:g}" if isinstance(only, float) else repr(only)
        raise DataError(f"y holds one class only ({only}); a classifier needs at least two")
    return classes, codes


class KernelClassification(CalibratedClassifier, KernelEstimator, ABC):
    """Base of the kernel classifiers: not public."""

    _fitted: tuple[str, ...] = ("classes_", "calibration_")
    _least = 1e-3  # labels that can be separated would drive it to nothing

    def fit(self, X: Any, y: Any) -> Any:
        """Learn from X: n d and labels y: n. Raises DataError when there is one class only."""
        self._check()
        table, y = self._read(X, y, reset=True, classes=True)
        self.classes_, codes = encoded(y)
        self._classify(table, codes)
        if self._flattered(*table.shape) and not self.plan_.interrupted:
            self._unseen(table, codes)
        return self

    def _classify(self, table: np.ndarray, codes: np.ndarray) -> None:
        """Learn the classes 0 .. c - 1 from read rows."""
        many = int(codes.max()) + 1
        one = np.eye(many)[codes]
        clock = self._clock(*table.shape)
        x, _, _ = self._fit(table, one[:, 1:] if many == 2 else one)
        scores = self._each_class(self._left_out.numpy())
        del self._left_out
        self.calibration_ = Calibration.fit(scores, codes)
        self.left_out_ = self.calibration_(scores)
        if self.learn and self.alpha is None and not self.plan_.interrupted:
            self._by_log_loss(x, codes, self.calibration_.loss(scores, codes), clock)

    def _unseen(self, table: np.ndarray, codes: np.ndarray) -> None:
        """Calibrate again, by fits that learned nothing from the rows that they predict."""
        many = len(self.classes_)

        def judge(fresh: KernelClassification, rows: np.ndarray, out: np.ndarray) -> np.ndarray:
            seen, own = np.unique(codes[rows], return_inverse=True)
            found = np.full((len(out), many), math.log(0.5 / len(rows)))  # of a class that these rows have not
            if len(seen) > 1:
                fresh._classify(table[rows], own)
                logits = fresh._calibrated(fresh.scaler_(table[out]))
                found[:, seen] = log_chances(logits)
            return found

        place = None if self._repeats is None else self._repeats.place
        found = left_out(self, codes, place, judge)
        if found is not None:
            again = Calibration.fit(found, codes, 0.0)
            self.calibration_ = self.calibration_.then(again)
            self.left_out_ = again(found)

    def _by_log_loss(self, x: Tensor, codes: np.ndarray, usual: float, clock: Clock) -> None:
        """Take log odds trained by log loss instead, where left-out rows say that they are better than `usual`."""
        seed = check_random_state(self.random_state).randint(2**31 - 1)
        generator = torch.Generator().manual_seed(int(seed))
        seconds = clock.seconds
        own = Clock.of(None if seconds is None else max(seconds - clock.used(), LATE * seconds))
        try:
            twins, place, rows = self._repeats, None, np.arange(len(codes))
            chances = np.full((len(codes), int(codes.max()) + 1), np.nan)
            if twins is not None and self._within == 0:  # rows of one place agree: each place is one observation
                codes, rows = codes[twins.picked], twins.picked
            elif twins is not None:
                place = twins.place
                x = x[torch.from_numpy(place)]
            found = logistic.fit(self.kernel_, x, codes, usual, own, generator, place)
        except KeyboardInterrupt:
            self.plan_ = dataclasses.replace(self.plan_, interrupted=True)
            return
        if found is None:
            return
        if self.progress is not None:
            self.progress("log loss of left-out rows", found.loss)
        chances[rows[found.judged]] = found.calibration(found.scores)
        self.left_out_ = chances
        first = 1 if len(found.bias) == 2 else 0  # two classes have opposite log odds
        self.kernel_, self._points, self._weights = found.kernel, found.points, found.weights[:, first:].contiguous()
        self.target_ = Target(found.bias[first:], np.ones(len(found.bias) - first))
        self.calibration_, self.alpha_, self._factor = found.calibration, found.noise, None
        self.plan_ = dataclasses.replace(
            self.plan_, landmarks=len(found.points), seconds=clock.used(),
            sentence=f"{self.plan_.sentence}; then log odds by kernel logistic regression, "
            f"{len(found.points):,} landmarks, {clock.used():.1f} s",
        )  # fmt: skip

    def _learned(self, x: Tensor, y: Tensor, clock: Clock, generator: torch.Generator) -> tuple[Kernel, float]:
        early = dataclasses.replace(clock, seconds=None if clock.seconds is None else EARLY * clock.seconds)
        found = super()._learned(x, y, early, generator)
        clock.interrupted = early.interrupted
        return found

    def _goal(self, means: Tensor, drawn: Tensor) -> Tensor:
        return drawn  # a mean is no class

    def _judge(self, left_out: Tensor, y: Tensor) -> float:
        scores = self._each_class(left_out.numpy())
        truth = self._each_class(y.numpy()).argmax(1)
        return Calibration.fit(scores, truth).loss(scores, truth)

    def _each_class(self, scores: np.ndarray) -> np.ndarray:
        """One score for each class, in units of membership."""
        found = self.target_.back(scores)
        return np.concatenate([-found, found], 1) if found.shape[1] == 1 else found

    def _logits(self, X: Any) -> np.ndarray:
        check_is_fitted(self, "kernel_")
        table, _ = self._read(X, reset=False)
        return self._calibrated(self.scaler_(table))

    def _calibrated(self, x: Tensor) -> np.ndarray:
        return self.calibration_.logits(self._each_class(self._scores(x)))


class KernelClassifier(KernelClassification):
    """Kernel classifier with calibrated probabilities: least squares on class membership, then a logistic map.

    Where left-out rows have a smaller log loss by it, kernel logistic regression takes the place of least squares
    (not with a given alpha or learn=False). The map from scores to probabilities is fitted to left-out scores, so
    that a stated chance of 80 % comes true 80 % of the time. All parameters as in KernelRidge.
    Fitted: classes_, kernel_, alpha_ (of a logistic fit: the noise that smooths as much), plan_, calibration_,
    left_out_ (chances `n c` of training rows by fits without them; NaN where a logistic fit of many judged others).
    Cost: that of KernelRidge with one output for each class, and n m (m + 4 c steps) flops, m <= 1,000.
    Source [rasmussen2006, sec. 3.5 and 6.5], [guo2017, sec. 4.2].
    """

    def __init__(
        self,
        kernel: Any = None,
        alpha: float | None = None,
        *,
        learn: bool = True,
        standardize: bool | None = None,
        time_budget: float | None = None,
        progress: Any = None,
        random_state: Any = None,
    ):
        self.kernel, self.alpha, self.learn, self.standardize = kernel, alpha, learn, standardize
        self.time_budget, self.progress, self.random_state = time_budget, progress, random_state
