"""The report's pictures. Each answers one question, and takes arrays: it neither reads nor predicts anything."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator, PercentFormatter

from mercer.app.svg import BAD, BAND, GOOD, INK, MODEL, MUTED, OTHER, PAPER, POINT, POINT_BAD, blank, to_svg
from mercer.app.words import shown

_MOST_POINTS, _MOST_CLASSES = 4_000, 12


def _sample(n: int, most: int) -> np.ndarray:
    return np.sort(np.random.default_rng(0).permutation(n)[:most])


def _window(values: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(values, [0.002, 0.998])
    pad = 0.05 * (high - low) or 1.0
    return float(low - pad), float(high + pad)


def _ribbon(found: np.ndarray, *sides: np.ndarray) -> list[np.ndarray]:
    """Middle of the prediction and mean of each side, in groups of rows of about the same prediction."""
    groups = np.array_split(np.argsort(found), int(np.clip(len(found) / 25, 4, 14)))
    return [np.array([np.median(found[g]) for g in groups]), *(np.array([s[g].mean() for g in groups]) for s in sides)]


def _dots(axes: Axes, x: np.ndarray, y: np.ndarray, inside: np.ndarray) -> None:
    small = len(x) < 800
    for chosen, colour in ((inside, POINT), (~inside, POINT_BAD)):
        size, strength = (15, 0.8) if small else (7, 0.35 if colour == POINT else 0.6)
        axes.scatter(x[chosen], y[chosen], s=size, c=colour, lw=0, alpha=strength, rasterized=True, zorder=2)


def predicted_and_true(name: str, true: np.ndarray, found: np.ndarray, low: np.ndarray, high: np.ndarray) -> str:
    """Out-of-fold predictions against the truth, with the average 90 % band."""
    figure, (axes,) = blank(380, 350)
    rows = _sample(len(true), _MOST_POINTS)
    window = _window(np.concatenate([true, found]))
    middle, bottom, top = _ribbon(found, low, high)
    axes.fill_between(middle, bottom, top, color=BAND, alpha=0.6, lw=0, zorder=1)
    _dots(axes, found[rows], true[rows], ((true >= low) & (true <= high))[rows])
    axes.plot(window, window, color=INK, lw=1, zorder=3, ls=(0, (4, 3)))
    axes.set(xlim=window, ylim=window, xlabel=f"predicted {shown(name, 24)}", ylabel=f"true {shown(name, 24)}")
    ticks = [t for t in MaxNLocator(5).tick_values(*window) if window[0] <= t <= window[1]]
    axes.set(xticks=ticks, yticks=ticks)
    return to_svg(figure, f"predicted {name}", f"predicted against true {shown(name)}")


def residuals(name: str, true: np.ndarray, found: np.ndarray, low: np.ndarray, high: np.ndarray) -> str:
    """Errors against predictions, with their average in groups and the average band around zero."""
    figure, (axes,) = blank(380, 350)
    rows = _sample(len(true), _MOST_POINTS)
    _dots(axes, found[rows], (true - found)[rows], ((true >= low) & (true <= high))[rows])
    middle, bottom, top, mean = _ribbon(found, low - found, high - found, true - found)
    axes.fill_between(middle, bottom, top, color=BAND, alpha=0.6, lw=0, zorder=1)
    axes.axhline(0, color=INK, lw=1, ls=(0, (4, 3)), zorder=3)
    axes.plot(middle, mean, color=MODEL, lw=2.4, zorder=4)
    axes.set(xlim=_window(found), ylim=_window(true - found))
    axes.set(xlabel=f"predicted {shown(name, 24)}", ylabel="true - predicted")
    axes.xaxis.set_major_locator(MaxNLocator(5))
    return to_svg(figure, f"residual {name}", f"errors against predictions of {shown(name)}")


def bands(name: str, true: np.ndarray, found: np.ndarray, low: np.ndarray, high: np.ndarray) -> str:
    """A sample of rows in order of their prediction: band, prediction and truth."""
    figure, (axes,) = blank(380, 350)
    rows = _sample(len(true), 60)
    rows = rows[np.argsort(found[rows])]
    inside = (true[rows] >= low[rows]) & (true[rows] <= high[rows])
    x = np.arange(len(rows))
    axes.vlines(x, low[rows], high[rows], color=BAND, lw=3.4, zorder=1)
    axes.plot(x, found[rows], color=MODEL, lw=1.6, zorder=2)
    for chosen, colour in ((inside, INK), (~inside, BAD)):
        axes.plot(x[chosen], true[rows][chosen], "o", color=colour, ms=3.6, zorder=3)
    axes.set(xlabel=f"{len(rows)} rows in order of their prediction", ylabel=shown(name, 24), xticks=[])
    axes.grid(axis="x", visible=False)
    return to_svg(figure, f"bands {name}", f"bands and truth of some rows of {shown(name)}")


def errors(name: str, board: list[dict], what: str) -> str:
    """For mercer and each yardstick, the share of rows whose error is below a value."""
    figure, (axes,) = blank(380, 350)
    looks = {
        "mercer": (MODEL, 2.6, "-"),
        "LightGBM": (OTHER, 1.6, "-"),
        "linear": (MUTED, 1.4, "-"),
        "mean": (MUTED, 1.2, (0, (2, 2))),
    }
    for row in reversed(board):
        colour, width, dashes = looks.get(row["name"].split(" (")[0], (MUTED, 1.2, "-"))
        share = np.linspace(0, 1, len(row["errors"]))
        axes.plot(row["errors"], share, color=colour, lw=width, ls=dashes, label=shown(row["name"], 16))
    reach = float(np.max([np.array(row["errors"])[int(0.97 * len(row["errors"]))] for row in board]))
    axes.set(xlim=(0, reach), ylim=(0, 1.01), xlabel=what, ylabel="share of rows below")
    axes.yaxis.set_major_formatter(PercentFormatter(1, 0))
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(handles[::-1], labels[::-1], loc="lower right")
    return to_svg(figure, f"errors {name}", f"errors of all models for {shown(name)}")


def coverage(name: str, nominal: np.ndarray, measured: np.ndarray, rows: int) -> str:
    """How much of the truth bands of each nominal coverage hold, with the range that chance allows."""
    figure, (axes,) = blank()
    grid = np.linspace(0.01, 0.99, 99)
    chance = 1.96 * np.sqrt(grid * (1 - grid) / rows)
    axes.fill_between(grid, grid - chance, grid + chance, color=BAND, lw=0, alpha=0.7, label="chance alone")
    axes.plot([0, 1], [0, 1], color=INK, lw=1, ls=(0, (4, 3)))
    axes.plot(nominal, measured, color=MODEL, marker="o", ms=4.5, lw=1.6, label="measured")
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="promised coverage", ylabel="measured coverage")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PercentFormatter(1, 0))
    axes.legend(loc="upper left")
    return to_svg(figure, f"coverage {name}", f"promised and measured coverage for {shown(name)}")


def pit(name: str, values: np.ndarray) -> str:
    """Where the truth falls in its predicted distribution: flat is right."""
    figure, (axes,) = blank()
    heights, edges = np.histogram(values, bins=20 if len(values) > 600 else 10, range=(0, 1))
    share = heights / heights.sum() * len(heights)
    chance = 1.96 * np.sqrt(len(heights) / len(values))
    axes.bar(edges[:-1], share, np.diff(edges), align="edge", color=MODEL, lw=0, zorder=2)
    axes.axhspan(1 - chance, 1 + chance, color=BAND, alpha=0.8, lw=0, zorder=1)
    axes.axhline(1, color=INK, lw=1, ls=(0, (4, 3)), zorder=3)
    axes.set(xlim=(0, 1), ylim=(0, max(1.6, share.max() * 1.1)))
    axes.set(xlabel="place of the truth in its predicted distribution", ylabel="density")
    axes.grid(axis="x", visible=False)
    return to_svg(figure, f"pit {name}", f"where the truth falls in its predicted distribution for {shown(name)}")


def reliability(name: str, chance: np.ndarray, happened: np.ndarray) -> str:
    """Predicted chances against how often it happened, in ten equal groups."""
    figure, (axes,) = blank(380, 350)
    groups = [g for g in np.array_split(np.argsort(chance), min(10, max(len(chance) // 10, 2))) if len(g)]
    x, y = (np.array([v[g].mean() for g in groups]) for v in (chance, happened))
    bar = 1.96 * np.sqrt(np.maximum(y * (1 - y), 0.01) / [len(g) for g in groups])
    axes.plot([0, 1], [0, 1], color=INK, lw=1, ls=(0, (4, 3)))
    axes.vlines(x, np.maximum(y - bar, 0), np.minimum(y + bar, 1), color=BAND, lw=5)
    axes.plot(x, y, color=MODEL, marker="o", ms=5, lw=1.4)
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="predicted chance", ylabel="how often it happened")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PercentFormatter(1, 0))
    return to_svg(figure, f"reliability {name}", f"predicted chances and frequencies for {shown(name)}")


def confusion(name: str, table: np.ndarray, classes: list[str]) -> str:
    """Rows of each true class by predicted class, in shares of the true class; of many classes the most frequent."""
    figure, (axes,) = blank(380, 350)
    most = min(len(classes), _MOST_CLASSES)
    kept = np.arange(most) if most == len(classes) else np.argsort(-table.sum(1), kind="stable")[:most]
    share = table[np.ix_(kept, kept)] / np.maximum(table[kept].sum(1, keepdims=True), 1)
    table = table[np.ix_(kept, kept)]
    for i, j in np.ndindex(*share.shape):
        colour = MODEL if i == j else BAD
        axes.add_patch(_square(j, i, colour, 0.1 + 0.8 * share[i, j] if table[i, j] else 0.0))
        if most <= 8 and table[i, j]:
            axes.text(j, i, f"{table[i, j]:,}", ha="center", va="center", color=PAPER if share[i, j] > 0.5 else INK)
    labels = [shown(classes[k], 12) for k in kept]
    part = "" if most == len(classes) else f" ({most} of {len(classes)} classes, most frequent first)"
    axes.set(xlim=(-0.5, most - 0.5), ylim=(most - 0.5, -0.5), xlabel=f"predicted{part}", ylabel="true")
    axes.set_xticks(range(most), labels, rotation=0 if most <= 4 else 40, ha="center" if most <= 4 else "right")
    axes.set_yticks(range(most), labels)
    axes.grid(visible=False)
    return to_svg(figure, f"confusion {name}", f"true and predicted classes of {shown(name)}")


def _square(x: float, y: float, colour: str, strength: float) -> Rectangle:
    return Rectangle((x - 0.48, y - 0.48), 0.96, 0.96, color=colour, alpha=min(strength, 0.9), lw=0)


def response(column: str, target: str, curve: dict) -> str:
    """The average prediction as one column moves, with the average 90 % band, and where the data lie."""
    figure, (axes,) = blank(380, 250)
    middle = np.array(curve["mean"], dtype=np.float64)
    labels = curve.get("labels")
    x = np.arange(len(middle)) if labels else np.array(curve["at"])
    rug = np.array(curve.get("rug", []))
    dated = curve.get("kind") == "date" and not labels
    if dated:  # years, told as dates: matplotlib counts the days since 1970
        x, rug = ((v - 1970) * 365.25 for v in (x, rug))
    low, high = (np.array(curve.get(k, curve["mean"]), dtype=np.float64) for k in ("low", "high"))
    if labels:
        axes.vlines(x, low, high, color=BAND, lw=9, zorder=1)
        axes.plot(x, middle, "o", color=MODEL, ms=7, zorder=2)
        axes.set_xticks(
            x,
            [shown(w, 10) for w in labels],
            rotation=0 if len(x) <= 5 else 35,
            ha="center" if len(x) <= 5 else "right",
        )
        axes.set_xlim(-0.6, len(x) - 0.4)
    else:
        axes.fill_between(x, low, high, color=BAND, alpha=0.8, lw=0, zorder=1)
        axes.plot(x, middle, color=MODEL, lw=2.2, zorder=2)
        axes.plot(
            rug,
            np.zeros(len(rug)),
            "|",
            color=MUTED,
            ms=7,
            alpha=0.45,
            transform=axes.get_xaxis_transform(),
            clip_on=False,
        )
        axes.xaxis.set_major_locator(AutoDateLocator(maxticks=6) if dated else MaxNLocator(5))
        if dated:
            axes.xaxis.set_major_formatter(ConciseDateFormatter(axes.xaxis.get_major_locator()))
        axes.margins(x=0.01)
    axes.set_title(shown(column, 34))
    axes.set_ylabel(shown(target, 22))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    return to_svg(
        figure, f"response {column} {target}", f"average prediction of {shown(target)} as {shown(column)} moves"
    )


def _power(value: float, _place: int) -> str:
    return f"{value:,.0f}" if value >= 1 else f"{value:.0e}".replace("e-0", "e-") if value < 0.001 else f"{value:g}"


def spectrum(eigenvalues: np.ndarray, dimension: float, rows: int) -> str:
    """The eigenvalues of the learned kernel on a sample of rows, and how many directions the fit can use."""
    figure, (axes,) = blank(380, 300)
    share = np.maximum(eigenvalues / eigenvalues.sum(), 1e-12)
    place = np.arange(1, len(share) + 1)
    bottom = max(share.min(), share.max() * 1e-9) / 1.5
    axes.loglog(place, share, color=MODEL, lw=2.2, zorder=3)
    axes.fill_between(place, share, bottom, where=place <= max(dimension, 1), color=BAND, alpha=0.8, lw=0)
    axes.axvline(max(dimension, 1), color=OTHER, lw=1.4, ls=(0, (4, 3)))
    late = dimension > len(share) ** 0.5
    axes.annotate(
        f"effective dimension {dimension:,.0f}", (max(dimension, 1), bottom * 1.6), xytext=(-7 if late else 7, 0),
        color=OTHER, textcoords="offset points", va="bottom", ha="right" if late else "left", fontsize=11, zorder=4,
    )  # fmt: skip
    axes.set(xlabel=f"direction (of {rows:,} rows sampled)", ylabel="share of the kernel")
    axes.set_xlim(1, len(share))
    axes.set_ylim(bottom, share.max() * 1.6)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(_power))
        axis.set_major_locator(LogLocator(10, subs=(1.0,) if axis is axes.xaxis else (1.0, 3.0)))
        axis.set_minor_locator(NullLocator())
    return to_svg(figure, "spectrum", "eigenvalues of the learned kernel")


def chart(
    names: tuple[str, str], at: np.ndarray, values: np.ndarray, title: str, kind: str, limits: tuple[float, float]
) -> str:
    """Values at places in the plane. kind: 'value', or 'error' (zero in the middle)."""
    spans = np.ptp(at, axis=0)
    even = bool(0.3 < spans[0] / max(spans[1], 1e-300) < 3)
    figure, (axes,) = blank(380, float(np.clip(290 * spans[1] / spans[0] + 75, 200, 440)) if even else 320)
    rows = _sample(len(at), 20_000)
    size = float(np.clip(40_000 / len(rows), 2.0, 40.0))
    colours = "viridis" if kind == "value" else "RdBu_r"
    x, y = at[rows].T
    drawn = axes.scatter(
        x, y, c=values[rows], s=size, lw=0, cmap=colours, vmin=limits[0], vmax=limits[1], rasterized=True
    )
    bar = figure.colorbar(drawn, ax=axes, shrink=0.85, aspect=28, pad=0.02)
    bar.outline.set_visible(False)
    bar.ax.yaxis.set_major_locator(MaxNLocator(5))
    axes.set(xlabel=shown(names[0], 24), ylabel=shown(names[1], 24), title=title)
    if even:
        axes.set_aspect("equal")
    if names[1].lower() in ("row", "line"):  # pictures count them from the top
        axes.invert_yaxis()
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.grid(visible=False)
    return to_svg(figure, f"map {title} {names}", title)


def width_of_bands(name: str, found: np.ndarray, low: np.ndarray, high: np.ndarray, inside: np.ndarray) -> str:
    """Measured coverage in ten groups by band width: flat means that wide bands are wide for a reason."""
    figure, (axes,) = blank()
    width = high - low
    groups = np.array_split(np.argsort(width), min(10, max(len(found) // 40, 2)))
    share = np.array([inside[g].mean() for g in groups])
    chance = np.array([1.96 * np.sqrt(0.09 / len(g)) for g in groups])
    x = np.arange(len(groups))
    axes.axhline(0.9, color=INK, lw=1, ls=(0, (4, 3)))
    axes.fill_between(x, 0.9 - chance, np.minimum(0.9 + chance, 1), color=BAND, alpha=0.7, lw=0)
    axes.plot(x, share, "o", ms=6.5, color=GOOD, zorder=3)
    axes.set(
        ylim=(min(0.6, share.min() - 0.05), 1.0),
        xlabel=f"groups of rows by band width of {shown(name, 18)}",
        ylabel="measured coverage",
    )
    axes.set_xticks(
        [0, len(x) - 1], [f"narrow\n{np.median(width[groups[0]]):.3g}", f"wide\n{np.median(width[groups[-1]]):.3g}"]
    )
    axes.yaxis.set_major_formatter(PercentFormatter(1, 0))
    return to_svg(figure, f"width {name}", f"coverage of narrow and wide bands of {shown(name)}")
