"""A trained model with its bands: what `mercer predict` needs, to and from a model folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from mercer.app import bands
from mercer.app.columns import Column
from mercer.app.encoders import MeanEncoder
from mercer.app.fitting import Trained
from mercer.app.folder import check_files, read_arrays, read_manifest, write_folder
from mercer.app.frame import Frame, TableEncoder
from mercer.app.head import ESTIMATORS, Head
from mercer.app.heads import predict, whereabouts
from mercer.app.schema import VERSION, Manifest
from mercer.app.targets import Target
from mercer.app.unknown import Witnesses, patterns
from mercer.app.words import one_line, shown
from mercer.errors import DataError
from mercer.learn.tails import LogScale

_MOST_NOISE = 1e12  # relative to the kernel's diagonal: beyond it nothing at all is predicted
_MOST = 1e100  # of the other numbers in a state
Interval = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Model:
    """Targets (without values), the trained learners, and the calibrator of each learner's bands or sets."""

    targets: list[Target]
    trained: Trained
    calibrators: list[bands.Calibrator]
    witnesses: Witnesses | None = None

    def _unknown(self, frame: Frame) -> list[tuple[np.ndarray | None, np.ndarray]]:
        found = list(patterns(self.trained.encoder.unknown(frame)))
        return found if self.witnesses is not None else [(None, rows) for _, rows in found]

    def answer(self, frame: Frame) -> tuple[list[np.ndarray], list[Interval | None]]:
        """(predictions, 90 % bands); rows equal to training rows have both from what those said, where that helps.

        Equal: in all that the learners see, with no unknown cell. All else here, `sets` too, takes every row as new.
        """
        found = self.trained.predict(frame)
        ends = self.bands(frame, found)
        heads = [head for head in self.trained.heads if head.helped()]
        if not heads:
            return found, ends
        x, whole = self.trained.encoder.encode(frame), ~self.trained.encoder.unknown(frame).any(axis=1)
        for head in heads:
            rows = np.flatnonzero(head.known(x) & whole)
            if not len(rows):
                continue
            sides = head.at_places(x[rows], bands.COVERAGE)
            for column, i in head.helped():
                found[i][rows] = sides[0][:, column]
                if (band := ends[i]) is not None:
                    band[0][rows], band[1][rows] = sides[1][:, column], sides[2][:, column]
        return found, ends

    def bands(self, frame: Frame, found: Sequence[np.ndarray]) -> list[Interval | None]:
        """90 % bands of the predictions `found` of rows; None for classes.

        Rows with unknown cells have the bands that held judged rows with the same cells blanked, if those are wider;
        infinite ones where that was not measured.
        """
        x, unknown = self.trained.encoder.encode(frame), self._unknown(frame)
        result: list[Interval | None] = [None] * len(self.targets)
        for head, calibrator in zip(self.trained.heads, self.calibrators, strict=True):
            if isinstance(calibrator, bands.LocalConformal):
                given = np.stack([found[i] for i in head.targets], axis=1)
                middle = given if head.scale is None else head.latent(x)
                place = whereabouts(head, x, middle)
                low, high = calibrator.interval(middle, place, bands.COVERAGE)
                for gone, rows in unknown:
                    half = np.full((len(rows), len(head.targets)), np.inf)
                    if gone is not None and self.witnesses is not None:
                        half = self.witnesses.widths(self.trained, head, calibrator, gone) * calibrator.spread(
                            place[rows]
                        )
                    low[rows] = np.minimum(low[rows], middle[rows] - half)
                    high[rows] = np.maximum(high[rows], middle[rows] + half)
                low, high = head.back(low), head.back(high)
                for column, i in enumerate(head.targets):
                    result[i] = (low[:, column], high[:, column])
        return result

    def sets(self, frame: Frame, found: Sequence[np.ndarray]) -> list[np.ndarray | None]:
        """For each target n x classes, the 90 % sets of rows predicted as `found`; None for numbers."""
        result: list[np.ndarray | None] = [None] * len(self.targets)
        unknown = self._unknown(frame)
        for head, calibrator in zip(self.trained.heads, self.calibrators, strict=True):
            if isinstance(calibrator, bands.ClassSets):
                i = head.targets[0]
                inside = calibrator.members(found[i])
                for gone, rows in unknown:
                    if gone is not None and self.witnesses is not None:
                        inside[rows] |= self.witnesses.sets(self.trained, i, gone).members(found[i][rows])
                    else:
                        inside[rows] = True
                result[i] = inside
        return result


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
        scale, near = (None if s is None else asdict(s) for s in (head.scale, head.near))
        pulls = [list(p) for p in head.pulls]
        heads.append(
            {"estimator": head.name(), "targets": head.targets, "state": state, "scale": scale, "near": near}
            | {"pulls": pulls}
        )
        arrays |= _named(f"head.{i}", weights)
    calibration: list[dict[str, Any]] = []
    for i, calibrator in enumerate(model.calibrators):
        state, weights = bands.to_state(calibrator)
        calibration.append(state)
        arrays |= _named(f"bands.{i}", weights)
    if model.witnesses is not None:
        arrays |= _named("witness", asdict(model.witnesses))
    targets = [{"name": t.name, "task": t.task, "classes": t.classes, "form": t.form} for t in model.targets]
    manifest = {
        "version": VERSION, "mercer": version("mercer"), "targets": targets, "columns": columns, "heads": heads,
        "bands": calibration,
    }  # fmt: skip
    write_folder(out, manifest, arrays, files)


def _require(holds: object, what: str) -> None:
    if not holds:
        raise ValueError(what)


def _check_head(head: Head, arrays: dict[str, np.ndarray], coordinates: int, n: int) -> None:
    """n: classes of the target, 0 for numbers. Raises ValueError where sizes or signs cannot be."""
    width, model, near = n or len(head.targets), head.model, head.name() == "NeighbourRidge"
    points, values = (arrays[name] for name in (("x", "y") if near else ("points", "weights")))
    _require((head.name() == "KernelClassifier") == bool(n) and (not n or len(head.targets) == 1), "learner and task")
    _require(model.n_features_in_ == coordinates, f"{coordinates} coordinates, {model.n_features_in_} in a learner")
    _require(points.ndim == 2 and points.shape[1] == coordinates, "columns of points")
    _require(len(points) > 0, "points")
    _require(not head.pulls or (len(head.pulls) == width and not n), "pulls to the mean")
    if head.scale is not None:
        _require(len(head.targets) == 1 and not n, "a logarithmic scale of several targets")
        _require(head.scale.low <= head.scale.high and abs(head.scale.odd) < head.scale.even, "a logarithmic scale")
    if n:
        codes, heat = model.classes_, float(model.calibration_.temperature)
        _require(codes.dtype.kind == "i" and len(set(codes.tolist())) == len(codes) > 1, "classes")
        _require(codes.min() >= 0 and codes.max() < n, "classes")
        _require(0 < heat < _MOST and arrays["calibration.bias"].shape == codes.shape, "calibration of chances")
        width = values.shape[1]
    _require(values.shape == (len(points), width), "rows and columns of weights")
    x, y = "scaler" if near else "common", "target"
    for name, size in ((x, coordinates), (y, width)):
        scale = arrays[f"{name}.scale"]
        _require(arrays[f"{name}.centre"].shape == scale.shape == (size,) and (scale > 0).all(), f"scales of {name}")
    _require(0 <= float(model.alpha_) <= _MOST_NOISE and int(getattr(model, "neighbours", 1)) >= 1, "noise, neighbours")


def _check_local(found: bands.LocalConformal, arrays: dict[str, np.ndarray], outputs: int) -> None:
    points, columns = arrays["points"], arrays["points"].shape[1]
    _require(0 < float(found.width) < _MOST and 0 < float(found.unit) < _MOST, "a width of bands that is not positive")
    _require(len(points) > 0 and arrays["weights"].shape == (len(points), outputs), "weights of bands")
    _require(arrays["scores"].shape == (len(arrays["scores"]), outputs) and len(arrays["scores"]), "scores of bands")
    _require((np.diff(arrays["scores"], axis=0) >= 0).all(), "scores of bands that are not sorted")
    _require(arrays["shrink"].shape == (outputs,) and (arrays["shrink"] >= 0).all(), "shrinkage of bands")
    each = ("relevance", "scaler.centre", "scaler.scale")
    _require(all(arrays[name].shape == (columns,) for name in each), "columns of bands")
    _require((arrays["scaler.scale"] > 0).all() and (arrays["relevance"] >= 0).all(), "scales of bands")


def _check_places(head: Head, arrays: dict[str, np.ndarray], coordinates: int) -> None:
    if not head.helped():
        _require(head.near is None or head.scale is not None, "a scale of known places")
        return
    places, width = head.model.places_, len(head.targets)
    _require(places.points.shape == (len(places.points), coordinates), "columns of places")
    for found in (places.means, places.gain, places.width):
        _require(found.shape == (len(places.points), width), "rows and columns of places")
    _require(((places.gain >= 0) & (places.gain <= 1)).all() and (places.width > 0).all(), "what places say")
    _require((head.near is None) == (head.scale is None), "a scale of known places")
    _check_local(places.conformal, _part("places.conformal", arrays), width)
    _require(places.conformal.points.shape[1] == coordinates + width, "columns of bands at places")


def _check_encoder(encoder: TableEncoder) -> None:
    for part in encoder.encoders:
        if isinstance(part, MeanEncoder):
            _require(all(len(m) == len(part.prior) for m in part.means.values()), "means of a column")
            _require(part.means.keys() == part.counts.keys() and part.counts, "levels of a column")
    absent = [Column(e.column, e.kind, _absent(e.kind), getattr(e, "format", "")) for e in encoder.encoders]
    _require(encoder.encode(Frame(absent, 2)).shape == (2, len(encoder.labels())), "columns and coordinates")


def _check_witnesses(model: Model, coordinates: int) -> None:
    if model.witnesses is None:
        return
    x, wrong, codes, classes = model.witnesses.x, model.witnesses.wrong, model.witnesses.codes, model.trained.classes
    _require(len(x) > 0 and x.shape == (len(x), coordinates), "columns of witnesses")
    _require(wrong.shape == codes.shape == (len(x), len(classes)), "targets of witnesses")
    _require(codes.dtype.kind == "i" and (codes >= 0).all() and (codes < np.maximum(classes, 1)).all(), "classes")


def _absent(kind: str) -> np.ndarray:
    return np.full(2, None, dtype=object) if kind == "text" else np.full(2, np.nan)


def _check(model: Model, manifest: Manifest, arrays: dict[str, np.ndarray]) -> None:
    """Raises ValueError, or what numpy and torch raise, where the parts of a model do not fit together.

    Sizes and signs are compared, then two rows are predicted, which no broadcast can hide from.
    """
    heads, targets = model.trained.heads, model.targets
    _require(sorted(i for h in heads for i in h.targets) == list(range(len(targets))), "learners and targets")
    _require(len(model.calibrators) == len(heads), "learners and bands")
    _require(all((t.task == "classification") == (len(t.classes) > 1) for t in targets), "tasks and classes")
    names = [t.name for t in targets] + [e.column for e in model.trained.encoder.encoders]
    _require(len(set(names)) == len(names), "names of targets and columns")
    _require(all(len(set(t.classes)) == len(t.classes) for t in targets), "classes that are repeated")
    _check_encoder(model.trained.encoder)
    coordinates = len(model.trained.encoder.labels())
    x = np.zeros((2, coordinates))
    _check_witnesses(model, coordinates)
    for i, (head, calibrator) in enumerate(zip(heads, model.calibrators, strict=True)):
        part = _part(f"head.{i}", arrays)
        _check_head(head, part, coordinates, model.trained.classes[head.targets[0]])
        _check_places(head, part, coordinates)
        alone = replace(head, targets=list(range(len(head.targets))))
        found = np.stack(predict([alone], _sizes(model, head), x), axis=-1)
        _require(np.isfinite(found).all(), "predictions that are not finite")
        if isinstance(calibrator, bands.LocalConformal):
            _require(targets[head.targets[0]].task == "regression", "bands of classes")
            _check_local(calibrator, _part(f"bands.{i}", arrays), len(head.targets))
            calibrator.interval(found, whereabouts(head, x, found), bands.COVERAGE)
        else:
            chances = calibrator.chances
            _require(targets[head.targets[0]].task == "classification", "sets of numbers")
            _require(chances.ndim == 1 and len(chances) and (np.diff(chances) >= 0).all(), "chances of sets")
            _require(chances[0] >= 0 and chances[-1] <= 1 + 1e-9, "chances of sets")


def _sizes(model: Model, head: Head) -> list[int]:
    return [model.trained.classes[i] for i in head.targets]


def load(folder: Path) -> Model:
    """The model of a folder. Raises DataError where anything in it is missing, altered or does not fit together."""
    manifest = read_manifest(folder)
    check_files(folder, manifest)
    arrays = read_arrays(folder)
    try:
        encoder = TableEncoder.from_state([c.model_dump() for c in manifest.columns], arrays)
        heads = [
            Head(
                h.targets,
                ESTIMATORS[h.estimator].from_state(h.state, _part(f"head.{i}", arrays)),
                None if h.scale is None else LogScale(**h.scale.model_dump()),
                tuple((to, kept) for to, kept in h.pulls),
                near=None if h.near is None else LogScale(**h.near.model_dump()),
            )
            for i, h in enumerate(manifest.heads)
        ]
        calibrators = [
            bands.from_state(b.model_dump(), _part(f"bands.{i}", arrays)) for i, b in enumerate(manifest.bands)
        ]
        targets = [Target(t.name, t.task, np.empty(0), t.classes, t.form) for t in manifest.targets]
        kept = _part("witness", arrays)
        trained = Trained(encoder, heads, [len(t.classes) for t in targets])
        model = Model(targets, trained, calibrators, Witnesses(**kept) if kept else None)
        with np.errstate(all="ignore"):
            _check(model, manifest, arrays)
    except (KeyError, ValueError, TypeError, IndexError, AttributeError, RuntimeError) as error:
        raise DataError(
            f"model folder '{shown(folder)}': its parts do not fit together ({one_line(str(error), 80)}); fit again"
        ) from error
    return model
