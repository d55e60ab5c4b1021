"""MultitaskGaussianProcess: several targets that learn from each other, each observed where it happens to be."""

from __future__ import annotations

import copy
import logging
import math
from typing import Any

import numpy as np
import torch
from scipy.special import ndtri
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_array, check_consistent_length, check_is_fitted
from torch import Tensor

from mercer.budget import memory_budget
from mercer.errors import DataError, ShapeError
from mercer.kernel import Kernel
from mercer.kernels import Gaussian, Matern
from mercer.learn.answers import as_given
from mercer.learn.arguments import count, inside, positive, usual
from mercer.learn.state import Saved
from mercer.learn.stochastic import BYTES, COPIES, RANK, Whole
from mercer.learn.table import Scaler, deviation, plain, read, refuse_words
from mercer.learn.tasks import Separable, Tasks, TasksLikelihood, algorithm, observed
from mercer.learn.tune import Climb, Clock
from mercer.linalg import Cholesky, Factor

log = logging.getLogger("mercer")

ENTRIES, STEPS = 1000, 60  # observed entries to learn from, and gradients
SHARE, SPREAD = 0.7, 2.0  # of the seconds; deviation of the prior of a log lengthscale
NOISE, OWN = 0.1, 0.2  # where learning begins, of the variance of a task


class MultitaskGaussianProcess(RegressorMixin, Saved, BaseEstimator):
    """Gaussian process of T tasks: y_t = f_t(x) + e_t, cov(f_i(x), f_j(y)) = sum_q k_q(x, y) B_q[i, j].

    B_q = W_q W_q^T + diag(own_q), e_t ~ N(0, noise_t); all learned by marginal likelihood. y: n T, NaN = not observed.
    kernel: a psd Kernel for each q (a list, or one for all), or None: Matern 5/2 with a lengthscale for each column.
    terms: q >= 1; 1 is the intrinsic model of coregionalisation, more the linear one. rank: columns of W, >= 1.
    interactions: learn correlations C of the terms (Gaussian kernels, terms >= 2); False: they are independent.
    noise: > 0, of every standardised task; None: learned, one for each task. Other parameters as in KernelRidge.
    Fitted: kernels_, coregionalisation_ (B, q T T, in units of y), correlation_ (T T, of f at one place), noise_ (T);
    interactions_ (C, q q; pairs of terms then follow in kernels_ and B).
    Cost: 9 (n^3 + T^3) flops where all tasks are seen at every row and q = 1; N^3 / 3 for N <= 5,000 observed entries;
    above by CG, whose means are exact to 1e-8 and variances at most 1e-3 of themselves too large.
    Source [bonilla2007], [alvarez2012], [chen2018].
    """

    _fitted: tuple[str, ...] = (
        "coregionalisation_", "correlation_", "interactions_", "noise_", "plan_", "scaler_", "_centre", "_scale",
        "_vector", "_how", "_x", "_row", "_task", "_tasks", "_weights",
    )  # fmt: skip
    _sometimes: tuple[str, ...] = ("log_likelihood_",)

    def __init__(
        self,
        kernel: Any = None,
        noise: float | None = None,
        *,
        terms: int = 1,
        rank: int = 2,
        interactions: bool = False,
        learn: bool = True,
        standardize: bool | None = None,
        time_budget: float | None = None,
        progress: Any = None,
        random_state: Any = None,
    ):
        self.kernel, self.noise, self.terms, self.rank = kernel, noise, terms, rank
        self.interactions = interactions
        self.learn, self.standardize, self.time_budget = learn, standardize, time_budget
        self.progress, self.random_state = progress, random_state

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

    def _check(self) -> None:
        count("terms", self.terms, 1)
        count("rank", self.rank, 1)
        positive("noise", self.noise)
        usual(self)
        given = self.kernel if isinstance(self.kernel, list | tuple) else [self.kernel]
        if isinstance(self.kernel, list | tuple) and len(given) != self.terms:
            raise ValueError(f"kernel holds {len(given)} kernels, terms is {self.terms}")
        if self.interactions and self.terms < 2:
            raise ValueError(f"terms is {self.terms}; interactions are between terms, so there must be 2 or more")

    def _kernels(self, d: int) -> list[Kernel]:
        if self.kernel is None:
            size = torch.full((d,), max(math.sqrt(d), 1.0), dtype=torch.float64)
            scales = [size / 3**q for q in range(self.terms)]
            return [Gaussian(scale) if self.interactions else Matern(2.5, scale) for scale in scales]
        given = self.kernel if isinstance(self.kernel, list | tuple) else [self.kernel] * self.terms
        return [copy.deepcopy(k) for k in given]

    def _targets(self, table: np.ndarray, y: Any) -> np.ndarray:
        """y as `n T` with gaps; sets the scale of each task."""
        y = plain(y)
        if y is None:
            raise DataError(f"{type(self).__name__} requires y to be passed, but the target y is None")
        refuse_words(y, "y")
        y = check_array(y, ensure_2d=False, allow_nd=True, ensure_all_finite=False, dtype=np.float64)
        check_consistent_length(table, y)
        if y.ndim > 2:
            raise ShapeError(f"y has {y.ndim} axes; expected n or n T")
        self._vector = y.ndim == 1
        y = y.reshape(len(table), -1)
        if np.isinf(y).any():
            row, column = (int(i) for i in np.argwhere(np.isinf(y))[0])
            raise DataError(f"y holds infinity at row {row}, column {column}; expected numbers, or NaN: not observed")
        seen = (~np.isnan(y)).sum(0)
        if (seen < 1).any():
            raise DataError(f"task {int(seen.argmin())} of y was never observed (all NaN); drop it")
        ours = self._ours() or self.learn
        self._centre = np.nanmean(y, 0) if ours else np.zeros(y.shape[1])
        spread = deviation(y, self._centre) if ours else np.ones(y.shape[1])
        self._scale = np.where(spread > 1e-12 * np.abs(self._centre), spread, 1.0)
        return y

    def _ours(self) -> bool:
        return self.kernel is None if self.standardize is None else bool(self.standardize)

    def _start(self, d: int, y: Tensor, generator: torch.Generator) -> Tasks:
        """W from the correlations of tasks where they were seen together, shrunk where that was seldom."""
        seen = (~y.isnan()).double()
        filled = y.nan_to_num()
        together = seen.mT @ seen
        near = (filled.mT @ filled) / (together + 3)
        near.diagonal().fill_(1.0)
        values, vectors = torch.linalg.eigh(near)
        top = min(self.rank, y.shape[1])
        first = vectors.flip(1)[:, :top] * values.flip(0)[:top].clamp_min(0.05).sqrt()
        draw = 0.1 * torch.randn(self.terms, y.shape[1], self.rank, generator=generator, dtype=torch.float64)
        draw[:, :, :top] += first
        own = torch.full((self.terms, y.shape[1]), OWN, dtype=torch.float64)
        level = NOISE if self.noise is None else float(self.noise)
        weights, own = draw / math.sqrt(self.terms), own / self.terms
        noise = torch.full_like(own[0], level)
        return Tasks(self._kernels(d), weights, own, noise, interact=bool(self.interactions))

    def _some(self, y: Tensor, generator: torch.Generator) -> Tensor:
        """y with entries taken out at random until few enough are left, rarely seen tasks keeping theirs."""
        if algorithm(self._tasks, y) == "kronecker":
            keep = torch.randperm(len(y), generator=generator)[:ENTRIES]
            found = torch.full_like(y, math.nan)
            found[keep] = y[keep]
            return found
        found, left = torch.full_like(y, math.nan), ENTRIES
        seen = (~y.isnan()).sum(0)
        for place, task in enumerate(seen.argsort().tolist()):
            rows = (~y[:, task].isnan()).nonzero()[:, 0]
            rows = rows[torch.randperm(len(rows), generator=generator)[: max(left // (y.shape[1] - place), 2)]]
            found[rows, task], left = y[rows, task], left - len(rows)
        return found

    def fit(self, X: Any, y: Any) -> Any:
        """Learn from X: n d and y: n T (or n), NaN where a task was not observed."""
        self._check()
        table, _ = read(self, X, reset=True, target=False)
        target = self._targets(table, y)
        if len(table) < 2:
            raise DataError(f"{type(self).__name__} got 1 sample; expected at least 2 rows to learn from")
        clock = Clock.of(self.time_budget)
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        generator = torch.Generator().manual_seed(seed)
        self.scaler_ = Scaler.fit(table) if self._ours() else Scaler.identity(table.shape[1])
        x, scaled = self.scaler_(table), torch.from_numpy((target - self._centre) / self._scale)
        self._tasks = self._start(x.shape[1], scaled, generator)
        if self.learn:
            self._learn(x, scaled, clock, generator)
        self._tasks.requires_grad_(False)
        self._solve(x, scaled)
        unit = torch.from_numpy(self._scale)
        between = torch.stack([b for _, b in self._tasks.parts()])
        self.kernels_ = [k for k, _ in self._tasks.parts()]
        self.coregionalisation_ = (between * unit * unit[:, None]).numpy()
        self.interactions_ = self._tasks.interactions().numpy()
        origin = x[:1]
        total = torch.stack([k.diagonal(origin) * b for k, b in self._tasks.parts()]).sum(0)
        root = total.diagonal().sqrt()
        self.correlation_ = (total / root / root[:, None]).numpy()
        self.noise_ = (self._tasks.log_noise.exp() * unit.square()).numpy()
        entries = int((~np.isnan(target)).sum())
        how = {"kronecker": "eigenvectors of rows and tasks", "cholesky": "Cholesky", "cg": "conjugate gradients"}
        self.plan_ = f"{entries:,} observed entries of {y_shape(target)} by {how[self._how]}, {clock.used():.1f} s"
        if clock.interrupted:
            self.plan_ += "; learning was interrupted and the best so far was kept"
        log.info("%s: %s", type(self).__name__, self.plan_)
        return self

    def _learn(self, x: Tensor, y: Tensor, clock: Clock, generator: torch.Generator) -> None:
        some = self._some(y, generator)
        rows = (~some.isnan()).any(1)
        if self.noise is not None:
            self._tasks.log_noise.requires_grad_(False)
        target = TasksLikelihood(self._tasks, [(x[rows], some[rows])])
        climb = Climb(target, clock, SHARE, self.progress, SPREAD, 15)
        self.log_likelihood_ = climb.run(STEPS)

    @torch.no_grad()
    def _solve(self, x: Tensor, y: Tensor) -> None:
        tasks = self._tasks
        self._how, self._x = algorithm(tasks, y), x
        self._row, self._task, values = observed(y)
        self._factor: Factor | Separable | Whole
        if self._how == "kronecker":
            ((kernel, between),) = tasks.parts()
            root = (0.5 * tasks.log_noise).exp()
            self._factor = Separable(kernel.block(x, x), between / root / root[:, None])
            weights = self._factor.solve(y / root) / root
        else:
            noise = tasks.log_noise.exp()[self._task]
            weights = torch.zeros_like(y)
            if self._how == "cholesky":
                a = tasks.gram(x, self._row, self._task)
                a.diagonal().add_(noise)
                self._factor = Cholesky().factor(a)
                found = self._factor.solve(values[:, None])
            else:
                self._factor = tasks.whole(x, self._row, self._task, 1, RANK)
                found = self._factor.solve(values[:, None]).value
            weights[self._row, self._task] = found[:, 0]
        self._weights = [weights @ b for _, b in tasks.parts()]

    @torch.no_grad()
    def _mean(self, x: Tensor) -> Tensor:
        pairs = zip(self._tasks.parts(), self._weights, strict=True)
        return torch.stack([k(x, self._x).matmul(w) for (k, _), w in pairs]).sum(0)

    @torch.no_grad()
    def _variance(self, x: Tensor) -> Tensor:
        """Of each task at scaled x, `m T`; never negative."""
        tasks, count = self._tasks, self._tasks.weights.shape[1]
        size = max(int(memory_budget() // (BYTES * COPIES * max(len(self._row), 1) * count)), 1)
        found = [torch.zeros(0, count, dtype=torch.float64)]
        for rows in x.split(size):
            prior = tasks.prior(rows)
            if isinstance(self._factor, Separable):
                ((kernel, between),) = tasks.parts()
                root = (0.5 * tasks.log_noise).exp()
                known = self._factor.explained(kernel.block(self._x, rows), between / root[:, None])
                found.append((prior - known).clamp_min(0))
                continue
            crosses = [(k.block(self._x, rows)[self._row], b[self._task]) for k, b in tasks.parts()]
            cross = torch.stack([c[:, :, None] * b[:, None] for c, b in crosses]).sum(0).flatten(1)
            if isinstance(self._factor, Whole):
                z, r, _ = self._factor.explained(cross, prior.flatten())
                known = (z * (cross + r)).sum(0)
            else:
                known = torch.linalg.solve_triangular(self._factor.lower, cross, upper=False).square().sum(0)
            found.append((prior - known.reshape(prior.shape)).clamp_min(0))
        return torch.cat(found)

    def predict(self, X: Any, return_std: bool = False) -> Any:
        """Mean of every task at X: n d, `n T` (or n); with return_std also the deviation of f, noise not included."""
        check_is_fitted(self, "kernels_")
        x = self.scaler_(read(self, X, reset=False)[0])
        mean = self._given(X, self._centre + self._scale * self._mean(x).numpy())
        if not return_std:
            return mean
        return mean, self._given(X, self._scale * self._variance(x).sqrt().numpy())

    def predict_interval(self, X: Any, coverage: float = 0.9) -> tuple[Any, Any]:
        """(lower, upper) that hold a new y of each task with this chance if the model is right: Gaussian quantiles."""
        inside("coverage", coverage)
        check_is_fitted(self, "kernels_")
        x = self.scaler_(read(self, X, reset=False)[0])
        middle = self._centre + self._scale * self._mean(x).numpy()
        noise = self._tasks.log_noise.exp().numpy()
        spread = self._scale * np.sqrt(self._variance(x).numpy() + noise) * ndtri((1 + coverage) / 2)
        return self._given(X, middle - spread), self._given(X, middle + spread)

    def _given(self, x: Any, value: np.ndarray) -> Any:
        return as_given(x, value[:, 0] if self._vector else value)

    def _pieces(self) -> dict[str, Any]:
        return {"factor": self._factor if self._how == "kronecker" else getattr(self._factor, "lower", None)}

    @torch.no_grad()
    def _restored(self, parts: dict[str, Any]) -> None:
        self.kernels_, found = [k for k, _ in self._tasks.parts()], parts["factor"]
        if self._how == "cg":
            found = self._tasks.whole(self._x, self._row, self._task, 1, RANK)
        self._factor = Factor(found, 0.0, torch.float64) if self._how == "cholesky" else found


def y_shape(y: np.ndarray) -> str:
    """The size of a table of targets in words."""
    return f"{len(y):,} rows x {y.shape[1]} tasks"
