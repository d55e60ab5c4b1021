"""Predictions of rows by fits that learned nothing from them: neither weights nor lengthscales.

Left-out predictions in closed form keep what all rows chose: the relevance of each column, the noise. Where columns are
many for the rows that choice flatters them, so rows are left out before anything is learned.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from sklearn.base import clone

FOLDS = 5
ROWS, EACH = 50, 10  # fewer rows than this and so many for each learned number: the closed form flatters
FEWEST = 20  # rows below which folds have too little to learn from
OWN = 0.4  # of the seconds: for the fit of all rows where there are folds as well


def flattered(rows: int, numbers: int) -> bool:
    """Whether so many learned numbers are too many for the rows to judge themselves."""
    return numbers > 0 and FEWEST <= rows < ROWS + EACH * numbers


def spread(
    codes: np.ndarray, folds: int, generator: torch.Generator, place: np.ndarray | None = None
) -> np.ndarray:  # fmt: skip
    """The fold of each row, every class of codes: n spread over all; rows of one place stay in one fold."""
    if place is not None:
        _, first, number = np.unique(place, return_index=True, return_inverse=True)
        return spread(codes[first], folds, generator)[number.reshape(-1)]
    order = torch.randperm(len(codes), generator=generator).numpy()
    fold = np.empty(len(codes), dtype=int)
    fold[order[np.argsort(codes[order], kind="stable")]] = np.arange(len(codes)) % folds
    return fold


def left_out(
    model: Any, codes: np.ndarray, place: np.ndarray | None, judge: Callable[[Any, np.ndarray, np.ndarray], np.ndarray]
) -> np.ndarray | None:
    """judge(a fresh model, rows to learn from, rows to predict) of every fold, row by row; None where interrupted.

    codes: n classes, spread over the folds; place: a number that rows share which are left out together.
    """
    fold = spread(codes, FOLDS, torch.Generator().manual_seed(0), place)
    found: np.ndarray | None = None
    for k in range(FOLDS):
        fresh = clone(model).set_params(progress=None)
        if model.time_budget is not None:
            fresh.set_params(time_budget=(1 - OWN) / FOLDS * model.time_budget)
        rows, out = np.flatnonzero(fold != k), np.flatnonzero(fold == k)
        try:
            part = judge(fresh, rows, out)
        except KeyboardInterrupt:
            return None
        if hasattr(fresh, "plan_") and fresh.plan_.interrupted:  # none where there was one class to learn
            return None
        found = np.full((len(codes), part.shape[1]), np.nan) if found is None else found
        found[out] = part
    return found
