"""How good predictions are, on the scale people know: R2 and errors for numbers, accuracy and log loss for classes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from sklearn.metrics import roc_auc_score

from mercer.app.targets import Target

Scores = dict[str, float]
UNEVEN = 4.0  # times the rows of the rarest class that the commonest has: then accuracy flatters
NAMES = {
    "r2": "R²", "mae": "mean absolute error", "rmse": "root mean squared error",
    "accuracy": "accuracy", "log_loss": "log loss", "auc": "area under ROC",
    "skill": "skill", "balanced": "balanced accuracy",
}  # fmt: skip

SKILL = (
    "The classes are uneven, so models are ranked by skill: the share of the log loss of guessing from the class "
    "shares alone that is gone; 0 is no better than always saying the commonest class."
)


def main(target: Target) -> str:
    """The score that ranks and compares models, larger is better: R2, accuracy or, with uneven classes, skill."""
    if target.task == "regression":
        return "r2"
    rows = np.bincount(target.values, minlength=len(target.classes))
    return "skill" if rows.max() >= UNEVEN * max(rows.min(), 1) else "accuracy"


def _regression(true: np.ndarray, found: np.ndarray) -> Scores:
    unit = float(np.ptp(true)) or 1.0  # squares of very small or large numbers vanish or overflow
    error, around = (true - found) / unit, (true - true.mean()) / unit
    spread = float((around**2).sum())
    return {
        "r2": 1.0 - float((error**2).sum()) / spread if spread > 0 else float("nan"),
        "mae": unit * float(np.abs(error).mean()),
        "rmse": unit * float(np.sqrt((error**2).mean())),
    }


def _classification(codes: np.ndarray, chances: np.ndarray, ranks: str) -> Scores:
    own = np.clip(chances[np.arange(len(codes)), codes], 1e-12, 1.0)
    right, loss = chances.argmax(1) == codes, float(-np.log(own).mean())
    rows = np.bincount(codes)
    areas = [roc_auc_score(codes == c, chances[:, c]) for c in np.flatnonzero(rows) if rows[c] < len(codes)]
    scores = {"accuracy": float(right.mean())}
    if ranks == "skill":  # the share of the log loss of the class shares that is gone: "always the majority" has none
        shares = rows[rows > 0] / len(codes)
        known = float(-(shares * np.log(shares)).sum())
        if len(shares) == 1:  # rows of one class: shares that leave one row in c + n for the others
            known = float(np.log1p((chances.shape[1] - 1) / len(codes)))
        recall = np.bincount(codes, weights=right)[rows > 0] / rows[rows > 0]
        skill = 1.0 - loss / known
        scores = {"skill": skill, **scores, "balanced": float(recall.mean())}
    return scores | {"log_loss": loss} | ({"auc": float(np.mean(areas))} if areas else {})


def score(target: Target, found: np.ndarray, ranks: str = "") -> Scores:
    """Scores of predictions, the main one first: n values for numbers, n x classes chances for classes.

    ranks: the main score where `target` is a part of the rows that decided it.
    """
    if target.task == "regression":
        return _regression(target.values, found)
    return _classification(target.values, found, ranks or main(target))


def by_fold(target: Target, found: np.ndarray, folds: np.ndarray, ranks: str) -> dict[int, float]:
    """The main score of each fold by itself."""
    each = {}
    for fold in np.unique(folds):
        rows = np.flatnonzero(folds == fold)
        each[int(fold)] = score(target.take(rows), found[rows], ranks)[ranks]
    return each


def spread(each: Mapping[int, float]) -> float:
    """The standard error of the main score over the folds."""
    values = list(each.values())
    return float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else float("nan")
