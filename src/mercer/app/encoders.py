"""Columns to coordinates. Every fitted encoder is a few numbers and words: it is stored as JSON, never as code."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import HashingVectorizer

from mercer.app.columns import Column

DAY = 86_400.0
_FEW = 8  # up to this many levels, each level has a coordinate of its own
_CLIP = 3.0


def _marked(z: np.ndarray, column: Column, absent: bool) -> np.ndarray:
    """The coordinates, with an indicator of missing values where training rows had some."""
    return np.hstack([z, column.missing.astype(np.float64)[:, None]]) if absent else z


def _marker(name: str, absent: bool) -> list[str]:
    return [f"{name} is missing"] if absent else []


@dataclass(frozen=True)
class NumberEncoder:
    """(value - center) / scale by median and quartiles; far tails drawn in smoothly to at most 3 [holzmuller2024]."""

    column: str
    center: float
    scale: float
    clip: bool
    absent: bool
    low: float
    high: float
    kind: str = "number"

    @classmethod
    def fit(cls, column: Column) -> NumberEncoder:
        """Median, and interquartile range (or the half range where the quartiles are equal)."""
        values = column.values[~column.missing]
        low, center, high = np.quantile(values, [0.25, 0.5, 0.75])
        spread = float(high - low) or float(np.ptp(values)) / 2 or 1.0
        clip = bool(np.abs((values - center) / spread).max() > _CLIP)
        ends = float(values.min()), float(values.max())
        return cls(column.name, float(center), spread, clip, bool(column.missing.any()), *ends)

    def encode(self, column: Column) -> np.ndarray:
        """n x 1, or n x 2 with an indicator of missing values."""
        z = np.nan_to_num((column.values - self.center) / self.scale, nan=0.0)[:, None]
        if self.clip:
            z = z / np.sqrt(1 + (z / _CLIP) ** 2)
        return _marked(z, column, self.absent)

    def labels(self) -> list[str]:
        """The names of the coordinates."""
        return [self.column, *_marker(self.column, self.absent)]


@dataclass(frozen=True)
class FlagEncoder:
    """false -> 0, true -> 1, missing -> the training share of true."""

    column: str
    share: float
    absent: bool
    kind: str = "flag"

    @classmethod
    def fit(cls, column: Column) -> FlagEncoder:
        """The share of true values."""
        return cls(column.name, float(np.nanmean(column.values)), bool(column.missing.any()))

    def encode(self, column: Column) -> np.ndarray:
        """n x 1, or n x 2 with an indicator of missing values."""
        z = np.where(column.missing, self.share, column.values)[:, None]
        return _marked(z, column, self.absent)

    def labels(self) -> list[str]:
        """The names of the coordinates."""
        return [self.column, *_marker(self.column, self.absent)]


@dataclass(frozen=True)
class DateEncoder:
    """Elapsed time in units of the training span, and circular day of year, weekday and hour where they vary."""

    column: str
    start: float
    span: float
    cycles: list[str]
    absent: bool
    format: str = ""
    kind: str = "date"

    @classmethod
    def fit(cls, column: Column) -> DateEncoder:
        """Which cycles vary: a span over 60 days shows seasons, over 3 days weekdays, times of day show hours."""
        values = column.values[~column.missing]
        span = float(np.ptp(values)) or 1.0
        cycles = ["year"] * (span > 60 * DAY) + ["week"] * (span > 3 * DAY) + ["day"] * bool((values % DAY).any())
        return cls(column.name, float(values.min()), span, cycles, bool(column.missing.any()), column.format)

    def encode(self, column: Column) -> np.ndarray:
        """n x (1 + 2 cycles [+ 1])."""
        seconds = np.where(column.missing, self.start + self.span / 2, column.values)
        parts = [2 * (seconds - self.start) / self.span - 1]
        for cycle in self.cycles:
            if cycle == "year":
                days = pd.to_datetime(np.floor(seconds / DAY), unit="D", errors="coerce").day_of_year
                turn = np.nan_to_num(np.asarray(days, dtype=np.float64)) / 365.25
            else:
                turn = seconds / (7 * DAY if cycle == "week" else DAY)
            parts += [np.sin(2 * np.pi * turn), np.cos(2 * np.pi * turn)]
        z = np.stack(parts, axis=1)
        z[column.missing, 1:] = 0.0
        return _marked(z, column, self.absent)

    def labels(self) -> list[str]:
        """The names of the coordinates."""
        waves = [f"{self.column}: {wave} of {cycle}" for cycle in self.cycles for wave in ("sine", "cosine")]
        return [self.column, *waves, *_marker(self.column, self.absent)]


@dataclass(frozen=True)
class LevelEncoder:
    """One coordinate per level (1 / sqrt 2 where it is that level, so that two levels lie at distance 1)."""

    column: str
    levels: list[str]
    absent: bool
    kind: str = "text"

    @classmethod
    def fit(cls, column: Column) -> LevelEncoder:
        """The levels seen, in order."""
        present = column.values[~column.missing]
        return cls(column.name, sorted(set(present)), bool(column.missing.any()))

    def encode(self, column: Column) -> np.ndarray:
        """n x levels; a level never seen, or no value, is the origin."""
        z = (column.values[:, None] == np.array(self.levels, dtype=object)[None, :]) * np.sqrt(0.5)
        return _marked(z, column, self.absent)

    def labels(self) -> list[str]:
        """The names of the coordinates."""
        return [*(f"{self.column} = {level}" for level in self.levels), *_marker(self.column, self.absent)]


@dataclass(frozen=True)
class MeanEncoder:
    """Many levels: each stands for its mean target, drawn to the overall mean if it is rare [miccibarreca2001]."""

    column: str
    means: dict[str, list[float]]
    counts: dict[str, int]
    prior: list[float]
    absent: bool
    kind: str = "text"

    @classmethod
    def fit(cls, column: Column, target: np.ndarray) -> MeanEncoder:
        """target: n x t, standardised. The draw is the ratio of the variance within levels to that between them."""
        frame = pd.DataFrame(target).groupby(pd.Series(column.values, dtype=object).fillna("\0").to_numpy())
        size, mean = frame.size().to_numpy(), frame.mean().to_numpy()
        within = float(np.average(frame.var(ddof=0).to_numpy(), axis=0, weights=size).mean())
        between = max(float(np.average((mean - target.mean(0)) ** 2, axis=0, weights=size).mean()), 1e-6)
        strength = float(np.clip(within / between, 1.0, 100.0))
        prior = target.mean(0)
        drawn = (size[:, None] * mean + strength * prior) / (size[:, None] + strength)
        levels = [str(level) for level in frame.groups]
        means = dict(zip(levels, drawn.tolist(), strict=True))
        counts = dict(zip(levels, size.tolist(), strict=True))
        return cls(column.name, means, counts, prior.tolist(), bool(column.missing.any()))

    def encode(self, column: Column) -> np.ndarray:
        """n x (t + 1): means and the logarithm of how often the level was seen."""
        words = pd.Series(column.values, dtype=object).fillna("\0")
        codes, levels = pd.factorize(words)
        table = np.array([[*self.means.get(w, self.prior), np.log1p(self.counts.get(w, 0))] for w in levels])
        z = table[codes]
        z[:, -1] /= max(np.log1p(max(self.counts.values())), 1.0)
        return z

    def cross_fitted(self, column: Column, target: np.ndarray, folds: np.ndarray) -> np.ndarray:
        """The training rows' coordinates, means taken from the other folds, so that no row sees its own target."""
        z = self.encode(column)
        for fold in np.unique(folds):
            inside = folds == fold
            if inside.all():
                continue
            other = MeanEncoder.fit(column.take(np.flatnonzero(~inside)), target[~inside])
            z[inside, :-1] = other.encode(column.take(np.flatnonzero(inside)))[:, :-1]
        return z

    def labels(self) -> list[str]:
        """The names of the coordinates."""
        t = len(self.prior)
        means = [f"{self.column}: mean target" + (f" {i + 1}" if t > 1 else "") for i in range(t)]
        return [*means, f"{self.column}: how common"]


@dataclass(frozen=True)
class WordEncoder:
    """Free text: hashed letter groups, then the directions in which they vary most (arrays in the weights file)."""

    column: str
    directions: np.ndarray = field(compare=False)
    absent: bool = False
    kind: str = "text"

    @classmethod
    def fit(cls, column: Column, seed: int) -> WordEncoder:
        """Up to 8 directions of the hashed 3- and 4-letter groups, by a truncated singular value decomposition."""
        from_hash = _hashed(column)
        rank = min(8, from_hash.shape[0] - 1)
        tool = TruncatedSVD(rank, random_state=seed).fit(from_hash)
        scale = np.sqrt(np.maximum(tool.explained_variance_, 1e-12))[:, None]
        return cls(column.name, tool.components_ / scale, bool(column.missing.any()))

    def encode(self, column: Column) -> np.ndarray:
        """n x 8."""
        return np.asarray(_hashed(column) @ self.directions.T) / np.sqrt(len(self.directions))

    def labels(self) -> list[str]:
        """The names of the coordinates."""
        return [f"{self.column}: wording {i + 1}" for i in range(len(self.directions))]


def _hashed(column: Column) -> Any:
    words = ["" if v is None else v[:2000] for v in column.values]
    tool = HashingVectorizer(analyzer="char_wb", ngram_range=(3, 4), n_features=2**11, alternate_sign=False)
    return tool.transform(words)


Encoder = NumberEncoder | FlagEncoder | DateEncoder | LevelEncoder | MeanEncoder | WordEncoder
_BY_NAME: dict[str, Any] = {
    "number": NumberEncoder, "flag": FlagEncoder, "date": DateEncoder, "levels": LevelEncoder, "means": MeanEncoder,
}  # fmt: skip


def is_wording(present: np.ndarray) -> bool:
    """Whether texts are read for their wording: most differ and they are long."""
    return len(set(present)) > 0.5 * len(present) and float(np.mean([len(v) for v in present])) > 24


def fit_encoder(column: Column, target: np.ndarray, seed: int) -> Encoder:
    """The encoder that suits a column that is neither constant nor empty."""
    if column.kind == "number":
        return NumberEncoder.fit(column)
    if column.kind == "flag":
        return FlagEncoder.fit(column)
    if column.kind == "date":
        return DateEncoder.fit(column)
    present = column.values[~column.missing]
    distinct = len(set(present))
    if distinct <= _FEW:
        return LevelEncoder.fit(column)
    return WordEncoder.fit(column, seed) if is_wording(present) else MeanEncoder.fit(column, target)


def to_state(encoder: Encoder) -> tuple[dict[str, Any], np.ndarray | None]:
    """(JSON, array) of a fitted encoder."""
    if isinstance(encoder, WordEncoder):
        return {"encoder": "words", "column": encoder.column, "absent": encoder.absent}, encoder.directions
    name = next(n for n, cls in _BY_NAME.items() if isinstance(encoder, cls))
    return {"encoder": name} | asdict(encoder), None


def from_state(state: dict[str, Any], array: np.ndarray | None) -> Encoder:
    """The encoder that `to_state` described. The reader of the folder has checked names and types."""
    fields = {k: v for k, v in state.items() if k != "encoder"}
    if state["encoder"] == "words":
        return WordEncoder(fields["column"], np.asarray(array, dtype=np.float64), fields["absent"])
    return _BY_NAME[state["encoder"]](**fields)
