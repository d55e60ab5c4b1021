"""Learning a kernel's parameters and the noise by marginal likelihood, on as many rows as is worth it."""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from mercer.errors import NotPositiveDefiniteError
from mercer.kernel import Kernel
from mercer.kernels import Gaussian, Laplace, Matern, Scaled
from mercer.learn.likelihood import LEAST, Likelihood

log = logging.getLogger("mercer")

FIRST, LAST = 500, 1000  # rows for the first sight of a kernel, and for the last steps
UNTOLD = 40.0  # seconds of a fit when nobody said
SPREAD = 1.0  # deviation of the prior of a log lengthscale around that of the median distance
Progress = Callable[[str, float], object]


@dataclass
class Clock:
    """Seconds left, and whether the user interrupted."""

    seconds: float | None
    start: float
    interrupted: bool = False

    @classmethod
    def of(cls, seconds: float | None) -> Clock:
        return cls(seconds, time.perf_counter())

    def used(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self.start

    def over(self, share: float = 1.0) -> bool:
        """Whether this share of the seconds is used up (None: share of 40), or the user interrupted."""
        limit = UNTOLD if self.seconds is None else self.seconds
        return self.interrupted or self.used() > share * limit


@dataclass(frozen=True)
class Learned:
    """A kernel, its noise (relative to the output scale where that was profiled) and their log likelihood."""

    kernel: Kernel
    noise: float
    value: float


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


def parts(x: Tensor, y: Tensor, rows: int, generator: torch.Generator) -> list[tuple[Tensor, Tensor]]:
    """Rows to learn from: all, a random draw, or (1 to 3 columns) neighbourhoods, which show short lengthscales."""
    n = len(x)
    if n <= rows:
        return [(x, y)]
    if x.shape[1] > 3:
        at = torch.randperm(n, generator=generator)[:rows]
        return [(x[at], y[at])]
    size = 300
    found = []
    for centre in torch.randperm(n, generator=generator)[: max(rows // size, 2)].tolist():
        near = (x - x[centre]).square().sum(1).topk(min(size, n), largest=False).indices
        found.append((x[near], y[near] - y[near].mean(0)))
    return found


class _Climb:
    """One ascent: remembers the best point, adds the prior, stops on time."""

    def __init__(self, target: Likelihood, clock: Clock, share: float, progress: Progress | None, spread: float):
        self.target, self.clock, self.share, self.progress = target, clock, share, progress
        self.spread = spread
        self.best, self.at = -math.inf, target.theta
        names = [(n, p.numel()) for n, p in target.named]
        self.soft = np.array([n.endswith("log_lengthscale") for n, k in names for _ in range(k)] + [False])
        self.centre = target.theta.copy()

    def __call__(self, theta: np.ndarray) -> tuple[float, np.ndarray]:
        if self.clock.over(self.share) and self.best > -math.inf:
            raise _Stop
        try:
            value, slope = self.target.evaluate(theta)
        except NotPositiveDefiniteError:
            return 1e30, np.zeros_like(theta)
        off = np.where(self.soft, (theta - self.centre) / self.spread, 0.0)
        value, slope = value - 0.5 * float(off @ off), slope - off / self.spread
        if not (math.isfinite(value) and np.isfinite(slope).all()):
            return 1e30, np.zeros_like(theta)
        if value > self.best:
            self.best, self.at = value, theta.copy()
            if self.progress is not None:
                self.progress("log marginal likelihood", value)
        return -value, -slope

    def run(self, steps: int) -> float:
        try:
            minimize(
                self, self.at, jac=True, method="L-BFGS-B", bounds=self.target.bounds(),
                options={"maxiter": steps, "maxfun": int(1.5 * steps) + 5, "ftol": 1e-7},
            )  # fmt: skip
        except _Stop:
            log.info("learning stopped after %.1f s with the best kernel so far", self.clock.used())
        except KeyboardInterrupt:
            self.clock.interrupted = True
            log.warning("interrupted: the best kernel so far is kept and the fit is finished")
        self.target.theta = self.at
        return self.best


def _start(
    kernel: Kernel, noise: float, rows: Sequence[tuple[Tensor, Tensor]], profile: bool, keep: bool, least: float
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


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread inside: eigendecompositions of a thousand rows gain nothing from more, and lose on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def _quickest(target: Likelihood) -> Iterator[None]:
    """One thread inside, where that is faster: matrices of a few hundred rows on a busy machine wait for each other."""
    threads = torch.get_num_threads()
    seconds = {}
    for count in {1, threads}:
        torch.set_num_threads(count)
        start = time.perf_counter()
        target.evaluate()
        seconds[count] = time.perf_counter() - start
    torch.set_num_threads(min(seconds, key=lambda count: seconds[count]))
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def learn(
    candidates: Sequence[Kernel], noise: float, x: Tensor, y: Tensor, clock: Clock, generator: torch.Generator,
    profile: bool = True, keep_noise: bool = False, progress: Progress | None = None, share: float = 0.5,
    least: float = LEAST,
    spread: float = SPREAD,
) -> Learned:  # fmt: skip
    """The candidate and parameters of the largest marginal likelihood.

    x: n d, y: n c, float64. All candidates climb on a few hundred rows; the winner goes on with more.
    """
    few = parts(x, y, FIRST, generator)
    climbs = []
    first = Likelihood(copy.deepcopy(candidates[0]), noise, few, profile)
    with _quickest(first) if len(x) > 100 else nullcontext():
        for place, kernel in enumerate(candidates):
            target = _start(copy.deepcopy(kernel), noise, few, profile, keep_noise, least)
            climb = _Climb(target, clock, share * 0.75 * (place + 1) / len(candidates), progress, spread)
            climbs.append((climb.run(25), target))
            if clock.interrupted:
                break
        value, target = max(climbs, key=lambda found: found[0])
        if not clock.over(share) and len(x) > FIRST:
            target.parts = parts(x, y, LAST, generator)
            value = _Climb(target, clock, share, progress, spread).run(40)
    log.info("learned %r, noise %.3g", target.kernel, math.exp(target.log_noise))
    return Learned(target.kernel, math.exp(target.log_noise), value)
