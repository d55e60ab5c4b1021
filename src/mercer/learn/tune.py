"""Learning a kernel's parameters and the noise by marginal likelihood, on as many rows as is worth it."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from mercer.errors import NotPositiveDefiniteError
from mercer.kernel import Kernel
from mercer.kernels import Gaussian, Laplace, Matern, Scaled
from mercer.learn.clock import Clock, Room, quickest
from mercer.learn.likelihood import LEAST, Evidence, Likelihood, Part

log = logging.getLogger("mercer")

SMALL, FIRST, LAST = 250, 500, 1000  # rows when time is short, for the first sight of a kernel, for the last steps
PROMISED = 15  # gradients that each candidate gets, whatever the time
HASTY, RECENT, MUCH = 20, 5, 0.01  # hardly learned: fewer gradients, the latest 5 gained 0.01 nats for each row
WORTH = 12  # steps that must fit in the time for more rows to be worth it
SPREAD = 1.0  # deviation of the prior of a log lengthscale around that of the median distance
Progress = Callable[[str, float], object]
Pair = tuple[Kernel, float]  # a kernel and its noise


@dataclass(frozen=True)
class Learned:
    """A kernel, its noise (relative to the output scale where that was profiled) and their log likelihood.

    steps: gradients that it took; settled: whether the last ones gained little. known: those offered, likeliest first.
    """

    kernel: Kernel
    noise: float
    value: float
    steps: int = 0
    settled: bool = False
    known: Sequence[Pair] = ()

    def hasty(self) -> bool:
        """Whether time ran out before there was much learning."""
        return not self.settled and self.steps < HASTY


class _Stop(Exception):
    """Time is up, or the user interrupted: keep the best so far."""


def defaults(d: int, scaled: bool) -> list[Kernel]:
    """The kernels that compete when none is given, one lengthscale for each column, at the median distance."""
    found: list[Kernel] = [
        Laplace(torch.full((d,), 2.0 * d, dtype=torch.float64)),
        Matern(2.5, torch.full((d,), max(math.sqrt(d), 1.0), dtype=torch.float64)),
        Gaussian(torch.full((d,), max(math.sqrt(d), 1.0), dtype=torch.float64)),
    ]
    return [Scaled(k, 1.0) for k in found] if scaled else found


def parts(x: Tensor, y: Tensor, rows: int, generator: torch.Generator, *noise: Tensor) -> list[Part]:
    """Rows to learn from: all, a random draw, or (1 to 3 columns) neighbourhoods, which show short lengthscales.

    noise: shares and what is beside the noise, `n` each, of rows that are means.
    """
    n = len(x)
    if n <= rows:
        return [(x, y, *noise)]
    if x.shape[1] > 3:
        at = torch.randperm(n, generator=generator)[:rows]
        return [(x[at], y[at], *(v[at] for v in noise))]
    size = 300
    found: list[Part] = []
    for centre in torch.randperm(n, generator=generator)[: max(rows // size, 2)].tolist():
        near = (x - x[centre]).square().sum(1).topk(min(size, n), largest=False).indices
        found.append((x[near], y[near] - y[near].mean(0), *(v[near] for v in noise)))
    return found


class Climb:
    """One ascent: remembers the best point, adds the prior, stops on time. cost: of a step, counted without seconds."""

    def __init__(
        self, target: Evidence, clock: Clock, share: float, progress: Progress | None, spread: float,
        promised: int = 0, cost: float = 0.0,
    ):  # fmt: skip
        self.target, self.clock, self.share, self.progress = target, clock, share, progress
        self.spread, self.steps, self.promised, self.ended, self.cost = spread, 0, promised, False, cost
        self.gained: list[float] = []
        self.best, self.at = -math.inf, target.theta
        names = [(n, p.numel()) for n, p in target.named]
        self.soft = np.array([n.endswith("log_lengthscale") for n, k in names for _ in range(k)] + [False])
        self.centre = target.theta.copy()

    def __call__(self, theta: np.ndarray) -> tuple[float, np.ndarray]:
        stop = self.clock.interrupted or (self.clock.over(self.share) and self.steps >= self.promised)
        if stop and self.best > -math.inf:
            raise _Stop
        self.steps += 1
        self.clock.count(self.cost)
        try:
            value, slope = self.target.evaluate(theta)
        except NotPositiveDefiniteError:
            return 1e30, np.zeros_like(theta)
        off = np.where(self.soft, (theta - self.centre) / self.spread, 0.0)
        value, slope = value - 0.5 * float(off @ off), slope - off / self.spread
        if not (math.isfinite(value) and np.isfinite(slope).all()):
            return 1e30, np.zeros_like(theta)
        self.gained.append(value - self.best)
        if value > self.best:
            self.best, self.at = value, theta.copy()
            if self.progress is not None:
                self.progress("log marginal likelihood", value)
        return -value, -slope

    def settled(self) -> bool:
        """Whether the ascent came to an end, or its latest steps gained little for the rows there are."""
        rows = sum(len(part[0]) for part in self.target.parts)
        latest = sum(max(gain, 0.0) for gain in self.gained[-RECENT:])
        return self.ended or (len(self.gained) > RECENT and latest < MUCH * rows)

    def run(self, steps: int) -> float:
        try:
            found = minimize(
                self, self.at, jac=True, method="L-BFGS-B", bounds=self.target.bounds(),
                options={"maxiter": steps, "maxfun": int(1.5 * steps) + 5, "ftol": 1e-7},
            )  # fmt: skip
            self.ended = bool(found.success)
        except _Stop:
            log.info("learning stopped after %.1f s with the best kernel so far", self.clock.used())
        except KeyboardInterrupt:
            self.clock.interrupted = True
            log.warning("interrupted: the best kernel so far is kept and the fit is finished")
        self.target.theta = self.at
        return self.best


def _start(
    kernel: Kernel, noise: float, rows: Sequence[Part], profile: bool, keep: bool, least: float
) -> Likelihood:  # fmt: skip
    """The best of a few common factors of all lengthscales and of the noise."""
    best: tuple[float, np.ndarray | None] = (-math.inf, None)
    target = Likelihood(kernel, noise, rows, profile)
    target.keep_noise, target.least, origin = keep, least, target.theta
    soft = np.array([n.endswith("log_lengthscale") for n, p in target.named for _ in range(p.numel())] + [False])
    for factor in (0.0, -1.5, 1.0) if soft.any() else (0.0,):
        for change in (0.0,) if keep else (0.0, -3.0):
            theta = origin + factor * soft
            theta[-1] += change
            try:
                value = target.evaluate(theta, gradient=False)[0]
            except NotPositiveDefiniteError:
                continue
            if value > best[0]:
                best = (value, theta)
    target.theta = origin if best[1] is None else best[1]
    return target


def _likeliest(known: Sequence[Pair], rows: Sequence[Part], profile: bool) -> list[Pair]:
    """Kernels learned elsewhere, the likeliest on these rows first."""

    def value(pair: Pair) -> float:
        try:
            return Likelihood(pair[0], pair[1], rows, profile).evaluate(gradient=False)[0]
        except NotPositiveDefiniteError:
            return -math.inf

    return sorted(known, key=value, reverse=True)


def learn(
    candidates: Sequence[Kernel], noise: float, x: Tensor, y: Tensor, clock: Clock, generator: torch.Generator,
    profile: bool = True, keep_noise: bool = False, progress: Progress | None = None, share: float = 0.5,
    least: float = LEAST, spread: float = SPREAD, known: Sequence[Pair] = (), promised: int = PROMISED,
    shares: Sequence[Tensor] = (),
) -> Learned:  # fmt: skip
    """The candidate and parameters of the largest marginal likelihood.

    x: n d, y: n c, float64; shares: the noise of `parts`. All candidates climb on a few hundred rows; the winner
    goes on with more. known: kernels and noises learned on like rows: the likeliest climbs first, as it is. Short
    of time fewer rows are used, so that each climb gets the promised number of steps.
    """
    few = parts(x, y, FIRST, generator, *shares)
    some: list[Part] = [tuple(v[:SMALL] for v in few[0])]
    with quickest(Likelihood(copy.deepcopy(candidates[0]), noise, some, profile).evaluate, clock) as step:
        room = Room(clock, share, step, len(some[0][0]), x.shape[1])
        starts = 3 * len(candidates)  # a common factor costs about half a step
        if not room.fits(min(len(x), FIRST), starts + WORTH * len(candidates)):
            few = some
        known = _likeliest(known, few, profile)
        climbs: list[tuple[float, Likelihood, Climb]] = []
        for place in range(-1 if known else 0, len(candidates)):
            if known and climbs and clock.over(0.75 * share):
                break
            if place < 0:
                target = Likelihood(copy.deepcopy(known[0][0]).requires_grad_(True), known[0][1], few, profile)
                target.keep_noise, target.least = keep_noise, least
            else:
                target = _start(copy.deepcopy(candidates[place]), noise, few, profile, keep_noise, least)
            until = share * 0.75 * (place + 1 + bool(known)) / (len(candidates) + bool(known))
            cost = sum(room.seconds(len(part[0])) for part in few)
            climb = Climb(target, clock, until, progress, spread, promised, cost)
            climbs.append((climb.run(25), target, climb))
            if clock.interrupted:
                break
        value, target, climb = max(climbs, key=lambda found: found[0])
        steps, settled = climb.steps, climb.settled()
        rows = next((r for r in (LAST, FIRST) if room.fits(min(r, len(x)), WORTH)), 0)
        if not clock.interrupted and rows and len(x) > len(few[0][0]):
            target.parts = parts(x, y, rows, generator, *shares)
            cost = sum(room.seconds(len(part[0])) for part in target.parts)
            climb = Climb(target, clock, share, progress, spread, 0, cost)
            value, steps, settled = climb.run(40), steps + climb.steps, climb.settled()
    log.info("learned %r, noise %.3g", target.kernel, math.exp(target.log_noise))
    return Learned(target.kernel, math.exp(target.log_noise), value, steps, settled, known)
