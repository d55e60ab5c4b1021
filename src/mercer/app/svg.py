"""Figures as inline SVG that follow the page: its fonts, and its colours by CSS variables, light or dark."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

# Drawn in these colours, which no figure needs for itself; each becomes a variable that the page sets for both themes.
INK, MUTED, LINE, PAPER = "#010101", "#020202", "#030303", "#040404"
MODEL, OTHER, GOOD, BAD, BAND = "#050505", "#060606", "#070707", "#080808", "#090909"
_VARIABLES = {
    INK: "ink", MUTED: "muted", LINE: "line", PAPER: "paper",
    MODEL: "model", OTHER: "other", GOOD: "good", BAD: "bad", BAND: "band",
}  # fmt: skip
POINT, POINT_BAD = "#4c86e0", "#e0684c"  # rasterised marks cannot follow the theme: mid tones that read on both

_STYLE: dict[str, Any] = {
    "svg.fonttype": "none", "text.parse_math": False, "axes.formatter.use_mathtext": False, "path.simplify": True,
    "axes.unicode_minus": False, "font.size": 12, "font.family": "sans-serif", "font.sans-serif": ["DejaVu Sans"],
    "axes.edgecolor": LINE, "axes.labelcolor": MUTED, "axes.titlecolor": INK, "text.color": INK,
    "xtick.color": MUTED, "ytick.color": MUTED, "xtick.labelsize": 11, "ytick.labelsize": 11,
    "axes.labelsize": 11.5, "axes.titlesize": 12.5, "axes.titleweight": "bold", "axes.titlelocation": "left",
    "axes.spines.top": False, "axes.spines.right": False, "axes.facecolor": "none", "figure.facecolor": "none",
    "axes.grid": True, "grid.color": LINE, "grid.linewidth": 0.7, "axes.axisbelow": True, "axes.linewidth": 0.8,
    "xtick.major.size": 0, "ytick.major.size": 0, "xtick.major.pad": 5, "ytick.major.pad": 5,
    "legend.frameon": False, "legend.fontsize": 11, "legend.labelcolor": MUTED, "lines.linewidth": 1.8,
}  # fmt: skip


@contextmanager
def drawing() -> Iterator[None]:
    """Inside the block matplotlib draws in the report's style; the user's settings are left as they were."""
    style: Any = _STYLE
    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a font that lacks a glyph: the reader's browser has its own
        matplotlib.rcParams.update(style)
        yield


def blank(width: float = 380, height: float = 290, columns: int = 1) -> tuple[Figure, list[Axes]]:
    """A figure of so many page pixels and its panels."""
    figure = Figure(figsize=(width / 72, height / 72), dpi=72, layout="constrained")
    FigureCanvasSVG(figure)
    return figure, list(figure.subplots(1, columns, squeeze=False)[0])


def to_svg(figure: Figure, name: str, title: str) -> str:
    """The figure as SVG text to put into the page: no header, no metadata, no address, identifiers of its own."""
    target = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name}):
        figure.savefig(target, format="svg", dpi=160, transparent=True, metadata={"Date": None})
    text = target.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", text)
    text = re.sub(
        r"<svg\s[^>]*?viewBox=\"([^\"]*)\"[^>]*>", r'<svg viewBox="\1" role="img" aria-label="@">', text, count=1
    )
    text = re.sub(r'id="((?!p?m?[0-9a-f]{8})[^"]*)"', "", text)  # names of groups, the same in each figure
    text = re.sub(r"'DejaVu Sans', ?", "", text).replace("DejaVu Sans", "sans-serif")
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, f"var(--{variable})")
    for mark, safe in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ('"', "&quot;")):
        title = title.replace(mark, safe)
    return text.replace('aria-label="@"', f'aria-label="{title}"', 1)
