"""LatentVecchiaProcess: a latent Gaussian process behind numbers, counts or labels, by sparse triangular roots."""

from __future__ import annotations

import copy
import logging
import math
import numbers
import warnings
from typing import Any

import numpy as np
import torch
from scipy.special import ndtri
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, column_or_1d
from torch import Tensor

from mercer.errors import ConvergenceWarning, DataError
from mercer.kernel import Kernel
from mercer.kernels import Matern, Scaled
from mercer.learn import plan as planning
from mercer.learn.answers import as_given
from mercer.learn.arguments import count, inside, positive, usual
from mercer.learn.clock import Clock
from mercer.learn.dklgp import DoubleKL
from mercer.learn.likelihood import Evidence, Part
from mercer.learn.likelihoods import observation
from mercer.learn.sequential import Rows
from mercer.learn.state import Saved
from mercer.learn.table import Scaler, Target, deviation, read
from mercer.learn.tune import Climb

log = logging.getLogger("mercer")

START = 0.1  # noise before anything is learned
HASTY = 1e-6  # rise of the bound for each row that ends the rounds while learning
LEARNED, SHARE, MOST, SPREAD = 600, 0.6, 40, 1.0  # rows, share of the time, steps and prior of learning


class _Bound(Evidence):
    """The evidence bound of a DoubleKL; its slope is that of the bound with q held, as q is where the bound peaks."""

    def __init__(self, kernel: Kernel, noise: float, double: DoubleKL, rows: Rows, clock: Clock):
        part: Part = (double.x, rows.y)
        super().__init__(kernel, noise, [part], profile=False)
        self.double, self.rows, self.keep_noise = double, rows, not hasattr(rows.model, "noise")
        self.clock = clock

    def _part(self, part: Part, gradient: bool) -> tuple[float, list[Tensor]]:
        model, rows, double = self.rows.model, self.rows, self.double
        if hasattr(model, "noise"):
            model.noise = math.exp(self.log_noise)
        double.renew()
        with warnings.catch_warnings():  # of trials far off, which are dropped; the last fit says what it missed
            warnings.simplefilter("ignore", ConvergenceWarning)
            value = double.fit(rows, False, HASTY, lambda: self.clock.late(SHARE))
        if not gradient:
            return value, []
        leaves = [p for _, p in self.named]
        total = double.objective()
        slopes = torch.autograd.grad(total, leaves, allow_unused=True) if total.requires_grad else [None] * len(leaves)
        found = [torch.zeros_like(p) if g is None else g for p, g in zip(leaves, slopes, strict=True)]
        last = torch.zeros((), dtype=torch.float64)
        raw = getattr(model, "log_noise", None)
        if raw is not None:
            mean, variance = double.mean[rows.place], double.variance[rows.place]
            expected = model.expected(rows.y[:, None], rows.centre + mean[:, None], variance[:, None]).sum()
            last = torch.autograd.grad(expected, raw)[0]
        return value, [*found, last]


class LatentVecchiaProcess(RegressorMixin, Saved, BaseEstimator):
    """A latent Gaussian process f with sparse triangular roots of the prior's and the posterior's precision.

    likelihood: "gaussian", "student_t" (heavy tails; dof > 2 is held), "poisson" (counts, rate exp(f)) or "bernoulli"
    (y = 0 or 1, chance Phi(f)). kernel: a psd Kernel, or None: a variance times Matern 3/2, a lengthscale for each
    column. noise: > 0, variance (or squared scale) of standardised y; None: learned. neighbours: >= 1; n - 1 of them
    give the best Gaussian posterior there is. learn, standardize, time_budget, progress, random_state: as elsewhere.
    Fitted: kernel_, noise_, bound_ (evidence bound of the sparse model, on scaled y), plan_, stopped_ ("settled",
    "rounds", "time", "interrupted"; the second and third with a ConvergenceWarning where q still gained).
    Cost: n (5 neighbours)^3 / 3 flops each round, ten or so; learning on at most 600 rows.
    Error: the Kullback-Leibler divergence of both approximations, which falls as neighbours grow. Source [cao2023].
    """

    _fitted: tuple[str, ...] = ("kernel_", "noise_", "bound_", "plan_", "stopped_", "scaler_", "target_", "_centre")

    def __init__(
        self,
        kernel: Any = None,
        likelihood: str = "gaussian",
        *,
        noise: float | None = None,
        dof: float = 4.0,
        neighbours: int = 15,
        learn: bool = True,
        standardize: bool | None = None,
        time_budget: float | None = None,
        progress: Any = None,
        random_state: Any = None,
    ):
        self.kernel, self.likelihood, self.noise, self.dof = kernel, likelihood, noise, dof
        self.neighbours, self.learn, self.standardize = neighbours, learn, standardize
        self.time_budget, self.progress, self.random_state = time_budget, progress, random_state

    def _check(self) -> None:
        positive("noise", self.noise)
        if not (isinstance(self.dof, numbers.Real) and 2 < float(self.dof) < math.inf):
            raise ValueError(f"dof is {self.dof!r}; expected a number > 2, so that there is a variance")
        count("neighbours", self.neighbours, 1)
        usual(self)

    def fit(self, X: Any, y: Any) -> LatentVecchiaProcess:
        """Learn from X: n d and y: n. Raises DataError naming the first NaN, infinity or impossible observation."""
        self._check()
        clock = Clock.of(self.time_budget)
        model = observation(self.likelihood, START if self.noise is None else float(self.noise), float(self.dof))
        table, y = read(self, X, y, reset=True)
        if len(table) < 2:
            raise DataError("LatentVecchiaProcess got 1 sample; expected at least 2 rows to learn from")
        generator = torch.Generator().manual_seed(int(check_random_state(self.random_state).randint(2**31 - 1)))
        ours = self.kernel is None if self.standardize is None else bool(self.standardize)
        self.scaler_ = Scaler.fit(table) if ours else Scaler.identity(table.shape[1])
        values = self._observed(column_or_1d(y, warn=True).astype(np.float64), ours or self.learn)
        x, place = np.unique(self.scaler_(table).numpy(), axis=0, return_inverse=True)
        at = torch.from_numpy(place.reshape(-1))
        self._model, self._cut, steps = model, False, 0
        d = table.shape[1]
        wide = torch.full((d,), max(math.sqrt(d), 1.0), dtype=torch.float64)
        self.kernel_ = Scaled(Matern(1.5, wide), 1.0) if self.kernel is None else copy.deepcopy(self.kernel)
        if self.learn and len(x) > 2 and not bool((values == values[0]).all()):
            steps = self._learn(torch.from_numpy(x), values, at, clock, generator)
        self.kernel_.requires_grad_(False)
        model.requires_grad_(False)
        self.noise_ = math.exp(float(model.get_parameter("log_noise"))) if hasattr(model, "noise") else None
        self._double = DoubleKL(self.kernel_, torch.from_numpy(x), int(self.neighbours), generator)
        self._settle(Rows(values, torch.argsort(self._double.order)[at], self._centre, model), clock)
        plan = planning.Plan(
            "vecchia", len(table), landmarks=min(int(self.neighbours), len(x) - 1), seconds=clock.used(),
            interrupted=clock.interrupted, steps=steps,
        )  # fmt: skip
        words = f"{len(x):,} places, each with {plan.landmarks} neighbours in prior and posterior, {steps} steps"
        early = "; stopped by time_budget" if self.stopped_ == "time" else ""
        early = "; interrupted: the best so far was kept" if clock.interrupted else early
        sentence = f"{words} of learning, {plan.seconds:.1f} s{early}"
        self.plan_ = planning.Plan(**{**plan.as_dict(), "sentence": sentence})
        return self

    def _settle(self, rows: Rows, clock: Clock) -> None:
        """The best q, or the best that there was time for; a first round there must be."""
        double, since = self._double, clock.used()

        def late() -> bool:  # whether another round such as the last would end late
            nonlocal since
            took, since = clock.used() - since, clock.used()
            return clock.seconds is not None and since + took > clock.seconds

        try:
            double.fit(rows, stop=late)
        except KeyboardInterrupt:
            clock.interrupted = True
            log.warning("interrupted: the best so far is kept and the fit is finished")
            if not hasattr(double, "mean"):
                double.fit(rows, refine=False, stop=lambda: True)
        self.bound_ = double.bound
        ended = "time" if double.ended == "settled" and self._cut else double.ended
        self.stopped_ = "interrupted" if clock.interrupted else ended
        if not clock.interrupted and double.ended != "settled":
            why = {"time": "time_budget", "rounds": "rounding or slow rounds"}[double.ended]
            message = f"{type(self).__name__} stopped by {why} before its bound of {double.bound:.6g} settled"
            warnings.warn(ConvergenceWarning(message, math.nan, 0), stacklevel=3)

    def _observed(self, y: np.ndarray, moves: bool) -> Tensor:
        """y as the model takes it; sets the scale of y and the mean of f."""
        self.target_, self._centre = Target(np.zeros(1), np.ones(1)), 0.0
        if self.likelihood == "poisson":
            bad = np.flatnonzero((y < 0) | (y != np.floor(y)))
            if len(bad):
                raise DataError(f"y holds {y[bad[0]]:g} at row {bad[0]}; likelihood 'poisson' expects counts 0, 1, ...")
            self._centre = math.log(max(float(y.mean()), 0.5 / len(y))) if moves else 0.0
        elif self.likelihood == "bernoulli":
            bad = np.flatnonzero((y != 0) & (y != 1))
            if len(bad):
                raise DataError(f"y holds {y[bad[0]]:g} at row {bad[0]}; likelihood 'bernoulli' expects 0 and 1")
            self._centre = float(ndtri((y.sum() + 0.5) / (len(y) + 1))) if moves else 0.0
            y = 2 * y - 1
        elif moves:
            low, middle, high = np.percentile(y, [25, 50, 75])
            robust = self.likelihood == "student_t" and high > low
            centre = middle if robust else y.mean()
            scale = (high - low) / 1.349 if robust else float(deviation(y[:, None], centre)[0])
            flat = scale <= 4 * np.finfo(np.float64).eps * np.abs(y).max()
            self.target_ = Target(np.array([centre]), np.array([1.0 if flat else scale]))
        return torch.from_numpy((y - self.target_.centre) / self.target_.scale)

    def _learn(self, x: Tensor, y: Tensor, place: Tensor, clock: Clock, generator: torch.Generator) -> int:
        kept = torch.randperm(len(x), generator=generator)[:LEARNED]
        self.kernel_.requires_grad_(False)
        double = DoubleKL(self.kernel_, x[kept], int(self.neighbours), generator)
        number = torch.full((len(x),), -1).index_copy(0, kept, torch.argsort(double.order))
        rows = Rows(y[number[place] >= 0], number[place][number[place] >= 0], self._centre, self._model)
        noise = START if self.noise is None else float(self.noise)
        target = _Bound(self.kernel_.requires_grad_(True), noise, double, rows, clock)
        target.keep_noise = target.keep_noise or self.noise is not None
        target.least = 1e-6
        climb = Climb(target, clock, SHARE, self.progress, SPREAD)
        climb.run(MOST)
        self._cut = not climb.ended and clock.late(SHARE)
        if hasattr(self._model, "noise"):
            self._model.noise = math.exp(target.log_noise)
        log.info("learned %r", self.kernel_)
        return climb.steps

    def _latent(self, X: Any) -> tuple[Tensor, Tensor]:
        """(mean, variance) of f at X, `n 1`."""
        check_is_fitted(self, "kernel_")
        mean, variance = self._double.predict(self.scaler_(read(self, X, reset=False)[0]))
        return (self._centre + mean)[:, None], variance[:, None]

    def predict(self, X: Any, return_std: bool = False) -> Any:
        """E[y] at X: n d (numbers, rates, or chances of 1); also the deviation of E[y | f], in units of y."""
        check_is_fitted(self, "kernel_")
        mean, deviation = (v[:, 0].numpy() for v in self._model.moments(*self._latent(X)))
        found = self.target_.back(mean)
        return (as_given(X, found), as_given(X, deviation * self.target_.scale)) if return_std else as_given(X, found)

    def predict_latent(self, X: Any) -> tuple[Any, Any]:
        """(mean, standard deviation) of f at X: n d, as the model of y sees it."""
        mean, variance = self._latent(X)
        return as_given(X, mean[:, 0].numpy()), as_given(X, variance[:, 0].sqrt().numpy())

    def predict_interval(self, X: Any, coverage: float = 0.9) -> tuple[Any, Any]:
        """(lower, upper) quantiles of a new y, which holds with this chance where the model is right."""
        inside("coverage", coverage)
        mean, variance = (v.numpy() for v in self._latent(X))
        ends = [self._model.quantile((1 + sign * coverage) / 2, mean, variance)[:, 0] for sign in (-1, 1)]
        if self.likelihood == "bernoulli":
            ends = [(end + 1) / 2 for end in ends]
        return as_given(X, self.target_.back(ends[0])), as_given(X, self.target_.back(ends[1]))

    def log_predictive_density(self, X: Any, y: Any) -> Any:
        """log p(y) of new y: n at X: n d, in units of y."""
        mean, variance = self._latent(X)
        given = np.asarray(read(self, X, y, reset=False)[1], dtype=np.float64).reshape(-1)
        given = 2 * given - 1 if self.likelihood == "bernoulli" else self.target_.forward(given)
        found = self._model.log_predictive(torch.from_numpy(given)[:, None], mean, variance)[:, 0].numpy()
        return as_given(X, found - math.log(float(self.target_.scale[0])))

    def _pieces(self) -> dict[str, Any]:
        double = self._double
        laid = {"order": double.order, "groups": double.groups, "x": double.x[double.order.argsort()]}
        q = {"mean": double.mean, "precision": double.precision, "v": double.v}
        return {"observed": dict(self._model.state_dict()), **laid, **q}

    def _restored(self, parts: dict[str, Any]) -> None:
        self._model = observation(self.likelihood, START, float(self.dof)).requires_grad_(False)
        self._model.load_state_dict(parts["observed"])
        laid = parts["order"], parts["groups"]
        double = DoubleKL(self.kernel_, parts["x"], int(self.neighbours), torch.Generator(), *laid)
        double.mean, double.precision, double.v = parts["mean"], parts["precision"], parts["v"]
        double.root, self._double = double._covariance(double.v) if double.exact else None, double
