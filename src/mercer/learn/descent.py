"""Descent over epochs of a stream of rows: early stopping, variance reduction, backing off, checkpoints."""

from __future__ import annotations

import logging
import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mercer.errors import ConvergenceWarning
from mercer.learn.checkpoint import Checkpoint
from mercer.learn.clock import Clock
from mercer.learn.precondition import Own, Pace, Steps
from mercer.learn.tune import Progress

log = logging.getLogger("mercer")

CALM = 0.5  # of a step, where gradients are corrected by those of an earlier model
GAIN = 1e-3  # of the held-out error: less is no progress
STILL = 1e-6  # predictions that moved less than this in an epoch have arrived
WORSE = 2.0  # times the best error: a step was too long
HALVINGS = 12
FELL = 0.01  # of the held-out error in the last epoch: more is worth a warning
FEWER = {"epochs": "epochs", "time": "time_budget"}  # ends that more of this would have put off
Batch = tuple[np.ndarray, Tensor, Tensor, Tensor | None]  # rows, x: m d float32, y: m c, places among the landmarks


class Loss(ABC):
    """A loss of predictions f: n c and targets y: n c. curvature: of one row, at most."""

    curvature: float

    @abstractmethod
    def gradient(self, f: Tensor, y: Tensor) -> Tensor:
        """Of the sum over rows, by f."""

    @abstractmethod
    def value(self, f: Tensor, y: Tensor) -> float:
        """The mean over rows; NaN where f is not finite."""


class Squared(Loss):
    """(f - y)^2 / 2; its value is the mean square."""

    curvature = 1.0

    def gradient(self, f: Tensor, y: Tensor) -> Tensor:
        return f - y

    def value(self, f: Tensor, y: Tensor) -> float:
        return float((f - y).square().mean())


class Logistic(Loss):
    """Log loss in nats: of one column by the sigmoid, of several by softmax. offset: log odds where f is zero, `c`."""

    def __init__(self, offset: Tensor):
        self.offset = offset
        self.curvature = 0.25 if len(offset) == 1 else 0.5

    def gradient(self, f: Tensor, y: Tensor) -> Tensor:
        f = f + self.offset
        return (f.sigmoid() if f.shape[1] == 1 else f.softmax(1)) - y

    def value(self, f: Tensor, y: Tensor) -> float:
        f = f + self.offset
        if f.shape[1] == 1:
            return float(torch.nn.functional.binary_cross_entropy_with_logits(f, y))
        return -float((y * f.log_softmax(1)).sum(1).mean())


@dataclass
class State:
    """Where a descent stands, all that a checkpoint keeps. w: the weights, mean: of the later half of the epoch.

    old, slope: an earlier model and the mean gradient of all rows there, which take the noise out of the gradients of
    batches; next, total: a later one whose sum is being taken. Source [johnson2013].
    """

    w: Tensor
    best: Tensor
    mean: Tensor
    next: Tensor
    total: Tensor
    old: Tensor
    slope: Tensor
    known: bool = False  # whether slope holds
    epoch: int = 0
    done: int = 0  # batches of this epoch
    averaged: int = 0
    patience: int = 0
    halvings: int = 0
    error: float = math.inf
    seconds: float = 0.0
    stopped: str = ""
    history: list[list[float]] = field(default_factory=list)

    TENSORS = ("w", "best", "mean", "next", "total", "old", "slope")
    VALUES = (
        "known", "epoch", "done", "averaged", "patience", "halvings", "error", "seconds", "stopped", "history",
    )  # fmt: skip

    @classmethod
    def fresh(cls, points: int, outputs: int) -> State:
        """Weights of zero."""
        zeros: dict[str, Any] = {name: torch.zeros(points, outputs, dtype=torch.float64) for name in cls.TENSORS}
        return cls(**zeros)

    @classmethod
    def of(cls, values: dict[str, Any], tensors: dict[str, Any]) -> State:
        """What a checkpoint kept."""
        return cls(**tensors, **{name: values[name] for name in cls.VALUES if values[name] is not None})

    def tensors(self) -> dict[str, Tensor]:
        return {name: getattr(self, name) for name in self.TENSORS}

    def values(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.VALUES}


@dataclass
class Descent:
    """Runs epochs. batches(epoch): its blocks of rows, in the same order whenever asked.

    judged: (x, y) of rows that say how good a model is; held: whether they are kept from learning.
    """

    steps: Steps
    loss: Loss
    pace: Pace
    batches: Callable[[int], Iterator[Batch]]
    rows: int
    judged: tuple[Tensor, Tensor]
    held: bool
    epochs: int
    patience: int
    clock: Clock
    checkpoint: Checkpoint
    kept: dict[str, Any]
    progress: Progress | None = None

    def run(self, state: State) -> State:
        """Until held-out rows gain nothing, predictions stand still, or epochs or time are over."""
        before = state.seconds
        try:
            self._save(state, now=not state.epoch and not state.done)  # a kernel that was learned is not learned again
            while not state.stopped and state.epoch < self.epochs:
                whole = self._epoch(state, before)
                state.seconds = before + self.clock.used()
                self._judge(state, whole)
                if not whole:
                    state.stopped = "time"
                self._save(state)
        except KeyboardInterrupt:
            self.clock.interrupted = True
            log.warning("interrupted: the best weights so far are kept")
            if not state.history:
                state.best = state.w
            state.stopped, state.seconds = "interrupted", before + self.clock.used()
            return state  # the last saving holds: a step may be half done
        state.stopped = state.stopped or "epochs"
        self._save(state, now=True)
        return state

    def warn(self, state: State, who: str) -> None:
        """Say so where steps diverged, or the end came while the held-out error still fell."""
        if state.stopped == "diverged":
            message = f"{who} diverged after {state.epoch} epochs, {HALVINGS} times over: give a smaller step_size"
            warnings.warn(ConvergenceWarning(message, state.error, state.epoch), stacklevel=5)
        if state.stopped not in FEWER or not self.held or self.epochs < 2 or len(state.history) < 2:
            return
        before, last = (float(error) for _, error, _ in state.history[-2:])
        if last > state.error or last > (1 - FELL) * before:
            return
        name = FEWER[state.stopped]
        message = (
            f"{who} stopped by {name} after {state.epoch} epochs while the held-out error still fell (by "
            f"{100 * (1 - last / before):.2g} % in the last one, to {last:.3g}); raise {name}"
        )
        warnings.warn(ConvergenceWarning(message, last, state.epoch), stacklevel=5)

    def _save(self, state: State, now: bool = False) -> None:
        again = state.stopped in ("", "epochs", "time")  # more patience goes on from here
        values = {**self.kept, **state.values(), "stopped": "" if again else state.stopped}
        values["error"] = None if math.isinf(state.error) else state.error
        self.checkpoint.save(values, state.tensors(), now=now)

    def _epoch(self, state: State, before: float) -> bool:
        """The rest of an epoch; False where time was up first."""
        count = -(-self.rows // self.pace.batch)
        for place, batch in enumerate(self.batches(state.epoch)):
            if place < state.done:
                continue
            if self.clock.seconds is not None and self.clock.used() > self.clock.seconds and (state.history or place):
                return False
            self._step(state, batch)
            state.done = place + 1
            if place >= count // 2:
                state.mean.lerp_(state.w, 1 / (state.averaged + 1))
                state.averaged += 1
            state.seconds = before + self.clock.used()
            self._save(state)
        return True

    def _step(self, state: State, batch: Batch) -> None:
        _, x, y, places = batch
        size = self.pace.step / self.loss.curvature / self.pace.batch * 0.5**state.halvings
        outputs = state.w.shape[1]
        if isinstance(self.steps, Own):
            f = self.steps.operator(x, outputs).matmul(state.w.float()).double()
            self.steps.move(state.w, x, places, self.loss.gradient(f, y), size)
            return
        models = [state.w, state.next, state.old] if state.known else [state.w, state.next]
        op = self.steps.operator(x, len(models) * outputs)
        f = op.matmul(torch.cat(models, 1).float()).double().split(outputs, 1)
        slopes = [self.loss.gradient(each, y) for each in f]
        here = slopes[0] - slopes[2] if state.known else slopes[0]
        found = op.mT.matmul(torch.cat([here, slopes[1]], 1).float()).double()
        state.total += found[:, outputs:]
        gradient = found[:, :outputs]
        if state.known:
            gradient, size = gradient + len(x) * state.slope, CALM * size
        self.steps.move(state.w, x, places, gradient, size)

    def _predict(self, models: Tensor) -> Tensor:
        """Predictions of the judged rows."""
        parts = self.judged[0].split(max(self.pace.batch, 1024))
        return torch.cat([self.steps.operator(x, models.shape[1]).matmul(models.float()).double() for x in parts])

    def _judge(self, state: State, whole: bool) -> None:
        """The end of an epoch: the better of the last weights and their mean goes on, the best is remembered."""
        outputs, y = state.w.shape[1], self.judged[1]
        averaged = state.mean if state.averaged else state.w
        last, mean, before = self._predict(torch.cat([state.w, averaged, state.next], 1)).split(outputs, 1)
        errors = [self.loss.value(last, y), self.loss.value(mean, y)]
        errors = [e if math.isfinite(e) else math.inf for e in errors]
        error, f = min(errors), mean if errors[1] < errors[0] else last
        chosen = averaged if errors[1] < errors[0] else state.w
        state.history.append([state.epoch + 1, error, state.seconds])
        if self.progress is not None:
            self.progress("held-out error" if self.held else "error", error)
        start = self.loss.value(torch.zeros_like(y), y)
        gained = error < (1 - GAIN) * state.error
        state.patience = 0 if gained else state.patience + 1
        if error > WORSE * min(state.error, start):  # the step was too long for these rows: back, and shorter
            state.halvings, state.patience = state.halvings + 1, 0
            log.info("epoch %d ended at an error of %.3g: the step is halved", state.epoch + 1, error)
            state.w, state.known, whole = state.best.clone(), False, False  # what was summed is far from here
            if state.halvings > HALVINGS:
                state.stopped = "diverged"
        else:
            state.w = chosen.clone()
            if error < state.error or not self.held:
                state.best, state.error = state.w.clone(), error
            moved = float((f - before).norm()) <= STILL * float(f.norm())
            if moved and state.epoch:
                state.stopped = "converged"
        if self.held and state.patience >= self.patience and not state.stopped:
            state.stopped = "patience"
        state.epoch, state.done, state.averaged = state.epoch + 1, 0, 0
        if whole and state.epoch > 1 and not isinstance(self.steps, Own):  # the first model of all is too far away
            state.old, state.slope, state.known = state.next, state.total / self.rows, True
        state.next, state.total, state.mean = state.w.clone(), torch.zeros_like(state.w), torch.zeros_like(state.w)
