"""Newton's method for the log loss of landmarks: each step a weighted least squares problem for Falkon's CG."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot, softplus

from mercer.learn.passes import Passes
from mercer.learn.tune import Progress
from mercer.learn.walk import Line, Patience, Save
from mercer.learn.whitening import Whitening
from mercer.linalg.cg import Conjugate

log = logging.getLogger("mercer")

FACTOR, FINE = 0.1, 10**-0.5  # from one penalty to the next: when the last is known, when held-out rows choose
FIRST = 0.1  # the first penalty, times the rows: its steps are safe
FORCING, INNER = 0.1, 40  # of the residual of a step, and most iterations for it
HALVES, ROUNDING = 12, 1e-7  # of a step that does not lower the loss; of the loss, what its sum cannot tell
ROUGH = 0.1  # root mean square change of the log odds below which the next penalty is due
WORSE, LITTLE = 2, 1e-3  # penalties in a row whose held-out loss does not fall by this share


@dataclass(frozen=True)
class Odds:
    """The log loss of log odds f: one column for two classes (of the second), else one for each, softmax."""

    classes: int

    @property
    def columns(self) -> int:
        """Columns of f."""
        return 1 if self.classes == 2 else self.classes

    def chances(self, f: Tensor) -> Tensor:
        """Of the class of each column."""
        return f.sigmoid() if self.classes == 2 else f.softmax(1)

    def truth(self, codes: Tensor) -> Tensor:
        """1 where a row is of the class of the column, `n columns` float64."""
        return codes.double()[:, None] if self.classes == 2 else one_hot(codes, self.classes).double()

    def losses(self, f: Tensor, codes: Tensor) -> Tensor:
        """-log of the chance of the true class, `n`."""
        if self.classes == 2:
            return softplus(f[:, 0]) - codes * f[:, 0]
        return f.logsumexp(1) - f.gather(1, codes[:, None])[:, 0]

    def curve(self, p: Tensor, u: Tensor) -> Tensor:
        """The second derivative by f, at chances p, times u."""
        inner = p * u
        return inner - p * inner.sum(1, keepdim=True) if self.classes > 2 else inner * (1 - p)


class Newton:
    """The least log loss + level / 2 |f|^2 over f = k(., z) w, all columns of w in one Newton step.

    level: the penalty, approached from above by a factor of ten each step or two; None: the one on the way, down to
    `lowest`, that held-out rows like best (judge: weights -> their log loss). Steps solve the whitened equations by
    CG to a tenth and are halved where they do not lower the loss. sample: k(x, z) T^-1 of a draw of rows, T the root of
    `white`, which tells the curvature. patience.tolerance: of the root mean square
    change of the log odds by the next step. save: called after each step, as in `Walk`.
    Cost: about ten passes over the rows for each step. Source [marteauferey2019, sec. 3 and 4].
    """

    def __init__(
        self, passes: Passes, white: Whitening, sample: Tensor, odds: Odds, level: float | None, lowest: float,
        judge: Callable[[Tensor], float] | None, patience: Patience, save: Save, progress: Progress | None = None,
    ):  # fmt: skip
        self.passes, self.base, self.sample, self.odds, self.judge = passes, white, sample, odds, judge
        self.target, self.lowest, self.patience, self.save, self.progress = level, lowest, patience, save, progress
        typical = float(white.root.square().sum()) / len(white.root)
        self.level = FIRST * passes.total * typical
        if level is not None:
            self.level = max(self.level, level)
        self.final, self.steps, self.worse, self.change = False, 0, 0, math.inf
        self.w = torch.zeros(len(white.root), odds.columns, dtype=torch.float64)
        self.best, self.best_level, self.error = self.w, self.level, math.inf
        self.history: list[Line] = []
        self.stopped = ""

    def resume(self, values: dict[str, Any], arrays: dict[str, Tensor]) -> None:
        """Go on from what `save` was given."""
        self.level, self.best_level, self.error = values["level"], values["best_level"], values["error"]
        self.final, self.steps, self.worse = values["final"], int(values["steps"]), int(values["worse"])
        self.history = [tuple(line) for line in values["history"]]
        self.w, self.best, self.change, self.stopped = arrays["w"], arrays["best"], values["change"], values["done"]

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """All there is to go on from."""
        values: dict[str, Any] = {
            "level": self.level,
            "best_level": self.best_level,
            "error": self.error,
            "final": self.final,
        }
        values |= {"steps": self.steps, "worse": self.worse, "history": self.history}
        values |= {"change": self.change, "done": self.stopped if self.stopped in ("tolerance", "rounding") else ""}
        return values, {"w": self.w, "best": self.best}

    def run(self) -> Tensor:
        """Weights of the landmarks, `m columns` float64; `level`, `change`, `error` and `stopped` say what they are."""
        if self.stopped:
            return self.w
        try:
            self._descend()
        except KeyboardInterrupt:
            self.stopped = "interrupted"
            log.warning("interrupted: the best so far is kept and the fit is finished")
        if not self.final and self.judge is not None and self.error < math.inf:
            self.w, self.level = self.best, self.best_level
        return self.w

    def _descend(self) -> None:
        value, slope, chances = self._look(self.w)
        while True:
            if self.steps >= self.patience.most or self.patience.late():
                self.stopped = "iterations" if self.steps >= self.patience.most else "time"
                return
            step, gain = self._direction(slope, chances)
            found = self._shorten(step, gain, value)
            if found is not None:
                self.w, value, slope, chances = found
            self.steps += 1
            done = self.final and (found is None or self.change <= self.patience.tolerance)
            if not self.final and (found is None or self.change <= ROUGH) and self._next():
                value, slope, chances = self._look(self.w)
            self.history.append((self.steps, self.change, self.error, self.patience.clock.used()))
            if self.progress is not None:
                self.progress("log loss", value / self.passes.total)
            self.save(*self.state())
            if done:
                self.stopped = "tolerance" if self.change <= self.patience.tolerance else "rounding"
                return

    def _next(self) -> bool:
        """Take the next penalty, or end with the best one; whether the weights were changed."""
        if self.target is not None:
            self.final = self.level <= self.target
            self.level = max(self.level * FACTOR, self.target)
            return False
        loss = math.inf if self.judge is None else self.judge(self.w)
        self.worse = 0 if loss < (1 - LITTLE) * self.error else self.worse + 1
        if loss < self.error:
            self.best, self.best_level, self.error = self.w, self.level, loss
        if self.worse < WORSE and self.level > self.lowest:
            self.level = max(self.level * FINE, self.lowest)
            return False
        self.final, self.w, self.level = True, self.best, self.best_level
        return True

    def _look(self, w: Tensor) -> tuple[float, Tensor, Tensor | None]:
        """(log loss, its gradient by w, chances where all rows stay in memory), from float64 products."""
        value, slope, kept = 0.0, torch.zeros_like(w), []
        for part in self.passes.wide():
            f, codes = part.k.matmul(w), part.y[:, 0].long()
            value += float(part.heavy(self.odds.losses(f, codes)[:, None]).sum())
            p = self.odds.chances(f)
            slope += part.k.mT.matmul(part.heavy(p - self.odds.truth(codes)))
            if self.passes.kept is not None:
                kept.append(p.to(self.passes.z.dtype))
        return value, slope, torch.cat(kept) if kept else None

    def _curved(self, v: Tensor, kept: Tensor | None) -> Tensor:
        """K^T C K v, C the second derivatives at the present weights."""
        found = torch.zeros_like(v)
        for part in self.passes:
            dtype = part.k.dtype
            p = self.odds.chances(part.k.matmul(self.w.to(dtype))) if kept is None else kept
            u = self.odds.curve(p, part.k.matmul(v.to(dtype)))
            found += part.k.mT.matmul(part.heavy(u)).double()
        return found

    def _direction(self, slope: Tensor, kept: Tensor | None) -> tuple[Tensor, float]:
        """(what Newton's step takes from the weights, its squared length in the norm of the curvature)."""
        p = self.odds.chances(self.sample @ (self.base.root @ self.w))
        heavy = (p * (1 - p)).sum(1, keepdim=True) * (self.passes.total / len(p) / max(self.odds.classes - 1, 1))
        white = Whitening(self.base.root, self.sample.mT @ (heavy * self.sample)).at([self.level])
        b = white.up(slope) + white.ridge(self.w, self.level)
        shape, limit = b.shape, FORCING * b.norm().reshape(1)
        flat = b.reshape(-1, 1)
        walk = Conjugate.begin(torch.zeros_like(flat), flat.clone(), flat)
        for _ in range(INNER):
            if self.patience.late() and bool(walk.x.any()):
                break
            w = white.down(walk.p.reshape(shape))
            q = white.up(self._curved(w, kept)) + white.ridge(w, self.level)
            if not walk.descend(q.reshape(-1, 1), limit):
                break
            walk.turn(walk.r)
        gain = float((walk.x * flat).sum())
        self.change = math.sqrt(max(gain, 0.0) / self.passes.total)
        return white.down(walk.x.reshape(shape)), gain

    def _penalty(self, w: Tensor) -> float:
        return 0.5 * self.level * float((self.base.root @ w).square().sum())

    def _shorten(self, step: Tensor, gain: float, value: float) -> tuple[Tensor, float, Tensor, Tensor | None] | None:
        """The step, halved until it lowers the penalised loss; None where no part of it does."""
        before = value + self._penalty(self.w)
        share = 1.0
        for _ in range(HALVES):
            w = self.w - share * step
            found = self._look(w)
            after = found[0] + self._penalty(w)
            if after <= before - 1e-4 * share * gain + ROUNDING * abs(before):
                return (w, *found)
            share /= 2
        return None
