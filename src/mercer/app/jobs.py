"""What `mercer fit` does, from the options to the folder."""

from __future__ import annotations

import datetime
import io
import json
import platform
import resource
import shlex
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import torch

from mercer.app import facts as say
from mercer.app import insight
from mercer.app.bands import (
    Calibrator,
    Measured,
    as_modest_as,
    as_wide_as,
    measure_classes,
    measure_numbers,
    one_of_each,
    unlike,
)
from mercer.app.card import write_card
from mercer.app.cores import cores, threads
from mercer.app.doctor import versions
from mercer.app.fitting import FOLDS, Outcome, Trained, fit
from mercer.app.folder import check_place, file_sha256
from mercer.app.frame import unused
from mercer.app.head import describe
from mercer.app.heads import whereabouts
from mercer.app.oof import Judged, to_table
from mercer.app.prepared import Prepared, prepare
from mercer.app.progress import Watch
from mercer.app.report import render
from mercer.app.scores import main
from mercer.app.store import Model, save
from mercer.app.tables import size_of
from mercer.app.targets import Target
from mercer.app.unknown import Witnesses
from mercer.app.verdict import verdicts, warnings
from mercer.app.words import count, shown
from mercer.budget import memory, memory_budget
from mercer.errors import DataError

_CALIBRATION_SHARE = 0.06  # of the time budget, to learn where bands are wider


@dataclass(frozen=True)
class Job:
    """The options of a fit. seconds, memory: budgets, None for none; started: when the time began to run.

    group: a column whose rows of one value are never in two folds.
    """

    path: Path
    targets: tuple[str, ...]
    out: Path
    task: str = "auto"
    seconds: float | None = 60.0
    memory: int | None = None
    seed: int = 0
    folds: int = FOLDS
    quiet: bool = False
    started: float | None = None
    group: str | None = None


def machine() -> dict[str, Any]:
    """What the work ran on."""
    return {"system": f"{platform.system()} {platform.machine()}", "cores": cores(), "threads": torch.get_num_threads()}


def command_of(job: Job) -> str:
    """The command line that does the job again."""
    parts = ["mercer", "fit", job.path.name, *(w for t in job.targets for w in ("--target", t)), "--task", job.task]
    parts += ["--group", job.group] if job.group is not None else []
    parts += ["--time", f"{job.seconds:g}s"] if job.seconds is not None else []
    parts += ["--memory", str(job.memory)] if job.memory is not None else []
    parts += ["--folds", str(job.folds)] if job.folds != FOLDS else []
    return shlex.join([*parts, "--seed", str(job.seed), "--out", job.out.name])


def _judged(target: Target, found: np.ndarray, measured: Measured, at: np.ndarray | None) -> Judged:
    if target.task == "regression":
        return Judged(target.values, found, measured.low, measured.high, measured.pit, np.empty((len(found), 0)), at)
    nothing = np.full(len(found), np.nan)
    return Judged(target.values, found.argmax(1), nothing, nothing, nothing, found, at)


def _judge(
    outcome: Outcome, trained: Trained, ready: Prepared, seed: int, seconds: float | None
) -> tuple[list[Judged], list[Measured], list]:
    """(judged rows, what bands did on them, the calibrator of each learner). seconds: the budget of the whole fit."""
    allowed = None if seconds is None else _CALIBRATION_SHARE * seconds / len(trained.heads)
    rows = outcome.judged()
    frame, folds = ready.frame.take(rows), outcome.folds[rows]
    pair = insight.coordinates(ready.frame)
    at = np.stack([frame.columns[i].values for i in pair], axis=1) if pair else None
    known, found = [t.take(rows) for t in ready.targets], [f[rows] for f in outcome.found]
    middles = [m[rows] for m in outcome.middle]
    kin = None if ready.groups is None else ready.groups[rows]
    x = trained.encoder.encode(frame)
    judged: dict[int, Judged] = {}
    measured: dict[int, Measured] = {}
    calibrators: list[Calibrator] = []
    for head in trained.heads:
        first = head.targets[0]
        last = head.missed if head.missed is not None and len(head.missed) == ready.frame.rows else None
        if known[first].task == "regression":
            true = head.forward(np.stack([known[i].values for i in head.targets], axis=1))
            middle = head.forward(np.stack([middles[i] for i in head.targets], axis=1))
            local, done = measure_numbers(whereabouts(head, x, middle), true, middle, folds, seed, allowed, kin)
            local, times = as_wide_as(local, true - middle, last)
            if (times > 1).any():
                outcome.notes.append(unlike([known[i].name for i in head.targets], times))
            calibrators.append(local)
            done = [result.on(head.back) for result in done]
        else:
            sets, done = measure_classes(known[first].values, found[first], folds, seed, kin)
            calibrators.append(as_modest_as(sets, last, ready.targets[first].values))
        for i, result in zip(head.targets, done, strict=True):
            measured[i], judged[i] = result, _judged(known[i], found[i], result, at)
    order = range(len(known))
    return [judged[i] for i in order], [measured[i] for i in order], calibrators


def _insights(outcome: Outcome, ready: Prepared, model: Model, seed: int, watch: Watch) -> dict[str, Any]:
    """Importance, responses and spectrum; on Ctrl-C those done so far."""
    names = ready.frame.names()
    found: dict[str, Any] = {"importance": [], "responses": [], "order": list(range(len(names)))}
    trained = model.trained
    watch.stage("what matters")
    falls = insight.importance(outcome, ready.frame, ready.targets, seed)
    share = insight.relevance(trained) or [0.0] * len(names)
    best = np.max(falls, axis=0) if falls else np.zeros(0)
    total = np.array(share) / max(max(share), 1e-12)
    if len(best):
        total[: len(best)] += best / max(best.max(), 1e-12)
    found["order"] = np.argsort(-total).tolist()
    for i in found["order"]:
        per_target = [f[i] for f in falls] if falls and i < len(best) else [0.0]
        found["importance"].append({"column": names[i], "relevance": share[i], "falls": per_target})
    most = 6 if len(ready.targets) == 1 else 3
    for number, target in list(enumerate(ready.targets))[:3]:
        curves = insight.responses(trained, ready.frame, found["order"][:most], number, model.bands, seed)
        what = (
            f"chance of {shown(target.classes[1], 14)}"
            if len(target.classes) == 2
            else "chance of the likeliest"
            if target.classes
            else target.name
        )
        found["responses"] += [curve | {"target": what} for curve in curves]
    spectrum = insight.spectrum(trained, ready.frame, seed)
    found |= {"spectrum": spectrum and asdict(spectrum), "distance": insight.distance(trained)}
    return found


def _facts(
    job: Job,
    ready: Prepared,
    outcome: Outcome,
    judged: Sequence[Judged],
    measured: Sequence[Measured],
    learned: dict,
    watch: Watch,
) -> dict[str, Any]:
    rows = outcome.judged()
    frame = ready.frame.take(rows)
    table, places = to_table([t.take(rows) for t in ready.targets], judged, ready.rows[rows] + 1, outcome.folds[rows])
    targets = []
    for i, target in enumerate(ready.targets):
        known, board = target.take(rows), say.leaderboard(target, i, outcome)
        never = say.never(target, judged[i])
        targets.append({
            "name": target.name, "task": target.task, "classes": target.classes, "oof": places[i],
            "ranks": main(target), "leaderboard": board, "warnings": warnings(target.task, board, never),
            "coverage": say.coverage(known, measured[i], None if ready.groups is None else ready.groups[rows]),
            "worst": say.worst(known, judged[i], frame, ready.rows[rows] + 1, learned["order"]),
        })  # fmt: skip
    folds = len(np.unique(outcome.folds[rows]))
    pair = insight.coordinates(ready.frame)
    trained = outcome.best
    plans = [describe(head) for head in trained.heads] if trained is not None else []
    outcome.seconds["everything"] = round(watch.elapsed(), 2)
    found = {
        "version": 1, "command": command_of(job), "day": f"{datetime.date.today():%d %B %Y}".lstrip("0"),
        "group": job.group, "table": {"name": job.path.name, "sha256": file_sha256(job.path)}
        | {"rows": ready.table.num_rows, "columns": ready.table.num_columns},
        "settings": asdict(replace(job, path=Path(job.path.name), out=Path(job.out.name))),
        "versions": {k: v for k, v in versions().items() if v}, "machine": machine(), "seconds": dict(outcome.seconds),
        "memory": {"budget": memory_budget(), "peak": _peak()},
        "rows_used": ready.frame.rows, "rows_trained": outcome.rows, "interrupted": outcome.interrupted,
        "notes": ready.sentences + outcome.notes, "targets": targets, "verdicts": verdicts(targets, folds, job.group),
        "columns": say.columns(ready.frame, ready.notes, ready.inputs()),
        "data_sentence": say.data_sentence(ready.frame, ready.notes, ready.table.num_rows),
        **{key: learned[key] for key in ("importance", "responses", "spectrum", "distance")},
        "plans": plans, "algorithms": [p["sentence"] for p in plans], "kernel": plans[0]["kernel"] if plans else "",
        "kernel_sentence": plans[0]["kernel_sentence"] if plans else "",
        "map": [ready.frame.columns[i].name for i in pair] if pair else None, "pictures": [], "picture_sentence": "",
    }  # fmt: skip
    found["verdict"] = " ".join(found["verdicts"])
    found["settings"].pop("started")
    found["settings"] |= {"path": job.path.name, "out": job.out.name, "targets": list(job.targets)}
    return found | {"_oof": table}


def _peak() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _parquet(table: pa.Table) -> bytes:
    target = io.BytesIO()
    pyarrow.parquet.write_table(table, target)
    return target.getvalue()


def as_json(facts: Mapping[str, Any]) -> bytes:
    """Strict JSON: no NaN, no infinity."""
    return json.dumps(say.finite(dict(facts)), indent=1, allow_nan=False).encode()


@dataclass(frozen=True)
class Fitted:
    """What a fit leaves: the model, the facts, the judged rows and the files of its folder (report aside)."""

    model: Model
    facts: dict[str, Any]
    judged: list[Judged]
    oof: pa.Table


def compute(job: Job, watch: Watch) -> Fitted:
    """Read, fit, judge and explain; write nothing."""
    watch.stage("reading")
    ready = prepare(job.path, job.targets, job.task, job.group)
    goals = ", ".join(f"{shown(t.name)} ({t.task})" for t in ready.targets)
    watch.say(
        f"{shown(job.path.name)}: {size_of(ready.table)}; predicting {goals} "
        f"from {count(len(ready.frame.columns), 'column')}"
    )
    for sentence in ready.sentences + unused(ready.notes):
        watch.say(sentence)
    with memory(job.memory) if job.memory is not None else nullcontext(), threads(ready.frame.rows):
        outcome = fit(ready.frame, ready.targets, job.seed, watch, job.folds, ready.groups)
        for note in outcome.notes:
            watch.say(note)
        if outcome.best is None:
            raise DataError("the time budget allowed no fold; give a longer --time")
        if outcome.interrupted:
            watch.say("interrupted: keeping the best so far; press Ctrl-C again to drop it")
        watch.stage("calibrating")
        said = len(outcome.notes)
        judged, measured, calibrators = _judge(outcome, outcome.best, ready, job.seed, job.seconds)
        for note in outcome.notes[said:]:
            watch.say(note)
        empty = [replace(t, values=np.empty(0)) for t in ready.targets]
        rows = outcome.judged()
        rows = rows if ready.groups is None else rows[one_of_each(ready.groups[rows], job.seed)]
        chosen, found = [t.take(rows) for t in ready.targets], [m[rows] for m in outcome.middle]
        witnesses = Witnesses.choose(outcome.best, ready.frame.take(rows), chosen, found, job.seed)
        model = Model(empty, outcome.best, calibrators, witnesses)
        learned = _insights(outcome, ready, model, job.seed, watch)
        facts = _facts(job, ready, outcome, judged, measured, learned, watch)
    table = facts.pop("_oof")
    return Fitted(model, say.finite(facts), judged, table)


def keep(job: Job, fitted: Fitted, pictures: Mapping[str, bytes]) -> None:
    """Write the model folder with its report and card, in one step."""
    files = dict(pictures)
    files["report.html"] = render(fitted.facts, fitted.judged, pictures).encode()
    files["card.md"] = write_card(fitted.facts).encode()
    files["run.json"] = as_json(fitted.facts)
    files["oof.parquet"] = _parquet(fitted.oof)
    save(job.out, fitted.model, files)


def run(job: Job) -> Fitted:
    """The whole of `mercer fit`."""
    check_place(job.out)
    with Watch(job.seconds, job.folds + 2, job.quiet, job.started) as watch:
        fitted = compute(job, watch)
        watch.stage("report")
        keep(job, fitted, {})
        watch.advance()
    return fitted
