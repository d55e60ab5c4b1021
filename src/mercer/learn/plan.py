"""Plan: which algorithm a fit used, why, what it cost and how exact it is."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from mercer.assemble import assemble
from mercer.budget import memory_budget, mib
from mercer.kernel import Kernel
from mercer.learn.state import record

EXACT_ROWS = 5000  # a float64 factor of this many rows takes about a second
FEWEST, LANDMARKS, MANY = 500, 3000, 10_000  # landmarks: on a slow machine, by normal equations, by CG
PATIENCE = 15.0  # seconds for a solve when no budget was given
STEPS = 45  # iterations of a typical solve, trials of the noise included
USUAL = 2e-7  # seconds of a sampled likelihood and its gradient for each pair of rows, on a usual machine
EXACT = 5e-11  # seconds of the exact path for each cubed row
RATE_ROWS, LONG, COLUMNS = 512, 4096, 6
COPIES = 6  # matrices of the exact path alive at once: kernel, shifted, factor, inverse, identity, the best factor


@record
@dataclass(frozen=True)
class Plan:
    """What a fit did. memory: planned peak bytes; seconds: of the whole fit; sentence: all of it in words.

    steps: gradients that the kernel was learned by; hasty: whether time allowed hardly any; error: mean square of
    what left-out rows were missed by, in units of the target's deviation. directions: of a learned metric, 0: none.

    algorithm: "cholesky", "cg" (the whole kernel), "nystrom" (landmarks), "falkon" (many of them, by CG);
    of SpectralRegressor "eigh", "lanczos" or "features".
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
    steps: int = 0
    hasty: bool = False
    error: float = 0.0
    directions: int = 0

    def as_dict(self) -> dict[str, Any]:
        """The same as JSON-able values."""
        return asdict(self)


@dataclass(frozen=True)
class Speed:
    """What this machine does now, in a second.

    values: kernel values; products: entries of a stored float32 matrix times a column; flops: in float64; pairs: of
    points in a product with six columns whose matrix is not stored.
    """

    values: float = 1e8
    products: float = 5e9
    flops: float = 5e10
    pairs: float = 1e8

    @classmethod
    @torch.no_grad()
    def measure(cls, kernel: Kernel, x: Tensor) -> Speed:
        """On one small float32 block, in a few hundredths of a second."""
        some = x[:RATE_ROWS].float()
        kernel.block(some[:8], some[:8])  # first calls load code; they are not what a long product costs
        start = _clock()
        kernel.block(some, some)
        values = max(len(some), 1) ** 2 / max(_clock() - start, 1e-6)
        products = _rate(torch.ones(5, 2048), torch.ones(2048, 2048))
        flops = 2 * _rate(torch.ones(768, 768, dtype=torch.float64), torch.ones(768, 768, dtype=torch.float64))
        return cls(values, products, flops, max(1 / pair_seconds(kernel, x.shape[-1], COLUMNS), values / COLUMNS))


def pair_seconds(kernel: Kernel, d: int, columns: int, dtype: torch.dtype = torch.float32) -> float:
    """Seconds of one pair of points in a long product, by the operator that would serve it."""
    points = torch.randn(LONG, d, generator=torch.Generator().manual_seed(0)).to(dtype)
    return assemble(kernel, points, points[: LONG // 2].clone(), rhs=columns).cost(columns).seconds() / (LONG**2 / 2)


def _rate(a: Tensor, b: Tensor) -> float:
    torch.mm(a, b)
    start = _clock()
    torch.mm(a, b)
    return a.shape[0] * b.numel() / max(_clock() - start, 1e-6)


def _clock() -> float:
    """Seconds that each thread was kept busy: what other programs take is no property of the machine."""
    return time.process_time() / torch.get_num_threads()


@dataclass(frozen=True)
class Proposal:
    """A plan, the seconds its solve should take, and why it is out of the question ("" where it is not)."""

    plan: Plan
    seconds: float
    refused: str = ""


def _exact(n: int, seconds: float, budget: int) -> Proposal:
    need, took = COPIES * 8 * n * n, n**3 * EXACT
    refused = f"more than {EXACT_ROWS:,} rows" if n > EXACT_ROWS else "too large" if need > budget else ""
    return Proposal(Plan("cholesky", n, memory=need), took, refused or ("too slow" if took > seconds else ""))


def _whole(n: int, seconds: float, budget: int, speed: Speed, columns: int) -> Proposal:
    need = 4 * n * n + 4 * n * (4500 + 6 * columns)
    took = n * n * (1 / speed.values + STEPS * columns * 1.5 / speed.products)
    plan = Plan("cg", n, landmarks=min(1500, n // 8), memory=need)
    return Proposal(plan, took, "too large" if need > budget else "too slow" if took > seconds else "")


def _centred(algorithm: str, n: int, seconds: float, budget: int, speed: Speed, columns: int) -> Proposal:
    """With as many landmarks as the seconds and the memory have room for."""
    most = LANDMARKS if algorithm == "nystrom" else MANY
    m = min(most, n, max(200, int((budget / 96) ** 0.5)))
    while m > FEWEST and _seconds(algorithm, n, m, speed, columns, budget) > seconds:
        m = max(int(0.85 * m), FEWEST)
    stored = 4 * n * m if algorithm == "falkon" else 0
    small = 8 * (8 if algorithm == "nystrom" else 4) * m * m + 4 * n * columns * 3
    memory = small + (stored if stored + small <= budget else 2**23)
    return Proposal(Plan(algorithm, n, landmarks=m, memory=memory), _seconds(algorithm, n, m, speed, columns, budget))


def proposals(n: int, seconds: float, speed: Speed, outputs: int = 1) -> list[Proposal]:
    """Every algorithm for n rows: exact, the whole kernel by CG, landmarks by normal equations and by CG."""
    budget, columns = memory_budget(), 5 * outputs
    centred = [_centred(algorithm, n, seconds, budget, speed, columns) for algorithm in ("nystrom", "falkon")]
    return [_exact(n, seconds, budget), _whole(n, seconds, budget, speed, columns), *centred]


def choose(
    n: int, seconds: float | None = None, speed: Speed | Callable[[], Speed] | None = None, outputs: int = 1
) -> Plan:
    """The algorithm for n rows: exact while it fits, then the whole kernel by CG, then landmarks.

    seconds: what the solve may take (None: 15 on a usual machine, so that the choice does not hang on the moment).
    speed: of this machine, asked for where it matters. The memory budget decides as well.
    """
    if callable(speed):
        speed = speed if seconds is not None else None
    seconds = PATIENCE if seconds is None else seconds
    first = _exact(n, math.inf if n <= 1000 else seconds, memory_budget())
    if not first.refused:
        return first.plan
    _, whole, nystrom, falkon = proposals(n, seconds, speed() if callable(speed) else speed or Speed(), outputs)
    if not whole.refused:
        return whole.plan
    more = falkon.plan.landmarks > 1.5 * nystrom.plan.landmarks  # CG is worth its loose ends only then
    return falkon.plan if more else nystrom.plan


def landmarks(n: int, most: int) -> Plan:
    """Landmarks by normal equations: at most so many, within the memory budget."""
    m = min(max(most, FEWEST), LANDMARKS, n, max(200, int((memory_budget() / 96) ** 0.5)))
    return Plan("nystrom", n, landmarks=m, memory=64 * m * m + 2**23)


def _seconds(algorithm: str, n: int, m: int, speed: Speed, columns: int, budget: int) -> float:
    if algorithm == "nystrom":
        return 2 * n * m / speed.values + (2.0 * n * m * m + 8 * m**3 / 1.5) / speed.flops
    again = 2 * STEPS * max(columns, COLUMNS) / COLUMNS / speed.pairs  # for each product, or once and kept in memory
    kept = 1 / speed.values + 2 * STEPS * columns / speed.products
    each = min(again, kept) if 4 * n * m + 32 * m * m <= budget else again
    return n * m * each + 2 * m**3 / speed.flops


def span(seconds: float) -> str:
    """Seconds as people say them: 0.3 s, 12 s, 4 min, 3 h, 5 days."""
    if seconds < 0.095:
        return f"{seconds:.2g} s" if seconds >= 1e-4 else "0 s"
    if seconds < 9.5:
        return f"{seconds:.1f} s"
    for most, unit, name in ((99.5, 1, "s"), (99.5 * 60, 60, "min"), (48 * 3600, 3600, "h"), (math.inf, 86400, "days")):
        if seconds < most:
            return f"{seconds / unit:,.0f} {name}"
    return "for ever"


def sentence(plan: Plan) -> str:
    """The plan in one line."""
    how = {
        "cholesky": f"exact solution of {plan.rows:,} rows by Cholesky",
        "cg": f"the whole kernel of {plan.rows:,} rows by conjugate gradients ({plan.landmarks:,} rows precondition)",
        "nystrom": f"{plan.landmarks:,} landmarks for {plan.rows:,} rows by normal equations",
        "falkon": f"{plan.landmarks:,} landmarks for {plan.rows:,} rows by preconditioned conjugate gradients",
        "eigh": f"all eigenpairs of {plan.rows:,} rows",
        "lanczos": f"the whole kernel of {plan.rows:,} rows by Lanczos",
        "features": f"eigenpairs of {plan.landmarks:,} landmarks for {plan.rows:,} rows",
    }[plan.algorithm]
    steps = f", {plan.iterations} iterations to a residual of {plan.residual:.1e}" if plan.iterations else ""
    jitter = f", jitter {plan.jitter:.1e}" if plan.jitter else ""
    metric = f", in a learned metric of {plan.directions} directions" if plan.directions else ""
    early = "; learning was interrupted and the best kernel so far was kept" if plan.interrupted else ""
    if plan.hasty:
        early += f"; lengthscales hardly learned: there was time for {plan.steps} steps, give more"
    return f"{how}{metric}{steps}{jitter}, {mib(plan.memory)} planned, {plan.seconds:.1f} s{early}"
