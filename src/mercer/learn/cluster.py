"""Clusters in feature space: k-means on the Gram operator, and spectral clustering with the way to new rows."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from sklearn.base import ClusterMixin
from sklearn.cluster import KMeans
from sklearn.metrics import pairwise_distances_argmin
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from mercer.budget import memory_budget
from mercer.claims import Claim
from mercer.errors import ConvergenceWarning, DataError, MercerWarning, StructureError
from mercer.kernel import Kernel
from mercer.learn.dual_pca import Centred
from mercer.learn.gram import GramEstimator, gaussian_by, neighbour_distance, top_eigenpairs
from mercer.operator import Operator

MANY = 30  # products of K that a clustering is planned for
ROUNDING = 1e-12  # of the largest k(x, x): squared distances that mean nothing
LEAST = 1e-8  # eigenvalue of the walk below which an axis says nothing of new rows


def _clusters(name: str, count: Any, n: int) -> int:
    if isinstance(count, bool) or not isinstance(count, int | np.integer) or not 1 <= count <= n:
        raise ValueError(f"{name} is {count!r}; expected a whole number from 1 to the {n} rows")
    return int(count)


class KernelKMeans(ClusterMixin, GramEstimator):
    """k-means in feature space: rows go to the nearest mean of phi, |phi(x) - m|^2, until none moves.

    n_clusters: 1 to n. kernel: psd; None: Gaussian with the median distance. n_init: starts by k-means++ in feature
    space, run side by side; the one of least inertia stays. max_iter: rounds, at most. standardize: columns on a
    robust common scale; None: when kernel is None.
    Fitted: labels_ `n`, inertia_ (sum of squared distances in feature space), n_iter_, kernel_.
    Cost: each round one product of K with n_init n_clusters columns; memory that of as many columns.
    Raises ConvergenceWarning when max_iter did not do. Source [dhillon2004, sec. 2], [arthur2007].
    """

    _fitted: tuple[str, ...] = ("labels_", "inertia_", "n_iter_", "_points", "_means", "_squares")

    def __init__(
        self,
        n_clusters: int = 8,
        kernel: Any = None,
        *,
        n_init: int = 10,
        max_iter: int = 300,
        standardize: bool | None = None,
        random_state: Any = None,
    ):
        self.n_clusters, self.kernel, self.n_init, self.max_iter = n_clusters, kernel, n_init, max_iter
        self.standardize, self.random_state = standardize, random_state

    @torch.no_grad()
    def fit(self, X: Any, y: Any = None) -> KernelKMeans:
        """Find clusters of the rows of X: n d; y is ignored."""
        if self.n_init < 1 or self.max_iter < 1:
            raise ValueError(f"n_init is {self.n_init}, max_iter {self.max_iter}; expected whole numbers >= 1")
        x, _, generator = self._begin(X)
        n, c = len(x), _clusters("n_clusters", self.n_clusters, len(x))
        together = max(1, min(int(self.n_init), memory_budget() // (40 * n * c)))
        k = self._gram(x, c * together, MANY)
        diagonal, best = k.diagonal(), None
        for first in range(0, int(self.n_init), together):
            runs = min(together, int(self.n_init) - first)
            begun = torch.stack([self._start(x, diagonal, c, generator) for _ in range(runs)])
            labels, inertia, steps, moving = self._lloyd(k, diagonal, begun, c)
            at = int(inertia.argmin())
            if best is None or float(inertia[at]) < best[1]:
                best = labels[at], float(inertia[at]), steps, float(moving[at])
        labels, self.inertia_, self.n_iter_, restless = best if best is not None else (begun[0], 0.0, 0, 0.0)
        if restless:
            message = f"KernelKMeans stopped after {self.n_iter_} rounds while {restless:.1%} of the rows still moved; "
            warnings.warn(ConvergenceWarning(message + "allow more by max_iter", restless, self.n_iter_), stacklevel=3)
        self.labels_ = labels.numpy()
        self._points, self._means = x, _means(labels[None], c)[0]
        used = self._means.sum(0) > 0
        if not bool(used.all()):
            found = int(used.sum())
            warnings.warn(MercerWarning(f"X has {found} different places only, n_clusters is {c}"), stacklevel=3)
        squares = (self._means * k.matmul(self._means)).sum(0)
        self._squares = torch.where(used, squares, torch.inf)
        return self

    def _start(self, x: Tensor, diagonal: Tensor, c: int, generator: torch.Generator) -> Tensor:
        """Labels by the nearest of c rows that greedy k-means++ draws in feature space."""
        n, trials = len(x), 2 + int(np.log(c))
        labels, closest = torch.zeros(n, dtype=torch.long), torch.full_like(diagonal, torch.inf)
        for j in range(c):
            if j and float(closest.sum()) > 0:
                drawn = torch.multinomial(closest, trials, replacement=True, generator=generator)
            else:
                drawn = torch.randint(n, (1,), generator=generator)
            distance = diagonal - 2 * self.kernel_.block(x[drawn], x) + diagonal[drawn, None]
            distance = torch.where(distance > ROUNDING * diagonal.max(), distance, 0.0)
            chosen = distance[int(torch.minimum(distance, closest).sum(1).argmin())]
            labels = torch.where(chosen < closest, j, labels)
            closest = torch.minimum(chosen, closest)
        return labels

    def _lloyd(
        self, k: Operator, diagonal: Tensor, labels: Tensor, c: int
    ) -> tuple[Tensor, Tensor, int, Tensor]:  # fmt: skip
        """(labels `b n`, inertia `b`, rounds, share of rows that moved last `b`) of b runs; those at rest stand by."""
        b, n = labels.shape
        inertia, moving = torch.full((b,), torch.inf, dtype=diagonal.dtype), torch.ones(b, dtype=diagonal.dtype)
        live, step = torch.arange(b), 0
        while len(live) and step < self.max_iter:
            step += 1
            means = _means(labels[live], c)
            seen = k.matmul(means.permute(1, 0, 2).reshape(n, -1)).reshape(n, len(live), c).permute(1, 0, 2)
            squares = (means * seen).sum(1, keepdim=True)
            distance = diagonal[:, None] - 2 * seen + squares
            distance = torch.where(means.sum(1, keepdim=True) > 0, distance, torch.inf)  # a cluster without rows
            least, fresh = distance.min(2)
            _refill(fresh, torch.where(least > ROUNDING * diagonal.max(), least, 0.0), c)
            inertia[live] = least.clamp_min(0.0).sum(1)
            moving[live] = (fresh != labels[live]).double().mean(1)
            labels[live] = fresh
            live = live[moving[live] > 0]
        return labels, inertia, step, moving

    def predict(self, X: Any) -> np.ndarray:
        """The cluster of the nearest mean for rows of X, `n`."""
        check_is_fitted(self, "labels_")
        with torch.no_grad():
            found = self._squares - 2 * self._times(self._seen(X), self._points, self._means)
        return found.argmin(1).numpy()


def _means(labels: Tensor, c: int) -> Tensor:
    """Coefficients of the means of clusters: labels `b n` -> `b n c`, zero for a cluster without rows."""
    one = torch.nn.functional.one_hot(labels, c).to(torch.float64)
    return one / one.sum(1, keepdim=True).clamp_min(1.0)


def _refill(labels: Tensor, distance: Tensor, c: int) -> None:
    """Give each empty cluster the row that lies farthest from its mean, in place; none where all lie at theirs."""
    for run in range(len(labels)):
        empty = (torch.bincount(labels[run], minlength=c) == 0).nonzero()[:, 0]
        for j in empty.tolist():
            at = int(distance[run].argmax())
            if float(distance[run, at]) <= 0:
                break
            labels[run, at], distance[run, at] = j, 0.0


class KernelSpectralClustering(ClusterMixin, GramEstimator):
    """Clusters that a random walk by the kernel rarely leaves: k-means on the slowest modes of D^-1 K, D = diag(K 1).

    n_clusters: 1 to n. kernel: psd without negative values; None: Gaussian, its lengthscale the median distance to the
    7th (many rows: n / 100-th) neighbour. n_init: of k-means on the modes. standardize: columns on a robust common
    scale; None: when kernel is None. New rows come to the modes by the walk itself: f(x) = sum_i k(x, x_i) f(x_i) over
    eigenvalue and sum_i k(x, x_i).
    Fitted: labels_ `n`, eigenvalues_ `n_clusters` (near 1: a cluster of its own), embedding_ `n n_clusters`, kernel_.
    Cost: n^3 / 3 flops to 500 rows, then Lanczos with products of K.
    Raises StructureError. Source [ng2001], [bengio2003, sec. 3].
    """

    _fitted: tuple[str, ...] = ("labels_", "eigenvalues_", "embedding_", "_points", "_modes", "_middles")

    def __init__(
        self,
        n_clusters: int = 8,
        kernel: Any = None,
        *,
        n_init: int = 10,
        standardize: bool | None = None,
        random_state: Any = None,
    ):
        self.n_clusters, self.kernel, self.n_init = n_clusters, kernel, n_init
        self.standardize, self.random_state = standardize, random_state

    def _usual(self, x: Tensor, generator: torch.Generator) -> Kernel:
        return gaussian_by(neighbour_distance(x, generator))

    @torch.no_grad()
    def fit(self, X: Any, y: Any = None) -> KernelSpectralClustering:
        """Find clusters of the rows of X: n d; y is ignored."""
        if self.kernel is not None and Claim.POSITIVE not in getattr(self.kernel, "claims", {Claim.POSITIVE}):
            raise StructureError(f"a random walk needs a kernel that is never negative; {self.kernel!r} may be")
        x, _, generator = self._begin(X)
        c = _clusters("n_clusters", self.n_clusters, len(x))
        k = self._gram(x, 1, MANY)
        degree = k.matmul(torch.ones(len(x), 1, dtype=k.dtype))[:, 0]
        if not bool((degree > 0).all()):
            raise DataError(f"row {int(degree.argmin())} of X is like no row, not even itself: k is 0 there")
        values, u = top_eigenpairs(Centred(k, torch.zeros_like(degree), degree.rsqrt()), c, generator)
        modes = u * (degree.sum() / degree).sqrt()[:, None]
        self.eigenvalues_, self.embedding_ = values.numpy(), modes.numpy()
        seed = int(torch.randint(2**31 - 1, (1,), generator=generator))
        groups = KMeans(c, n_init=self.n_init, random_state=seed).fit(self.embedding_)
        self.labels_, self._middles = groups.labels_, groups.cluster_centers_
        inverse = torch.where(values > LEAST, 1 / values.clamp_min(LEAST), 0.0)
        self._points, self._modes = x, torch.cat([modes * inverse, torch.ones_like(modes[:, :1])], 1)
        return self

    def modes(self, X: Any) -> np.ndarray:
        """The modes at rows of X, `n n_clusters`; at training rows they are embedding_."""
        check_is_fitted(self, "labels_")
        with torch.no_grad():
            found = self._times(self._seen(X), self._points, self._modes)
        mass = found[:, -1]
        if bool((mass <= 0).any()):
            row = int((mass <= 0).nonzero()[0, 0])
            message = f"row {row} of X is so far from all training rows that k is 0: its cluster means nothing"
            warnings.warn(MercerWarning(message), stacklevel=2)
        return (found[:, :-1] / torch.where(mass > 0, mass, 1.0)[:, None]).numpy()

    def predict(self, X: Any) -> np.ndarray:
        """The cluster of rows of X, `n`."""
        modes = self.modes(X)
        return pairwise_distances_argmin(modes, self._middles).astype(self.labels_.dtype)
