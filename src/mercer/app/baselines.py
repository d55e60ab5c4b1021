"""Honest yardsticks, fitted on the same folds: the mean, a linear model, and LightGBM where it is installed."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.linear_model import LogisticRegression, RidgeCV

from mercer.app.frame import Frame
from mercer.app.lazy import optional
from mercer.app.targets import Target


@dataclass(frozen=True)
class Fold:
    """Training and test rows in both forms: coordinates for the linear model, the table itself for trees.

    wording: of columns of free text, their coordinates, which are all that trees can use of them.
    """

    x: np.ndarray
    frame: Frame
    x_test: np.ndarray
    frame_test: Frame
    seed: int
    wording: dict[int, np.ndarray]


def _mean(fold: Fold, target: Target) -> np.ndarray:
    if target.task == "regression":
        return np.full(fold.frame_test.rows, target.values.mean())
    share = np.bincount(target.values, minlength=len(target.classes)) / len(target.values)
    return np.tile(share, (fold.frame_test.rows, 1))


def _every_class(found: np.ndarray, seen: np.ndarray, classes: int) -> np.ndarray:
    chances = np.zeros((len(found), classes))
    chances[:, seen] = found
    return chances


def _linear(fold: Fold, target: Target) -> np.ndarray:
    center, scale = fold.x.mean(0), np.maximum(fold.x.std(0), 1e-9)
    x, z = (fold.x - center) / scale, (fold.x_test - center) / scale
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a logistic fit that stops early is still the yardstick it is meant to be
        if target.task == "regression":
            return RidgeCV(np.logspace(-3, 4, 15)).fit(x, target.values).predict(z)
        seen = np.unique(target.values)
        if len(seen) == 1:
            return _mean(fold, target)
        model = LogisticRegression(max_iter=200).fit(x, target.values)
    return _every_class(model.predict_proba(z), model.classes_, len(target.classes))


def _tree_table(
    frame: Frame, x: np.ndarray, wording: dict[int, np.ndarray], levels: dict[str, pd.Index]
) -> pd.DataFrame:
    data: dict[str, Any] = {}
    for i, column in enumerate(frame.columns):
        if i in wording:
            data |= {f"c{i}_{k}": x[:, k] for k in wording[i]}
        elif column.kind == "text":
            known = levels.setdefault(column.name, pd.Index(pd.unique(column.values[~column.missing])))
            data[f"c{i}"] = pd.Categorical(column.values, categories=known)
        else:
            data[f"c{i}"] = column.values
    return pd.DataFrame(data)


def _lightgbm(fold: Fold, target: Target) -> np.ndarray:
    """Up to 300 trees of 31 leaves on the standardised target, stopped early on a tenth of the training rows."""
    tool: Any = optional("lightgbm")
    levels: dict[str, pd.Index] = {}
    table = _tree_table(fold.frame, fold.x, fold.wording, levels)
    order = np.random.default_rng(fold.seed).permutation(len(table))
    held = max(len(table) // 10, 2)
    test, train = order[:held], order[held:]
    kind = tool.LGBMRegressor if target.task == "regression" else tool.LGBMClassifier
    model = kind(
        n_estimators=300, learning_rate=0.1, random_state=fold.seed, verbose=-1, n_jobs=torch.get_num_threads()
    )
    centre, scale = 0.0, 1.0
    if target.task == "regression":  # trees sum in float32 from zero: a large offset would drown the target
        centre, scale = float(target.values.mean()), float(target.values.std()) or 1.0
    y = (target.values - centre) / scale if target.task == "regression" else target.values
    known = np.isin(target.values[test], target.values[train]) if target.task == "classification" else test >= 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.fit(
            table.iloc[train], y[train], eval_set=[(table.iloc[test[known]], y[test[known]])],
            callbacks=[tool.early_stopping(20, verbose=False)],
        )  # fmt: skip
        other = _tree_table(fold.frame_test, fold.x_test, fold.wording, levels)
        if target.task == "regression":
            return centre + scale * model.predict(other)
        found = model.predict_proba(other)
    return _every_class(found, model.classes_, len(target.classes))


def baselines() -> dict[str, Callable[[Fold, Target], np.ndarray]]:
    """The yardsticks there are, by the name they have in the report."""
    found = {"mean": _mean, "linear": _linear}
    return found | ({"LightGBM": _lightgbm} if optional("lightgbm") is not None else {})
