"""Rows with cells the model knows nothing of: their bands, measured on judged rows with the same cells blanked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from mercer.app.bands import COVERAGE, ClassSets, conformal_rank
from mercer.app.fitting import Trained
from mercer.app.frame import Frame
from mercer.app.head import Head
from mercer.app.heads import latents, whereabouts
from mercer.app.targets import Target
from mercer.learn.conformal import LocalConformal

ROWS = 500
MOST = 64  # sets of unknown columns that are measured for one chunk of rows


@dataclass(frozen=True)
class Witnesses:
    """Judged training rows, kept to see what a blank cell costs. t: targets.

    x: s x d coordinates; codes: s x t, the true class, 0 for numbers.
    wrong: s x t, true minus the middle of the band out of fold, on the learner's scale; for classes the chance given to
    the true class out of fold.
    """

    x: np.ndarray
    wrong: np.ndarray
    codes: np.ndarray

    @classmethod
    def choose(
        cls, trained: Trained, frame: Frame, targets: Sequence[Target], found: Sequence[np.ndarray], seed: int
    ) -> Witnesses:
        """Up to 500 of the judged rows. found: their out-of-fold chances, or middles of bands."""
        rows = np.sort(np.random.default_rng(seed).permutation(frame.rows)[:ROWS])
        wrong, codes = [], []
        own = {i: head for head in trained.heads for i in head.targets}
        for i, (target, values) in enumerate(zip(targets, found, strict=True)):
            known, said = target.values[rows], values[rows]
            codes.append(known if target.classes else np.zeros(len(rows)))
            wrong.append(
                said[np.arange(len(rows)), known.astype(int)]
                if target.classes
                else own[i].forward(known) - own[i].forward(said)
            )
        x = trained.encoder.encode(frame.take(rows))
        return cls(x, np.stack(wrong, axis=1), np.stack(codes, axis=1).astype(np.int64))

    def blanked(self, trained: Trained, gone: np.ndarray) -> tuple[np.ndarray, list[np.ndarray], list[np.ndarray]]:
        """(coordinates, latent predictions, what `wrong` becomes for each target) with the columns `gone` unknown.

        The out-of-fold residual plus how far the blank moves the prediction: no row vouches for itself.
        """
        x = np.where(gone[trained.encoder.sources()], trained.encoder.blank(), self.x)
        usual, found = (latents(trained.heads, trained.classes, z) for z in (self.x, x))
        wrong = []
        for i, classes in enumerate(trained.classes):
            if classes:
                rows, own = np.arange(len(x)), self.codes[:, i]
                wrong.append(np.clip(self.wrong[:, i] + found[i][rows, own] - usual[i][rows, own], 0.0, 1.0))
            else:
                wrong.append(self.wrong[:, i] + usual[i] - found[i])
        return x, found, wrong

    def widths(self, trained: Trained, head: Head, calibrator: LocalConformal, gone: np.ndarray) -> np.ndarray:
        """Half widths of 90 % bands where the local spread is one, for each target of a learner."""
        x, found, wrong = self.blanked(trained, gone)
        spread = calibrator.spread(whereabouts(head, x, np.stack([found[i] for i in head.targets], axis=1)))
        size = np.sort(np.abs(np.stack([wrong[i] for i in head.targets], axis=1)) / spread, axis=0)
        rank = conformal_rank(len(size), COVERAGE)
        return size[rank - 1] if rank <= len(size) else np.full(size.shape[1], np.inf)

    def sets(self, trained: Trained, target: int, gone: np.ndarray) -> ClassSets:
        """The sets of classes that suit rows with these columns unknown."""
        return ClassSets.of(self.blanked(trained, gone)[2][target], self.codes[:, target])


def patterns(unknown: np.ndarray) -> Iterator[tuple[np.ndarray | None, np.ndarray]]:
    """(which columns are unknown, in which rows), the commonest 64; None for all other rows. unknown: n x columns."""
    rows = np.flatnonzero(unknown.any(axis=1))
    if not len(rows):
        return
    kinds, place, sizes = np.unique(unknown[rows], axis=0, return_inverse=True, return_counts=True)
    order = np.argsort(-sizes, kind="stable")
    for kind in order[:MOST]:
        yield kinds[kind], rows[place.ravel() == kind]
    if len(order) > MOST:
        yield None, rows[np.isin(place.ravel(), order[MOST:])]
