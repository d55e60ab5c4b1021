"""A trained model with its bands: what `mercer predict` needs, to and from a model folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from mercer.app import bands
from mercer.app.fitting import Trained
from mercer.app.folder import check_files, read_arrays, read_manifest, write_folder
from mercer.app.frame import Frame, TableEncoder
from mercer.app.heads import ESTIMATORS, Head, whereabouts
from mercer.app.schema import VERSION
from mercer.app.targets import Target
from mercer.app.words import one_line, shown
from mercer.errors import DataError

Interval = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Model:
    """Targets (without values), the trained learners, and the calibrator of each learner's bands or sets."""

    targets: list[Target]
    trained: Trained
    calibrators: list[bands.Calibrator]

    def bands(self, frame: Frame, found: Sequence[np.ndarray]) -> list[Interval | None]:
        """90 % bands of the predictions `found` of rows; None for classes."""
        x = self.trained.encoder.encode(frame)
        result: list[Interval | None] = [None] * len(self.targets)
        for head, calibrator in zip(self.trained.heads, self.calibrators, strict=True):
            if isinstance(calibrator, bands.LocalConformal):
                middle = np.stack([found[i] for i in head.targets], axis=1)
                low, high = calibrator.interval(middle, whereabouts(head, x, middle), bands.COVERAGE)
                for column, i in enumerate(head.targets):
                    result[i] = (low[:, column], high[:, column])
        return result

    def sets(self, target: int, chances: np.ndarray) -> np.ndarray | None:
        """n x classes, the 90 % sets of a classification target; None for numbers."""
        for head, calibrator in zip(self.trained.heads, self.calibrators, strict=True):
            if head.targets == [target] and isinstance(calibrator, bands.ClassSets):
                return calibrator.members(chances)
        return None


def _named(prefix: str, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {f"{prefix}.{name}": array for name, array in arrays.items()}


def _part(prefix: str, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {n.removeprefix(prefix + "."): a for n, a in arrays.items() if n.startswith(prefix + ".")}


def save(out: Path, model: Model, files: dict[str, bytes]) -> None:
    """Write the folder in one step."""
    columns, arrays = model.trained.encoder.state()
    heads: list[dict[str, Any]] = []
    for i, head in enumerate(model.trained.heads):
        state, weights = head.model.get_state()
        heads.append({"estimator": head.name(), "targets": head.targets, "state": state})
        arrays |= _named(f"head.{i}", weights)
    calibration: list[dict[str, Any]] = []
    for i, calibrator in enumerate(model.calibrators):
        state, weights = bands.to_state(calibrator)
        calibration.append(state)
        arrays |= _named(f"bands.{i}", weights)
    targets = [{"name": t.name, "task": t.task, "classes": t.classes, "form": t.form} for t in model.targets]
    manifest = {
        "version": VERSION, "mercer": version("mercer"), "targets": targets, "columns": columns, "heads": heads,
        "bands": calibration,
    }  # fmt: skip
    write_folder(out, manifest, arrays, files)


def load(folder: Path) -> Model:
    """The model of a folder. Raises DataError where anything in it is missing, altered or does not fit together."""
    manifest = read_manifest(folder)
    check_files(folder, manifest)
    arrays = read_arrays(folder)
    try:
        encoder = TableEncoder.from_state([c.model_dump() for c in manifest.columns], arrays)
        heads = [
            Head(h.targets, ESTIMATORS[h.estimator].from_state(h.state, _part(f"head.{i}", arrays)))
            for i, h in enumerate(manifest.heads)
        ]
        calibrators = [
            bands.from_state(b.model_dump(), _part(f"bands.{i}", arrays)) for i, b in enumerate(manifest.bands)
        ]
    except (KeyError, ValueError, TypeError, IndexError, AttributeError, RuntimeError) as error:
        raise DataError(
            f"model folder '{shown(folder)}': its parts do not fit together ({one_line(str(error), 80)}); fit again"
        ) from error
    targets = [Target(t.name, t.task, np.empty(0), t.classes, t.form) for t in manifest.targets]
    if sorted(i for h in heads for i in h.targets) != list(range(len(targets))) or len(calibrators) != len(heads):
        raise DataError(f"model folder '{shown(folder)}': its learners do not match its targets; fit again")
    return Model(targets, Trained(encoder, heads, [len(t.classes) for t in targets]), calibrators)
