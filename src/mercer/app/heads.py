"""The learners behind the targets: one kernel ridge for all numeric targets, one classifier for each class target."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from mercer.app.targets import Target
from mercer.app.words import amount
from mercer.kernel import Kernel
from mercer.learn import KernelClassifier, KernelRidge
from mercer.learn.neighbours import NeighbourRidge
from mercer.learn.spec import from_spec, to_spec

ESTIMATORS: dict[str, Any] = {
    "KernelRidge": KernelRidge, "KernelClassifier": KernelClassifier, "NeighbourRidge": NeighbourRidge,
}  # fmt: skip
_FLAT, _MANY = 3, 5000  # with so few coordinates and more rows, a point's neighbours say all there is to say


@dataclass(frozen=True)
class Head:
    """A fitted learner and the numbers of the targets that it predicts."""

    targets: list[int]
    model: Any

    def name(self) -> str:
        """The name of the learner in ESTIMATORS."""
        return next(name for name, kind in ESTIMATORS.items() if isinstance(self.model, kind))


def groups(tasks: Sequence[str]) -> list[list[int]]:
    """Which targets share a learner: all regression targets one, each classification target its own."""
    numeric = [i for i, task in enumerate(tasks) if task == "regression"]
    return ([numeric] if numeric else []) + [[i] for i, task in enumerate(tasks) if task != "regression"]


def is_local(rows: int, coordinates: int) -> bool:
    """Whether numbers are predicted from nearest rows: few coordinates, many rows."""
    return coordinates <= _FLAT and rows > _MANY


@dataclass(frozen=True)
class Lesson:
    """What a learner learned: its targets, a kernel and its noise on coordinates of these names."""

    targets: list[int]
    labels: list[str]
    kernel: Kernel
    noise: float

    def on(self, labels: Sequence[str]) -> tuple[Kernel, float] | None:
        """(kernel, noise) on other coordinates; new ones get the middle lengthscale. None where there is no way."""
        if list(labels) == self.labels:
            return self.kernel, self.noise
        spec = to_spec(self.kernel)
        scales = spec.get("arguments", {}).get("lengthscale")
        if not isinstance(scales, list) or len(scales) != len(self.labels):
            return None
        own = dict(zip(self.labels, scales, strict=True))
        middle = float(np.exp(np.mean(np.log(scales))))
        spec["arguments"]["lengthscale"] = [own.get(label, middle) for label in labels]
        return from_spec(spec), self.noise


def lessons(heads: Sequence[Head], labels: Sequence[str]) -> list[Lesson]:
    """What learners that search a kernel have learned."""
    return [
        Lesson(head.targets, list(labels), *head.model.learned()) for head in heads if hasattr(head.model, "learned")
    ]


def error(head: Head) -> float:
    """Mean square of what left-out rows were missed by, in units of the target's deviation; 0 where not known."""
    return float(head.model.plan_.error)


def hasty(head: Head) -> bool:
    """Whether the time allowed hardly any learning."""
    return bool(head.model.plan_.hasty)


def fit_head(
    members: list[int],
    targets: Sequence[Target],
    x: np.ndarray,
    seconds: float,
    seed: int,
    known: Sequence[tuple[Kernel, float]] = (),
) -> Head:
    """Fit the learner of a group of targets on coordinates `x`, n x d. known: kernels and noises to consider."""
    if targets[members[0]].task == "regression":
        y = np.stack([targets[i].values for i in members], axis=1)
        if is_local(*x.shape):
            model = NeighbourRidge(time_budget=seconds, random_state=seed)
        else:
            model = KernelRidge(time_budget=seconds, random_state=seed).begin_at(known)
        return Head(members, model.fit(x, y if len(members) > 1 else y[:, 0]))
    model = KernelClassifier(time_budget=seconds, random_state=seed).begin_at(known)
    return Head(members, model.fit(x, targets[members[0]].values))


def predict(heads: Sequence[Head], classes: Sequence[int], x: np.ndarray) -> list[np.ndarray]:
    """For each target n numbers, or n x classes chances; classes: how many each target has (0 for numbers)."""
    found: list[np.ndarray] = [np.empty(0)] * len(classes)
    for head in heads:
        if classes[head.targets[0]] == 0:
            values = np.asarray(head.model.predict(x), dtype=np.float64).reshape(len(x), len(head.targets))
            for column, i in enumerate(head.targets):
                found[i] = values[:, column]
        else:
            chances = np.zeros((len(x), classes[head.targets[0]]))
            chances[:, np.asarray(head.model.classes_, dtype=int)] = head.model.predict_proba(x)
            found[head.targets[0]] = chances
    return found


def stopped(head: Head) -> bool:
    """Whether Ctrl-C cut the learning short (the learner then keeps its best so far)."""
    return bool(getattr(head.model.plan_, "interrupted", False))


def _lengthscales(model: Any) -> np.ndarray | None:
    found = [m.lengthscale for m in model.kernel_.modules() if getattr(m, "lengthscale", None) is not None]
    own = [s.detach().double().numpy() for s in found if s.ndim == 1 and len(s) == model.n_features_in_]
    return own[0] if own else None


def whereabouts(head: Head, x: np.ndarray, found: np.ndarray) -> np.ndarray:
    """Where the width of bands is looked up: coordinates in the kernel's own distance, and the prediction."""
    model, scales = head.model, _lengthscales(head.model)
    z = model.coordinates(x).numpy()
    share = np.ones(z.shape[1]) if scales is None else 1 / scales
    share = share / np.linalg.norm(share)
    level = (found - model.target_.centre) / model.target_.scale
    return np.concatenate([z * share, level * level.shape[1] ** -0.5], axis=1)


def kernel_matrix(model: Any, x: np.ndarray) -> tuple[np.ndarray, float]:
    """(the learned kernel's matrix of some rows, its noise)."""
    with torch.no_grad():
        points = model.coordinates(x)
        return model.kernel_.block(points, points).numpy(), float(model.alpha_)


def _in_words(kernel: Any) -> str:
    names = {type(part).__name__ for part in kernel.modules()}
    smooth = [float(nu) for part in kernel.modules() if (nu := getattr(part, "nu", None)) is not None]
    if "Gaussian" in names:
        return "very smooth functions: small changes of a row change its prediction only slightly and evenly"
    if smooth:
        return {
            0.5: "continuous but rough functions: near rows are alike, with kinks and edges allowed",
            1.5: "functions with a slope everywhere, but with sudden bends",
            2.5: "smooth functions that may still bend quickly",
        }.get(min(smooth), "functions of the smoothness that nu says")
    if "Laplace" in names:
        return "continuous but rough functions, each column counting by its own distance"
    return "functions of the form that the kernel's name says"


def describe(head: Head) -> dict[str, Any]:
    """What the learner did, for the report."""
    plan = head.model.plan_
    items = [
        ("algorithm", plan.algorithm),
        ("rows", f"{plan.rows:,}"),
        ("landmarks", f"{plan.landmarks:,}" if plan.landmarks else "none"),
        ("precision", "float64" if plan.algorithm in ("cholesky", "neighbours") else "float32 products, float64 solve"),
        ("jitter added", f"{plan.jitter:.1e}"),
        ("residual of the solve", f"{plan.residual:.1e}" if plan.iterations else "direct solve"),
        ("iterations", str(plan.iterations)),
        ("memory planned", amount(plan.memory)),
        ("seconds", f"{plan.seconds:.1f}"),
    ]
    return {
        "title": head.name(),
        "items": items,
        "sentence": plan.sentence,
        "kernel": repr(head.model.kernel_),
        "kernel_sentence": _in_words(head.model.kernel_),
    }
