"""Targets with heavy tails on a logarithmic scale: numbers there, their way back, and the mean on the way back."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

HEAVY = 6.0  # quartile ranges between the 0.5 % and 99.5 % quantiles: 3.8 of a normal, 4.8 of an exponential
FEWEST, VALUES = 50, 10  # rows, and distinct values, below which a scale is not chosen
ATOM = 0.1  # share of the rows that may have one and the same value: more are a kind of their own, not a tail
NEAR = (0.05, 0.25, 0.5)  # quantiles of the distance to the centre that may be where the logarithm begins
CHANCE = 1.2  # standard errors by which squares must differ to be believed: one wild row by itself makes 1
ASIDE = 500  # rows for one more row of either side that does not count where two scales are compared
Pull = tuple[float, float]  # where predictions are drawn to, and the share of their distance that is kept


def heavy(y: np.ndarray) -> bool:
    """Whether so many values of y: n lie so far out that squares of errors are those of a few rows."""
    each = np.unique(y, return_counts=True)[1]
    if len(y) < FEWEST or len(each) < VALUES or each.max() > ATOM * len(y):
        return False
    low, first, third, high = np.quantile(y, [0.005, 0.25, 0.75, 0.995])
    return bool(high - low > HEAVY * (third - first))


def beyond(first: np.ndarray, second: np.ndarray) -> float:
    """How much larger the first errors are than the second, row by row, in standard errors."""
    gap = first - second
    unit = float(np.abs(gap).max()) or 1.0  # squares of very large errors overflow
    return float(gap.mean() / unit / max(float((gap / unit).std()) / len(gap) ** 0.5, 1e-12))


def less(first: np.ndarray, second: np.ndarray) -> bool:
    """Whether the first errors have smaller squares than the second, apart from the rows that say so most either way.

    Among heavy tails a single row can outweigh all others.
    """
    unit = float(np.abs(second).max()) or 1.0
    gap = np.sort(((second / unit) ** 2 - (first / unit) ** 2).ravel())
    aside = 1 + len(gap) // ASIDE
    return bool(gap[aside : len(gap) - aside].sum() > 0)


def pull(y: np.ndarray, left_out: np.ndarray) -> Pull | None:
    """(the mean of y, what to keep of the distance to it) where left-out predictions, n, are worse than that mean.

    What is kept is the slope of y on these predictions, between 0 and 1: 0 predicts the mean. None: leave them.
    """
    unit = float(np.abs(y).max()) or 1.0
    y, found, mean = y / unit, left_out / unit, float(y.mean() / unit)
    if beyond((y - found) ** 2, (y - mean) ** 2) <= CHANCE:
        return None
    around = found - found.mean()
    share = float(around @ (y - mean)) / max(float(around @ around), 1e-300)
    return mean * unit, float(np.clip(share, 0.0, 1.0))


@dataclass(frozen=True)
class LogScale:
    """t = asinh((y - centre) / spread): linear near the centre, a logarithm far from it on both sides.

    even, odd: means of cosh and sinh of what left-out rows were missed by on this scale; with them a prediction of t,
    a median where these are even, becomes a mean: spread (even sinh t + odd cosh t) + centre. Where even is 1 and odd
    is 0 it stays a median. low, high: what was predicted of left-out rows; exponentials go astray beyond.
    Source [johnson1949], [duan1983].
    """

    centre: float
    spread: float
    even: float = 1.0
    odd: float = 0.0
    low: float = -np.inf
    high: float = np.inf

    @classmethod
    def of(cls, y: np.ndarray) -> LogScale:
        """The scale on which y: n looks most normal, by likelihood: around the median, zero, or from one end."""
        best, found = np.inf, cls(float(np.median(y)), 1.0)
        ends = (float(np.median(y)), 0.0, float(y.min()), float(y.max()))
        for centre in dict.fromkeys(ends):
            away = np.abs(y - centre)
            away = away[away > 0]
            for spread in np.quantile(away, NEAR):
                scale = cls(centre, float(spread))
                t = scale.forward(y)
                loss = np.log(t.std()) + float(np.mean(np.log(np.hypot(y - centre, spread))))
                if loss < best:
                    best, found = loss, scale
        return found

    def seen(self, t: np.ndarray, left_out: np.ndarray) -> LogScale:
        """The same with the mean and the limits that the left-out predictions of t, both n, speak of."""
        wrong = t - left_out
        return replace(
            self, even=float(np.cosh(wrong).mean()), odd=float(np.sinh(wrong).mean()),
            low=float(left_out.min()), high=float(left_out.max()),
        )  # fmt: skip

    def medians(self) -> LogScale:
        """The same, of which `mean` gives medians."""
        return replace(self, even=1.0, odd=0.0)

    def forward(self, y: np.ndarray) -> np.ndarray:
        """y on this scale."""
        return np.arcsinh((y - self.centre) / self.spread)

    def back(self, t: np.ndarray) -> np.ndarray:
        """Values of this scale, such as medians and the ends of bands, in the units of y."""
        with np.errstate(over="ignore"):
            return self.centre + self.spread * np.sinh(t)

    def mean(self, t: np.ndarray) -> np.ndarray:
        """Predictions of this scale as means in the units of y."""
        with np.errstate(over="ignore"):
            return self.centre + self.spread * (self.even * np.sinh(t) + self.odd * np.cosh(t))
