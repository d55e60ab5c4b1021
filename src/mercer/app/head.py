"""A fitted learner with the targets that it predicts, the scale it learned them on, and what is said of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from mercer.app.targets import Target
from mercer.app.words import number, percent, shown
from mercer.budget import mib
from mercer.learn import KernelClassifier, KernelRidge
from mercer.learn.neighbours import NeighbourRidge
from mercer.learn.tails import LogScale, Pull

ESTIMATORS: dict[str, Any] = {
    "KernelRidge": KernelRidge, "KernelClassifier": KernelClassifier, "NeighbourRidge": NeighbourRidge,
}  # fmt: skip
PLAIN, MEDIAN, MEAN = "plain", "median", "mean"  # forms: y as it is; on a logarithmic scale, predicted by this


@dataclass(frozen=True)
class Head:
    """A fitted learner and the numbers of the targets that it predicts.

    scale: that its one target was learned on; None: the target's own. pulls: for each target of a learner that was
    worse than the mean how predictions are drawn to it. missed: n x t, what left-out rows were missed by,
    on the scale; of a class target the chances, n x classes, that left-out rows were given. near: the scale that means
    of rows at known places have; all else here is of new places.
    """

    targets: list[int]
    model: Any
    scale: LogScale | None = None
    pulls: tuple[Pull, ...] = ()
    missed: np.ndarray | None = field(default=None, compare=False, repr=False)
    near: LogScale | None = None

    def name(self) -> str:
        """The name of the learner in ESTIMATORS."""
        return next(name for name, kind in ESTIMATORS.items() if isinstance(self.model, kind))

    def form(self) -> str:
        """plain, or what is predicted on the way back from a logarithmic scale."""
        return PLAIN if self.scale is None else MEDIAN if self.scale == self.scale.medians() else MEAN

    def forward(self, y: np.ndarray) -> np.ndarray:
        """Numbers on the scale of the learner, where bands are even."""
        return y if self.scale is None else self.scale.forward(y)

    def back(self, t: np.ndarray) -> np.ndarray:
        """Medians and ends of bands in the units of the target."""
        return t if self.scale is None else self.scale.back(t)

    def latent(self, x: np.ndarray) -> np.ndarray:
        """Predictions on the scale of the learner, the middles of bands, n x t."""
        known = isinstance(self.model, KernelRidge)
        t = self.model.predict_new(x) if known else self.model.predict(x)
        t = np.asarray(t, dtype=np.float64).reshape(len(x), len(self.targets))
        return self._pulled(t) if self.scale is None else np.clip(t, self.scale.low, self.scale.high)

    def answer(self, latent: np.ndarray) -> np.ndarray:
        """The predictions of the targets that belong to latent ones."""
        return latent if self.scale is None else self._pulled(self.scale.mean(latent))

    def known(self, x: np.ndarray) -> np.ndarray:
        """Whether each row is equal to training rows that say more of it than the others, `n`."""
        return self.model.at_places(x) if isinstance(self.model, KernelRidge) else np.zeros(len(x), dtype=bool)

    def helped(self) -> list[tuple[int, int]]:
        """(place among the targets of the learner, number) of each target that is known better at known places."""
        places = self.model.places_ if isinstance(self.model, KernelRidge) else None
        return [] if places is None else [(int(c), self.targets[c]) for c in places.helps]

    def at_places(self, x: np.ndarray, coverage: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(predictions, lower, upper ends of bands), n x t in the units of the targets, of rows at known places."""
        sides = (self.model.predict(x), *self.model.predict_interval(x, coverage))
        t, low, high = (np.asarray(side, dtype=np.float64).reshape(len(x), len(self.targets)) for side in sides)
        if self.scale is None or self.near is None:
            return t, low, high
        near = self.near if self.form() == MEAN else self.near.medians()
        return near.mean(np.clip(t, near.low, near.high)), near.back(low), near.back(high)

    def _pulled(self, found: np.ndarray) -> np.ndarray:
        if not self.pulls:
            return found
        to, share = np.array(self.pulls).T
        return np.where(share == 1, found, to + share * (found - to))


def no_worse(head: Head, place: int, found: Pull | None, medians: Pull | None) -> Head:
    """The learner with predictions of one of its targets that are worse than the mean mended.

    found, medians: how left-out predictions, and medians, should be drawn to the mean; None: they are no worse. Means
    of a logarithmic scale become medians where that is enough.
    """
    if found is None:
        return head
    if head.scale is not None and medians is None:
        return replace(head, scale=head.scale.medians(), pulls=())
    pulls = list(head.pulls or [(0.0, 1.0)] * len(head.targets))
    pulls[place] = (found[0], pulls[place][1] * found[1])
    return replace(head, pulls=tuple(pulls))


def at_known(heads: Sequence[Head], targets: Sequence[Target]) -> list[str]:
    """What is said of targets that are predicted better where training rows are equal to a new row."""
    found = []
    for head in heads:
        for column, i in head.helped():
            places = head.model.places_
            less = percent(float(places.less[column]), 0)
            found.append(
                f"{len(places.points):,} places are known: rows equal to training rows in all that the model sees are "
                f"predicted with what '{shown(targets[i].name)}' was there (such rows, left out, are missed by squares "
                f"{less} smaller) and have bands of their own; all scores are of new places"
            )
    return found


def remarks(heads: Sequence[Head], targets: Sequence[Target]) -> list[str]:
    """How targets were learned, where not plainly."""
    found = []
    for head in heads:
        for place, i in enumerate(head.targets):
            name = f"'{shown(targets[i].name)}'"
            if head.scale is not None:
                found.append(
                    f"{name} has heavy tails and is learned on a logarithmic scale: predictions are {head.form()}s, "
                    "bands are as lopsided as the target"
                )
            if head.pulls and head.pulls[place][1] < 1:
                kept = percent(head.pulls[place][1], 0)
                found.append(
                    f"rows left out are predicted worse than by the mean of {name}: predictions keep {kept} of their "
                    "distance to it"
                )
    return found


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
        ("memory planned", mib(plan.memory)),
        ("seconds", f"{plan.seconds:.1f}"),
    ]
    if head.scale is not None:
        begins = f"beyond {number(head.scale.spread)} from {number(head.scale.centre)}"
        items.append(("scale of learning", f"logarithmic {begins}; predictions are {head.form()}s"))
    return {
        "title": head.name(),
        "items": items,
        "sentence": plan.sentence + ("" if head.scale is None else "; learned on a logarithmic scale"),
        "kernel": repr(head.model.kernel_),
        "kernel_sentence": _in_words(head.model.kernel_),
    }
