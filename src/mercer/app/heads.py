"""The learners behind the targets: a kernel ridge for all numbers, or for one of heavy tails; a classifier for each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from mercer.app.head import MEAN, MEDIAN, PLAIN, Head, no_worse
from mercer.app.targets import Target
from mercer.kernel import Kernel
from mercer.learn import KernelClassifier, KernelRidge
from mercer.learn.metric import metric_of
from mercer.learn.neighbours import NeighbourRidge
from mercer.learn.spec import from_spec, to_spec
from mercer.learn.tails import CHANCE, LogScale, beyond, heavy, less, pull
from mercer.learn.tune import Pair

_FLAT, _MANY = 3, 5000  # with so few coordinates and more rows, a point's neighbours say all there is to say


_FIRST = 0.55  # of the seconds: for the logarithmic scale, whose kernel the plain one begins with
_NEARER = 0.5  # of the median miss of the plain scale: less chooses the other, whatever squares of few rows say
_GLANCE, _NOISES = 600, (1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0)  # rows and noises of the first look at the plain scale


def groups(targets: Sequence[Target], forms: Mapping[int, str] = {}) -> list[list[int]]:
    """Which targets share a learner: all numbers one, apart from heavy tails; each classification target its own.

    forms: of targets that are settled; with any other than plain a target is learned by itself.
    """
    numeric = [i for i, t in enumerate(targets) if t.task == "regression"]
    alone = [i for i in numeric if forms.get(i, PLAIN) != PLAIN or heavy(targets[i].values)]
    shared = [i for i in numeric if i not in alone]
    rest = alone + [i for i, t in enumerate(targets) if t.task != "regression"]
    return ([shared] if shared else []) + [[i] for i in rest]


def is_local(rows: int, coordinates: int) -> bool:
    """Whether numbers are predicted from nearest rows: few coordinates, many rows."""
    return coordinates <= _FLAT and rows > _MANY


@dataclass(frozen=True)
class Lesson:
    """What a learner learned: its targets, a kernel and its noise on coordinates of these names, and its form."""

    targets: list[int]
    labels: list[str]
    kernel: Kernel
    noise: float
    form: str = PLAIN

    def on(self, labels: Sequence[str]) -> tuple[Kernel, float] | None:
        """(kernel, noise) on other coordinates; new ones get the middle lengthscale, or no part in a metric.

        None where there is no way.
        """
        if list(labels) == self.labels:
            return self.kernel, self.noise
        spec = to_spec(self.kernel)
        if spec["name"] == "Metric":
            rows, none = dict(zip(self.labels, spec["matrix"], strict=True)), [0.0] * len(spec["matrix"][0])
            spec["matrix"] = [rows.get(label, none) for label in labels]
            return from_spec(spec), self.noise
        scales = spec.get("arguments", {}).get("lengthscale")
        if not isinstance(scales, list) or len(scales) != len(self.labels):
            return None
        own = dict(zip(self.labels, scales, strict=True))
        middle = float(np.exp(np.mean(np.log(scales))))
        spec["arguments"]["lengthscale"] = [own.get(label, middle) for label in labels]
        return from_spec(spec), self.noise


def lessons(heads: Sequence[Head], labels: Sequence[str]) -> list[Lesson]:
    """What learners that search a kernel have learned."""
    found = []
    for head in heads:
        if hasattr(head.model, "learned"):
            kernel, noise = head.model.learned()
            found.append(Lesson(head.targets, list(labels), kernel, noise, head.form()))
    return found


def usual_forms(learned: Sequence[Lesson]) -> dict[int, str]:
    """For each target the form that most of those who learned it chose; none where two are as common."""
    found: dict[int, Counter[str]] = {}
    for lesson in learned:
        for i in lesson.targets:
            found.setdefault(i, Counter())[lesson.form] += 1
    first = {i: forms.most_common(2) for i, forms in found.items()}
    return {i: most[0][0] for i, most in first.items() if len(most) == 1 or most[0][1] > most[1][1]}


def error(head: Head) -> float:
    """Mean square of what left-out rows were missed by, in units of the target's deviation; 0 where not known."""
    return float(head.model.plan_.error)


def hasty(head: Head) -> bool:
    """Whether the time allowed hardly any learning."""
    return bool(head.model.plan_.hasty)


def _ridge(x: np.ndarray, y: np.ndarray, seconds: float, seed: int, known: Sequence[Pair], local: bool) -> Any:
    """A fitted regressor with its left-out predictions; y: n t."""
    if local:
        model: Any = NeighbourRidge(time_budget=seconds, random_state=seed)
    else:
        model = KernelRidge(time_budget=seconds, random_state=seed).begin_at(known)
    return model.fit(x, y if y.shape[1] > 1 else y[:, 0])


def forget(head: Head) -> None:
    """Take rows at known places as new ones."""
    if isinstance(head.model, KernelRidge):
        head.model.places_ = None


def _by_equals(model: Any, y: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """(y, left-out predictions), n t, of training rows that have equals, by all other rows, these included."""
    places = getattr(model, "places_", None)
    if places is None:
        return None
    rows = np.isfinite(places.left_out).all(1)
    return y[rows], model.target_.back(places.left_out[rows])


def _plain(members: list[int], model: Any, y: np.ndarray) -> Head:
    left = model.left_out_.reshape(y.shape)
    pulls = [pull(true, found) for true, found in zip(y.T, left.T, strict=True)]
    head = Head(members, model)
    if any(p is not None for p in pulls):
        known = _by_equals(model, y)
        if known is not None and any(pull(*pair) is not None for pair in zip(*(side.T for side in known), strict=True)):
            forget(head)
        head = replace(head, pulls=tuple(p or (0.0, 1.0) for p in pulls))
    return replace(head, missed=y - head._pulled(left))


def _logarithmic(members: list[int], model: Any, scale: LogScale, y: np.ndarray, form: str) -> Head:
    """form: median, mean, or any other: means, unless the squares of left-out rows are surely worse. y: n 1."""
    t, left = scale.forward(y), model.left_out_.reshape(y.shape)
    means = scale.seen(t, left)
    medians = means.medians()
    if form not in (MEDIAN, MEAN):
        unit = float(np.abs(y).max()) or 1.0  # squares of large numbers overflow
        first, second = (((y - s.mean(left)) / unit) ** 2 for s in (means, medians))
        form = MEDIAN if beyond(first, second) > CHANCE else MEAN
    chosen = means if form == MEAN else medians
    known = _by_equals(model, t)
    head = Head(members, model, chosen, missed=t - left, near=None if known is None else scale.seen(*known))
    return no_worse(head, 0, pull(y[:, 0], chosen.mean(left)[:, 0]), pull(y[:, 0], medians.mean(left)[:, 0]))


def _hopeless(log: Head, x: np.ndarray, y: np.ndarray, seed: int) -> bool:
    """Whether the plain scale is worse on some hundred rows, in squares and as a rule, with the other's kernel."""
    rows = np.random.default_rng(seed).permutation(len(x))[:_GLANCE]
    matrix, noise = kernel_matrix(log.model, x[rows])
    values, vectors = np.linalg.eigh(matrix)
    y, t = y[rows], log.forward(y[rows])

    def missed(goal: np.ndarray, level: float) -> np.ndarray:
        gain = 1 / (np.maximum(values, 0) + level)
        return vectors @ (gain[:, None] * (vectors.T @ (goal - goal.mean()))) / (vectors**2 @ gain)[:, None]

    plain = min((missed(y, level) for level in _NOISES), key=lambda wrong: float(np.linalg.norm(wrong)))
    t = t - missed(t, noise)
    usual = np.median(np.abs(plain)) > np.median(np.abs(y - log.back(t)))
    return bool(usual and less(y - log.answer(t), plain))


def _better(plain: Head, log: Head, y: np.ndarray) -> Head:
    """By the squares that left-out rows are missed by, unless half of the rows are missed by much less."""
    missed, t = np.asarray(plain.missed), log.forward(y) - np.asarray(log.missed)
    nearer = np.median(np.abs(y - log.back(t))) < _NEARER * np.median(np.abs(missed))
    chosen = log if nearer or less(y - log.answer(t), missed) else plain
    if stopped(plain):  # Ctrl-C that the other learner did not see
        chosen.model.plan_ = replace(chosen.model.plan_, interrupted=True)
    return chosen


def fit_head(
    members: list[int],
    targets: Sequence[Target],
    x: np.ndarray,
    seconds: float,
    seed: int,
    known: Sequence[Pair] = (),
    form: str | None = None,
    whole: int | None = None,
) -> Head:
    """Fit the learner of a group of targets on coordinates `x`, n x d. known: kernels and noises to consider.

    form: of its one target where that is settled; None: a heavy-tailed target is learned both ways, and left-out rows
    choose. whole: rows of the table that x is a part of, which decide the kind of learner.
    """
    if targets[members[0]].task != "regression":
        model = KernelClassifier(time_budget=seconds, random_state=seed).begin_at(known)
        return Head(members, model.fit(x, targets[members[0]].values), missed=model.left_out_)
    local = is_local(whole or len(x), x.shape[1])
    y = np.stack([targets[i].values for i in members], axis=1)
    if len(members) > 1 or form == PLAIN or (form is None and not heavy(y[:, 0])):
        return _plain(members, _ridge(x, y, seconds, seed, known, local), y)
    scale = LogScale.of(y[:, 0])
    model = _ridge(x, scale.forward(y), seconds * (_FIRST if form is None else 1.0), seed, known, local)
    log = _logarithmic(members, model, scale, y, form or "")
    if form is not None or stopped(log) or _hopeless(log, x, y, seed):
        return log
    known = [*known, model.learned()] if hasattr(model, "learned") else known
    plain = _plain(members, _ridge(x, y, seconds * (1 - _FIRST), seed, known, local), y)
    return _better(plain, log, y)


def latents(heads: Sequence[Head], classes: Sequence[int], x: np.ndarray) -> list[np.ndarray]:
    """For each target n numbers on the scale of its learner, or n x classes chances."""
    found: list[np.ndarray] = [np.empty(0)] * len(classes)
    for head in heads:
        if classes[head.targets[0]] == 0:
            for i, column in zip(head.targets, head.latent(x).T, strict=True):
                found[i] = column
        else:
            chances = np.zeros((len(x), classes[head.targets[0]]))
            chances[:, np.asarray(head.model.classes_, dtype=int)] = head.model.predict_proba(x)
            found[head.targets[0]] = chances
    return found


def predict_both(
    heads: Sequence[Head], classes: Sequence[int], x: np.ndarray
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """(predictions, the middles of bands in the same units); for each target n numbers, or n x classes chances twice.

    classes: how many each target has (0 for numbers).
    """
    found = latents(heads, classes, x)
    middle = list(found)
    for head in heads:
        if head.scale is not None:
            i = head.targets[0]
            middle[i], found[i] = head.back(found[i]), head.answer(found[i][:, None])[:, 0]
    return found, middle


def predict(heads: Sequence[Head], classes: Sequence[int], x: np.ndarray) -> list[np.ndarray]:
    """For each target n numbers, or n x classes chances; classes: how many each target has (0 for numbers)."""
    return predict_both(heads, classes, x)[0]


def stopped(head: Head) -> bool:
    """Whether Ctrl-C cut the learning short (the learner then keeps its best so far)."""
    return bool(getattr(head.model.plan_, "interrupted", False))


def whereabouts(head: Head, x: np.ndarray, found: np.ndarray) -> np.ndarray:
    """Where the width of bands is looked up: coordinates in the kernel's own distance, and the prediction."""
    model = head.model
    z = model.coordinates(x).numpy()
    share = metric_of(model.kernel_, z.shape[1]).diagonal().sqrt().numpy()
    share = share / np.linalg.norm(share)
    level = (found - model.target_.centre) / model.target_.scale
    return np.concatenate([z * share, level * level.shape[1] ** -0.5], axis=1)


def kernel_matrix(model: Any, x: np.ndarray) -> tuple[np.ndarray, float]:
    """(the learned kernel's matrix of some rows, its noise)."""
    with torch.no_grad():
        points = model.coordinates(x)
        return model.kernel_.block(points, points).numpy(), float(model.alpha_)
