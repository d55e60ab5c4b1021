"""Falkon's conjugate gradients over passes: several penalties at once, held-out rows, savings, an honest residual."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mercer.learn.clock import Clock
from mercer.learn.passes import Passes
from mercer.learn.tune import Progress
from mercer.learn.whitening import Whitening
from mercer.linalg.cg import Conjugate

log = logging.getLogger("mercer")

PATIENCE, LITTLE = 6, 1e-3  # iterations in which the held-out error must fall, and by what share
NEAR, RISE = 0.02, 0.02  # a residual from which it may be taken at its word, or a rise of the error
CYCLES, AIM = 20, 1e-2  # times that the residual is measured in float64, and its share that float32 goes on to
SLACK = 1.0001  # rounding of the last measure
Judge = Callable[[Tensor], Tensor]
Save = Callable[[dict[str, Any], dict[str, Tensor]], None]
Line = tuple[int, float, float, float]  # iteration, largest residual, least held-out error, seconds


@dataclass(frozen=True)
class Patience:
    """When a fit ends. tolerance: of the measured residual; most: iterations; early: held-out rows may end it."""

    tolerance: float
    most: int
    early: bool
    clock: Clock

    def late(self) -> bool:
        """Whether the seconds that were given are over; without any a fit takes what it takes."""
        return self.clock.seconds is not None and self.clock.used() > self.clock.seconds


class Walk:
    """(K^T D K + level K_mm) w = K^T D y for several levels in one block of columns.

    judge: weights `m (k c)` of k levels -> their held-out errors `k`, or None where no rows are held out; the level
    of the least error is the answer, and, where rows may end the fit early, its best iterate. save: called after
    each iteration with all there is to go on from (`resume`). Residuals are those of the whitened equations; in the
    end they are measured in float64, and products in float32 go on from there while that halves them.
    Cost: a pass over the rows each iteration. Source [rudi2017, alg. 1], [golub2013, sec. 3.5.3].
    """

    def __init__(
        self, passes: Passes, white: Whitening, levels: Sequence[float], judge: Judge | None, patience: Patience,
        save: Save, progress: Progress | None = None,
    ):  # fmt: skip
        self.passes, self.white, self.levels, self.judge = passes, white, list(levels), judge
        self.patience, self.save, self.progress = patience, save, progress
        self.groups = list(range(len(levels)))  # levels that the walk is about
        self.steps, self.cycles, self.before, self.aim, self.stopped = 0, 0, math.inf, AIM, ""
        self.residual, self.resumed = math.inf, False
        self.history: list[Line] = []
        self.now: Conjugate

    def resume(self, values: dict[str, Any], arrays: dict[str, Tensor]) -> None:
        """Go on from what `save` was given."""
        self.steps, self.cycles, self.before = int(values["steps"]), int(values["cycles"]), values["before"]
        self.groups, self.history = list(values["groups"]), [tuple(line) for line in values["history"]]
        self.now, self.aim = Conjugate(*[arrays[name] for name in ("x", "r", "p", "rho", "alive")]), values["aim"]
        self.start, self.best = arrays["start"], arrays["best"]
        self.errors, self.since, self.last = arrays["errors"], arrays["since"], arrays["last"]
        self.resumed = True

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """All there is to go on from."""
        now = self.now
        values: dict[str, Any] = {"steps": self.steps, "cycles": self.cycles, "before": self.before, "aim": self.aim}
        arrays = {"x": now.x, "r": now.r, "p": now.p, "rho": now.rho, "alive": now.alive, "start": self.start}
        arrays |= {"best": self.best, "errors": self.errors, "since": self.since, "last": self.last}
        return values | {"groups": self.groups, "history": self.history}, arrays

    @property
    def level(self) -> float:
        """The level that was chosen."""
        return self.levels[self.groups[0]]

    @property
    def error(self) -> float:
        """The held-out error of the answer; NaN without held-out rows."""
        return math.nan if self.judge is None else float(self.errors[0])

    def run(self) -> Tensor:
        """Weights of the landmarks, `m c` float64; `level`, `residual`, `error` and `stopped` say what they are."""
        whole = self.passes.project()
        self.outputs = whole.shape[1]
        b = self.white.up(whole.repeat(1, len(self.levels)))
        if not self.resumed:
            self._begin(torch.zeros_like(b), b)
            self.best, self.since = torch.zeros_like(b), torch.zeros(len(self.levels))
            self.errors = torch.full((len(self.levels),), math.inf, dtype=torch.float64)
            if self.judge is not None:
                self.errors = self.judge(self.best)
            self.last = self.errors.clone()
        try:
            self._go(b)
            self._settle(b)
        except KeyboardInterrupt:
            self.stopped = "interrupted"
            log.warning("interrupted: the best so far is kept and the fit is finished")
            self._choose()
            self.residual = self._size(self.now.r, b)
        return self.white.down(self.best, self.groups)

    def _begin(self, x: Tensor, r: Tensor) -> None:
        self.now, self.start = Conjugate.begin(x.clone(), r.clone(), r), r.norm(dim=0)

    def _columns(self, which: Sequence[int]) -> Tensor:
        """Columns of the groups at these places of the walk."""
        each = torch.arange(self.outputs)
        return torch.cat([place * self.outputs + each for place in which])

    def _product(self, v: Tensor, which: Sequence[int], wide: bool = False) -> Tensor:
        """The whitened equations times v; which: places of the walk that v holds; wide: in float64."""
        groups = [self.groups[place] for place in which]
        level = torch.tensor([self.levels[g] for g in groups], dtype=torch.float64).repeat_interleave(self.outputs)
        w = self.white.down(v, groups)
        return self.white.up(self.passes.normal(w, wide), groups) + self.white.ridge(w, level, groups)

    def _size(self, r: Tensor, b: Tensor) -> float:
        """The largest |r| / |b| of the columns of the walk."""
        size = b[:, self._columns(self.groups)].norm(dim=0)
        return float((r.norm(dim=0) / torch.where(size > 0, size, 1.0)).max())

    def _rated(self) -> bool:
        """Whether held-out rows say when a level is done."""
        return self.patience.early and self.judge is not None

    def _go(self, b: Tensor) -> None:
        """Step until every level is done, or the iterations or seconds are over."""
        now, self.stopped = self.now, ""
        limit = self.patience.tolerance * b[:, self._columns(self.groups)].norm(dim=0)
        if self.passes.z.dtype != torch.float64 and not self._rated():
            limit = torch.maximum(limit, self.aim * self.start)  # beyond it float32 alone goes astray
        while True:
            going = (now.alive & (now.r.norm(dim=0) > limit)).reshape(-1, self.outputs).any(1)
            which = going.nonzero()[:, 0].tolist()
            if not which:
                return
            if self.steps >= self.patience.most or self.patience.late():
                self.stopped = "iterations" if self.steps >= self.patience.most else "time"
                return
            columns = self._columns(which)
            q = torch.zeros_like(now.p)
            q[:, columns] = self._product(now.p[:, columns], which)
            if not now.descend(q, limit):
                return
            self.steps += 1
            self._see(now, which)
            now.turn(now.r)
            self._tell(now, b)
            self.save(*self.state())

    def _see(self, now: Conjugate, which: Sequence[int]) -> None:
        """Hold the new iterates against the held-out rows."""
        if self.judge is None:
            self.best = now.x.clone()
            return
        found = self.judge(self.white.down(now.x[:, self._columns(which)], [self.groups[place] for place in which]))
        for place, error in zip(which, found.tolist(), strict=True):
            much = error < (1 - LITTLE) * float(self.errors[place])
            self.since[place], self.last[place] = 0 if much else self.since[place] + 1, error
            columns = self._columns([place])
            if error < float(self.errors[place]) or not self.patience.early:
                self.errors[place], self.best[:, columns] = error, now.x[:, columns]
            small = bool((now.r[:, columns].norm(dim=0) <= NEAR * self.start[columns]).all())
            over = small or error > (1 + RISE) * float(self.errors[place])  # standing still far away is no end
            if self.patience.early and int(self.since[place]) >= PATIENCE and over:
                now.alive[columns] = False

    def _tell(self, now: Conjugate, b: Tensor) -> None:
        error = math.nan if self.judge is None else float(self.errors.min())
        residual = self._size(now.r, b)
        self.history.append((self.steps, residual, error, self.patience.clock.used()))
        if self.progress is not None:
            self.progress(*("residual", residual) if self.judge is None else ("held-out error", error))

    def _choose(self) -> None:
        """Go on with the level of the least held-out error alone."""
        if len(self.groups) == 1:
            return
        place = int(self.errors.argmin())
        at, now = self._columns([place]), self.now
        self.now = Conjugate(now.x[:, at], now.r[:, at], now.p[:, at], now.rho[at], now.alive[at])
        self.best, self.groups, self.start = self.best[:, at], [self.groups[place]], self.start[at]
        self.errors, self.since = self.errors[place : place + 1], self.since[place : place + 1]
        self.last = self.last[place : place + 1]

    def _settle(self, b: Tensor) -> None:
        """Choose a level, measure the residual of its answer, and go on from there while that helps."""
        self._choose()
        here = b[:, self._columns(self.groups)]
        while True:
            passed = float(self.last[0]) > (1 + LITTLE) * float(self.errors[0])  # worse than what led to it
            early = self._rated() and (passed or not bool(self.now.alive.all()))
            self.best = self.best if early or (self._rated() and self.stopped) else self.now.x.clone()
            r = here - self._product(self.best, [0], wide=True)
            self.residual = self._size(r, b)
            if self.residual <= self.patience.tolerance * SLACK:
                self.stopped = "tolerance"
            elif early:
                self.stopped = "held-out"
            elif not self.stopped and (self.cycles >= CYCLES or not self.residual < self.before / 2):
                self.stopped = "rounding"
            if self.stopped:
                return
            self.cycles, self.before = self.cycles + 1, self.residual
            self._begin(self.best, r)
            self._go(b)
