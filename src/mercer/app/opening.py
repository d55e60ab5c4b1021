"""The first sections of the report: what went in, and how the model compares with the yardsticks."""

from __future__ import annotations

from typing import Any

from mercer.app.blocks import Section, bar, heads, section
from mercer.app.scores import NAMES, SKILL
from mercer.app.verdict import unseen
from mercer.app.words import fixed, number, percent, shown


def data(facts: dict[str, Any]) -> Section:
    """What went in, the columns that matter most first; the template folds a long table away."""
    rows, places = [], {row["column"]: place for place, row in enumerate(facts.get("importance", []))}
    columns = sorted(facts["columns"], key=lambda column: places.get(column["name"], len(places)))
    for column in columns:
        cells = [
            shown(column["name"], 48), column["kind"], f"{column['distinct']:,}",
            percent(column["missing"]) if column["missing"] else "none", column["summary"], column["note"],
        ]  # fmt: skip
        rows.append({"cells": cells, "warn": bool(column["note"])})
    most = 60
    lines = [facts["data_sentence"]]
    if len(rows) > most:
        lines.append(f"Listed are the {most} of {len(rows)} columns that matter most; run.json holds all.")
    head = heads(
        ("column", "name"),
        ("type", "text"),
        ("distinct", "n"),
        ("missing or infinite", "n"),
        ("values", "long"),
        ("", "tag"),
    )
    return section("data", "The data", "What went in", lines, [{"heads": head, "rows": rows[:most]}], facts["notes"])


def _board(target: dict[str, Any], several: bool) -> dict[str, Any]:
    keys = list(target["leaderboard"][0]["scores"])
    main = target["ranks"]
    rows = []
    for row in target["leaderboard"]:
        value = row["scores"][main]
        error = f" ± {row['error']:.3f}" if row.get("error") is not None else ""
        texts = [number(row["scores"].get(k)) for k in keys if k != main]
        cells = [row["name"], bar(value), f"{fixed(value)}{error}", *texts, f"{row['seconds']:.1f} s"]
        rows.append({"cells": cells, "ours": row["name"] == "mercer"})
    head = heads(
        ("model", "name"), ("", "bar"), (NAMES[main], "n"), *((NAMES[k], "n") for k in keys if k != main), ("time", "n")
    )
    return {"heading": shown(target["name"], 60) if several else "", "heads": head, "rows": rows}


def leaderboard(facts: dict[str, Any]) -> Section:
    """How it compares."""
    several = len(facts["targets"]) > 1
    lines = [
        f"Every model was judged on the same folds, {unseen(facts)}. The bar is the main score; ± is its "
        "standard error over the folds."
    ]
    lines += [SKILL] if any(t["ranks"] == "skill" for t in facts["targets"]) else []
    return section("compare", "Leaderboard", "How it compares", lines, [_board(t, several) for t in facts["targets"]])
