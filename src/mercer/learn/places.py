"""Places that training knows: predictions there are drawn to what was observed there."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from mercer.learn.conformal import LocalConformal
from mercer.learn.copies import Repeats, hashed
from mercer.learn.state import record
from mercer.learn.tails import beyond

ENOUGH = 30  # places of several rows below which nothing is believed of them
SURE = 3.0  # standard errors by which left-out rows must be missed by less
Local = Callable[[np.ndarray, np.ndarray], np.ndarray]


@record
@dataclass(frozen=True)
class Places:
    """What is known of g places: y = f(x) + u of the place + e of the row, with variances s_u and s_e.

    At a place of n rows a prediction f becomes f + gain (mean - f), gain = s_u / (s_u + s_e / n): that of a Gaussian
    process with kernel k(x, y) + s_u 1[x = y] and noise s_e. points: g d; means, gain: g c; width: g c, the deviation
    of a new row there from its prediction, in deviations of e. left_out: n c, training rows as predicted by all
    others, those of their own place included (NaN where it has no others). less: c, the share by which that makes
    squares of what these rows are missed by smaller. Source [rasmussen2006, sec. 2.2 and eq. 5.12].
    """

    points: np.ndarray
    means: np.ndarray
    gain: np.ndarray
    width: np.ndarray
    conformal: LocalConformal
    left_out: np.ndarray = field(default_factory=lambda: np.empty((0, 0)), compare=False)
    less: np.ndarray = field(default_factory=lambda: np.empty(0), compare=False)

    @classmethod
    def learned(
        cls, twins: Repeats, points: Tensor, y: Tensor, true: np.ndarray, left_out: np.ndarray, own: float,
        free: Tensor, local: Local, seconds: float | None,
    ) -> Places | None:  # fmt: skip
        """None unless rows left out by themselves are surely missed by less than with all of their place left out.

        y: n c, what was learned from; true: the same unclipped; left_out: g c, places as predicted without any of
        their rows. own: s_e / (s_u + s_e). free: g, what the fit leaves of a left-out residual. local: (places, their
        predictions) to where widths are looked up. Rows left out by themselves are predicted in closed form.
        """
        sizes = twins.sizes.numpy()[:, None]
        several, place = sizes[:, 0] > 1, twins.place
        if not 0 < own < 1 or several.sum() < ENOUGH:
            return None
        noise = (1 - own) + own / sizes
        unknown = noise / free.numpy()[:, None] - own / sizes  # variance of f + u at a place without its rows
        means, others = twins.means(y).numpy(), np.maximum(sizes - 1, 1)
        without = left_out[place]
        rest = ((sizes * means)[place] - y.numpy()) / others[place]
        share = np.where(sizes > 1, unknown / (unknown + own / others), 0.0)
        found = without + share[place] * (rest - without)
        first, second = (np.square(true - guess) for guess in (without, found))
        apart, within = (np.stack([np.bincount(place, e)[several] for e in error.T], 1) for error in (first, second))
        helps = np.array([beyond(a, b) > SURE for a, b in zip(apart.T, within.T, strict=True)])
        if not helps.any():
            return None
        less = np.where(helps, 1 - within.sum(0) / np.maximum(apart.sum(0), 1e-300), 0.0)
        found = np.where(helps, found, without)
        gain = np.where(helps, (1 - own) / noise, 0.0)
        fewer, width = (np.where(helps, np.sqrt(1 + unknown / (m * unknown + own)), 1.0) for m in (sizes - 1, sizes))
        rows = np.flatnonzero(several[place])
        conformal = LocalConformal(scale=False, random_state=0, time_budget=seconds)
        conformal.fit(local(place[rows], found[rows]), (true - found)[rows] / fewer[place[rows]])
        found[~several[place]] = np.nan
        return cls(points.numpy(), means, gain, width, conformal, found, less)

    @property
    def helps(self) -> np.ndarray:
        """The numbers of the outputs that are known better at these places than elsewhere."""
        return np.flatnonzero(self.gain.any(0))

    @functools.cached_property
    def _order(self) -> tuple[np.ndarray, np.ndarray]:
        codes = hashed(self.points)
        order = np.argsort(codes, kind="stable")
        return codes[order], order

    def find(self, x: np.ndarray) -> np.ndarray:
        """The place of each row of x: n d, equal in every number; -1 for new ones."""
        codes, order = self._order
        first = np.minimum(np.searchsorted(codes, hashed(x)), len(codes) - 1)
        at = order[first]
        return np.where((self.points[at] == x).all(1), at, -1)

    def drawn(self, at: np.ndarray, scores: np.ndarray) -> np.ndarray:
        """Predictions f, n c, of rows at the places `at` (-1: a new one) with what was observed there."""
        found, known = scores.copy(), at >= 0
        here = at[known]
        found[known] += self.gain[here] * (self.means[here] - scores[known])
        return found

    def interval(
        self, at: np.ndarray, scores: np.ndarray, where: np.ndarray, coverage: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """(lower, upper) around drawn predictions of rows at places `at`, none of them new."""
        half = (self.conformal.interval(scores, where, coverage)[1] - scores) * self.width[at]
        return scores - half, scores + half
