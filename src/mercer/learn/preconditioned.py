"""What EigenPro's estimators share: rows held out, the kernel, the steps, the descent, predictions, saving."""

from __future__ import annotations

import logging
import numbers
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from mercer.assemble import assemble
from mercer.budget import memory, memory_budget, mib
from mercer.errors import DataError, MercerWarning, ShapeError
from mercer.learn.arguments import count, positive, share, usual
from mercer.learn.checkpoint import Checkpoint, digest
from mercer.learn.clock import Clock
from mercer.learn.descent import Batch, Descent, Loss, State
from mercer.learn.draw import Start, drawn
from mercer.learn.plan import EXACT_ROWS
from mercer.learn.precondition import Apart, Own, Pace, Steps, fitting, largest, pace, spare
from mercer.learn.rows import SAMPLE, Rows
from mercer.learn.state import Saved

log = logging.getLogger("mercer")

LEARNING = 0.4  # of the seconds: for the kernel
SEEN = 5000  # training rows that judge a model where none are held out
LARGEST = 8192  # rows of a batch


class EigenProEstimator(Saved, BaseEstimator, ABC):
    """Base of the estimators that take steps over a stream of rows: not public, and of no use alone."""

    kernel: Any
    landmarks: Any
    rank: Any
    subsample: Any
    batch_size: Any
    step_size: Any
    epochs: Any
    validation_fraction: Any
    patience: Any
    learn: bool
    standardize: Any
    time_budget: Any
    checkpoint: Any
    progress: Any
    random_state: Any
    _held: tuple[Tensor, Tensor]
    _shown: int = 0  # rows that the preconditioner was made from
    _made: Steps | None = None
    _passes: int = 0  # calls of partial_fit
    _fitted: tuple[str, ...] = (
        "_start", "_points", "_weights", "_held", "stopped_", "epochs_", "history_", "batch_size_", "step_size_",
        "_seed", "_passes", "_shown",
    )  # fmt: skip

    @abstractmethod
    def _begin(self, rows: Rows, keep: np.ndarray, seed: int) -> Start:
        """The kernel and the scales, from a draw of rows."""

    @abstractmethod
    def _loss(self) -> Loss:
        """What is descended."""

    @abstractmethod
    def _targets(self, rows: Rows, at: Any) -> Tensor:
        """What the loss compares predictions with, `m c` float64."""

    @abstractmethod
    def _outputs(self, rows: Rows) -> int:
        """Columns of the weights."""

    def _check(self) -> None:
        if isinstance(self.landmarks, numbers.Integral | type(None)):
            count("landmarks", self.landmarks, 1, optional=True)
        usual(self)
        for name, least in (("rank", 0), ("batch_size", 1)):
            count(name, getattr(self, name), least, optional=True)
        for name, least in (("subsample", 2), ("epochs", 1), ("patience", 1)):
            count(name, getattr(self, name), least)
        positive("step_size", self.step_size)
        share("validation_fraction", self.validation_fraction)

    def _seconds(self) -> float | None:
        return None if self.time_budget is None else LEARNING * self.time_budget

    def _keep(self, rows: Rows, seed: int) -> np.ndarray:
        """Which rows are learned from; a class that is held out as a whole gives a row back."""
        n = len(rows)
        keep = np.ones(n, dtype=bool)
        if self.validation_fraction and n > 1:
            many = min(max(int(self.validation_fraction * n), 1), SAMPLE)
            keep[drawn(keep, many, seed)] = False
        codes = getattr(self, "_codes", None)
        if codes is not None:
            for missing in np.setdiff1d(codes, codes[keep]):
                keep[np.flatnonzero(codes == missing)[0]] = True
        return keep

    def _fit(self, rows: Rows, codes: np.ndarray | None = None) -> None:
        """Everything; sets the fitted attributes."""
        self._check()
        if len(rows) < 2:
            raise DataError(f"{type(self).__name__} got 1 sample; expected at least 2 rows to learn from")
        clock = Clock.of(self.time_budget)
        checkpoint = Checkpoint(self.checkpoint, "" if self.checkpoint is None else digest(self, rows))
        found = checkpoint.load()
        if found is None:
            rows.refuse_gaps()
        self._seed = (
            int(check_random_state(self.random_state).randint(2**31 - 1)) if found is None else found[0]["seed"]
        )
        keep = self._keep(rows, self._seed)
        self._took(self._begin(rows, keep, self._seed) if found is None else Start.of(found[0]["start"], self.kernel))
        clock.interrupted = self._start.interrupted
        if clock.interrupted:  # who comes back learns all of the kernel
            checkpoint = Checkpoint(None, "")
        self._points = torch.empty(0, rows.columns)
        self._held = self._empty(rows)
        self._hold(rows, ~keep)
        self._passes = 0
        with memory(room(found)) if found is not None else nullcontext():  # what is chosen by it is chosen again
            steps = self._steps(rows, keep)
            state = State.fresh(len(steps.points), self._outputs(rows)) if found is None else State.of(*found)
            self._descend(rows, keep, steps, state, clock, checkpoint, self.epochs)
        self._made = None  # it is made again where more rows come, and need not be pickled

    def _partial(self, rows: Rows, codes: np.ndarray | None = None) -> None:
        """One pass over these rows, from the weights as they are."""
        self._check()
        fresh = not hasattr(self, "kernel_")
        rows.refuse_gaps()
        if fresh:
            self._seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        keep = self._keep(rows, self._seed + self._passes)
        clock = Clock.of(self.time_budget)
        if fresh:
            self._took(self._begin(rows, keep, self._seed))
            clock.interrupted = self._start.interrupted
            self._points, self._held = torch.empty(0, rows.columns), self._empty(rows)
            self._weights = torch.zeros(0, self._outputs(rows), dtype=torch.float64)
        self._hold(rows, ~keep)
        steps, old = self._steps(rows, keep), self._weights
        state = State.fresh(len(steps.points), old.shape[1])
        state.w[: len(old)] = old
        state.best, state.next = state.w.clone(), state.w.clone()
        self._passes = self._passes + 1
        self._descend(rows, keep, steps, state, clock, Checkpoint(None, ""), 1)

    def _empty(self, rows: Rows) -> tuple[Tensor, Tensor]:
        return torch.empty(0, rows.columns), torch.empty(0, self._outputs(rows), dtype=torch.float64)

    def _took(self, start: Start) -> None:
        self._start, self.kernel_ = start, start.kernel
        self.scaler_, self._common, self.target_ = start.scaler, start.common, start.target

    def _scaled(self, rows: Rows, at: Any) -> Tensor:
        return self.scaler_(rows.take(at)).float()

    def _hold(self, rows: Rows, out: np.ndarray) -> None:
        """Keep rows that judge; of more than 20,000 a draw."""
        places = np.flatnonzero(out)
        x = torch.cat([self._held[0], self._scaled(rows, places)])
        y = torch.cat([self._held[1], self._targets(rows, places)])
        if len(x) > SAMPLE:
            kept = torch.randperm(len(x), generator=torch.Generator().manual_seed(self._seed))[:SAMPLE]
            x, y = x[kept], y[kept]
        self._held = x, y

    def _grown(self, rows: Rows, keep: np.ndarray) -> Tensor:
        """The landmarks: those there are and more of these rows, as many as are asked for."""
        have = len(self._points)
        if self.landmarks is None:
            added = [self._points]
            for block in rows.blocks(SAMPLE):
                places = np.arange(block.start, block.stop)[keep[block]]
                added.append(self._scaled(rows, places))
            return torch.cat(added)
        if isinstance(self.landmarks, numbers.Integral):
            many = int(self.landmarks) - have
            return (
                self._points
                if many <= 0
                else torch.cat([self._points, self._scaled(rows, drawn(keep, many, self._seed + 1))])
            )
        given = Rows(
            np.asarray(self.landmarks.detach().cpu() if isinstance(self.landmarks, Tensor) else self.landmarks)
        )
        if given.x.ndim != 2 or given.columns != rows.columns or not len(given):
            raise ShapeError(f"landmarks has shape {given.x.shape}; expected p {rows.columns}, as X has columns")
        return self._scaled(given, slice(None))

    def _steps(self, rows: Rows, keep: np.ndarray) -> Steps:
        """The landmarks with these rows, and the preconditioner: made again where landmarks or rows were added."""
        have, self._first = self._made, len(self._points)
        points = self._grown(rows, keep)
        enough = have is not None and min(self.subsample, int(keep.sum())) <= self._shown
        if have is not None and len(points) == len(self._points) and enough and self._first:
            return have
        self._points, generator = points, torch.Generator().manual_seed(self._seed)
        batch = 0 if self.rank is not None else self.batch_size or largest(int(keep.sum()), LARGEST)
        if self.landmarks is None:
            at = torch.randperm(len(points), generator=generator)[: self.subsample]
            self._shown = len(at)
            return Own(self.kernel_, points, at, spare(self.rank, len(points), len(at)), generator, batch)
        sample = drawn(keep, self.subsample, self._seed + 2)
        self._shown = len(sample)
        rank = spare(self.rank, int(keep.sum()), len(sample))
        self._made = Apart(self.kernel_, points, self._scaled(rows, sample), rank, generator, batch=batch)
        return self._made

    def _pace(self, rows: Rows, keep: np.ndarray, steps: Steps) -> Pace:
        many = fitting(len(steps.points), memory_budget())[2]
        at = next(rows.shuffled(many, self._seed - 1, keep))
        return pace(steps, self._scaled(rows, at), int(keep.sum()), self.batch_size, self.step_size, LARGEST)

    def _descend(
        self, rows: Rows, keep: np.ndarray, steps: Steps, state: State, clock: Clock, checkpoint: Checkpoint,
        epochs: int,
    ) -> None:  # fmt: skip
        with torch.no_grad():
            found = self._pace(rows, keep, steps)
        held, judged = len(self._held[0]) > 0, self._held
        if not held:
            at = drawn(keep, SEEN, self._seed + 3)
            judged = self._scaled(rows, at), self._targets(rows, at)
        place = torch.from_numpy(self._first + np.cumsum(keep) - 1) if isinstance(steps, Own) else None

        def batches(epoch: int) -> Iterator[Batch]:
            for at in rows.shuffled(found.batch, self._seed + 7 * epoch + self._passes, keep):
                yield at, self._scaled(rows, at), self._targets(rows, at), None if place is None else place[at]

        told = {"seed": self._seed, "start": self._start.plain(), "memory": memory_budget()}
        descent = Descent(
            steps, self._loss(), found, batches, int(keep.sum()), judged, held, epochs, self.patience, clock,
            checkpoint, told, self.progress,
        )  # fmt: skip
        with torch.no_grad():
            state = descent.run(state)
        self._weights, self.epochs_ = state.best, state.epoch
        self.stopped_ = "interrupted" if clock.interrupted else state.stopped  # perhaps while the kernel was learned
        self.history_ = [(int(epoch), error, seconds) for epoch, error, seconds in state.history]
        self.batch_size_, self.step_size_ = found.batch, found.step * 0.5**state.halvings
        log.info(
            "%s: %d epochs, stopped by %s, error %.3g", type(self).__name__, state.epoch, self.stopped_, state.error
        )
        descent.warn(state, type(self).__name__)

    @torch.no_grad()
    def _scores(self, x: Tensor) -> np.ndarray:
        """k(x, points) weights for scaled x, `n c` float64."""
        found = [np.zeros((0, self._weights.shape[1]))]
        for part in x.split(SAMPLE):
            if len(part):
                dtype = torch.float64 if len(self._points) <= EXACT_ROWS else torch.float32
                op = assemble(self.kernel_, part.to(dtype), self._points.to(dtype), rhs=self._weights.shape[1])
                found.append(op.matmul(self._weights.to(dtype)).double().numpy())
        return np.concatenate(found)

    def _all_scores(self, X: Any) -> tuple[Tensor, np.ndarray]:
        """(scaled rows, their scores)."""
        check_is_fitted(self, "kernel_")
        x = self._scaled(Rows.read(self, X, reset=False), slice(None))
        return x, self._scores(x)

    def _local(self, x: Tensor, scores: np.ndarray) -> np.ndarray:
        """Where the width of intervals is looked up: the columns on their common scale, and the prediction."""
        scaled = np.isinf(self.scaler_.scale).any()
        return np.concatenate([self._common(x.numpy()).numpy() if scaled else x.numpy(), scores], 1)

    def _restored(self, parts: dict[str, Any]) -> None:
        self._took(self._start)
        if not parts["own"] and self.landmarks is None:
            self.landmarks = len(self._points)  # they came as a frame

    def _pieces(self) -> dict[str, Any]:
        return {"own": self.landmarks is None}


def room(found: tuple[dict[str, Any], dict[str, Tensor]]) -> int:
    """The memory budget of a fit that goes on: the one it began with, as batches and steps were chosen by that.

    Warns where there is less now and they must be others, so that the end is not that of an uninterrupted fit.
    """
    then, now, p = int(found[0]["memory"]), memory_budget(), len(found[1]["w"])
    if then <= now or fitting(p, then) == fitting(p, now):
        return then
    message = f"the memory budget is {mib(now)}, not {mib(then)} as when this fit began: its steps are others"
    warnings.warn(MercerWarning(message), stacklevel=5)
    return now
