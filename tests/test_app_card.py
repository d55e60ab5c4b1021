"""The card: names reach the reader of its Markdown as they are, and no mark in them acts."""

from __future__ import annotations

import html
import re

import pytest

from mercer.app.card import write_card


def card(name, verdict="good", notes=()):
    target = {
        "name": name, "task": "regression", "leaderboard": [{"name": "mercer", "scores": {"r2": 0.5}}],
        "coverage": {"measured": 0.9, "rows": 100, "between": [0.82, 0.95]},
    }  # fmt: skip
    return write_card({
        "table": {"name": name, "rows": 100, "sha256": "0" * 64}, "verdict": verdict, "versions": {"mercer": "1"},
        "rows_trained": 100, "columns": [], "settings": {"seed": 0}, "algorithms": [], "targets": [target],
        "notes": list(notes),
    }).splitlines()  # fmt: skip


def read(markdown):
    """What CommonMark shows: a backslash before ASCII punctuation is dropped, entities are read once."""
    return html.unescape(re.sub(r"\\([!-/:-@\[-`{-~])", r"\1", markdown))


@pytest.mark.parametrize(
    "name", ["a<b>&c", "a|b", "x_1*y", r"back\slash", "[l](u)", "`code`", "&lt;", "# ~~no~~", "{!}"]
)
def test_a_name_is_escaped_once(name):
    lines = card(name, f"{name}: good", [f"column {name} is constant"])
    assert read(lines[0]) == f"# Model of {name}" and read(lines[2]) == f"{name}: good"
    assert f"## Target {name} (regression)" in map(read, lines)
    assert read(lines[-1]) == f"- column {name} is constant" or read(lines[-2]) == f"- column {name} is constant"
    for line in (lines[0][2:], lines[2], *(x for x in lines if "constant" in x)):
        assert not re.search(r"[`*_\[\]|]", re.sub(r"\\.", "", line))
        assert "<" not in line and ">" not in line
