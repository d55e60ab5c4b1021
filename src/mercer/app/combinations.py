"""Combinations of columns that a learned metric found, drawn and in words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mercer.app.svg import INK, MODEL, MUTED, OTHER, blank, to_svg
from mercer.app.words import shown


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
