"""Names, numbers and options as people read and write them."""

from __future__ import annotations

import difflib
import math
import re
import unicodedata
from collections.abc import Iterable, Sequence

_SECONDS = {"": 1.0, "s": 1.0, "sec": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}


def plain(text: str) -> str:
    """`text` without control, format (bidirectional, zero width) and unpaired surrogate characters."""
    return "".join(c if unicodedata.category(c)[0] != "C" else " " for c in text)


def shown(name: object, width: int = 40) -> str:
    """A name made safe and short enough to stand in a sentence, a terminal or a figure."""
    text = " ".join(plain(str(name)).split())
    return text if len(text) <= width else f"{text[: width - 4]}...{text[-1]}"


def one_line(text: str, width: int = 600) -> str:
    """`text` on one line without control characters."""
    flat = " ".join(plain(text).split())
    return flat if len(flat) <= width else flat[: width - 3] + "..."


def listed(names: Iterable[object], most: int = 6) -> str:
    """'a', 'b' and 3 more."""
    every = [f"'{shown(n)}'" for n in names]
    return ", ".join(every[:most]) + (f" and {len(every) - most} more" if len(every) > most else "")


def closest(name: str, among: Sequence[str]) -> str:
    """' (did you mean 'x'?)', or nothing where no name is near."""
    lower = {n.lower(): n for n in reversed(among) if len(n) < 200}
    found = difflib.get_close_matches(name.lower()[:200], list(lower), n=1, cutoff=0.6)
    if not found:
        return ""
    near = lower[found[0]]
    blanks = " with a blank at its start or end" if near != near.strip() else ""
    return f" (did you mean '{shown(near) if not blanks else near[:40]}'{blanks}?)"


def parse_seconds(text: str) -> float:
    """Seconds from "60", "90s", "2m", "1.5h". Raises ValueError naming the text."""
    match = re.fullmatch(r"\s*(\d+\.?\d*|\.\d+)\s*([a-z]*)\s*", text, re.IGNORECASE | re.ASCII)
    unit = match[2].lower() if match else None
    if match is None or unit not in _SECONDS or not 1 <= float(match[1]) * _SECONDS[unit] < 1e7:
        raise ValueError(f"time is '{shown(text)}'; expected 1 s or more, written like '60s', '5m' or '2h'")
    return float(match[1]) * _SECONDS[unit]


def number(value: float | None, digits: int = 3) -> str:
    """A number with `digits` significant digits, thousands apart, and no exponent where it can be avoided."""
    if value is None or not math.isfinite(value):
        return "n/a"
    if value == 0:
        return "0"
    size = math.floor(math.log10(abs(value)))
    if size >= 7 or size < -4:
        return f"{value:.{digits - 1}e}"
    return f"{value:,.{max(digits - 1 - size, 0)}f}"


def fixed(value: float | None, digits: int = 3) -> str:
    """A score with so many decimals, without the minus of a rounded zero."""
    if value is None or not math.isfinite(value):
        return "n/a"
    text = f"{value:.{digits}f}"
    return text.removeprefix("-") if float(text) == 0 else text


def percent(value: float | None, digits: int = 1) -> str:
    """0.904 -> 90.4 %."""
    return "n/a" if value is None or not math.isfinite(value) else f"{100 * value:.{digits}f} %"


def count(n: int, one: str, many: str | None = None) -> str:
    """'1 row', '2,000 rows'."""
    return f"{n:,} {one if n == 1 else many or one + 's'}"
