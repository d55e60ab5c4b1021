"""What a fit on landmarks begins with: rows held out, a learned kernel, landmarks; kept for a fit to resume."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mercer.budget import memory_budget, mib
from mercer.errors import DataError, MemoryBudgetError, ShapeError
from mercer.features.nystrom import cholesky_landmarks
from mercer.kernel import Kernel
from mercer.learn.checkpoint import Checkpoint, digest
from mercer.learn.draw import Start, begin, drawn
from mercer.learn.landmarks import block_rows
from mercer.learn.rows import Rows
from mercer.learn.spec import from_spec, to_spec
from mercer.learn.table import Scaler, Target, plain, refuse_gaps, refuse_words
from mercer.learn.tune import Clock
from mercer.learn.whitening import Whitening
from mercer.linalg import Cholesky

HELD, FEWEST = 20_000, 10  # rows held out, at most, and at least where there are four times as many
SHARE = 0.4  # of the seconds: to learn the kernel
SPREAD = 10  # rows for each centre that pivots are drawn from
COPIES = 6  # m x m matrices of a fit, beside one for each penalty
DENSE, WORTH = 8, 1500  # rows for each centre that the preconditioner sees, unless passes over few rows are cheaper
SMALL = 10**8  # kernel values of a pass, up to which all of them are float64


def precision(model: Any, rows: int) -> torch.dtype:
    """The dtype of the landmarks and of most products."""
    if model.precision is None:
        many = model.landmarks if isinstance(model.landmarks, int | np.integer) else len(model.landmarks)
        return torch.float64 if rows * many <= SMALL else torch.float32
    return {"mixed": torch.float32, "double": torch.float64}[model.precision]


def held_out(keep: np.ndarray, fraction: float | None, seed: int) -> np.ndarray:
    """Places of the rows of the mask that are held out, in order."""
    n = int(keep.sum())
    if not fraction:
        return np.empty(0, dtype=np.int64)
    return drawn(keep, min(HELD, max(round(fraction * n), min(FEWEST, n // 4))), seed)


@dataclass
class Task:
    """A fit's rows, which of them count (`keep`) or are held out, the start, the landmarks (float32 or 64)."""

    rows: Rows
    weight: np.ndarray | None
    keep: np.ndarray
    held: np.ndarray
    seed: int
    start: Start
    z: Tensor

    @property
    def kernel(self) -> Kernel:
        return self.start.kernel

    def middle(self) -> tuple[Tensor, float]:
        """(K_mm + jitter I in float64, jitter): rounding of the dtype of the products, or more where it is singular."""
        wide = self.z.double()
        with torch.no_grad():
            found = self.kernel.block(wide, wide)
        jitter = len(wide) * torch.finfo(self.z.dtype).eps * float(found.diagonal().mean())
        found.diagonal().add_(jitter)
        factor = Cholesky().factor(found)
        found.diagonal().add_(factor.jitter)
        return found, jitter + factor.jitter

    def sampled(self, root: Tensor, many: int) -> Iterator[Tensor]:
        """k(x, z) T^-1 of a draw of so many rows, `b m` float64, a block at a time; root: T."""
        at = drawn(self.keep, many, self.seed + 2)
        for start in range(0, len(at), block_rows(len(root))):
            x = self.start.scaler(self.rows.take(at[start : start + block_rows(len(root))]))
            with torch.no_grad():
                seen = self.kernel.block(x.to(self.z.dtype).double(), self.z.double())
            yield torch.linalg.solve_triangular(root, seen, upper=True, left=False)

    def whitening(self, middle: Tensor, total: float) -> Whitening:
        """Falkon's coordinates; total: the sum of the weights of the rows."""
        m, n = len(middle), int(self.keep.sum())
        root, many = torch.linalg.cholesky(middle).mT, min(n, DENSE * m, max(2 * m, WORTH * n // m))
        gram, seen = torch.zeros_like(root), 0
        for block in self.sampled(root, many):
            gram.addmm_(block.mT, block)
            seen += len(block)
        return Whitening(root, gram * (total / seen))


def _given(model: Any, columns: int) -> np.ndarray | None:
    """The landmarks that the caller gave, as rows of X, or None where a number was given."""
    landmarks = model.landmarks
    if isinstance(landmarks, int | np.integer) and not isinstance(landmarks, bool):
        if landmarks < 1:
            raise ValueError(f"landmarks is {landmarks}; expected a number >= 1, or an array of rows")
        return None
    refuse_words(landmarks, "landmarks")
    table = np.asarray(plain(landmarks), dtype=np.float64)
    if table.ndim != 2 or table.shape[1] != columns or not len(table):
        raise ShapeError(f"landmarks has shape {table.shape}; expected m x {columns}, rows like those of X, m >= 1")
    refuse_gaps(table, "landmarks")
    return table


def fits(m: int, levels: int) -> None:
    """Raise MemoryBudgetError where so many landmarks have no room."""
    need, budget = 8 * m * m * (COPIES + levels), memory_budget()
    if need > budget:
        most = int((budget / (8 * (COPIES + levels))) ** 0.5)
        raise MemoryBudgetError(
            f"landmarks: {m:,} take {mib(need)} of m x m matrices, the memory budget is {mib(budget)}; take at most "
            f"{most:,}, or raise the budget with mercer.memory(...)"
        )


def landmarks(model: Any, rows: Rows, keep: np.ndarray, start: Start, seed: int, dtype: torch.dtype) -> Tensor:
    """Landmarks in the coordinates of the kernel, `m d`: those given, or rows drawn as `selection` says."""
    table = _given(model, rows.columns)
    if table is not None:
        return start.scaler(table).to(dtype)
    many = min(int(model.landmarks), int(keep.sum()))
    if model.selection == "uniform":
        return start.scaler(rows.take(drawn(keep, many, seed + 1))).to(dtype)
    room = max(int(memory_budget() // (32 * many)), many)
    x = start.scaler(rows.take(drawn(keep, min(SPREAD * many, room), seed + 1)))
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        return x[cholesky_landmarks(start.kernel, x, many, generator)].to(dtype)


def task(
    model: Any, rows: Rows, weight: np.ndarray | None, clock_seconds: float | None, seed: int,
    codes: np.ndarray | None = None, classes: int = 0,
) -> Task:  # fmt: skip
    """Hold rows out, learn the kernel on a draw of the others, choose landmarks."""
    keep = np.ones(len(rows), dtype=bool) if weight is None else weight > 0
    held = held_out(keep, model.validation_fraction, seed)
    keep[held] = False
    seconds = None if clock_seconds is None else SHARE * clock_seconds
    start = begin(model, rows, keep, seed, seconds, codes, classes)
    z = landmarks(model, rows, keep, start, seed, precision(model, len(rows)))
    return Task(rows, weight, keep, held, seed, start, z)


def owner(model: Any, rows: Rows, weight: np.ndarray | None) -> str:
    """What a checkpoint of this fit belongs to; nothing is hashed where there is none."""
    if model.checkpoint is None:
        return ""
    found = digest(model, rows)
    if weight is None:
        return found
    return found + hashlib.sha256(np.ascontiguousarray(weight).tobytes()).hexdigest()


def frozen(model: Any, found: Task) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A task as plain values and tensors; the rows themselves are not among them."""
    start = found.start
    values = {"kernel": to_spec(start.kernel) if model.kernel is None else None, "noise": start.noise}
    arrays = {f"kernel.{name}": value for name, value in start.kernel.state_dict().items()}
    for name, of in (("scaler", start.scaler), ("common", start.common), ("target", start.target)):
        arrays |= {f"{name}.centre": torch.from_numpy(of.centre), f"{name}.scale": torch.from_numpy(of.scale)}
    if start.target.edges is not None:
        arrays["target.edges"] = torch.from_numpy(start.target.edges)
    arrays |= {"held": torch.from_numpy(found.held), "z": found.z}
    return values | {"seed": found.seed}, arrays


def thawed(
    model: Any, rows: Rows, weight: np.ndarray | None, values: dict[str, Any], arrays: dict[str, Tensor]
) -> Task:
    """The task that was frozen."""
    if values["kernel"] is not None:
        kernel = from_spec(values["kernel"])
    else:
        kernel = copy.deepcopy(model.kernel)
        own = {name.removeprefix("kernel."): a for name, a in arrays.items() if name.startswith("kernel.")}
        kernel.load_state_dict(own)

    def pair(name: str) -> tuple[np.ndarray, np.ndarray]:
        return arrays[f"{name}.centre"].numpy(), arrays[f"{name}.scale"].numpy()

    edges = arrays["target.edges"].numpy() if "target.edges" in arrays else None
    scaler, common, target = Scaler(*pair("scaler")), Scaler(*pair("common")), Target(*pair("target"), edges)
    start = Start(kernel.requires_grad_(False), values["noise"], scaler, common, target)
    keep, held = np.ones(len(rows), dtype=bool) if weight is None else weight > 0, arrays["held"].numpy()
    keep[held] = False
    return Task(rows, weight, keep, held, int(values["seed"]), start, arrays["z"])


def weights_of(sample_weight: Any, rows: Rows, least: int = 2) -> np.ndarray | None:
    """sample_weight as `n` float64 >= 0, so many of them above 0, or None. Raises ShapeError, DataError."""
    if sample_weight is None:
        return None
    found = np.asarray(plain(sample_weight), dtype=np.float64)
    found = np.full(len(rows), float(found)) if found.ndim == 0 else found
    if found.shape != (len(rows),):
        raise ShapeError(f"sample_weight has shape {found.shape}; expected ({len(rows)},), one for each row")
    refuse_gaps(found[:, None], "sample_weight")
    if (found < 0).any() or int((found > 0).sum()) < least:
        raise DataError(f"sample_weight: expected numbers >= 0 of which at least {least} are not zero")
    return found


@dataclass
class Fit:
    """A fit on its way: what it began with, where an ended one had come to (`state`), and how to keep more."""

    task: Task
    clock: Clock
    file: Checkpoint
    frozen: tuple[dict[str, Any], dict[str, Tensor]]
    state: tuple[dict[str, Any], dict[str, Tensor]] | None

    def save(self, values: dict[str, Any], arrays: dict[str, Tensor], *, now: bool = False) -> None:
        """Keep the state of the solver beside what the fit began with."""
        mine, tensors = self.frozen
        named = {f"state.{name}": value for name, value in arrays.items()}
        self.file.save(mine | {"state": values}, tensors | named, now=now)


def open_fit(
    model: Any, rows: Rows, weight: np.ndarray | None, seed: int, codes: np.ndarray | None = None, classes: int = 0
) -> Fit:
    """Begin a fit, or take up the one that the model's checkpoint holds."""
    clock, file = Clock.of(model.time_budget), Checkpoint(model.checkpoint, owner(model, rows, weight))
    saved = file.load()
    if saved is None:
        rows.refuse_gaps()
        found = task(model, rows, weight, model.time_budget, seed, codes, classes)
        clock.interrupted = found.start.interrupted
        file = Checkpoint(None, "") if clock.interrupted else file  # who comes back learns all of the kernel
        fit = Fit(found, clock, file, ({}, {}) if model.checkpoint is None else frozen(model, found), None)
        fit.file.save(*fit.frozen, now=True)
        return fit
    values, arrays = saved
    found = thawed(model, rows, weight, values, arrays)
    state = None
    if "state" in values:
        named = {name.removeprefix("state."): a for name, a in arrays.items() if name.startswith("state.")}
        state = values["state"], named
    return Fit(found, clock, file, frozen(model, found), state)
