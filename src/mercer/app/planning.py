"""What `mercer plan` says: what a fit would do, without doing it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from mercer.app.fitting import FOLDS, goal, split
from mercer.app.frame import TableEncoder
from mercer.app.heads import groups, is_local
from mercer.app.pace import Pace
from mercer.app.prepared import prepare
from mercer.app.progress import Watch
from mercer.app.words import count, shown
from mercer.budget import free_memory, memory, memory_budget, mib
from mercer.errors import MemoryBudgetError
from mercer.learn.options import Option, lines, options
from mercer.learn.plan import Plan, span
from mercer.learn.table import Scaler


def run(
    path: Path, names: Sequence[str], task: str, seconds: float, limit: int | None, group: str | None = None
) -> dict[str, Any]:
    """The algorithm, memory and time of each training, from the rows and coordinates there are.

    Raises MemoryBudgetError where the coordinates alone do not fit.
    """
    ready = prepare(path, names, task, group)
    folds = FOLDS if ready.groups is None else len(split(ready.targets, FOLDS, 0, ready.groups))
    _, x = TableEncoder.fit(ready.frame, goal(ready.targets), 0)
    n, d = x.shape
    parts = groups(ready.targets)
    first = [ready.targets[i] for i in parts[0]]  # numbers, where there are any
    numbers = first[0].task == "regression"
    share = Pace(Watch(seconds, quiet=True), folds + 1).share() / len(parts)
    with memory(limit) if limit is not None else nullcontext():
        learners = options(
            n, d, len(first) if numbers else len(first[0].classes), x=Scaler.fit(x)(x), seconds=share,
            task="regression" if numbers else "classification",
        )  # fmt: skip
        budget = memory_budget()
    if is_local(n, d) and numbers:
        learners = [replace(o, chosen=o.learner == "NeighbourRidge") for o in learners]
        learners.sort(key=lambda o: (not o.chosen, bool(o.refused), o.seconds))
    chosen = next(o for o in learners if o.chosen)
    plan = chosen.plan or Plan("neighbours", n)
    if x.nbytes * 4 > free_memory():
        raise MemoryBudgetError(f"{n:,} rows of {d} coordinates need {mib(x.nbytes * 4)}; give fewer rows or columns")
    return {
        "rows": n, "columns": len(ready.frame.columns), "coordinates": d,
        "targets": [{"name": t.name, "task": t.task, "classes": t.classes} for t in ready.targets],
        "dropped": [{"column": note.column, "why": note.text} for note in ready.notes if note.dropped],
        "notes": ready.sentences, "trainings": folds + 1, "group": group, "seconds": seconds, "budget": budget,
        "share": share, "learners": [{**asdict(o), "plan": None} for o in learners],
        "algorithm": plan.algorithm, "landmarks": plan.landmarks, "memory": chosen.memory,
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
        f"{mib(facts['memory'])} of memory planned, {mib(facts['budget'])} allowed; up to {span(facts['seconds'])}",
    ]
    said += [f"column '{shown(d['column'])}' is not used: it {d['why']}" for d in facts["dropped"]]
    said += [f"! {note}" for note in facts["notes"]]
    rows = [Option(**o) for o in facts["learners"]]
    each = f"of {span(facts['share'])} " if "share" in facts else ""
    return "\n".join([*said, "", f"learners for one training {each}on all rows, by their time:", *lines(rows)])
