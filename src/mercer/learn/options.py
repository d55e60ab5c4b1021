"""What could learn from so many rows: every learner with its memory, its seconds and the error that it must leave."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral

import torch
from torch import Tensor

from mercer.budget import memory_budget, mib
from mercer.kernel import Kernel
from mercer.kernels import Matern
from mercer.learn import plan as planning
from mercer.learn.plan import Speed
from mercer.linalg import Cholesky

SAMPLE, LANDMARKS = 400, 1500  # rows whose variance landmarks are to explain, and landmarks that are tried
STREAMED = 1000  # landmarks of learners that stream, unless they are told otherwise
EPOCHS, PASSES, STEPS = 10, 25, 60  # of EigenPro, of Falkon over the rows, of a likelihood that is climbed
INDUCING, BATCHES = 300, 20  # inducing points and passes of a variational process
NEIGHBOURS, FLAT = 30, 4  # of Vecchia; columns up to which nearest rows tell what there is to know
EIGH, BATCH = 2000, 2**23  # rows whose eigenpairs are all found; bytes of a batch of rows


@dataclass(frozen=True)
class Option:
    """A learner and how it would learn. memory: bytes beside the table; seconds: of a solve with a known kernel.

    error: root mean square of what it cannot tell of a function drawn from the kernel, as a share of its deviation
    (0: rounding only, None: not known beforehand). refused: why it is out of the question, or "". plan: of KernelRidge.
    """

    learner: str
    how: str
    memory: float
    seconds: float
    error: float | None
    refused: str
    chosen: bool = False
    plan: planning.Plan | None = None


def unseen(kernel: Kernel, x: Tensor, landmarks: int) -> float:
    """What so many landmarks leave of a function drawn from the kernel: root mean square, share of its deviation.

    Measured on rows of x that are no landmarks: sqrt(mean(k(x, x) - k_x^T K^-1 k_x) / mean k(x, x)). Of more than 1,500
    landmarks, or more than there are rows, what the largest number that can be tried leaves: a bound.
    """
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    m = max(min(landmarks, LANDMARKS, len(x) - SAMPLE // 4), 1)
    z, rest = x[order[:m]].double(), x[order[m:][:SAMPLE]].double()
    if not len(rest):
        return 0.0
    with torch.no_grad():
        lower = Cholesky().factor(kernel.block(z, z)).lower
        known = torch.linalg.solve_triangular(lower, kernel.block(z, rest), upper=False).square().sum(0)
        prior = kernel.diagonal(rest)
    return float(((prior - known).clamp_min(0).mean() / prior.mean()).sqrt())


def options(
    n: int, d: int, outputs: int = 1, *, kernel: Kernel | None = None, x: Tensor | None = None, seconds: float = 60.0
) -> list[Option]:
    """Every learner for n rows of d columns, what `mercer fit` and KernelRidge would take first.

    x: rows on their common scale, `n' d`; with a kernel (None: Matern 5/2 at the usual distance) they tell the error
    that landmarks leave, and the speed. Memory is compared with mercer.memory's budget, seconds with `seconds`.
    """
    for name, count in (("n", n), ("d", d), ("outputs", outputs)):
        if isinstance(count, bool) or not isinstance(count, Integral) or count < 1:
            raise ValueError(f"{name} is {count!r}; expected a whole number >= 1")
    if not seconds > 0:
        raise ValueError(f"seconds is {seconds}; expected more than 0")
    kernel = Matern(2.5, max(d, 1) ** 0.5) if kernel is None else kernel
    rows = torch.randn(planning.RATE_ROWS, d, generator=torch.Generator().manual_seed(0)) if x is None else x
    speed = Speed.measure(kernel, rows)
    known: dict[int, float] = {}

    def left(landmarks: int) -> float | None:
        if x is None:
            return None
        many = min(landmarks, LANDMARKS)
        if many not in known:
            known[many] = unseen(kernel, x, many)
        return known[many]

    chosen = planning.choose(n, seconds, speed, outputs)
    ridge = [
        _ridge(p, p.plan.algorithm == chosen.algorithm, left) for p in planning.proposals(n, seconds, speed, outputs)
    ]
    found = ridge + _others(n, d, outputs, seconds, speed, planning.pair_seconds(kernel, d, outputs), left)
    return sorted(found, key=lambda o: (not o.chosen, bool(o.refused), o.seconds))


def _ridge(proposal: planning.Proposal, chosen: bool, left: Callable[[int], float | None]) -> Option:
    plan = proposal.plan
    words = {
        "cholesky": "exactly, by Cholesky", "cg": "the whole kernel, by conjugate gradients",
        "nystrom": f"{plan.landmarks:,} landmarks, normal equations", "falkon": f"{plan.landmarks:,} landmarks, by CG",
    }  # fmt: skip
    error = left(plan.landmarks) if plan.algorithm in ("nystrom", "falkon") else 0.0
    name = "KernelRidge, GaussianProcessRegressor" if plan.algorithm in ("cholesky", "nystrom") else "KernelRidge"
    return Option(name, words[plan.algorithm], plan.memory, proposal.seconds, error, proposal.refused, chosen, plan)


def _others(
    n: int, d: int, outputs: int, seconds: float, speed: Speed, pair: float, left: Callable[[int], float | None]
) -> list[Option]:
    budget = memory_budget()

    def option(learner: str, how: str, memory: float, took: float, error: float | None, refused: str = "") -> Option:
        reason = refused or ("too large" if memory > budget else "too slow" if took > seconds else "")
        return Option(learner, how, memory, took, error, reason)

    m, p = min(STREAMED, n), min(INDUCING, n)
    pairs = float(n) * m
    near = NEIGHBOURS + 1
    flat = "" if d <= FLAT else f"more than {FLAT} columns"
    few = "" if n <= EIGH else f"more than {EIGH:,} rows"
    return [
        option("FalkonRegressor", f"{m:,} landmarks, rows streamed", 32.0 * m * m + BATCH,
               2 * PASSES * pairs * pair + 2.0 * m**3 / speed.flops, left(m)),
        option("EigenProRegressor", f"{m:,} landmarks, rows streamed", 8.0 * m * m + BATCH,
               2 * EPOCHS * pairs * pair + 2.0 * m**3 / speed.flops, left(m)),
        option("EigenProRegressor", "every row a centre", 4.0 * n * (d + 160 + outputs) + BATCH,
               EPOCHS * float(n) * n * pair, None),
        option("VariationalGaussianProcess", f"{p:,} inducing points, any likelihood", 24.0 * p * p + BATCH,
               BATCHES * 12.0 * n * p * p / speed.flops, left(p)),
        option("VecchiaGaussianProcess", f"{NEIGHBOURS} neighbours", 8.0 * 4096 * near * near * 4,
               STEPS * min(n, 32_000) * (near**3 / speed.flops + near * near / speed.values), None, flat),
        option("NeighbourRidge", "each point from its nearest rows", 4.0 * BATCH,
               n * (near**3 / speed.flops + near * near / speed.values), None, flat if d > 3 else ""),
        option("GaussianProcessRegressor", "the whole kernel, CG and sampled likelihood", 24.0 * n * min(1000, n),
               20 * STEPS * float(n) * n * pair, 0.0),
        option("SpectralRegressor", "all eigenpairs", 40.0 * n * n, 25.0 * n**3 / speed.flops, 0.0, few),
        option("RecursiveFeatureMachine", "a learned metric, then as KernelRidge", 8.0 * 8 * m * m,
               15 * (2.0 * min(n, 16_000) * m * m / speed.flops + min(n, 16_000) * m / speed.values), left(m)),
    ]  # fmt: skip


def explain(
    n: int, d: int, outputs: int = 1, *, kernel: Kernel | None = None, x: Tensor | None = None, seconds: float = 60.0
) -> None:
    """Print `options`: what `mercer fit` takes first, then what fits by its seconds, then what does not and why."""
    found = options(n, d, outputs, kernel=kernel, x=x, seconds=seconds)
    size = f"{n:,} rows, {d} columns, {outputs} output{'s' if outputs > 1 else ''}"
    print(f"{size}; memory budget {mib(memory_budget())}, {seconds:g} s", *lines(found), sep="\n")


def lines(found: list[Option]) -> list[str]:
    """The table of `explain`."""
    wide = max(len(o.learner) for o in found) + 2
    rest = max(len(o.how) for o in found) + 2
    table = [f"   {'learner':<{wide}}{'how':<{rest}}{'memory':>14}{'seconds':>9}{'error':>8}"]
    for o in found:
        error = "-" if o.error is None else "0" if o.error == 0 else f"{o.error:.1%}"
        mark = "->" if o.chosen else "  "
        row = f"{mark} {o.learner:<{wide}}{o.how:<{rest}}{mib(o.memory):>14}{o.seconds:>9.2g}{error:>8}"
        table.append(f"{row}  {o.refused}".rstrip())
    return table
