"""The metric that a predictor's own gradients ask for: recursive feature learning, judged by rows it has not seen."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from mercer.assemble import assemble
from mercer.budget import memory_budget
from mercer.kernel import Kernel, ProfileKernel, Scaled, Warped
from mercer.kernels import Matern, Metric
from mercer.learn import plan as planning
from mercer.learn.gradients import agop
from mercer.learn.landmarks import normal
from mercer.learn.solve import Fitted, exact
from mercer.learn.tune import Clock, Pair, Progress, learn
from mercer.learn.unseen import flattered
from mercer.statistic import Statistic

SLOPES = 4000  # rows whose gradients are averaged
PAIRS = 256  # rows whose kernel values set the scale of a new metric
POWER = 0.5  # of the average gradient outer product: 1 lets the strongest direction crowd out the others
FINER = 0.7  # step of the search for a lengthscale
BYTES = 96  # of memory for each squared centre
FEW = 500  # rows that are solved exactly, and the fewest landmarks of more
NOISES = (0.1, 0.3, 3.0, 10.0)  # multiples of the noise that are tried
LEAST_ROWS, MOST_COLUMNS, HELD = 1000, 300, 4000  # of a table whose metric is tried, and rows that judge it
GLANCE, LOOK = (4000, 400, 2), (12_000, 800, 10)  # rows, landmarks and rounds
PATIENT, LITTLE = 2, 0.01  # rounds end where so many in turn bring less than this share of the error
GAIN, SURE = 0.01, 2.0  # of the error, and in standard errors: what a metric must bring
TIME, LATE = 0.7, 0.85  # of the seconds: for rounds, and for scale and noise of a process afterwards
FLOOR = 1e-6  # of the largest entry of a metric: the weakest a direction may be


@dataclass(frozen=True)
class Data:
    """Rows to learn from and rows to judge by: x: n d, y: n c on a common scale; share: of the noise, `n`, or None."""

    x: Tensor
    y: Tensor
    held_x: Tensor
    held_y: Tensor
    share: Tensor | None = None


@dataclass(frozen=True)
class Stage:
    """One round: a kernel, its noise, and the squared errors of held-out rows, `n` (mean over outputs)."""

    kernel: Kernel
    noise: float
    errors: Tensor

    @property
    def error(self) -> float:
        return float(self.errors.mean())


def parted(kernel: Kernel, d: int) -> tuple[Kernel, Tensor]:
    """(base, A) with kernel(x, y) = base(x A, y A): lengthscales and metrics taken out of the kernel, A: d r.

    A kernel of the sum of differences by column keeps its columns: a rotation would change what it is.
    """
    if isinstance(kernel, Warped) and isinstance(kernel.module, Metric):
        base, inner = parted(kernel.kernel, kernel.module.matrix.shape[1])
        return base, kernel.module.matrix @ inner
    scale = getattr(kernel, "lengthscale", None)
    if isinstance(kernel, ProfileKernel) and scale is not None:
        base = copy.deepcopy(kernel)
        base.lengthscale = 1.0
        return base, torch.diag(1 / scale.detach().double().expand(d))
    return kernel, torch.eye(d, dtype=torch.float64)


def metric_of(kernel: Kernel, d: int) -> Tensor:
    """M = A A^T, `d d`: how far apart the kernel sees points, (x - y)^T M (x - y), in its own lengthscales."""
    matrix = parted(kernel.kernel if isinstance(kernel, Scaled) else kernel, d)[1]
    return matrix @ matrix.mT


def directions(kernel: Kernel) -> int:
    """How many directions the metric of a kernel has; 0 where it has none of its own."""
    return max((part.matrix.shape[1] for part in kernel.modules() if isinstance(part, Metric)), default=0)


def _rotatable(kernel: Kernel, x: Tensor) -> Kernel:
    """The kernel; one of the sum of differences by column gives way to that of the distance, as wide on average."""
    base, matrix = parted(kernel, x.shape[1])
    if getattr(base, "statistic", None) is not Statistic.L1_DISTANCE:
        return kernel
    other, points = Matern(0.5), x[:PAIRS] @ matrix
    return other.warp(Metric(matrix * (_size(base, points) / _size(other, points)))).requires_grad_(False)


def _size(base: Kernel, points: Tensor) -> float:
    """The mean distance that a base kernel sees between rows of points."""
    power = 1.0 if getattr(base, "statistic", None) is Statistic.L1_DISTANCE else 2.0
    return max(float(torch.cdist(points, points, power).mean()), 1e-300)


def _sharpened(kernel: Kernel, slopes: Tensor, x: Tensor, full: bool, power: float) -> Kernel:
    """The kernel in the metric of its average gradient outer product, distances on average as long as before."""
    base, before = parted(kernel, x.shape[1])
    if full:
        matrix = Metric.of(slopes).matrix
        matrix = matrix * matrix.square().sum(0) ** (power / 2 - 0.5)
    else:
        relevance = slopes.diagonal()
        matrix = torch.diag(relevance.clamp_min(FLOOR * float(relevance.max())) ** (power / 2))
    some = x[:PAIRS]
    matrix = matrix * (_size(base, some @ before) / _size(base, some @ matrix))
    found = copy.deepcopy(base)
    if full or not hasattr(found, "lengthscale"):
        return found.warp(Metric(matrix))
    found.lengthscale = 1 / matrix.diagonal()
    return found


def stretched(kernel: Kernel, factor: float) -> Kernel:
    """The kernel with distances divided by factor."""
    found = copy.deepcopy(kernel)
    with torch.no_grad():
        scales = [p for name, p in found.named_parameters() if name.endswith("log_lengthscale")]
        for p in scales:
            p.add_(math.log(factor))
        for part in found.modules():
            if isinstance(part, Metric) and not scales:
                part.matrix.div_(factor)
    return found


@dataclass
class Recursion:
    """Rounds of fitting and sharpening. landmarks: of a fit, at most, and no more than a quarter of the rows.

    full: a metric with directions of its own, or one number for each column. search: whether the noise is free.
    """

    data: Data
    full: bool
    landmarks: int
    clock: Clock
    seed: int
    least: float
    search: bool = True
    power: float = POWER
    factor: float = FINER

    def _fit(self, kernel: Kernel, noise: float) -> tuple[Fitted, float]:
        """(a fit of these rows, the mean square of what left-out ones are missed by)."""
        data, n = self.data, len(self.data.x)
        factors = list(NOISES) if self.search else []
        noise, landmarks = (
            max(noise, self.least),
            min(self.landmarks, max(n // 4, FEW), int((memory_budget() / BYTES) ** 0.5)),
        )
        if n <= landmarks:
            plan = planning.Plan("cholesky", n)
            found = exact(kernel, noise, data.x, data.y, plan, factors, self.clock, data.share)
        else:
            plan = planning.Plan("nystrom", n, landmarks=landmarks)
            draws = torch.Generator().manual_seed(self.seed)  # the same landmarks and folds for all that are compared
            found = normal(kernel, noise, data.x, data.y, plan, factors, draws, self.clock, data.share)
        return found, float((found.left_out - data.y).square().mean())

    def _nearer(self, kernel: Kernel, noise: float, both: bool) -> tuple[Kernel, Fitted]:
        """The fit, or that of the kernel stretched, by left-out error; each round tries what helped the last one."""
        found, best = self._fit(kernel, noise)
        for _ in range(1 + both):
            moved = stretched(kernel, self.factor)
            trial, error = self._fit(moved, found.noise)
            if error < best:
                return moved, trial
            self.factor = 1 / self.factor
        return kernel, found

    def rounds(self, kernel: Kernel, noise: float, steps: int) -> Iterator[Stage]:
        """The kernel as it is, then so many times in the metric of the slopes of the fit before."""
        for step in range(steps + 1):
            kernel, fitted = self._nearer(kernel, noise, both=step == 0)
            noise = fitted.noise
            with torch.no_grad():
                points = self.data.held_x.to(fitted.points.dtype)
                found = assemble(kernel, points, fitted.points).matmul(fitted.weights)
            yield Stage(kernel, noise, (found.double() - self.data.held_y).square().mean(1))
            if step < steps:
                some = self.data.x[:SLOPES].to(fitted.points.dtype)
                slopes = agop(kernel, some, fitted.points, fitted.weights)
                if not float(slopes.diagonal().max()) > 0:  # a constant has no direction
                    return
                kernel = _sharpened(kernel, slopes, self.data.x, self.full, self.power).requires_grad_(False)

    def best(self, kernel: Kernel, noise: float, steps: int, until: float) -> tuple[Stage, Stage]:
        """(the kernel as it is, the round of least held-out error): rounds end where two in turn gain little."""
        found: list[Stage] = []
        for stage in self.rounds(kernel, noise, steps):
            found.append(stage)
            if self.clock.over(until) or (len(found) > PATIENT and self._stalled([s.error for s in found])):
                break
        return found[0], min(found, key=lambda stage: stage.error)

    @staticmethod
    def _stalled(errors: list[float]) -> bool:
        return min(errors[-PATIENT:]) > (1 - LITTLE) * min(errors[:-PATIENT])


def _surely(best: Stage, first: Stage) -> bool:
    """Whether held-out rows are predicted better by a hundredth, and by more than chance, row by row."""
    gain = first.errors - best.errors
    chance = SURE * float(gain.std()) / math.sqrt(len(gain))
    return float(gain.mean()) > max(GAIN * first.error, chance)


def _search(
    kernel: Kernel, noise: float, x: Tensor, y: Tensor, truth: Tensor, share: Tensor | None, clock: Clock,
    generator: torch.Generator, least: float,
) -> Stage | None:  # fmt: skip
    """The round that held-out rows surely like better than the kernel as it is, or None.

    A glance on some thousand rows comes first: two rounds that do not help are the last.
    """
    order = torch.randperm(len(x), generator=generator)
    out = min(len(x) // 5, HELD)
    held, kept = order[:out], order[out:]
    seed = int(torch.randint(2**31 - 1, (1,), generator=generator))
    start = _rotatable(kernel, x)
    best = Stage(start, noise, torch.full((out,), math.inf))
    for rows, landmarks, steps in (GLANCE, LOOK) if len(kept) > GLANCE[0] else (LOOK,):
        at = kept[:rows]
        data = Data(x[at], y[at], x[held], truth[held], None if share is None else share[at])
        run = Recursion(data, True, landmarks, clock, seed, least)
        begun = best.kernel
        first, best = run.best(begun, best.noise, steps, TIME)
        if begun is not kernel:
            first = run.best(kernel, noise, 0, TIME)[0]
        if not _surely(best, first):
            return None
    return best


def sharpened(
    kernel: Kernel, noise: float, x: Tensor, y: Tensor, truth: Tensor, share: Tensor | None, clock: Clock,
    generator: torch.Generator, least: float, progress: Progress | None = None,
) -> Pair:  # fmt: skip
    """(kernel, noise) in a metric with directions of its own, where held-out rows are surely predicted better so.

    truth: what is judged, share: of the noise, of rows that are means. As it came where rows or columns are too few
    or too many, or time is short. The scale and noise of a Scaled kernel are learned again by likelihood.
    """
    scaled = isinstance(kernel, Scaled)
    n, d = x.shape
    few = n < LEAST_ROWS or flattered(n, d * (d + 1) // 2)  # left-out predictions would keep what all rows chose
    if few or not 2 <= d <= MOST_COLUMNS or clock.over(TIME) or (scaled and share is not None):
        return kernel, noise
    plain, scale = (kernel.kernel, float(kernel.variance.detach())) if isinstance(kernel, Scaled) else (kernel, 1.0)
    try:
        found = _search(plain, noise / scale, x, y, truth, share, clock, generator, least)
    except KeyboardInterrupt:
        clock.interrupted, found = True, None
    if found is None or not scaled:
        return (kernel, noise) if found is None else (found.kernel, found.noise)
    start = [Scaled(found.kernel.requires_grad_(True), scale)]
    again = learn(start, scale * found.noise, x, y, clock, generator, False, False, progress, LATE, least)
    return again.kernel, again.noise
