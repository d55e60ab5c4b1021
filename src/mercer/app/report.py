"""The report: one HTML file that loads nothing, made from the facts of a run and its out-of-fold predictions."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

import jinja2

from mercer.app import opening, sections
from mercer.app.blocks import Section, section
from mercer.app.oof import Judged
from mercer.app.scores import NAMES
from mercer.app.svg import drawing
from mercer.app.verdict import too_few
from mercer.app.words import count, fixed, percent, shown


def _tiles(facts: dict[str, Any]) -> list[dict[str, str]]:
    first = facts["targets"][0]
    board = first["leaderboard"]
    ours, main = board[0], first["ranks"]
    several = f" for {shown(first['name'], 24)}" if len(facts["targets"]) > 1 else ""
    unseen = "unseen rows" if facts.get("group") is None else "new groups"
    tiles = [{"value": fixed(ours["scores"][main]), "text": f"{NAMES[main]}{several} on {unseen}"}]
    rivals = [row for row in board[1:] if row["name"] != "mean"]
    if rivals:
        best = max(rivals, key=lambda row: row["scores"][main])
        tiles.append(
            {"value": fixed(best["scores"][main]), "text": f"{NAMES[main]} of the best yardstick, {best['name']}"}
        )
    held = first["coverage"]
    what = "bands" if first["task"] == "regression" else "sets"
    rough = "; too few rows to promise 90 %" if too_few(held) else ""
    tiles.append({"value": percent(held["measured"]), "text": f"of the truth held by 90 % {what}{several}{rough}"})
    tiles.append(
        {
            "value": f"{facts['seconds']['everything']:.0f} s",
            "text": f"for {count(facts['rows_used'], 'row')} on {count(facts['machine']['cores'], 'core')}",
        }
    )
    return tiles


def _pictures(facts: dict[str, Any], pictures: Mapping[str, bytes]) -> Section | None:
    drawn = [
        {"png": base64.b64encode(pictures[p["file"]]).decode(), "caption": p["caption"]}
        for p in facts["pictures"]
        if p["file"] in pictures
    ]
    if not drawn:
        return None
    return section("picture", "The picture", "The picture", [facts["picture_sentence"]], [{"figures": drawn}])


def render(facts: dict[str, Any], judged: Sequence[Judged], pictures: Mapping[str, bytes]) -> str:
    """The report as HTML text. pictures: PNG files by name, shown first where there are any."""
    place = files("mercer.app") / "templates"
    loader = jinja2.FunctionLoader(lambda name: (place / name).read_text(encoding="utf-8"))
    environment = jinja2.Environment(loader=loader, autoescape=True)
    with drawing():
        parts = [
            _pictures(facts, pictures), opening.data(facts), opening.leaderboard(facts),
            sections.closeness(facts, judged), sections.trust(facts, judged), sections.matters(facts),
            sections.kernel(facts), sections.places(facts, judged), sections.health(facts), sections.again(facts),
        ]  # fmt: skip
    names = [shown(t["name"]) for t in facts["targets"]]
    table = facts["table"]
    return environment.get_template("report.html").render(
        title=f"{', '.join(names)}: mercer report",
        names=names,
        source=(
            f"{shown(table['name'], 80)} · {count(table['rows'], 'row')} · "
            f"{count(table['columns'], 'column')} · {facts['day']}"
        ),
        verdicts=facts["verdicts"],
        tiles=_tiles(facts),
        sections=[part for part in parts if part is not None],
        css=(place / "report.css").read_text(encoding="utf-8"),
        version=facts["versions"]["mercer"],
    )
