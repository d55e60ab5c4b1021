"""What the kernel learners share: reading a table, learning a kernel, choosing a plan, predicting, saving."""

from __future__ import annotations

import copy
import dataclasses
import functools
import logging
from abc import ABC
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.utils import check_random_state
from torch import Tensor

from mercer.assemble import assemble
from mercer.errors import DataError
from mercer.kernel import Kernel
from mercer.kernels import Scaled
from mercer.learn import plan as planning
from mercer.learn.arguments import positive, usual
from mercer.learn.conformal import LocalConformal
from mercer.learn.copies import Repeats
from mercer.learn.landmarks import falkon, normal
from mercer.learn.likelihood import LEAST
from mercer.learn.metric import directions, sharpened
from mercer.learn.refine import ROWS, refine
from mercer.learn.screen import screened
from mercer.learn.solve import FLOOR, LOOSE, Fitted, exact, whole
from mercer.learn.state import Saved
from mercer.learn.table import Scaler, Target, read
from mercer.learn.tune import LAST, SPREAD, Clock, Pair, defaults, learn
from mercer.learn.unseen import OWN, flattered

log = logging.getLogger("mercer")

KNOWN = 2  # of the kernels learned elsewhere, how many are judged by left-out rows
CALIBRATION = 0.1  # of the seconds: to learn where intervals are wider
START = 0.1  # noise relative to the output scale, before anything is learned


class KernelEstimator(Saved, BaseEstimator, ABC):
    """Base of the kernel learners: not public, and of no use alone."""

    kernel: Any
    learn: bool
    standardize: bool | None
    time_budget: float | None
    progress: Any
    random_state: Any
    _profile: bool = True  # the output scale is not a parameter: only the ratio of noise to scale decides predictions
    _noise_name = "alpha"
    _least = LEAST  # noise that learning may reach
    _spread = SPREAD
    _known: Sequence[Pair] = ()
    _repeats: Repeats | None = None
    _within: float = 0.0  # variance of y among rows of one place
    _truth: Tensor
    _learning = (0, False)  # (steps, whether there were hardly any)
    _factor: Any = None
    _fitted: tuple[str, ...] = ("kernel_", "plan_", "scaler_", "_common", "target_", "_points", "_weights", "_pair")

    @classmethod
    def _names(cls, which: str) -> list[str]:
        return super()._names(which) + [f"{cls._noise_name}_"] * (which == "_fitted")

    def begin_at(self, known: Sequence[Pair]) -> Any:
        """Let `fit` consider kernels, with their noises, that were learned on like rows; returns self.

        The likeliest is where learning begins, and the best by left-out rows is kept if learning finds none better.
        """
        self._known = [(copy.deepcopy(kernel), float(noise)) for kernel, noise in known]
        return self

    def learned(self) -> Pair:
        """(kernel, noise) of the least squares fit, for `begin_at` of another."""
        return self._pair

    def _flattered(self, rows: int, columns: int) -> bool:
        """Whether the closed form of left-out predictions would praise what was learned from so few rows."""
        mine = columns if self.kernel is None else sum(p.numel() for p in self.kernel.parameters())
        return self.learn and flattered(rows, mine)

    def _clock(self, rows: int, columns: int) -> Clock:
        share = OWN if self._flattered(rows, columns) else 1.0
        return Clock.of(None if self.time_budget is None else share * self.time_budget)

    def _read(self, x: Any, y: Any = None, *, reset: bool, classes: bool = False) -> tuple[np.ndarray, Any]:
        table, y = read(self, x, y, reset=reset, classes=classes)
        if reset and len(table) < 2:
            raise DataError(f"{type(self).__name__} got 1 sample; expected at least 2 rows to learn from")
        return table, y

    def _check(self) -> None:
        positive(self._noise_name, getattr(self, self._noise_name))
        usual(self)

    def _given(self) -> float | None:
        """The noise that the caller named."""
        return getattr(self, self._noise_name)

    def _ours(self) -> bool:
        return self.kernel is None if self.standardize is None else bool(self.standardize)

    def _learned(self, x: Tensor, y: Tensor, clock: Clock, generator: torch.Generator) -> tuple[Kernel, float]:
        """(kernel, noise) for scaled data."""
        given = self._given()
        noise = START if given is None else float(given)
        mine = self.kernel is None
        least = self._least if len(x) <= planning.EXACT_ROWS else max(self._least, FLOOR)  # what the solve can bear
        within = self._within if given is None else 0.0
        profile = self._profile and within == 0  # a noise that is known in units of y needs the output scale
        candidates: list[Kernel] = defaults(x.shape[1], not self._profile) if mine else [copy.deepcopy(self.kernel)]
        if not self.learn or bool((y == y[0]).all()):
            return candidates[0], noise
        if mine and (begun := screened(x, y, generator)):
            candidates = [k if self._profile else Scaled(k, 1.0) for k in begun] + candidates[-1:]
        known = self._known
        if profile < self._profile:
            candidates = [Scaled(k, 1.0) for k in candidates]
            known = [self._apart(k, level, x, y, within, least) for k, level in known]
        shares: tuple[Tensor, ...] = ()
        if self._repeats is not None:
            sizes = self._repeats.sizes
            shares = (torch.ones_like(sizes) if given is None else 1 / sizes, within / sizes)
        found = learn(
            candidates, noise, x, y, clock, generator,
            profile=profile, keep_noise=given is not None, progress=self.progress,
            least=least, spread=self._spread, known=known, shares=shares,
        )  # fmt: skip
        self._learning = found.steps, found.hasty() and not self._known  # begun where others had come to
        kernel, noise = found.kernel, found.noise + within
        if isinstance(kernel, Scaled) and profile < self._profile:
            scale = float(kernel.variance.detach())
            kernel, noise, self._within = kernel.kernel, noise / scale, within / scale
        if given is None and self._profile:
            many = len(x) > 2 * ROWS  # then the likelihood cannot flatter itself, and folds tune the noise
            rows = torch.randperm(len(x), generator=generator)[:ROWS]
            others = found.known[:KNOWN] if profile else self._known[:KNOWN]
            share = self._share(noise)
            kernel, noise = refine(
                kernel, noise, x[rows], y[rows], self._judge, clock, least, many, others,
                share=None if share is None else share[rows], truth=self._truth[rows],
            )  # fmt: skip
            self._within = noise * self._own(kernel, noise, x, y, within)
        if given is not None or not mine:
            return kernel, noise
        least, share = max(least, FLOOR), self._share(noise)
        kernel, noise = sharpened(kernel, noise, x, y, self._truth, share, clock, generator, least, self.progress)
        if self._profile:
            self._within = noise * self._own(kernel, noise, x, y, within)
        return kernel, noise

    @torch.no_grad()
    def _own(self, kernel: Kernel, noise: float, x: Tensor, y: Tensor, within: float) -> float:
        """The share of a noise, relative to the kernel's scale, that is `within` in units of y."""
        if self._repeats is None or within == 0:
            return 0.0
        rows = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[:ROWS]
        return self._repeats.own(kernel.block(x[rows], x[rows]), y[rows], noise, within, rows)

    def _apart(self, kernel: Kernel, noise: float, x: Tensor, y: Tensor, within: float, least: float) -> Pair:
        """A kernel on the scale of y, and its noise without `within`."""
        own = self._own(kernel, noise, x, y, within)
        scale = within / max(own * noise, 1e-300)
        return Scaled(copy.deepcopy(kernel), scale), max((1 - own) * noise * scale, least)

    def _goal(self, means: Tensor, drawn: Tensor) -> Tensor:
        """What left-out predictions are judged against: the mean of y at each place, or the y of a row drawn there."""
        return means

    def _share(self, noise: float) -> Tensor | None:
        """The noise of each place as a share of that of a row; None where no place was seen twice."""
        if self._repeats is None:
            return None
        if self._given() is not None:
            self._within = noise  # the caller's word on what a row is worth
        return self._repeats.shares(self._within, noise)

    def _judge(self, left_out: Tensor, y: Tensor) -> float | Tensor:
        """The error of left-out predictions of scaled y, of each row."""
        return (left_out - y).square().mean(1)

    def _fit(self, table: np.ndarray, y: np.ndarray) -> tuple[Tensor, Tensor, np.ndarray]:
        """Learn and solve for y: n c; sets the fitted attributes, `_left_out` of all rows among them.

        Returns (scaled x, scaled y) of what was learned from: the rows, or each place that rows share and their mean
        there; and which row stands for each.
        """
        clock = self._clock(*table.shape)
        seed = check_random_state(self.random_state).randint(2**31 - 1)
        generator = torch.Generator().manual_seed(int(seed))
        # y is put on a scale of one wherever something is learned; with nothing to learn the numbers stay as given
        self._common = Scaler.fit(table)  # where the width of intervals is looked up, whatever the kernel sees
        self.scaler_ = self._common if self._ours() else Scaler.identity(table.shape[1])
        self.target_, scaled = Target.fit(y, self._ours() or self.learn)
        x = self.scaler_(table)
        twins = self._repeats = Repeats.of(x)
        kept = np.arange(len(x)) if twins is None else twins.picked
        self._within = 0.0 if twins is None else twins.within(scaled)
        each, scaled = scaled, scaled if twins is None else twins.means(scaled)
        self._truth = self._goal(scaled, each[kept])
        x = x[kept]
        kernel, noise = self._learned(x, scaled, clock, generator)
        plan = self._choose(kernel, x, scaled.shape[1], clock)
        self._shares = self._share(noise)
        with torch.no_grad():
            fitted = self._solved(kernel, noise, x, scaled, plan, clock, generator)
        self._keep(kernel, fitted, clock, float((fitted.left_out - scaled).square().mean()))
        self._precision, self._each = fitted.precision, each
        self._left_out = fitted.left_out if twins is None else fitted.left_out[twins.place]
        return x, scaled, kept

    def _solved(
        self, kernel: Kernel, noise: float, x: Tensor, y: Tensor, plan: planning.Plan, clock: Clock,
        generator: torch.Generator,
    ) -> Fitted:  # fmt: skip
        """The plan carried out; iterations that stay far from the solution give way to a direct one that is better."""
        factors = self._factors(len(x))
        if plan.algorithm == "cholesky":
            return exact(kernel, noise, x, y, plan, factors, clock, self._shares)
        run = {"cg": whole, "nystrom": normal, "falkon": falkon}[plan.algorithm]
        fitted = run(kernel, noise, x, y, plan, factors, generator, clock, self._shares)
        if fitted.plan.residual <= LOOSE:
            return fitted
        log.info("iterations stopped at a residual of %.1e: solving with landmarks", fitted.plan.residual)
        direct = planning.landmarks(len(x), plan.landmarks)
        other = normal(kernel, noise, x, y, direct, factors, generator, clock, self._shares)
        return min(fitted, other, key=lambda found: float((found.left_out - y).square().mean()))

    def _choose(self, kernel: Kernel, x: Tensor, outputs: int, clock: Clock) -> planning.Plan:
        left = None if clock.seconds is None else max(clock.seconds - clock.used(), 1.0)
        return planning.choose(len(x), left, functools.partial(planning.Speed.measure, kernel, x), outputs)

    def _factors(self, n: int) -> list[float]:
        """Multiples of the noise to try on all rows: none where all rows were already learned from."""
        if self._given() is not None:
            return []
        if not self.learn:
            return [1e-3, 1e-2, 1e-1, 10.0, 100.0]
        return [] if n <= LAST else [0.3, 3.0]

    def _keep(self, kernel: Kernel, fitted: Fitted, clock: Clock, error: float) -> None:
        self.kernel_ = kernel.requires_grad_(False)
        setattr(self, f"{self._noise_name}_", fitted.noise)
        self._pair = self.kernel_, float(fitted.noise)
        self._points, self._weights, self._factor = fitted.points, fitted.weights, fitted.factor
        steps, hasty = self._learning
        done = dataclasses.replace(
            fitted.plan, seconds=clock.used(), interrupted=clock.interrupted, steps=steps, hasty=hasty, error=error,
            directions=directions(kernel),
        )  # fmt: skip
        self.plan_ = dataclasses.replace(done, sentence=planning.sentence(done))
        log.info("%s: %s", type(self).__name__, self.plan_.sentence)

    @torch.no_grad()
    def _scores(self, x: Tensor) -> np.ndarray:
        """k(x, points) weights for scaled x, `n c` float64."""
        points = x.to(self._points.dtype)
        if not len(points):
            return np.zeros((0, self._weights.shape[1]))
        return assemble(self.kernel_, points, self._points).matmul(self._weights).double().numpy()

    def coordinates(self, X: Any) -> Tensor:
        """The points that `kernel_` sees for rows of X: columns on their common scale, `n d` float64."""
        return self.scaler_(self._read(X, reset=False)[0])

    def _local(self, x: Tensor, scores: np.ndarray) -> np.ndarray:
        """Where the width of intervals is looked up: the columns on their common scale, and the prediction."""
        z = x.numpy() if self._ours() else self._common(x.numpy()).numpy()
        return np.concatenate([z, scores], 1)

    def _conformal(self, x: Tensor, scaled: Tensor, kept: np.ndarray) -> None:
        """Intervals from the predictions of the kept rows by fits without them, one row for each place."""
        left = self._left_out[kept].numpy()
        seconds = None if self.time_budget is None else CALIBRATION * self.time_budget
        local = LocalConformal(scale=False, random_state=0, time_budget=seconds)
        self.conformal_ = local.fit(self._local(x, left), scaled.numpy() - left)
        del self._left_out
