"""What the user reads at the end: the result as lines, and a report read again from its folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet

from mercer.app.folder import check_files, read_manifest, strict_json
from mercer.app.oof import from_table
from mercer.app.places import check_report
from mercer.app.report import render
from mercer.app.scores import NAMES
from mercer.app.tables import replaced
from mercer.app.verdict import promise
from mercer.app.words import number, shown
from mercer.errors import DataError


def _board(target: dict[str, Any], several: bool) -> list[str]:
    keys = list(target["leaderboard"][0]["scores"])
    lines = [shown(target["name"])] if several else []
    head = "".join(f"{NAMES[k] if len(NAMES[k]) < 14 else k.upper():>14}" for k in keys)
    lines.append(f"  {'':24}{head}")
    for row in target["leaderboard"]:
        values = "".join(f"{number(row['scores'].get(k)):>14}" for k in keys)
        lines.append(f"  {row['name']:24}{values}")
    held = target["coverage"]
    lines.append(f"  {promise(target['task'], held)}{'' if held.get('infinite') else '; ' + held['size']}")
    return lines + [f"! {sentence}" for sentence in target.get("warnings", [])]


def fit_summary(facts: dict[str, Any], out: Path) -> str:
    """The result of a fit."""
    several = len(facts["targets"]) > 1
    lines = [line for target in facts["targets"] for line in _board(target, several)]
    lines += [f"  {sentence}" for sentence in facts["algorithms"]]
    score, group = facts["targets"][0]["ranks"], facts.get("group")
    judged = "unseen rows" if group is None else f"rows of new groups, by '{shown(group)}'"
    lines.append(f"  the first column ({NAMES[score]}) ranks; all models were judged on the same {judged}")
    lines.append(f"{facts['seconds']['everything']:.1f} s -> {out}/report.html")
    return "\n".join(lines)


def report_summary(facts: dict[str, Any], where: Path) -> str:
    """What a folder holds."""
    return "\n".join([facts["verdict"], *facts["algorithms"], f"report: {where}"])


def _write(place: Path, text: str) -> None:
    place.write_text(text, encoding="utf-8")


def reread(folder: Path, out: Path | None) -> dict[str, Any]:
    """The facts of a checked folder; with `out`, its report drawn anew there."""
    if out is not None:
        check_report(out)
    manifest = read_manifest(folder)
    check_files(folder, manifest)
    if not {"run.json", "oof.parquet"} <= set(manifest.files):
        raise DataError(f"model folder '{shown(folder)}' does not list the facts of its run; fit again")
    try:
        facts = strict_json((folder / "run.json").read_bytes())
        if out is not None:
            judged = from_table(pyarrow.parquet.read_table(folder / "oof.parquet"), facts)
            pictures = {p["file"]: (folder / p["file"]).read_bytes() for p in facts["pictures"]}
            text = render(facts, judged, pictures)
            replaced(out, lambda place: _write(place, text))
        facts["verdict"], facts["algorithms"]
    except (KeyError, ValueError, TypeError, IndexError, pyarrow.ArrowException) as error:
        raise DataError(f"model folder '{shown(folder)}' does not hold the facts of a run; fit again") from error
    return facts
