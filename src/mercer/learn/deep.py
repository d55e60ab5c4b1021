"""Deep kernel machines: a tower of kernels whose Gram matrices are learned."""

from __future__ import annotations

import logging
import numbers
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from mercer.budget import memory_budget, mib
from mercer.errors import ConvergenceWarning, MemoryBudgetError
from mercer.kernel import Kernel
from mercer.learn.arguments import count
from mercer.learn.ascend import Course, leaves, stochastic, whole
from mercer.learn.inducing import Inducing, Posterior, Seen, settle
from mercer.learn.likelihoods import Observation, observation
from mercer.learn.plan import Plan
from mercer.learn.rows import Rows
from mercer.learn.sparse import DRAWN, ENDS, LEARNING, MOVES, START, WHOLE, SparseProcess
from mercer.learn.tower import Tower, model, of_gram, widths
from mercer.learn.tune import Clock

log = logging.getLogger("mercer")

RATE = 0.02  # of Adam, where rows come in batches
ALIVE = 16  # arrays of landmarks by rows that a layer and its gradient hold
BLOCK = 2048  # rows seen at once where nothing is learned, at most


class DeepProcess(SparseProcess, ABC):
    """Base of deep kernel machines: not public."""

    nu: Any
    layers: int
    max_iter: int = 0
    _kernels: list[Kernel]
    _sometimes: tuple[str, ...] = ("grams_", "n_iter_", "_kernels")
    _whole: int = WHOLE  # rows up to which all of them take part in every step

    def _check(self) -> None:
        super()._check()
        count("layers", self.layers, 1)
        count("max_iter", self.max_iter, 0)
        widths(self.nu, int(self.layers))
        if self.kernel is not None:
            of_gram(self.kernel)

    @abstractmethod
    def _tower(self, kernels: list[Kernel], m: int, columns: int) -> Tower:
        """Layers with m landmarks, for the kernels of all of them and the output."""

    @abstractmethod
    def _build(self, x: Tensor, generator: torch.Generator) -> tuple[list[Kernel], Tower, Tensor, bool]:
        """(kernels, the tower, landmarks, whether they are all rows) for scaled rows to begin with."""

    def _pixels(self, columns: int) -> int:
        """Points that a row has in a layer."""
        return 1

    def _memory(self, rows: int, columns: int, m: int, outputs: int) -> int:
        """Peak bytes of a step."""
        floors = int(self.layers) + 1
        return 8 * m * (floors * (ALIVE * rows * self._pixels(columns) + 10 * m) + 10 * m * outputs)

    def _room(self, columns: int, m: int, outputs: int) -> int:
        """Rows that a step holds within the memory budget. Raises MemoryBudgetError where not even one fits."""
        budget, fixed = memory_budget(), self._memory(0, columns, m, outputs)
        each = self._memory(1, columns, m, outputs) - fixed
        if fixed + each > budget:
            raise MemoryBudgetError(
                f"{m:,} landmarks in {self.layers} layers need {mib(fixed + each)}, the budget is {mib(budget)}; "
                f"about {int(m * (budget / (fixed + each)) ** 0.5 * 0.9):,} landmarks fit"
            )
        return (budget - fixed) // each

    def _train(
        self, rows: Rows, observed: Observation, target: Callable[[Any], Tensor], outputs: int, centre: Tensor
    ) -> None:
        """Learn Gram matrices, kernels, landmarks and noise; then q at its best. Sets the fitted attributes."""
        clock = Clock.of(None if self.time_budget is None else float(self.time_budget))
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        generator = torch.Generator().manual_seed(seed)
        if isinstance(self.landmarks, numbers.Integral) and int(self.landmarks) > 0:
            self._room(rows.columns, min(int(self.landmarks), len(rows)), outputs)  # before anything is made
        x = self.scaler_(rows.take(rows.sample(DRAWN)))
        kernels, tower, z, every = self._build(x, generator)
        for name, part in tower.named_children():
            if name != "layers":
                part.requires_grad_(self.learn)
        observed.requires_grad_(self.learn and self.noise is None)
        deep = model(tower, kernels[-1], z, observed, centre)
        deep.z.requires_grad_(self.learn and not every)
        q, n, course = Posterior.prior(len(z), outputs), len(rows), Course(clock, LEARNING, self.progress)
        room = self._room(rows.columns, len(z), outputs)
        full = n <= min(self._whole, room)
        height = n if full else min(n, room, int(self.batch_size))
        if leaves(deep) and full:
            if self.max_iter:
                everything = slice(0, n)
                x, y = self.scaler_(rows.take(everything)), target(everything)
                q = whole(deep, q, x, y, course, self.tolerance, int(self.max_iter))
        elif leaves(deep) and self.epochs:

            def batches(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
                for at in rows.shuffled(height, seed + epoch):
                    yield self.scaler_(rows.take(at)), target(at)

            q = stochastic(deep, q, batches, n, int(self.epochs), RATE, course, self.tolerance)
        else:
            course.settled = True
        self._kernels = kernels
        self._settle(rows, deep, tower, q, target, course, height, full)

    @torch.no_grad()
    def _settle(
        self, rows: Rows, deep: Inducing, tower: Tower, q: Posterior, target: Callable[[Any], Tensor],
        course: Course, height: int, full: bool,
    ) -> None:  # fmt: skip
        """The best q for the tower that was learned, from all rows."""
        self._lower, n, clock = deep.lower(), len(rows), course.clock

        def blocks() -> Iterator[Seen]:
            for at in rows.blocks(self._block(rows.columns, len(deep.z), q.mean.shape[1])):
                yield deep.see(self.scaler_(rows.take(at)), target(at), self._lower)

        kept = list(blocks()) if 32 * n * len(deep.z) < memory_budget() else None
        tolerance = ENDS[full] * n
        found = settle(deep, q, blocks if kept is None else kept.copy, MOVES, tolerance, clock.late)
        cost = float(tower.cost())
        self._model, self._q = deep.requires_grad_(False), found.q
        self.kernel_, self.bound_ = deep.kernel, found.bound - cost
        self.history_ = [*course.history, self.bound_]
        self.landmarks_ = deep.z.detach().numpy()
        self.grams_ = [floor.gram.numpy() for floor in tower.climb(deep.z)[:-1]]
        self.n_iter_ = course.steps
        noise = getattr(deep.observed, "noise", None)
        self.noise_ = None if noise is None else float(noise)
        self.plan_ = self._told(n, rows.columns, height, full, course, found.steps, found.gain / n, cost)
        log.info("%s: %s", type(self).__name__, self.plan_.sentence)
        missed = full and not course.settled and clock.seconds is None and not clock.interrupted
        if missed or (found.gain > tolerance and not clock.late()):
            message = f"{type(self).__name__}: {self.plan_.sentence}"
            warnings.warn(ConvergenceWarning(message, found.gain / n, course.steps), stacklevel=5)

    def _told(
        self, n: int, columns: int, height: int, full: bool, course: Course, moves: int, gain: float, cost: float
    ) -> Plan:
        m, outputs = self._q.mean.shape
        how = "of all rows (L-BFGS)" if full else f"of {height:,} rows each (natural gradients and Adam)"
        learned = f"learned by {course.steps:,} steps {how}" if course.steps else "as the kernel has them"
        why = "" if course.settled else "; the bound still rose at the end: give more max_iter, epochs or time"
        why = "; learning was interrupted" if course.clock.interrupted else why
        memory = self._memory(height, columns, m, outputs)
        sentence = (
            f"{self.layers} layers of {m:,} landmarks for {n:,} rows, Gram matrices {learned}: bound "
            f"{self.bound_ / n:.4g} nats for each row, {cost / n:.3g} of it paid for leaving the kernel, jitter "
            f"{self._model.jitter:.1e}, {memory / 2**20:,.0f} MiB planned, {course.clock.used():.1f} s{why}"
        )
        return Plan(
            "deep kernel machine", n, m, self._model.jitter, gain, moves, course.clock.used(), memory,
            course.clock.interrupted, sentence, course.steps,
        )  # fmt: skip

    def _block(self, columns: int, m: int, outputs: int) -> int:
        return int(max(1, min(BLOCK, self._room(columns, m, outputs))))

    @torch.no_grad()
    def _latent(self, X: Any) -> tuple[Tensor, Tensor]:
        check_is_fitted(self, "kernel_")
        rows = Rows.read(self, X, reset=False)
        found, outputs = [], self._q.mean.shape[1]
        for at in rows.blocks(self._block(rows.columns, len(self._model.z), outputs)):
            x = self.scaler_(rows.take(at))
            seen = self._model.see(x, torch.zeros(len(x), 1, dtype=torch.float64), self._lower)
            found.append(self._model.latent(self._q, seen))
        return torch.cat([m for m, _ in found]), torch.cat([v for _, v in found])

    def _pieces(self) -> dict[str, Any]:
        deep = self._model
        every = cast(Tower, deep.tower).state_dict()
        learned = {name: v for name, v in every.items() if not name.startswith("kernels.")}
        return {"observed": dict(deep.observed.state_dict()), "centre": deep.centre, "tower": learned}

    @torch.no_grad()
    def _restored(self, parts: dict[str, Any]) -> None:
        observed = observation("bernoulli" if self.noise_ is None else "gaussian", START, 4.0)
        observed.load_state_dict(parts["observed"])
        z = torch.from_numpy(self.landmarks_)
        tower = self._tower(self._kernels, len(z), self.n_features_in_)
        tower.load_state_dict(parts["tower"], strict=False)
        self._model = model(tower, self._kernels[-1], z, observed, parts["centre"]).requires_grad_(False)
        self._lower = self._model.lower()
