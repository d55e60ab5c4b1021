"""What `mercer plan` says: what a fit would do, without doing it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from mercer.app.fitting import FOLDS, goal, split
from mercer.app.frame import TableEncoder
from mercer.app.heads import is_local
from mercer.app.prepared import prepare
from mercer.app.words import amount, count, shown
from mercer.budget import free_memory, memory, memory_budget
from mercer.errors import MemoryBudgetError
from mercer.learn.options import Option, lines, options
from mercer.learn.plan import Plan
from mercer.learn.table import Scaler

NEIGHBOURS_MEMORY = 32 * 2**20  # bytes that a chunk of small systems takes


def run(
    path: Path, names: Sequence[str], task: str, seconds: float, limit: int | None, group: str | None = None
) -> dict[str, Any]:
    """The algorithm, memory and time of each training, from the rows and coordinates there are.

    Raises MemoryBudgetError where the coordinates alone do not fit.
    """
    ready = prepare(path, names, task, group)
    folds = FOLDS if ready.groups is None else len(split(ready.targets, FOLDS, 0, ready.groups))
    aims = goal(ready.targets)
    _, x = TableEncoder.fit(ready.frame, aims, 0)
    n, d = x.shape
    share = 0.85 * seconds / (folds + 1)
    with memory(limit) if limit is not None else nullcontext():
        learners = options(n, d, aims.shape[1], x=Scaler.fit(x)(x), seconds=share)
        budget = memory_budget()
    chosen = next(o.plan for o in learners if o.chosen and o.plan is not None)
    if is_local(n, d) and all(t.task == "regression" for t in ready.targets):
        chosen = Plan("neighbours", n, memory=NEIGHBOURS_MEMORY)
        learners = [replace(o, chosen=o.learner == "NeighbourRidge") for o in learners]
    if x.nbytes * 4 > free_memory():
        raise MemoryBudgetError(
            f"{n:,} rows of {d} coordinates need {amount(x.nbytes * 4)}; give fewer rows or columns"
        )
    return {
        "rows": n, "columns": len(ready.frame.columns), "coordinates": d,
        "targets": [{"name": t.name, "task": t.task, "classes": t.classes} for t in ready.targets],
        "dropped": [{"column": note.column, "why": note.text} for note in ready.notes if note.dropped],
        "notes": ready.sentences, "trainings": folds + 1, "group": group, "seconds": seconds, "budget": budget,
        "learners": [{**asdict(o), "plan": None} for o in learners],
        "algorithm": chosen.algorithm, "landmarks": chosen.landmarks, "memory": chosen.memory,
    }  # fmt: skip


def as_text(facts: dict[str, Any]) -> str:
    """The plan as lines."""
    goals = ", ".join(f"{shown(t['name'])} ({t['task']})" for t in facts["targets"])
    how = {
        "cholesky": "exactly, by Cholesky",
        "neighbours": "the small system of each point's nearest rows, by Cholesky",
        "cg": "with the whole kernel, by preconditioned conjugate gradients",
        "nystrom": f"with {facts['landmarks']:,} landmarks, by normal equations",
        "falkon": f"with {facts['landmarks']:,} landmarks, by preconditioned conjugate gradients",
    }[facts["algorithm"]]
    said = [
        (
            f"{count(facts['rows'], 'row')}, {count(facts['columns'], 'column')} -> "
            f"{count(facts['coordinates'], 'coordinate')}; to predict {goals}"
        ),
        f"each of {facts['trainings']} trainings ({facts['trainings'] - 1} folds and all rows) solves {how}",
        (
            f"{amount(facts['memory'])} of memory planned, {amount(facts['budget'])} "
            f"allowed; up to {facts['seconds']:.0f} s"
        ),
    ]
    said += [f"column '{shown(d['column'])}' is not used: it {d['why']}" for d in facts["dropped"]]
    said += [f"! {note}" for note in facts["notes"]]
    rows = [Option(**o) for o in facts["learners"]]
    return "\n".join([*said, "", "learners for one training, by the seconds of a solve:", *lines(rows)])
