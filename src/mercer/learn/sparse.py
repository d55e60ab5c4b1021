"""What variational Gaussian processes share: where landmarks begin, learning, and the best q at the end."""

from __future__ import annotations

import copy
import logging
import math
import numbers
import warnings
from abc import ABC
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from mercer.budget import memory_budget, mib
from mercer.errors import ConvergenceWarning, DataError, MemoryBudgetError, ShapeError
from mercer.features.nystrom import cholesky_landmarks
from mercer.kernel import Kernel
from mercer.kernels import Scaled
from mercer.learn.arguments import count, positive, usual
from mercer.learn.ascend import Course, stochastic, whole
from mercer.learn.inducing import RIDGE, Inducing, Posterior, Seen, settle
from mercer.learn.landmarks import block_rows
from mercer.learn.likelihoods import Observation, observation
from mercer.learn.plan import Plan
from mercer.learn.rows import Rows
from mercer.learn.spherical import SphericalFeatures
from mercer.learn.state import Saved
from mercer.learn.table import Scaler, refuse_words
from mercer.learn.tune import Clock, defaults, learn

log = logging.getLogger("mercer")

WHOLE = 4000  # rows up to which all of them take part in every step
DRAWN = 5000  # rows that landmarks are drawn from
WARM, LEARNING = 0.3, 0.75  # of the seconds: until the first kernel is there, until learning ends
JUDGED = 1000  # rows that judge the first kernel
PROMISED = 8  # steps of the first kernels, whatever the time
START = 0.1  # noise relative to the output scale, before anything is learned
MOVES = 100  # of q at the end
ENDS = {True: 1e-9, False: 1e-5}  # gain of such a move, in nats for each row, that ends them: few rows, many


def planned(m: int, rows: int, outputs: int) -> int:
    """Peak bytes of a step with m landmarks and so many rows."""
    return 8 * m * (8 * rows + 10 * m * outputs)


class SparseProcess(Saved, BaseEstimator, ABC):
    """Base of regression and classification on inducing points: not public."""

    kernel: Any
    landmarks: Any
    batch_size: int
    epochs: int
    learn: bool
    standardize: bool | None
    tolerance: float
    time_budget: float | None
    progress: Any
    random_state: Any
    noise: float | None = None
    scaler_: Scaler
    _fitted: tuple[str, ...] = (
        "kernel_", "noise_", "landmarks_", "bound_", "history_", "plan_", "scaler_", "_q", "_lower",
    )  # fmt: skip

    def _check(self) -> None:
        count("batch_size", self.batch_size, 1)
        count("epochs", self.epochs, 0)
        positive("noise", self.noise)
        if not (isinstance(self.tolerance, numbers.Real) and 0 <= float(self.tolerance) < math.inf):
            raise ValueError(f"tolerance is {self.tolerance!r}; expected nats for each row, a number >= 0")
        usual(self)

    def _ours(self) -> bool:
        return self.kernel is None if self.standardize is None else bool(self.standardize)

    def _begun(
        self, rows: Rows, observed: Observation, target: Callable[[Any], Tensor], centre: Tensor, clock: Clock,
        generator: torch.Generator,
    ) -> Inducing:  # fmt: skip
        """A kernel learned by least squares on a few rows, landmarks that a random Cholesky picks, and the noise."""
        at = rows.sample(DRAWN)
        x, y = self.scaler_(rows.take(at)), target(at)
        begin = defaults(rows.columns, True)[1:] if self.kernel is None else [copy.deepcopy(self.kernel)]
        if self.kernel is None and self._features() is not None:
            begin = [self.landmarks.kernel(rows.columns)]
        kernel: Kernel = begin[0]
        warm = observed.warm(y)
        size = warm.std(0, correction=0).clamp_min(1e-12)
        if self.learn and bool((warm != warm[0]).any()):
            found = learn(
                begin, START if self.noise is None else float(self.noise), x, (warm - warm.mean(0)) / size, clock,
                generator, profile=False, keep_noise=self.noise is not None, share=WARM, progress=self.progress,
                promised=PROMISED,
            )  # fmt: skip
            better = found.kernel
            if self.kernel is None and isinstance(better, Scaled) and not hasattr(observed, "noise"):
                units = min(1 / max(found.noise, 0.05), 10.0)  # f is seen in those of the link, not in those of y
                better.variance = better.variance.detach() * units
            some = slice(None, None, -(-len(x) // JUDGED))
            kernel = self._likelier(
                [(better, found.noise), (kernel, START)], observed, x[some], y[some], centre, generator
            )
        kernel.requires_grad_(self.learn)
        observed.requires_grad_(self.learn and self.noise is None)
        places, ridge = self._places(kernel, x, generator), RIDGE if self.learn else 0.0
        model = Inducing(kernel, places, observed, centre, ridge, self._features())
        model.z.requires_grad_(self.learn)
        return model

    def _likelier(
        self, pairs: list[tuple[Kernel, float]], observed: Observation, x: Tensor, y: Tensor, centre: Tensor,
        generator: torch.Generator,
    ) -> Kernel:  # fmt: skip
        """The kernel of the larger bound; least squares of few rows or of labels may end far out. Sets the noise."""
        bounds = []
        for kernel, noise in pairs:
            if self.noise is None and hasattr(observed, "noise"):
                observed.noise = max(noise, 1e-6)
            with torch.no_grad():
                places = self._places(kernel, x, generator)
                model = Inducing(kernel, places, observed, centre, RIDGE, self._features())
                seen = model.see(x, y, model.lower())
                q = Posterior.prior(len(model.z), y.shape[1])
                bounds.append(settle(model, q, [seen].copy, MOVES, 1e-4 * len(x)).bound)
        best = 0 if bounds[0] >= bounds[1] else 1
        if self.noise is None and hasattr(observed, "noise"):
            observed.noise = max(pairs[best][1], 1e-6)
        return pairs[best][0]

    def _height(self, n: int, m: int, outputs: int) -> int:
        """Rows that take part in a step: all, a batch, or what the memory budget holds."""
        budget, fixed = memory_budget(), planned(m, 0, outputs)
        if planned(m, 1, outputs) > budget:
            raise MemoryBudgetError(
                f"{m:,} landmarks and {outputs} output(s) need {mib(fixed)}, the budget is {mib(budget)}: "
                f"about {int(m * (budget / fixed) ** 0.5 * 0.9):,} landmarks fit"
            )
        room = int((budget - fixed) // (planned(m, 1, outputs) - fixed))
        wanted = n if n <= WHOLE else int(self.batch_size)
        return min(n, wanted if room >= wanted else min(room, int(self.batch_size)))

    def _features(self) -> SphericalFeatures | None:
        return self.landmarks if isinstance(self.landmarks, SphericalFeatures) else None

    def _places(self, kernel: Kernel, x: Tensor, generator: torch.Generator) -> Tensor:
        """Where the landmarks begin."""
        features = self._features()
        if features is not None:
            with torch.no_grad():
                return x[cholesky_landmarks(kernel, x, features.count + features.points, generator)]
        if isinstance(self.landmarks, numbers.Integral) and not isinstance(self.landmarks, bool):
            if int(self.landmarks) < 1:
                raise ValueError(f"landmarks is {self.landmarks}; expected a number >= 1, or points m d")
            with torch.no_grad():
                return x[cholesky_landmarks(kernel, x, min(int(self.landmarks), len(x)), generator)]
        refuse_words(self.landmarks, "landmarks")
        points = np.asarray(self.landmarks, dtype=np.float64)
        if points.ndim != 2 or points.shape[1] != x.shape[1] or not len(points):
            raise ShapeError(f"landmarks have shape {points.shape}; expected a number, or points m {x.shape[1]}")
        if not np.isfinite(points).all():
            raise DataError("landmarks hold NaN or infinity; expected finite points")
        return self.scaler_(points)

    def _train(
        self, rows: Rows, observed: Observation, target: Callable[[Any], Tensor], outputs: int, centre: Tensor
    ) -> None:
        """Learn, then put q at its best; sets the fitted attributes. target: places -> scaled y `b c`."""
        clock = Clock.of(None if self.time_budget is None else float(self.time_budget))
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        generator = torch.Generator().manual_seed(seed)
        model = self._begun(rows, observed, target, centre, clock, generator)
        q, n = Posterior.prior(len(model.z), outputs), len(rows)
        course = Course(clock, LEARNING, self.progress)
        height = self._height(n, len(model.z), outputs)
        full = height >= n
        if full:
            everything = slice(0, n)
            x, y = self.scaler_(rows.take(everything)), target(everything)
        if self.learn and self.epochs and not clock.interrupted:
            if full:
                q = whole(model, q, x, y, course, self.tolerance)
            else:

                def batches(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
                    for at in rows.shuffled(height, seed + epoch):
                        yield self.scaler_(rows.take(at)), target(at)

                q = stochastic(model, q, batches, n, int(self.epochs), 0.02, course, self.tolerance)
        self._finish(rows, model, q, target, course, height)

    @torch.no_grad()
    def _finish(
        self, rows: Rows, model: Inducing, q: Posterior, target: Callable[[Any], Tensor], course: Course, height: int
    ) -> None:
        """The best q for the kernel that was learned, by passes over all rows."""
        lower, n, clock = model.lower(), len(rows), course.clock

        def blocks() -> Iterator[Seen]:
            for at in rows.blocks(block_rows(len(model.z) * (2 + q.mean.shape[1]))):
                yield model.see(self.scaler_(rows.take(at)), target(at), lower)

        tolerance = ENDS[height >= n] * n

        def late() -> bool:
            return clock.interrupted or (clock.seconds is not None and clock.used() > 0.95 * clock.seconds)

        found = settle(model, q, blocks, MOVES, tolerance, late)
        if found.gain > tolerance and not late():
            message = f"q still gained {found.gain / n:.1e} nats for each row after {found.steps} steps"
            warnings.warn(ConvergenceWarning(message, found.gain / n, found.steps), stacklevel=5)
        self._model, self._q, self._lower = model.requires_grad_(False), found.q, lower
        self.kernel_, self.bound_, self.history_ = model.kernel, found.bound, [*course.history, found.bound]
        self.landmarks_ = model.z.detach().numpy()
        noise = getattr(model.observed, "noise", None)
        self.noise_ = None if noise is None else float(noise)
        self.plan_ = self._plan(n, height, course, found.steps, found.gain / n, found.bound)
        log.info("%s: %s", type(self).__name__, self.plan_.sentence)

    def _plan(self, n: int, height: int, course: Course, moves: int, gain: float, bound: float) -> Plan:
        m, model = len(self._model.z), self._model
        how = "of all rows (L-BFGS)" if height >= n else f"of {height:,} rows each (natural gradients and Adam)"
        learned = f"learned by {course.steps:,} steps {how}" if course.steps else "with kernel and landmarks as given"
        last = "closed form" if model.observed.conjugate else f"{moves} natural gradient passes"
        if course.clock.interrupted:
            why = "; learning was interrupted and the best so far was kept"
        elif not course.steps:
            why = ""
        else:
            why = "" if course.settled else "; learning stopped before the bound did: give more time or epochs"
        rest = f", last gain {gain:.1e} nats for each row" if gain > 0 else ""
        memory = planned(m, height, self._q.mean.shape[1])
        sentence = (
            f"{m:,} landmarks for {n:,} rows, {learned}; q by {last}{rest}: bound {bound / n:.4g} nats for each row, "
            f"jitter {model.jitter:.1e}, {memory / 2**20:,.0f} MiB planned, {course.clock.used():.1f} s{why}"
        )
        return Plan(
            "variational", n, m, model.jitter, gain, moves, course.clock.used(), memory, course.clock.interrupted,
            sentence, course.steps,
        )  # fmt: skip

    @torch.no_grad()
    def _latent(self, X: Any) -> tuple[Tensor, Tensor]:
        """(mean, variance) of f at rows of X, on the scale that the model sees, `n c`."""
        check_is_fitted(self, "kernel_")
        rows = Rows.read(self, X, reset=False)
        found = []
        for at in rows.blocks(block_rows(len(self._model.z) * (2 + self._q.mean.shape[1]))):
            x = self.scaler_(rows.take(at))
            seen = self._model.see(x, torch.zeros(len(x), 1, dtype=torch.float64), self._lower)
            found.append(self._model.latent(self._q, seen))
        return torch.cat([m for m, _ in found]), torch.cat([v for _, v in found])

    def _pieces(self) -> dict[str, Any]:
        model = self._model
        whole = {"centre": model.centre, "ridge": model.ridge, "jitter": model.jitter}
        return {"observed": dict(model.observed.state_dict()), **whole}

    def _restored(self, parts: dict[str, Any]) -> None:
        name, dof = getattr(self, "likelihood", "bernoulli"), float(getattr(self, "dof", 4.0))
        observed = observation(name, START, dof)
        observed.load_state_dict(parts["observed"])
        places = torch.from_numpy(self.landmarks_)
        ridge, features = float(parts["ridge"]), self._features()
        model = Inducing(self.kernel_, places, observed, parts["centre"], ridge, features)
        model.jitter, self._model = float(parts["jitter"]), model.requires_grad_(False)
