"""The picture of `benchmarks/engine.py --json FILE`: python benchmarks/plot_engine.py FILE docs/figures/engine.svg"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot

COLOURS = {
    "mercer": "#0b6e4f",
    "mercer (tiles)": "#7ab89a",
    "KeOps": "#c1440e",
    "GPyTorch": "#5b5b9a",
    "scikit-learn": "#d9a400",
    "torch": "#888888",
}
MARKS = {"mercer": "o", "mercer (tiles)": "o", "KeOps": "s", "GPyTorch": "^", "scikit-learn": "D", "torch": "v"}


def panel(axes: Any, rows: list[dict[str, Any]], title: str) -> None:
    """One dot for each contestant and case: pairs in a second, on a logarithmic axis."""
    cases = sorted({(row["r"], row["d"], row["n"]) for row in rows}, reverse=True)
    for name, colour in COLOURS.items():
        own = [row for row in rows if row["name"] == name]
        rate = [row["n"] ** 2 / row["seconds"] / 1e9 for row in own]
        place = [cases.index((row["r"], row["d"], row["n"])) for row in own]
        axes.plot(rate, place, MARKS[name], color=colour, label=name, markersize=7 if name == "mercer" else 5)
    axes.set_yticks(
        range(len(cases)), [f"d = {d}, {r} rhs, n = {n:,}" if r > 1 else f"d = {d}, n = {n:,}" for r, d, n in cases]
    )
    axes.set_xscale("log")
    axes.set_xlabel("billion pairs a second")
    axes.set_title(title, loc="left", fontsize=10)
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def main() -> None:
    source, target = Path(sys.argv[1]), Path(sys.argv[2])
    found = json.loads(source.read_text())
    matplotlib.rcParams |= {"svg.hashsalt": "mercer", "font.size": 9, "svg.fonttype": "none"}
    halves = [[row for row in found["rows"] if row["backward"] == back] for back in (0, 1)]
    halves = [half for half in halves if half]
    same = len({frozenset((row["r"], row["d"], row["n"]) for row in half) for half in halves}) == 1
    figure, axes = pyplot.subplots(1, len(halves), figsize=(4.8 * len(halves), 4.2), squeeze=False, sharey=same)
    for one, half in zip(axes[0], halves, strict=True):
        panel(one, half, "with gradients to x" if half[0]["backward"] else "product K(x, y) v")
    lines = axes[0][0].get_lines()
    figure.legend(handles=lines, frameon=False, loc="upper center", ncols=6, fontsize=8, handletextpad=0.2)
    figure.tight_layout(rect=(0, 0, 1, 0.94))
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, metadata={"Date": None})


if __name__ == "__main__":
    main()
