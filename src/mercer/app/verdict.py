"""What a fit came to, in sentences: one rule for comparisons, and what must be said before anything else."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import t as student

from mercer.app.scores import NAMES
from mercer.app.words import count, fixed, listed, number, percent, shown

FEWEST_JUDGED = 50  # rows below which a measured coverage is too rough to stand by itself
_BOUNDED = 9  # rows from which a 90 % band is finite
_LEAST = 0.002  # of a score: less is no difference
_SURE = 0.9  # chance with which a difference that is called one has the sign it is said to have on both sides


def gap(ours: Mapping[str, Any], rival: Mapping[str, Any], ranks: str) -> tuple[float, bool | None]:
    """(printed score of ours minus that of a rival, whether the folds of both bear its sign out; None of one fold).

    Differences are paired fold by fold and held against Student's t, so what makes a fold hard for both cancels.
    """
    printed = round(ours["scores"][ranks], 3) - round(rival["scores"][ranks], 3)
    mine, other = (dict(map(tuple, row.get("each") or [])) for row in (ours, rival))
    pairs = np.array([mine[k] - other[k] for k in mine if k in other], dtype=np.float64)
    pairs = pairs[np.isfinite(pairs)]
    if len(pairs) < 2:
        return printed, None
    reach = student.ppf((1 + _SURE) / 2, len(pairs) - 1) * pairs.std(ddof=1) / np.sqrt(len(pairs))
    return printed, bool(pairs.mean() * np.sign(printed) > reach)


def against(ours: Mapping[str, Any], rival: Mapping[str, Any], ranks: str) -> str:
    """'0.020 ahead of linear (0.410)'; the side and the size are always those of the printed scores."""
    size, sure = gap(ours, rival, ranks)
    name = f"{rival['name']} ({fixed(rival['scores'][ranks])})"
    if abs(size) <= _LEAST:
        return f"level with {name}"
    return f"{abs(size):.3f} {'ahead of' if size > 0 else 'behind'} {name}{', within chance' if sure is False else ''}"


def _nothing_learned(ours: Mapping[str, Any], mean: Mapping[str, Any]) -> str:
    score = ours["scores"]["r2"]
    if score <= max(mean["scores"]["r2"], 0.0):
        return "It is no better than predicting the mean: do not use it as it is"
    size, sure = gap(ours, mean, "r2")
    return "" if sure is not False and size > _LEAST else "It is not clearly better than predicting the mean"


def warnings(task: str, board: Sequence[Mapping[str, Any]], never: Sequence[tuple[str, int]] = ()) -> list[str]:
    """What a reader must know before using the predictions. never: classes that are not predicted, and their rows."""
    ours, found = board[0], []
    mean = next((row for row in board[1:] if row["name"].split(" on ")[0] == "mean"), None)
    if mean is not None and task == "regression":
        found.append(_nothing_learned(ours, mean))
    elif mean is not None:
        loss, shares = ours["scores"]["log_loss"], mean["scores"]["log_loss"]
        if loss > shares and number(loss) != number(shares):
            losses = f"log loss {number(loss)}, shares {number(shares)}"
            found.append(f"Its probabilities are worse than the class shares ({losses}): do not use them as chances")
        if ours["scores"]["accuracy"] <= mean["scores"]["accuracy"]:
            found.append("It is right no more often than always saying the commonest class")
    if never:
        names = [f"{shown(name, 24)} ({count(rows, 'row')})" for name, rows in never[:3]]
        more = f" and {len(never) - 3} more" if len(never) > 3 else ""
        found.append(f"Never predicted: {', '.join(names)}{more}; look at the chances and the sets for these")
    return [sentence for sentence in found if sentence]


def too_few(held: Mapping[str, Any]) -> bool:
    """Whether a measured coverage is of too few rows, or mostly of classes of too few, to stand by itself."""
    return (held.get("groups") or held["rows"]) < FEWEST_JUDGED or held.get("unsure", 0.0) > 0.5


def _judged(held: Mapping[str, Any]) -> str:
    """The rows that a coverage was measured on, and its groups where there are any."""
    return count(held["rows"], "row") + (f" of {count(held['groups'], 'group')}" if held.get("groups") else "")


def promise(task: str, held: Mapping[str, Any]) -> str:
    """What the 90 % bands or sets held, and how sure that is, in a sentence without its full stop."""
    if held.get("infinite"):
        what = count(held["groups"], "judged group") if held.get("groups") else count(held["rows"], "judged row")
        rows = held.get("groups") or held["rows"]
        if rows >= _BOUNDED:  # all of them bound a band, those of the other folds none
            return f"what 90 % bands hold could not be measured: {what} are too few to judge each other's"
        return f"90 % bands are infinite: {what} cannot bound them"
    what = "bands" if task == "regression" else "sets of classes"
    low, high = held["between"]
    digits = 0 if high - low >= 0.05 else 1
    doubt = f" (chance range {100 * low:.{digits}f} to {percent(high, digits)})"
    if too_few(held):
        few = "groups" if held.get("groups") else "rows"
        return f"too few {few} to promise 90 %: {what} held {percent(held['measured'])} of {_judged(held)}{doubt}"
    text = f"90 % {what} held {percent(held['measured'])} of {_judged(held)}{doubt}"
    if task != "regression" and held["measured"] > 0.92:
        text += "; each class is promised 90 % by itself, hence more of all rows"
    return text


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def unseen(facts: Mapping[str, Any]) -> str:
    """On what models were judged."""
    group = facts.get("group")
    return "on rows it had not seen" if group is None else f"on new groups, each {listed([group])} left out whole"


def verdicts(targets: Sequence[Mapping[str, Any]], folds: int, group: str | None = None) -> list[str]:
    """The result of each target, in a few sentences, warnings first. group: the column that kept folds apart."""
    parts = []
    where = unseen({"group": group})
    for target in targets:
        ranks, board = target["ranks"], target["leaderboard"]
        ours, name = board[0], NAMES[target["ranks"]]
        error = f" ± {ours['error']:.3f}" if ours["error"] is not None and math.isfinite(ours["error"]) else ""
        rivals = [against(ours, r, ranks) for r in board[1:] if r["name"] != "mean" or len(board) == 2]
        beside = f": {'; '.join(rivals)}" if rivals else ""
        lead = f"{shown(target['name'], 30)}: " if len(targets) > 1 else ""
        said = [f"{name} {fixed(ours['scores'][ranks])}{error} {where} ({count(folds, 'fold')}){beside}"]
        said += [*target.get("warnings", []), promise(target["task"], target["coverage"])]
        parts.append(lead + " ".join(_sentence(text) for text in said))
    return parts
