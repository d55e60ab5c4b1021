"""Plan: which algorithm a fit used, why, what it cost and how exact it is."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from typing import Any

from mercer.memory import memory_budget

log = logging.getLogger("mercer")

EXACT_ROWS = 5000  # a float64 factor of this many rows takes about a second
FULL_ROWS = 30_000  # the whole matrix in float32 takes 3.6 GB here
CENTRES = 3000
COPIES = 4  # matrices of the exact path alive at once: kernel, factor, inverse, temporary


@dataclass(frozen=True)
class Plan:
    """What a fit did. memory: planned peak bytes; seconds: of the whole fit; sentence: all of it in words.

    algorithm: "cholesky", "cg" (the whole kernel) or "nystrom" (kernel centres, preconditioned CG).
    """

    algorithm: str
    rows: int
    landmarks: int = 0
    jitter: float = 0.0
    residual: float = 0.0
    iterations: int = 0
    seconds: float = 0.0
    memory: int = 0
    interrupted: bool = False
    sentence: str = ""

    def as_dict(self) -> dict[str, Any]:
        """The same as JSON-able values."""
        return asdict(self)


def choose(n: int, seconds: float | None = None, budget: int | None = None) -> Plan:
    """The algorithm for n rows: exact while it fits, then the whole kernel by CG, then kernel centres."""
    budget = memory_budget() if budget is None else budget
    exact = COPIES * 8 * n * n
    if n <= EXACT_ROWS and exact <= budget:
        return Plan("cholesky", n, memory=exact)
    full = 4 * n * n + 4 * n * 1500 * 3
    if n <= FULL_ROWS and full <= budget and (seconds is None or seconds > 5 + 20 * (n / FULL_ROWS) ** 2):
        return Plan("cg", n, landmarks=min(1500, n // 8), memory=full)
    centres = min(CENTRES, n, max(200, int((budget / 64) ** 0.5)))
    if n > 60_000:
        centres = min(centres, 1500)
    if seconds is not None:  # a pass over n centres costs about 3e-9 n m seconds and there are about 30
        centres = max(200, min(centres, int(seconds / (1e-7 * n))))
    stored = min(4 * n * centres, budget // 2)
    return Plan("nystrom", n, landmarks=centres, memory=stored + 3 * 8 * centres**2)


def sentence(plan: Plan) -> str:
    """The plan in one line."""
    how = {
        "cholesky": f"exact solution of {plan.rows:,} rows by Cholesky",
        "cg": f"the whole kernel of {plan.rows:,} rows by conjugate gradients ({plan.landmarks:,} rows precondition)",
        "nystrom": f"{plan.landmarks:,} kernel centres for {plan.rows:,} rows by preconditioned conjugate gradients",
    }[plan.algorithm]
    steps = f", {plan.iterations} iterations to a residual of {plan.residual:.1e}" if plan.iterations else ""
    jitter = f", jitter {plan.jitter:.1e}" if plan.jitter else ""
    early = "; learning was interrupted and the best kernel so far was kept" if plan.interrupted else ""
    return f"{how}{steps}{jitter}, {plan.memory / 2**20:,.0f} MiB planned, {plan.seconds:.1f} s{early}"
