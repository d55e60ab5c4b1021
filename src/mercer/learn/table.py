"""The border of the learners: tables in, finite float64 out, columns and targets on a common scale."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.sparse import issparse
from sklearn.utils.validation import check_array, check_consistent_length, validate_data

from mercer.errors import DataError, MercerWarning, OutlierWarning, ShapeError
from mercer.learn.state import record

TAIL = 4.0  # robust deviations beyond which a coordinate grows like a logarithm
FAR, GAP = 100.0, 30.0  # an outlier lies this many deviations out, and this many times further than all others
FLOAT32_EXACT = 2.0**24


def plain(data: Any) -> Any:
    """A torch tensor as a numpy array; anything else as it is."""
    return data.detach().cpu().numpy() if isinstance(data, torch.Tensor) else data


def refuse_gaps(table: np.ndarray, what: str, names: np.ndarray | None = None) -> None:
    """Raise DataError naming the first row and column that is NaN or infinite."""
    if np.isfinite(table.sum()) or np.isfinite(table).all():  # the sum is cheap; the mask decides
        return
    row, column = (int(i) for i in np.argwhere(~np.isfinite(table))[0])
    found = "NaN" if np.isnan(table[row, column]) else "infinity"
    label = f" ({names[column]!r})" if names is not None else ""
    raise DataError(
        f"{what} holds {found} at row {row}, column {column}{label}; fill or drop it (mercer fit fills gaps by itself)"
    )


def refuse_words(data: Any, what: str) -> None:
    """Raise DataError naming the first cell that is text, which numpy would turn into a number without a word."""
    if data is None or issparse(data):
        return
    table = np.asarray(data)
    if table.dtype.kind not in "USTO" or not table.size:
        return
    flat = table.reshape(len(table) if table.ndim else 1, -1)
    for row, cells in enumerate(flat):
        for column, cell in enumerate(cells):
            if isinstance(cell, str | bytes):
                names = getattr(data, "columns", None)
                label = f" ({str(list(names)[column])!r})" if names is not None else ""
                raise DataError(
                    f"{what} holds text ({str(cell)[:40]!r}) at row {row}, column {column}{label}; expected numbers: "
                    "turn it into numbers first (mercer fit reads text by itself)"
                )


def read(
    estimator: Any, x: Any, y: Any = None, *, reset: bool, classes: bool = False, target: bool = True
) -> tuple[np.ndarray, Any]:
    """(X as float64 `n d`, y as it came in numpy), checked the scikit-learn way and for gaps, with places named.

    target: whether a fit needs y.
    """
    if reset and target and y is None:
        raise DataError(f"{type(estimator).__name__} requires y to be passed, but the target y is None")
    x, y = plain(x), plain(y)
    refuse_words(x, "X")
    if not classes:
        refuse_words(y, "y")
    table = validate_data(estimator, x, dtype=[np.float64, np.float32], ensure_all_finite=False, reset=reset)
    if y is not None:
        y = np.asarray(y) if classes else check_array(y, ensure_2d=False, ensure_all_finite=False, dtype="numeric")
        check_consistent_length(table, y)
        if y.ndim > 2:
            raise ShapeError(f"y has {y.ndim} axes; expected n or n c")
    names = getattr(estimator, "feature_names_in_", None)
    refuse_gaps(table, "X", names)
    if y is not None and (not classes or y.dtype.kind == "f"):
        refuse_gaps(np.asarray(y, dtype=np.float64).reshape(len(table), -1), "y")
    if reset and table.dtype == np.float32:
        _warn_coarse(table, names)
    return table.astype(np.float64), y


def _warn_coarse(table: np.ndarray, names: np.ndarray | None) -> None:
    """Whole numbers above 2^24 in float32 have lost their last digits before they reach us: say so."""
    top = np.abs(table).max(0).astype(np.float64)
    spread = table.astype(np.float64).std(0)
    for column in np.flatnonzero((top > FLOAT32_EXACT) & (spread < top / 16)):
        label = f" ({names[column]!r})" if names is not None else ""
        message = (
            f"column {column}{label} reaches {top[column]:.3g} in float32, which cannot tell neighbours apart there"
        )
        warnings.warn(MercerWarning(f"{message}; pass it as float64 or subtract an offset"), stacklevel=4)


@record
@dataclass(frozen=True)
class Scaler:
    """Columns to robust deviations from the median, tails beyond 4 deviations pressed to a logarithm."""

    centre: np.ndarray
    scale: np.ndarray

    @classmethod
    def fit(cls, table: np.ndarray) -> Scaler:
        """Median and interquartile range / 1.349; the standard deviation or half the range where that is zero."""
        low, centre, high = np.percentile(table, [25, 50, 75], axis=0)
        scale = (high - low) / 1.349
        top, bottom = table.max(0), table.min(0)
        spread = np.sqrt(np.mean(np.square((table - centre) / np.where(top > bottom, top - bottom, 1.0)), 0))
        spread = spread * (top - bottom)
        two = np.all((table == top) | (table == bottom), axis=0)
        scale = np.where(two, (top - bottom) / 2, np.where(scale > 0, scale, spread))
        tiny = scale <= 4 * np.finfo(np.float64).eps * np.maximum(np.abs(top), np.abs(bottom))
        return cls(centre, np.where(tiny, 1.0, scale))

    @classmethod
    def identity(cls, d: int) -> Scaler:
        """No change at all, marked by scale = infinity so that tails stay too."""
        return cls(np.zeros(d), np.full(d, np.inf))

    def __call__(self, table: np.ndarray) -> torch.Tensor:
        if np.isinf(self.scale).any():
            return torch.from_numpy(np.ascontiguousarray(table, dtype=np.float64))
        z = (table - self.centre) / self.scale
        far = np.maximum(np.abs(z) - TAIL, 0.0)
        return torch.from_numpy(np.ascontiguousarray(np.clip(z, -TAIL, TAIL) + np.sign(z) * np.log1p(far)))

    def tensor(self, x: torch.Tensor) -> torch.Tensor:
        """The same of a float64 tensor, with its gradient."""
        if np.isinf(self.scale).any():
            return x
        z = (x - torch.from_numpy(self.centre)) / torch.from_numpy(self.scale)
        return z.clamp(-TAIL, TAIL) + z.sign() * (z.abs() - TAIL).clamp_min(0).log1p()


def deviation(y: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """Of each column of y: n c from its centre, NaN left out; of numbers, too, whose squares are none."""
    far = y - centre
    unit = np.nanmax(np.abs(far), 0)
    unit = np.where(unit > 0, unit, 1.0)
    return unit * np.sqrt(np.nanmean(np.square(far / unit), 0))


@record
@dataclass(frozen=True)
class Target:
    """y to mean 0 and deviation 1 for each output, `n c`, and back.

    edges: 3 c: rows further than the third from the first are learned from as if they lay at the second.
    """

    centre: np.ndarray
    scale: np.ndarray
    edges: np.ndarray | None = None

    @classmethod
    def fit(cls, y: np.ndarray, standardize: bool = True) -> tuple[Target, torch.Tensor]:
        """(the scale, scaled y) of y: n c; gross isolated outliers are clipped with OutlierWarning."""
        if not standardize:
            return cls(np.zeros(y.shape[1]), np.ones(y.shape[1])), torch.from_numpy(y.copy())
        edges = np.stack([_edges(column, i) for i, column in enumerate(y.T)], 1)
        y = _inside(y, edges)
        centre = y.mean(0)
        scale = deviation(y, centre)
        tiny = scale <= 4 * np.finfo(np.float64).eps * np.abs(y).max(0)
        scale = np.where(tiny, 1.0, scale)
        found = cls(centre, scale, edges)
        return found, torch.from_numpy(np.where(tiny, 0.0, (y - centre) / scale))

    def forward(self, y: np.ndarray) -> np.ndarray:
        """y: n c on the common scale, nothing clipped."""
        return (y - self.centre) / self.scale

    def taught(self, y: np.ndarray) -> np.ndarray:
        """y: n c on the common scale, to be learned from: what `fit` would have clipped is clipped."""
        return self.forward(y if self.edges is None else _inside(y, self.edges))

    def back(self, scaled: np.ndarray) -> np.ndarray:
        """Predictions in the units of y."""
        return self.centre + self.scale * scaled


def _inside(y: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """y: n c, where what lies beyond the edges is clipped."""
    centre, limit, reach = edges
    with np.errstate(over="ignore"):
        out = np.abs(y - centre) > reach
        return np.where(out, np.clip(y, centre - limit, centre + limit), y) if out.any() else y


def _edges(y: np.ndarray, column: int) -> np.ndarray:
    """Centre, the distance of the furthest value that is no outlier, and the one beyond which values are outliers."""
    low, centre, high = np.percentile(y, [25, 50, 75])
    scale = (high - low) / 1.349
    if scale <= 0 or len(y) < 8:
        return np.array([centre, np.inf, np.inf])
    size = np.abs(y - centre) / scale
    order = np.sort(size)
    jumps = np.flatnonzero((order[1:] > FAR) & (order[1:] > GAP * np.maximum(order[:-1], 1.0)))
    jumps = jumps[jumps + 1 >= 0.98 * len(y)]  # a crowd beyond a gap is not an outlier
    limit = order[jumps[0]] if len(jumps) else order[-1]
    edges = np.array([centre, limit * scale, max(FAR, GAP * max(limit, 1.0)) * scale])
    if not len(jumps):
        return edges
    out = np.flatnonzero(size > limit)
    shown = ", ".join(f"{y[i]:.4g} at row {i}" for i in out[:3])
    message = (
        f"y (output {column}) holds {len(out)} value(s) far beyond all others ({shown}); clipped to the largest other"
    )
    warnings.warn(OutlierWarning(f"{message}; remove or correct them to silence this"), stacklevel=5)
    return edges
