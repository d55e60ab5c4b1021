"""Kernel smoothers: means of y weighted by the kernel, over all rows or the nearest; soft-weighted k-NN."""

from __future__ import annotations

import warnings
from abc import ABC
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from sklearn.base import ClassifierMixin
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from mercer.assemble import assemble
from mercer.claims import Claim
from mercer.errors import DataError, MercerWarning, StructureError
from mercer.kernel import Kernel
from mercer.learn.answers import IntervalRegressor, as_given
from mercer.learn.arguments import count
from mercer.learn.classify import encoded
from mercer.learn.conformal import LocalConformal
from mercer.learn.gram import GramEstimator, gaussian_by, median_distance
from mercer.learn.nearest import Nearest, everywhere, weighted
from mercer.learn.table import Target

JUDGED = 10_000  # rows that are predicted without themselves
TRIED = 500  # of them, for each lengthscale
STEP, SHARPER = 2**0.5, 1 / 8  # between lengthscales; the shortest, of the distance to the nearest other row
CHUNK = 4096  # rows whose neighbours' values are gathered together


class _Smoother(GramEstimator, ABC):
    """Means of values: n c weighted by the kernel."""

    neighbours: int | None
    _fitted: tuple[str, ...] = ("left_out_", "_points", "_values")

    def _smooth_on(self, x: Tensor, values: Tensor, generator: torch.Generator) -> np.ndarray:
        """Keep the rows, choose a lengthscale where no kernel was given; left-out means `n c`, NaN where not judged."""
        self._points, self._values = x, values
        order = torch.randperm(len(x), generator=generator)
        if self.kernel is None:
            self._set(self._chosen(order[:TRIED], generator))
        else:
            self._set(self.kernel_)
        rows = order[:JUDGED]
        left = np.full(tuple(values.shape), np.nan)
        left[rows.numpy()] = self._left_out(rows).numpy()
        return left

    def _check(self) -> None:
        count("neighbours", self.neighbours, 1, optional=True)
        if isinstance(self.kernel, Kernel) and Claim.POSITIVE not in self.kernel.claims:
            raise StructureError(f"a smoother divides by row sums; {self.kernel!r} may be negative")

    def _set(self, kernel: Kernel) -> None:
        self.kernel_ = kernel.requires_grad_(False)
        self._near = Nearest(self.kernel_, self._points) if self.neighbours is not None else None

    def _restored(self, parts: dict[str, Any]) -> None:
        self._set(self.kernel_)

    def _chosen(self, rows: Tensor, generator: torch.Generator) -> Kernel:
        """The Gaussian of least squared error of left-out rows, from sharp weights to those of the median distance."""
        middle = median_distance(self._points, generator)
        self._set(gaussian_by(middle))
        near = Nearest(self.kernel_, self._points)(self._points[rows], 1, rows)[1]
        closest = float((-2 * near).clamp_min(0).sqrt().median()) * middle
        least = min(closest * SHARPER, middle / 2) or middle / 256
        many = int(np.ceil(np.log(middle / least) / np.log(STEP))) + 1
        unit = self._values.abs().max().clamp_min(1e-300)  # squares of very large numbers are none
        errors = []
        for distance in np.geomspace(least, middle, many).tolist():
            self._set(gaussian_by(distance))
            wrong = (self._left_out(rows) - self._values[rows]) / unit
            errors.append((float(wrong.square().mean()), distance))
        return gaussian_by(min(errors)[1])

    @torch.no_grad()
    def _left_out(self, rows: Tensor) -> Tensor:
        return self._means(self._points[rows], rows)[0]

    @torch.no_grad()
    def _means(self, x: Tensor, own: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(means `m c`, which rows have any weight); the mean of all rows where one has none."""
        if self._near is not None:
            found = [(torch.zeros(0, self._values.shape[1], dtype=x.dtype), torch.zeros(0, dtype=torch.bool))]
            most = len(self._points) - (own is not None)
            for at in torch.arange(len(x)).split(CHUNK):
                rows, logs = self._near(x[at], min(int(self.neighbours or 1), most), None if own is None else own[at])
                found.append(weighted(logs, self._values[rows]))
            means, known = (torch.cat(part) for part in zip(*found, strict=True))
        elif own is not None:
            means, known = everywhere(self.kernel_, x, self._points, self._values, own)
        else:
            means, known = self._product(x)
        return torch.where(known[:, None], means, self._values.mean(0)), known

    def _product(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(K v) / (K 1) by the operator; again in log space where all weights of a row vanished."""
        both = torch.cat([self._values, torch.ones_like(self._values[:, :1])], 1)
        columns = both.shape[1]
        if not len(x):
            return x.new_zeros(0, columns - 1), torch.zeros(0, dtype=torch.bool)
        found = assemble(self.kernel_, x, self._points, rhs=columns).normalised().matmul(both)
        means, known = found[:, :-1].clone(), found[:, -1] > 0.5
        lost = (~known).nonzero()[:, 0]
        if len(lost):
            means[lost], known[lost] = everywhere(self.kernel_, x[lost], self._points, self._values, None)
        return means, known

    def _seen_means(self, X: Any) -> tuple[Tensor, Tensor]:
        """(scaled rows of X, their means); warns of rows that no training row weighs anything for."""
        check_is_fitted(self, "kernel_")
        x = self._seen(X)
        means, known = self._means(x)
        if not bool(known.all()):
            row = int((~known).nonzero()[0, 0])
            message = f"row {row} of X is so far from all training rows that k is 0: its answer is the mean of all"
            warnings.warn(MercerWarning(message), stacklevel=4)
        return x, means


class KernelSmootherRegressor(IntervalRegressor, _Smoother):
    """Kernel smoother (Nadaraya-Watson): f(x) = sum_i k(x, x_i) y_i / sum_i k(x, x_i). Nothing is solved.

    kernel: never negative (claims positive); None: Gaussian, the lengthscale of least error of left-out rows.
    neighbours: the sums take the `neighbours` rows of the largest k(x, x_i) only (soft-weighted k-NN), found exactly;
    None: all rows. standardize: columns on a robust common scale; None: when kernel is None. random_state: of the
    rows that are left out. Fitted: kernel_, left_out_ (predictions of up to 10,000 training rows without
    themselves, NaN for others).
    Cost: a product of K with c + 1 columns for each predict; with neighbours a search of a k-d tree for kernels that
    fall with distance, else a pass over k. Weights are formed in log space, so far rows get the nearest rows' mean.
    Raises StructureError for kernels that may be negative. Source [nadaraya1964], [watson1964].
    """

    _fitted: tuple[str, ...] = ("target_", "_vector")
    _conformal: LocalConformal | None = None  # made when first asked for

    def __init__(
        self,
        kernel: Any = None,
        *,
        neighbours: int | None = None,
        standardize: bool | None = None,
        random_state: Any = None,
    ):
        self.kernel, self.neighbours = kernel, neighbours
        self.standardize, self.random_state = standardize, random_state

    def fit(self, X: Any, y: Any) -> KernelSmootherRegressor:
        """Keep X: n d and y: n or n c. Raises DataError naming the first NaN or infinity."""
        self._check()
        if y is None:
            raise DataError("KernelSmootherRegressor requires y to be passed, but the target y is None")
        x, y, generator = self._begin(X, y)
        target = np.asarray(y, dtype=np.float64)
        self._vector = target.ndim == 1
        self.target_, values = Target.fit(target.reshape(len(x), -1), False)
        left = self._smooth_on(x, values, generator)
        self.left_out_ = left[:, 0] if self._vector else left
        self._conformal = None
        return self

    def _answers(self, X: Any) -> tuple[np.ndarray, Callable[[], np.ndarray]]:
        x, means = self._seen_means(X)
        return means.numpy(), x.numpy

    def _widths(self) -> LocalConformal:
        if self._conformal is None:
            left = self.left_out_.reshape(len(self._points), -1)
            judged = np.isfinite(left[:, 0])
            wrong = self._values.numpy()[judged] - left[judged]
            self._conformal = LocalConformal().fit(self._points.numpy()[judged], wrong)
        return self._conformal


class KernelSmootherClassifier(ClassifierMixin, _Smoother):
    """Kernel smoother of labels: the chance of a class is its share of the weights k(x, x_i). Soft-weighted k-NN.

    p_c(x) = sum over rows of class c of k(x, x_i) / sum over all rows of k(x, x_i). Parameters, cost and errors as in
    KernelSmootherRegressor; the lengthscale of kernel=None is that of the least Brier score of left-out rows.
    The kernel of the paper, exp(cosine / temperature), is ExpDot(temperature ** 0.5) on rows of length 1.
    Fitted: classes_, kernel_, left_out_ (chances of up to 10,000 training rows without themselves, NaN for others).
    Raises StructureError; DataError when there is one class only. Source [jia2021], [watson1964].
    """

    _fitted: tuple[str, ...] = ("classes_",)

    def __init__(
        self,
        kernel: Any = None,
        *,
        neighbours: int | None = None,
        standardize: bool | None = None,
        random_state: Any = None,
    ):
        self.kernel, self.neighbours = kernel, neighbours
        self.standardize, self.random_state = standardize, random_state

    def fit(self, X: Any, y: Any) -> KernelSmootherClassifier:
        """Keep X: n d and labels y: n."""
        self._check()
        x, y, generator = self._begin(X, y, classes=True)
        self.classes_, codes = encoded(y)
        one = torch.eye(len(self.classes_), dtype=torch.float64)[torch.from_numpy(codes)]
        self.left_out_ = self._smooth_on(x, one, generator)
        return self

    def predict_proba(self, X: Any) -> Any:
        """Chances of classes_, `n c`; torch in, torch out."""
        return as_given(X, self._seen_means(X)[1].numpy())

    def predict(self, X: Any) -> np.ndarray:
        """The likeliest label of each row, `n`."""
        best = self._seen_means(X)[1].argmax(1).numpy()
        return self.classes_[best]
