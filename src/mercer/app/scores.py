"""How good predictions are, on the scale people know: R2 and errors for numbers, accuracy and log loss for classes."""

from __future__ import annotations

import numpy as np
from sklearn.metrics import roc_auc_score

from mercer.app.targets import Target

Scores = dict[str, float]
MAIN = {"regression": "r2", "classification": "accuracy"}
NAMES = {
    "r2": "R²", "mae": "mean absolute error", "rmse": "root mean squared error",
    "accuracy": "accuracy", "log_loss": "log loss", "auc": "area under ROC",
}  # fmt: skip


def _regression(true: np.ndarray, found: np.ndarray) -> Scores:
    error = true - found
    spread = float(((true - true.mean()) ** 2).sum())
    return {
        "r2": 1.0 - float((error**2).sum()) / spread if spread > 0 else float("nan"),
        "mae": float(np.abs(error).mean()),
        "rmse": float(np.sqrt((error**2).mean())),
    }


def _classification(codes: np.ndarray, chances: np.ndarray) -> Scores:
    own = np.clip(chances[np.arange(len(codes)), codes], 1e-12, 1.0)
    scores = {"accuracy": float((chances.argmax(1) == codes).mean()), "log_loss": float(-np.log(own).mean())}
    areas = [
        roc_auc_score(codes == c, chances[:, c]) for c in range(chances.shape[1]) if 0 < (codes == c).sum() < len(codes)
    ]
    return scores | ({"auc": float(np.mean(areas))} if areas else {})


def score(target: Target, found: np.ndarray) -> Scores:
    """Scores of predictions: n values for a regression target, n x classes chances for a classification target."""
    if target.task == "regression":
        return _regression(target.values, found)
    return _classification(target.values, found)


def spread(target: Target, found: np.ndarray, folds: np.ndarray) -> float:
    """The standard error of the main score over the folds."""
    each = []
    for fold in np.unique(folds):
        rows = np.flatnonzero(folds == fold)
        each.append(score(target.take(rows), found[rows])[MAIN[target.task]])
    return float(np.std(each, ddof=1) / np.sqrt(len(each))) if len(each) > 1 else float("nan")
