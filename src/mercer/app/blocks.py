"""The pieces that sections of the report are made of: plain dictionaries that the template knows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

Section = dict[str, Any]


def section(
    key: str, short: str, title: str, lines: Sequence[str] = (), blocks: Iterable[dict] = (), notes: Sequence[str] = ()
) -> Section:
    return {"id": key, "short": short, "title": title, "lines": lines, "blocks": list(blocks), "notes": notes}


def heads(*pairs: tuple[str, str]) -> list[dict[str, str]]:
    return [{"text": text, "kind": kind} for text, kind in pairs]


def bar(share: float | None, colour: str = "") -> dict[str, Any]:
    known = share is not None and np.isfinite(share)
    return {"share": float(np.clip(share or 0.0, 0.0, 1.0)) if known else 0.0, "colour": colour}
