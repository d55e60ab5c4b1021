"""Learning a sparse Gaussian process: kernel, noise and landmarks climb the bound, on all rows or a batch at a time."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from scipy.optimize import Bounds, minimize
from torch import Tensor, nn

from mercer.errors import NotPositiveDefiniteError
from mercer.learn.inducing import Inducing, Posterior, Seen, settle, sums
from mercer.learn.likelihood import NARROW, WIDE
from mercer.learn.tune import Clock, Progress

log = logging.getLogger("mercer")

INNER, CLOSE = 30, 1e-10  # moves of q for each trial of the parameters, and the gain in nats of a row that ends them
FIRST, KEPT = 0.5, 0.1  # rates of the natural gradient where log p is not quadratic: at first, and at last
PATIENCE = 3  # epochs without a rise
STEPS = 100  # of L-BFGS


@dataclass
class Course:
    """How a climb goes: the bounds on the way, gradients taken, and how it may end."""

    clock: Clock
    share: float  # of the clock's seconds, if it has any
    progress: Progress | None = None
    history: list[float] = field(default_factory=list)
    steps: int = 0
    settled: bool = False

    def over(self) -> bool:
        """Whether the time is up or the user interrupted."""
        seconds = self.clock.seconds
        return self.clock.interrupted or (seconds is not None and self.clock.used() > self.share * seconds)

    def say(self, bound: float) -> None:
        """Note a bound."""
        self.history.append(bound)
        if self.progress is not None:
            self.progress("evidence lower bound", bound)


class _Stop(Exception):
    """Time is up: keep the best so far."""


def leaves(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """What is learned, by name."""
    return [(name, p) for name, p in model.named_parameters() if p.requires_grad]


def limits(named: Sequence[tuple[str, nn.Parameter]]) -> list[tuple[Tensor, Tensor]]:
    """(least, most) of each parameter: logarithms stay within +-11.5, wider where they start outside."""
    found = []
    for name, p in named:
        at, free = p.detach(), torch.full_like(p.detach(), math.inf)
        is_log = name.split(".")[-1].startswith("log_")
        found.append(((at - 1).clamp_max(NARROW), (at + 1).clamp_min(WIDE)) if is_log else (-free, free))
    return found


class _Whole:
    """The bound at its best q, of all rows at once, as a function of one vector.

    At the best q the slope of the bound in q is zero, so its gradient at fixed q is that of the bound itself; for
    Gaussian noise that is the collapsed bound. Source [titsias2009, eq. 9].
    """

    def __init__(self, model: Inducing, q: Posterior, x: Tensor, y: Tensor, course: Course):
        self.model, self.q, self.x, self.y, self.course = model, q, x, y, course
        self.named = leaves(model)
        self.best, self.at = -math.inf, self.theta()

    def theta(self) -> np.ndarray:
        return np.concatenate([p.detach().numpy().ravel() for _, p in self.named])

    def move(self, theta: np.ndarray) -> None:
        at = 0
        with torch.no_grad():
            for _, p in self.named:
                p.copy_(torch.from_numpy(theta[at : at + p.numel()]).reshape(p.shape))
                at += p.numel()

    def evaluate(self) -> tuple[float, np.ndarray]:
        """(bound at the best q, gradient) where the model stands; q is kept."""
        try:
            seen = self.model.see(self.x, self.y, self.model.lower())
        except NotPositiveDefiniteError:
            return -math.inf, np.zeros_like(self.at)
        held = Seen(seen.a.detach(), seen.rest.detach(), seen.y)
        self.q = settle(self.model, self.q, lambda: [held], INNER, CLOSE * len(self.x)).q
        value = self.model.bound(self.q, seen)
        if not bool(torch.isfinite(value)):
            return -math.inf, np.zeros_like(self.at)
        grads = torch.autograd.grad(value, [p for _, p in self.named], allow_unused=True)
        flat = [
            (torch.zeros_like(p) if g is None else g).flatten() for (_, p), g in zip(self.named, grads, strict=True)
        ]
        return float(value.detach()), torch.cat(flat).numpy()

    def __call__(self, theta: np.ndarray) -> tuple[float, np.ndarray]:
        if self.course.over() and self.best > -math.inf:
            raise _Stop
        self.move(theta)
        before = self.q
        value, slope = self.evaluate()
        self.course.steps += 1
        if not (math.isfinite(value) and np.isfinite(slope).all()):
            self.q = before
            return 1e30, np.zeros_like(theta)
        if value > self.best:
            self.best, self.at, self.best_q = value, theta.copy(), self.q
            self.course.say(value)
        return -value, -slope


def whole(
    model: Inducing, q: Posterior, x: Tensor, y: Tensor, course: Course, tolerance: float, most: int = STEPS
) -> Posterior:
    """Climb with all rows at once by L-BFGS of at most so many steps, q at its best for each trial.

    Cost: for each step about 12 n m^2 flops, and 8 n m float64 numbers.
    """
    target = _Whole(model, q, x, y, course)
    ends = [torch.cat([side.flatten() for side in sides]).numpy() for sides in zip(*limits(target.named), strict=True)]
    try:
        found = minimize(
            target, target.at, jac=True, method="L-BFGS-B", bounds=Bounds(*ends),
            options={"maxiter": most, "ftol": tolerance * len(x) / max(abs(target(target.at)[0]), 1.0) / 10},
        )  # fmt: skip
        course.settled = bool(found.success)
    except _Stop:
        log.info("learning stopped after %.1f s with the best model so far", course.clock.used())
    except KeyboardInterrupt:
        course.clock.interrupted = True
        log.warning("interrupted: the best model so far is kept and the fit is finished")
    target.move(target.at)
    return getattr(target, "best_q", q)


def _pushed(model: Inducing, q: Posterior, seen: Seen, step: int) -> Posterior:
    """q after one natural gradient step by a batch; as it was where none raises the batch's own bound."""
    held = Seen(seen.a.detach(), seen.rest.detach(), seen.y, seen.weight)
    here = sums(model, q, [held])
    if model.observed.conjugate:  # the first steps average what the batches say
        return q.moved(here, max(1 / (1 + step), KEPT), True) or q
    rate = max(FIRST / (1 + 0.1 * step), KEPT)
    while rate > 1e-3:
        new = q.moved(here, rate, model.observed.concave)
        if new is not None and sums(model, new, [held]).bound >= here.bound:
            return new
        rate /= 4
    return q


def stochastic(
    model: Inducing, q: Posterior, epochs: Callable[[int], Iterator[tuple[Tensor, Tensor]]], rows: int, most: int,
    rate: float, course: Course, tolerance: float,
) -> Posterior:  # fmt: skip
    """Climb by batches: a natural gradient step of q, then one of Adam for everything else.

    epochs: the batches of an epoch; most: so many epochs at most; tolerance: rise of the bound, in nats for each row,
    below which an epoch has not risen.
    Cost: for each batch of b rows about 12 (b + m) m^2 flops. Source [salimbeni2018, sec. 4], [hensman2013].
    """
    named = leaves(model)
    adam = torch.optim.Adam([p for _, p in named], lr=rate) if named else None
    ends = limits(named)
    best, since, step = -math.inf, 0, 0
    try:
        for epoch in range(most):
            total, count = 0.0, 0
            for x, y in epochs(epoch):
                if course.over() and step:
                    return q
                seen = model.see(x, y, model.lower(), rows / len(x))
                q = _pushed(model, q, seen, step)
                value = model.bound(q, seen)
                total, count, step = total + float(value.detach()) * len(x), count + len(x), step + 1
                if adam is not None and bool(torch.isfinite(value)):
                    _ascend(adam, named, ends, value / rows)
                course.steps = step
            course.say(total / count)
            since = 0 if total / count > best + tolerance * rows else since + 1
            best = max(best, total / count)
            if since >= PATIENCE:
                course.settled = True
                break
    except KeyboardInterrupt:
        course.clock.interrupted = True
        log.warning("interrupted: the model so far is kept and the fit is finished")
    return q


def _ascend(
    adam: torch.optim.Optimizer, named: list[tuple[str, nn.Parameter]], ends: list[tuple[Tensor, Tensor]], value: Tensor
) -> None:
    """One step of Adam up the bound, within `ends`; a step with a slope that is not finite is left out."""
    slopes = torch.autograd.grad(-value, [p for _, p in named], allow_unused=True)
    if not all(s is None or bool(torch.isfinite(s).all()) for s in slopes):
        return
    for (_, p), slope in zip(named, slopes, strict=True):
        p.grad = slope
    adam.step()
    with torch.no_grad():
        for (_, p), (low, high) in zip(named, ends, strict=True):
            p.clamp_(low, high)
