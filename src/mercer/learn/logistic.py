"""Kernel logistic regression on landmarks: log odds trained by log loss, stretch and penalty by left-out rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from mercer.budget import memory_budget
from mercer.kernel import Kernel
from mercer.learn.calibrate import Calibration, log_chances
from mercer.learn.clock import Clock, one_thread
from mercer.learn.metric import stretched
from mercer.learn.unseen import spread

ROWS, FEW, LANDMARKS = 2000, 300, 600  # rows and landmarks of the search, landmarks of the fit
STRETCH = (1.0, 2.0, 4.0, 8.0)  # log odds are smoother than memberships
FIRST, STEP, LEAST = 0.3, 10**-0.5, 1e-4  # penalties
FOLDS = 4
GAIN = 0.98  # of the log loss: a smaller gain is not worth leaving least squares
HOPE = 1.5  # times the log loss of least squares: a worse search is not followed
BLOCK = 4096  # rows of kernel values formed at once
MOST, RATE = 3e7, 2e7  # rows times landmarks of a fit; times classes, that are trained on in a second
WEAK = 1e-2  # penalty of the log odds of a class


@dataclass(frozen=True)
class Logistic:
    """Log odds k(x, points) weights + bias: weights `m c`. noise: what in least squares would smooth as much.

    calibration: on left-out rows; loss: theirs, in nats; judged: which rows these are, scores: what they were given.
    """

    kernel: Kernel
    points: Tensor
    weights: Tensor
    bias: np.ndarray
    noise: float
    calibration: Calibration
    loss: float
    judged: np.ndarray
    scores: np.ndarray


@dataclass(frozen=True)
class _Features:
    """k(x, z) turned: coordinates in which the penalty is a plain square and columns of all rows are orthogonal."""

    kernel: Kernel
    z: Tensor
    turn: Tensor

    @classmethod
    def of(cls, kernel: Kernel, x: Tensor, z: Tensor) -> tuple[_Features, np.ndarray]:
        """(the map, its values `n r` on x, float32)."""
        with torch.no_grad(), one_thread():
            values, vectors = torch.linalg.eigh(kernel.block(z, z))
            kept = values > 1e-9 * values[-1]
            base = vectors[:, kept] / values[kept].sqrt()
            found = torch.cat([(kernel.block(part, z) @ base).float() for part in x.split(BLOCK)])
            turn = torch.linalg.eigh((found.mT @ found).double())[1]
            return cls(kernel, z, base @ turn), (found @ turn.float()).numpy()


def solve(f: np.ndarray, codes: np.ndarray, classes: int, penalty: float, start: np.ndarray, steps: int) -> np.ndarray:
    """Weights `r + 1, c`, the last row the bias, of least log loss + penalty / 2 |w|^2. f: n r float32.

    L-BFGS in coordinates scaled by a bound on the curvature. Source [rasmussen2006, sec. 3.5].
    """
    n, r = f.shape
    one, rows = np.eye(classes)[codes], np.arange(n)
    curve = 0.25 * min(1.0, 4 / classes) * np.append(np.square(f).sum(0, dtype=np.float64), n)
    charge = np.append(np.full(r, penalty), WEAK)[:, None]
    unit = np.sqrt(curve[:, None] + charge)

    def loss(theta: np.ndarray) -> tuple[float, np.ndarray]:
        w = theta.reshape(r + 1, classes) / unit
        logits = (f @ w[:-1].astype(np.float32)).astype(np.float64) + w[-1]
        each = log_chances(logits)
        wrong = np.exp(each) - one
        slope = np.vstack([f.T @ wrong.astype(np.float32), wrong.sum(0)]) + charge * w
        value = -each[rows, codes].sum() + 0.5 * float((charge * w * w).sum())
        return float(value), (slope / unit).ravel()

    options = {"maxiter": steps, "ftol": 1e-6}
    found = minimize(loss, (start * unit).ravel(), jac=True, method="L-BFGS-B", options=options)
    return found.x.reshape(r + 1, classes) / unit


def _logits(f: np.ndarray, w: np.ndarray) -> np.ndarray:
    return (f @ w[:-1].astype(np.float32)).astype(np.float64) + w[-1]


def _held_out(
    f: np.ndarray, codes: np.ndarray, classes: int, penalty: float, fold: np.ndarray, starts: list[np.ndarray]
) -> tuple[float, list[np.ndarray]]:
    """(log loss of the rows of as many folds as there are starts, the weights of each)."""
    losses, found = [], []
    for k, start in enumerate(starts):
        w = solve(f[fold != k], codes[fold != k], classes, penalty, start, 25)
        out, place = fold == k, np.arange((fold == k).sum())
        losses.append(-log_chances(_logits(f[out], w))[place, codes[out]])
        found.append(w)
    return float(np.concatenate(losses).mean()), found


def _search(
    kernel: Kernel, x: Tensor, codes: np.ndarray, classes: int, clock: Clock, generator: torch.Generator,
    place: np.ndarray | None,
) -> tuple[float, Kernel, float]:  # fmt: skip
    """(log loss, stretched kernel, penalty): for each stretch down the penalties while the left-out loss falls."""
    rows = torch.randperm(len(x), generator=generator)[:ROWS]
    x, codes = x[rows], codes[rows.numpy()]
    place = None if place is None else place[rows.numpy()]
    fold, tried = spread(codes, FOLDS, generator, place), 1 if classes * len(x) > 10_000 else FOLDS
    soft = any(name.endswith("log_lengthscale") for name, _ in kernel.named_parameters())
    best, chosen, first = float("inf"), (kernel, FIRST), FIRST
    for factor in STRETCH if soft else STRETCH[:1]:
        variant = stretched(kernel, factor)
        _, f = _Features.of(variant, x, x[:FEW])
        starts = [np.zeros((f.shape[1] + 1, classes))] * tried
        before, own, penalty = float("inf"), float("inf"), first
        while penalty >= LEAST and not clock.over(0.5):
            loss, starts = _held_out(f, codes, classes, penalty, fold, starts)
            if loss < best:
                best, chosen = loss, (variant, penalty)
            if loss > 0.999 * before:
                break
            before, own, first = loss, min(own, loss), penalty
            penalty *= STEP
        if own > 1.02 * best or clock.over(0.5):
            break
    return best, *chosen


def fit(
    kernel: Kernel, x: Tensor, codes: np.ndarray, usual: float, clock: Clock, generator: torch.Generator,
    place: np.ndarray | None = None,
) -> Logistic | None:  # fmt: skip
    """Kernel logistic regression from a kernel that was learned by least squares; codes: n of 0 .. c - 1.

    place: a number that rows equal in x share, which are left out together.
    None where its log loss on left-out rows is no less than `usual`, that of least squares, by 2 %.
    Rows are drawn where n times the landmarks is beyond 3e7, the memory budget or half the seconds left.
    Cost: n m (m + 4 c steps) flops. Source [rasmussen2006, sec. 3.5].
    """
    classes = int(codes.max()) + 1
    found, kernel, penalty = _search(kernel, x, codes, classes, clock, generator, place)
    if found > HOPE * usual:
        return None
    m = min(LANDMARKS, len(x))
    seconds = max(clock.limit() - clock.gone(), 1.0)
    most = int(min(MOST, memory_budget() / 24, 0.5 * seconds * RATE / classes) / m)
    rows = torch.randperm(len(x), generator=generator)[: max(most, ROWS)]
    x, codes = x[rows], codes[rows.numpy()]
    features, f = _Features.of(kernel, x, x[:m])
    fold = spread(codes, FOLDS, generator, None if place is None else place[rows.numpy()])
    scores = np.full((len(x), classes), np.nan)
    zero = np.zeros((f.shape[1] + 1, classes))
    for k in range(FOLDS):
        if k and (clock.over(0.8) or len(x) > 10 * ROWS):
            break
        scores[fold == k] = _logits(f[fold == k], solve(f[fold != k], codes[fold != k], classes, penalty, zero, 60))
    judged = np.flatnonzero(np.isfinite(scores[:, 0]))
    scores, left = scores[judged], codes[judged]
    calibration = Calibration.fit(scores, left)
    loss = calibration.loss(scores, left)
    if not loss < GAIN * usual:
        return None
    w = solve(f, codes, classes, penalty, zero, 100)
    shares = np.exp(log_chances(_logits(f, w)))
    noise = penalty / max(float((shares * (1 - shares)).mean()), 1e-3)
    weights = features.turn @ torch.from_numpy(w[:-1])
    return Logistic(kernel, features.z, weights, w[-1], noise, calibration, loss, rows.numpy()[judged], scores)
