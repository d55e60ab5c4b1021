"""The model card: what the model is, how good it is, and what it must not be used for, in Markdown."""

from __future__ import annotations

from typing import Any

from mercer.app.scores import NAMES
from mercer.app.verdict import promise
from mercer.app.words import number, one_line, shown

_MARKS = {mark: f"\\{mark}" for mark in "\\`*_{}[]()#|!~"} | {"<": "&lt;", ">": "&gt;", "&": "&amp;"}
_IN_NAMES = {ord(mark): text for mark, text in _MARKS.items()}
_IN_SENTENCES = {ord(mark): _MARKS[mark] for mark in "\\`*_[]|<>&"}


def _safe(text: object) -> str:
    """A name as Markdown shows it: each mark escaped once."""
    return shown(text, 60).translate(_IN_NAMES)


def _safe_sentence(text: str) -> str:
    return one_line(text, 5000).translate(_IN_SENTENCES)


def _target(target: dict[str, Any]) -> list[str]:
    lines = [f"## Target {_safe(target['name'])} ({target['task']})", "", "| model | " + " | ".join(
        NAMES[key] for key in target["leaderboard"][0]["scores"]) + " |"]  # fmt: skip
    lines.append("|---|" + "---|" * len(target["leaderboard"][0]["scores"]))
    for row in target["leaderboard"]:
        values = [number(row["scores"].get(key)) for key in target["leaderboard"][0]["scores"]]
        lines.append(f"| {row['name']} | " + " | ".join(values) + " |")
    kept = promise(target["task"], target["coverage"])
    lines += ["", f"{kept[:1].upper()}{kept[1:]}. No row calibrated the bands or sets that it was measured with.", ""]
    return lines + [line for text in target.get("warnings", []) for line in (f"**{_safe_sentence(text)}.**", "")]


def write_card(facts: dict[str, Any]) -> str:
    """The card of a fit."""
    table, group = facts["table"], facts.get("group")
    like = "rows drawn like the training rows"
    if group is not None:
        like = f"groups of '{_safe(group)}', judged on groups that were left out whole, drawn like the training groups"
    lines = [
        f"# Model of {_safe(table['name'])}", "", _safe_sentence(facts["verdict"]), "",
        f"- made by mercer {facts['versions']['mercer']} from {table['rows']:,} rows (SHA-256 `{table['sha256']}`)",
        (f"- trained on {facts['rows_trained']:,} rows, {len(facts['columns'])} "
            f"columns read, seed {facts['settings']['seed']}"),
        *(f"- {_safe_sentence(s)}" for s in facts["algorithms"]), "",
    ]  # fmt: skip
    for target in facts["targets"]:
        lines += _target(target)
    lines += [
        "## Limits", "",
        f"- Scores and coverage hold for new {like}; they say nothing on rows unlike them.",
        "- Far from all training rows predictions return to the mean of the target.",
        "- What a column does to the prediction is not what changing it would do in the world.",
        *(f"- {_safe_sentence(s)}" for s in facts["notes"]), "",
    ]  # fmt: skip
    return "\n".join(lines)
