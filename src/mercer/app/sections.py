"""The parts of the report: each a question, the answer in a sentence, and the pictures and tables behind it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mercer.app import figures
from mercer.app.blocks import Section, bar, heads, section
from mercer.app.combinations import of_distance
from mercer.app.oof import Judged
from mercer.app.verdict import promise
from mercer.app.words import count, number, percent, shown
from mercer.budget import mib

_MOST_TARGETS = 3  # drawn; the leaderboard lists all


def _closeness(target: dict[str, Any], judged: Judged, heading: str) -> dict[str, Any]:
    name = target["name"]
    if target["task"] == "regression":
        true, found, low, high = judged.true, judged.found, judged.low, judged.high
        pictures = [
            (figures.predicted_and_true(name, true, found, low, high),
             "Each dot is a row, predicted by a model that had not seen it. "
             "The dashed line is perfection, the shading the "
             "average 90 % band, red dots fall outside their own."),
            (figures.residuals(name, true, found, low, high),
             "What is left over. The blue line is the average error of rows predicted alike: it should stay on zero."),
            (figures.bands(name, true, found, low, high),
             ("A sample of rows: the line is the prediction, strokes are 90 % "
                 "bands, dots the truth, red where the band missed.")),
            (figures.errors(name, target["leaderboard"], "size of the error"),
             "How large errors are: the higher the curve, the more rows have an error below that size."),
        ]  # fmt: skip
        return {"heading": heading, "figures": [{"svg": svg, "caption": text} for svg, text in pictures], "wide": True}
    table = np.zeros((len(target["classes"]),) * 2, dtype=int)
    np.add.at(table, (judged.true.astype(int), judged.found.astype(int)), 1)
    last = len(target["classes"]) - 1
    if last == 1:
        chance, happened = judged.chances[:, 1], judged.true == 1
        what = (
            f"The chance given to '{shown(target['classes'][1], 20)}', in groups of rows, against how often it was so."
        )
    else:
        chance, happened = judged.chances.max(1), judged.found == judged.true
        what = "The chance given to the predicted class, in groups of rows, against how often it was right."
    pictures = [
        (figures.confusion(name, table, target["classes"]), "True classes against predicted ones; blue is right."),
        (figures.reliability(name, chance, happened.astype(float)), what),
        (figures.errors(name, target["leaderboard"], "1 - chance given to the truth"),
         "How surprised each model was by the truth: the higher the curve, the more rows it was sure and right about."),
    ]  # fmt: skip
    return {"heading": heading, "figures": [{"svg": svg, "caption": text} for svg, text in pictures]}


def _worst(target: dict[str, Any], most: int) -> dict[str, Any]:
    if target["task"] == "regression":
        head = heads(
            ("row", "n"), ("true", "n"), ("predicted", "n"), ("90 % band", "n"), ("what it looks like", "long")
        )
        rows = [
            [
                f"{w['row']:,}",
                number(w["true"], 4),
                number(w["found"], 4),
                f"{number(w['low'], 4)} to {number(w['high'], 4)}",
                w["about"],
            ]
            for w in target["worst"][:most]
        ]
    else:
        head = heads(
            ("row", "n"),
            ("true", "name"),
            ("predicted", "name"),
            ("chance of the truth", "n"),
            ("what it looks like", "long"),
        )
        rows = [
            [f"{w['row']:,}", shown(w["true"], 24), shown(w["found"], 24), percent(w["chance"]), w["about"]]
            for w in target["worst"][:most]
        ]
    return {
        "heading": f"The rows of {shown(target['name'], 40)} it got most wrong",
        "heads": head,
        "rows": [{"cells": r} for r in rows],
    }


def closeness(facts: dict[str, Any], judged: Sequence[Judged]) -> Section:
    """Predicted against true, and the worst rows."""
    several = len(facts["targets"]) > 1
    pairs = list(zip(facts["targets"], judged, strict=True))[:_MOST_TARGETS]
    blocks = [_closeness(t, j, shown(t["name"], 60) if several else "") for t, j in pairs]
    blocks += [_worst(t, 4 if several else 10) for t in facts["targets"][:_MOST_TARGETS]]
    lines = [
        (
            "Out-of-fold predictions: what to expect from new rows like these. Large "
            "errors on few rows are worth a look at the data first."
        )
    ]
    return section("close", "Predictions", "How close the predictions are", lines, blocks)


def _trust(target: dict[str, Any], judged: Judged, heading: str) -> dict[str, Any]:
    name, curve = target["name"], target["coverage"]["curve"]
    nominal, measured = np.array(curve["nominal"]), np.array(curve["measured"])
    honest = "Promised against measured coverage, at every level. On the line is honest; below it is overconfident."
    if target["task"] != "regression":
        honest = (
            "Promised against measured coverage. A set always holds the likeliest "
            "class, so it cannot cover less than the accuracy."
        )
    drawn = figures.coverage(name, nominal, measured, target["coverage"]["rows"])
    pictures = [{"svg": drawn, "caption": honest}]
    if target["task"] == "regression":
        inside = (judged.true >= judged.low) & (judged.true <= judged.high)
        pictures.append({"svg": figures.pit(name, judged.pit), "caption":
                         ("Flat within the shaded range: the predicted distribution has the right place "
                             "and width. A hump means bands too wide, a bowl too narrow.")})  # fmt: skip
        pictures.append({"svg": figures.width_of_bands(name, judged.found, judged.low, judged.high, inside), "caption":
                         ("The 90 % promise kept in groups from the narrowest bands to the "
                             "widest, with the range that chance allows.")})  # fmt: skip
    return {"heading": heading, "figures": pictures}


def trust(facts: dict[str, Any], judged: Sequence[Judged]) -> Section:
    """Calibration."""
    sentences = []
    for target in facts["targets"]:
        sentences.append(
            f"{shown(target['name'])}: {promise(target['task'], target['coverage'])}; {target['coverage']['size']}."
        )
    sentences.append("Each row was measured with bands calibrated on the other folds, so no row vouches for itself.")
    pairs = list(zip(facts["targets"], judged, strict=True))[:_MOST_TARGETS]
    blocks = [_trust(t, j, shown(t["name"], 60) if len(pairs) > 1 else "") for t, j in pairs]
    return section(
        "trust",
        "Calibration",
        "Whether the bands keep their promise",
        [" ".join(sentences)],
        blocks,
    )


def _distance(facts: dict[str, Any]) -> list[dict[str, Any]]:
    """What the kernel takes as distance: the share of each column and, where they were learned, of combinations."""
    found = facts.get("distance")
    if not found:
        return []
    drawn = of_distance(found)
    heading = "What makes two rows alike" if len(drawn) == 1 else "Which combinations make two rows alike"
    return [{"heading": heading, "figures": drawn}]


def matters(facts: dict[str, Any]) -> Section:
    """What matters, and response curves."""
    found = facts["importance"]
    top = max((max(max(r["falls"]), 0.0) for r in found), default=0.0) or 1.0
    best = max((r["relevance"] for r in found), default=0.0) or 1.0
    rows = []
    for row in found[:20]:
        fall = max(row["falls"])
        cells = [
            shown(row["column"], 48),
            bar(row["relevance"] / best, "model"),
            percent(row["relevance"], 0),
            bar(fall / top, "other"),
            f"{fall:.3f}",
        ]
        rows.append({"cells": cells})
    head = heads(
        ("column", "name"),
        ("prediction moves", "bar"),
        ("share", "n"),
        ("score lost when shuffled", "bar"),
        ("lost", "n"),
    )
    legend = [
        {
            "colour": "model",
            "text": "how far predictions move when the column alone takes another row's value, in shares",
        },
        {"colour": "other", "text": "fall of the score on unseen rows when the column is shuffled"},
    ]
    blocks: list[dict[str, Any]] = [{"heads": head, "rows": rows, "legend": legend}] if rows else []
    curves = [{"svg": figures.response(c["column"], c["target"], c), "caption": ""} for c in facts["responses"]]
    if curves:
        blocks.append({"heading": "How the prediction moves with each", "figures": curves})
    blocks += _distance(facts)
    line = (
        "Two views: how far the predictions of training rows move when the column alone takes another row's value, and "
        "what the score on unseen rows loses when it is shuffled. Columns that say the same share what is lost. "
        "The curves move one column and keep the others as they are; the shading is "
        "the average 90 % band. They describe the model, not causes."
    )
    return section("matters", "What matters", "What matters", [line], blocks)


def kernel(facts: dict[str, Any]) -> Section | None:
    """The kernel's spectrum."""
    found = facts["spectrum"]
    if found is None:
        return None
    picture = figures.spectrum(np.array(found["eigenvalues"]), found["dimension"], found["rows"])
    caption = (
        "How fast the kernel's eigenvalues fall on a sample of rows. "
        "Directions left of the mark are fitted; those right of it are treated as noise."
    )
    items = [
        ("kernel", facts["kernel"]),
        ("what it believes in", facts["kernel_sentence"]),
        ("effective dimension", f"{number(found['dimension'])} of {count(found['rows'], 'row')} sampled"),
    ]
    blocks = [{"figures": [{"svg": picture, "caption": caption}], "facts": items, "beside": True}]
    return section("kernel", "The kernel", "The kernel itself", [], blocks)


def places(facts: dict[str, Any], judged: Sequence[Judged]) -> Section | None:
    """A map, where two columns are coordinates."""
    if facts["map"] is None or judged[0].at is None:
        return None
    names, at, target = facts["map"], judged[0].at, facts["targets"][0]
    true, found = judged[0].true, judged[0].found
    if target["task"] != "regression":
        missed = (true != found).astype(float)
        pictures = [("where it was wrong", missed, "error", (-1.0, 1.0))]
    else:
        limits = (float(np.quantile(true, 0.01)), float(np.quantile(true, 0.99)))
        reach = float(np.quantile(np.abs(true - found), 0.98)) or 1.0
        pictures = [
            ("true", true, "value", limits),
            ("predicted", found, "value", limits),
            ("true - predicted", true - found, "error", (-reach, reach)),
        ]
    drawn = [
        {"svg": figures.chart(tuple(names), at, v, title, kind, lim), "caption": ""} for title, v, kind, lim in pictures
    ]
    line = (
        f"{shown(target['name'])} over {shown(names[0])} and {shown(names[1])}, predicted by models "
        "that had not seen the row. Errors with a pattern mean there is more to learn."
    )
    return section("map", "The map", "Where", [line], [{"figures": drawn}])


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def health(facts: dict[str, Any]) -> Section:
    """Numerical health."""
    blocks = []
    for plan in facts["plans"]:
        items = [(k.replace("_", " "), v) for k, v in plan["items"]]
        blocks.append({"heading": plan["title"], "facts": items})
    memory = facts["memory"]
    blocks.append({"heading": "Memory and time", "facts": [
        ("budget for one product", mib(memory["budget"])), ("largest size of the process", mib(memory["peak"])),
        *((f"time for {k}", f"{v:.1f} s") for k, v in facts["seconds"].items()),
    ]})  # fmt: skip
    return section(
        "health", "Numerical health", "Numerical health", [_sentence(text) for text in facts["algorithms"]], blocks
    )


def again(facts: dict[str, Any]) -> Section:
    """How to reproduce."""
    items = [(name, version or "not installed") for name, version in facts["versions"].items()]
    items.append(("table", f"SHA-256 {facts['table']['sha256']}"))
    items.append(("seed", str(facts["settings"]["seed"])))
    lines = [
        (
            "The same command on the same file, versions, machine and threads gives the "
            "same predictions, unless the time budget cut it short."
        )
    ]
    return section("again", "Reproduce", "How to reproduce this", lines, [{"code": facts["command"]}, {"facts": items}])
