"""Combinations of columns that a learned metric found, drawn and in words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mercer.app.svg import INK, MODEL, MUTED, OTHER, blank, to_svg
from mercer.app.words import percent, shown

LEAST = 0.02  # of the distance: what has less is not drawn


def signed(name: str, title: str, parts: Sequence[Sequence[Any]]) -> str:
    """Numbers with their names as bars to both sides of zero, the first on top."""
    labels, values = [shown(label, 24) for label, _ in parts], np.array([value for _, value in parts], dtype=np.float64)
    figure, (axes,) = blank(380, 70 + 24 * len(parts))
    place = np.arange(len(parts))
    axes.barh(place, values, 0.62, color=[MODEL if v >= 0 else OTHER for v in values], lw=0, zorder=2)
    axes.axvline(0, color=INK, lw=1, zorder=3)
    reach = max(float(np.abs(values).max()), 1e-12)
    for y, value in zip(place, values, strict=True):
        side = "left" if value >= 0 else "right"
        axes.annotate(
            f"{value:.2f}", (value, y), xytext=(4 if value >= 0 else -4, 0), textcoords="offset points",
            ha=side, va="center", fontsize=10.5, color=MUTED,
        )  # fmt: skip
    left = -1.25 * reach if (values < 0).any() else 0.0
    axes.set(xlim=(left, 1.25 * reach), ylim=(len(parts) - 0.4, -0.6), title=title)
    axes.set_yticks(place, labels)
    axes.set_xticks([])
    axes.grid(visible=False)
    axes.spines["bottom"].set_visible(False)
    axes.spines["left"].set_visible(False)
    return to_svg(figure, f"signed {name}", f"{title}: " + ", ".join(labels))


def in_words(direction: dict[str, Any]) -> str:
    """A combination as a sum: 0.71 a - 0.70 b, with columns in deviations."""
    found = ""
    for label, value in direction["parts"]:
        sign = ("-" if value < 0 else "") if not found else (" - " if value < 0 else " + ")
        found += f"{sign}{abs(value):.2f} {shown(label, 24)}"
    return f"{found}, each in deviations."


def large(shares: Sequence[float]) -> tuple[int, str]:
    """(how many of these shares, largest first, are drawn; what all the others have, in words, empty for nothing)."""
    drawn = max(sum(share >= LEAST for share in shares), 1)
    left = 1 - float(sum(shares[:drawn]))
    return drawn, "" if left < 1e-6 else f"less than {percent(0.01, 0)}" if left < 0.01 else percent(left, 0)


def of_distance(found: dict[str, Any]) -> list[dict[str, Any]]:
    """What the kernel takes as distance: the shares of columns and, where they were learned, of combinations."""
    drawn, left = large([share for _, share in found["shares"]])
    what = "How much each column has in what the kernel takes as the distance of two rows."
    rest = f" Columns that are not drawn have {left}." if left else ""
    figures = [{"svg": signed("columns", "share of the distance", found["shares"][:drawn]), "caption": what + rest}]
    drawn, left = large([direction["share"] for direction in found["directions"]] or [1.0])
    for place, direction in enumerate(found["directions"][:drawn]):
        title = f"combination {place + 1}: {percent(direction['share'], 0)} of the distance"
        rest = f" All other combinations have {left} of the distance." if left and place == drawn - 1 else ""
        drawing = signed(f"combination {place}", title, direction["parts"])
        figures.append({"svg": drawing, "caption": in_words(direction) + rest})
    return figures
