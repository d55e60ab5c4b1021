"""What a fit over many rows learns from a draw of them: the kernel, the noise, the scales of columns and target."""

from __future__ import annotations

import copy
import warnings
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch

from mercer.errors import OutlierWarning, StructureError
from mercer.kernel import Kernel
from mercer.learn.classify import KernelClassifier
from mercer.learn.ridge import KernelRidge
from mercer.learn.rows import SAMPLE, Rows
from mercer.learn.spec import from_spec, to_spec
from mercer.learn.state import record
from mercer.learn.table import Scaler, Target
from mercer.learn.tune import defaults

DRAWN = 2000  # rows that a kernel is learned from: climbs use a thousand, noise and shrinking the rest


@record
@dataclass(frozen=True)
class Start:
    """Where a long fit begins. noise: for scaled data, that these rows like best, None where nothing was learned.

    common: columns on a robust common scale; scaler: that scale, or none where the kernel sees columns as they are.
    interrupted: whether learning was: what came of it is not kept in a checkpoint.
    """

    kernel: Kernel
    noise: float | None
    scaler: Scaler
    common: Scaler
    target: Target
    interrupted: bool = False

    def plain(self) -> dict[str, Any]:
        """The same as JSON-able values; of a kernel that is code, its numbers only."""
        try:
            kernel = to_spec(self.kernel)
        except StructureError:
            kernel = {"numbers": {name: value.tolist() for name, value in self.kernel.state_dict().items()}}
        scales = [[s.centre.tolist(), s.scale.tolist()] for s in (self.scaler, self.common, self.target)]
        scales[2] += [] if self.target.edges is None else [self.target.edges.tolist()]
        return {"kernel": kernel, "noise": self.noise, "scales": scales}

    @classmethod
    def of(cls, plain: dict[str, Any], kernel: Kernel | None) -> Start:
        """What `plain` described. kernel: that of the caller, whose code it brings."""
        if "numbers" not in plain["kernel"]:
            found = from_spec(plain["kernel"])
        else:
            found = copy.deepcopy(cast(Kernel, kernel))
            numbers = {name: torch.tensor(value) for name, value in plain["kernel"]["numbers"].items()}
            found.load_state_dict(numbers)
        scaler, common, target = ([np.array(v, dtype=np.float64) for v in each] for each in plain["scales"])
        return cls(found.requires_grad_(False), plain["noise"], Scaler(*scaler), Scaler(*common), Target(*target))


def drawn(keep: np.ndarray, many: int, seed: int) -> np.ndarray:
    """Places of at most so many rows of the mask `keep`, in order, each as likely as any other."""
    places = np.flatnonzero(keep)
    if len(places) <= many:
        return places
    order = torch.randperm(len(places), generator=torch.Generator().manual_seed(seed))[:many]
    return places[np.sort(order.numpy())]


def memberships(codes: np.ndarray, classes: int) -> np.ndarray:
    """1 where a row is of a class, else 0, `n c`; of two classes the second only, `n 1`."""
    one = np.eye(classes)[codes]
    return one[:, 1:] if classes == 2 else one


def _say_outliers(target: Target, rows: Rows, at: np.ndarray) -> None:
    """Warn of values of y that are clipped though the draw did not show them."""
    rest, many, first = np.ones(len(rows), dtype=bool), 0, ""
    rest[at] = False
    for block in rows.blocks(SAMPLE):
        places = np.arange(block.start, block.stop)[rest[block]]
        y = rows.targets(places)
        moved = np.argwhere(target.taught(y) != target.forward(y))
        many += len(moved)
        if len(moved) and not first:
            first = f"{y[tuple(moved[0])]:.4g} at row {places[moved[0][0]]}"
    if many:
        whom = f"all of the {len(at):,} rows that scales come from"
        message = f"y holds {many} value(s) far beyond {whom} ({first}); clipped"
        warnings.warn(OutlierWarning(f"{message}; remove or correct them to silence this"), stacklevel=5)


def begin(
    model: Any, rows: Rows, keep: np.ndarray, seed: int, seconds: float | None, codes: np.ndarray | None = None,
    classes: int = 0,
) -> Start:  # fmt: skip
    """Learn from a draw of the rows of the mask `keep`, as KernelRidge does (KernelClassifier with codes: n).

    model: has kernel, learn, standardize and progress, and perhaps alpha. seconds: what it may take.
    """
    kind = KernelRidge if codes is None else KernelClassifier
    inner = kind(
        model.kernel, getattr(model, "alpha", None), learn=model.learn, standardize=model.standardize,
        time_budget=seconds, progress=model.progress, random_state=seed,
    )  # fmt: skip
    inner._check()
    at = drawn(keep, DRAWN if model.learn else SAMPLE, seed)
    table = rows.take(at)
    y = rows.targets(at) if codes is None else memberships(codes[at], classes)
    if model.learn:
        inner._fit(table, y)
        if codes is None:
            _say_outliers(inner.target_, rows, at)
        kernel, noise = inner.learned()
        return Start(kernel, noise, inner.scaler_, inner._common, inner.target_, inner.plan_.interrupted)
    common = Scaler.fit(table)
    scaler = common if inner._ours() else Scaler.identity(rows.columns)
    kernel = defaults(rows.columns, False)[0] if model.kernel is None else copy.deepcopy(model.kernel)
    return Start(kernel.requires_grad_(False), None, scaler, common, Target.fit(y, inner._ours())[0])
