"""What could learn from so many rows: every learner with its memory, its seconds and the error that it must leave."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral, Real

import torch
from torch import Tensor

from mercer.budget import memory_budget, mib
from mercer.errors import ShapeError
from mercer.kernel import Kernel
from mercer.kernels import Matern
from mercer.learn import costs
from mercer.learn import plan as planning
from mercer.learn.arguments import psd
from mercer.learn.effort import Effort, Need
from mercer.learn.plan import Speed, span
from mercer.linalg import Cholesky

TASKS = ("regression", "classification", "unsupervised")
SAMPLE, LANDMARKS = 400, 1500  # rows whose variance landmarks are to explain, and landmarks that are tried
FLAT = 4  # columns up to which nearest rows tell what there is to know
WHERE = (
    "landmark error: estimate of the part of a function drawn from this kernel that landmarks leave (rms, of its size)"
)


@dataclass(frozen=True)
class Option:
    """A learner and how it would learn. memory, seconds: of a fit that is given `seconds`, beside the table.

    error: estimate of the root mean square of what its landmarks cannot tell of a function drawn from the kernel, as a
    share of its deviation (0: rounding only, None: not known beforehand; most: it is at most that). Noise, and a
    kernel that is wrong, come on top. refused: why it is out of the question, or "". plan: of KernelRidge.
    """

    learner: str
    how: str
    memory: float
    seconds: float
    error: float | None
    refused: str
    chosen: bool = False
    plan: planning.Plan | None = None
    most: bool = False


@dataclass(frozen=True)
class _Line:
    """One way to learn, before it is judged. landmarks: whose error is to be known, 0: none, -1: not known."""

    learner: str
    how: str
    need: Need
    landmarks: int = -1
    refused: str = ""
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


def _check(n: int, d: int, outputs: int, seconds: float, task: str) -> None:
    for name, count in (("n", n), ("d", d), ("outputs", outputs)):
        if isinstance(count, bool) or not isinstance(count, Integral) or count < 1:
            raise ValueError(f"{name} is {count!r}; expected a whole number >= 1")
    if not isinstance(seconds, Real) or not seconds > 0:
        raise ValueError(f"seconds is {seconds}; expected more than 0")
    if task not in TASKS:
        raise ValueError(f"task is {task!r}; expected one of {', '.join(TASKS)}")


def options(
    n: int, d: int, outputs: int = 1, *, task: str = "regression", kernel: Kernel | None = None,
    x: Tensor | None = None, seconds: float = 60.0,
) -> list[Option]:  # fmt: skip
    """Every learner for n rows of d columns; first what `mercer fit`, KernelRidge and KernelClassifier would take.

    outputs: columns of y, classes, or components and clusters; task: "regression", "classification", "unsupervised".
    x: rows on their common scale, `n' d`; with a kernel (None: Matern 5/2 at the usual distance) they tell the error
    that landmarks leave, and the speed. Memory is compared with mercer.memory's budget, seconds with `seconds`, the
    time budget of the fit.
    """
    _check(n, d, outputs, seconds, task)
    outputs = max(outputs, 2) if task == "classification" else outputs
    psd(explain, kernel)
    if x is not None and (not isinstance(x, Tensor) or x.ndim != 2 or x.shape[1] != d or not len(x)):
        raise ShapeError(
            f"x is {tuple(x.shape) if isinstance(x, Tensor) else x!r}; expected a tensor n' x {d}, or None"
        )
    kernel = Matern(2.5, max(d, 1) ** 0.5) if kernel is None else kernel
    rows = torch.randn(planning.RATE_ROWS, d, generator=torch.Generator().manual_seed(0)) if x is None else x
    e = Effort.measure(kernel, n, d, outputs, float(seconds), Speed.measure(kernel, rows))
    made = {"regression": _regression, "classification": _classification, "unsupervised": _unsupervised}[task](e)
    budget, table = memory_budget(), e.table().memory
    room = max(budget, e.drawn(costs.SHARE).memory - table)  # what learning a kernel takes, whatever the budget
    known: dict[int, float] = {}
    found = []
    for line in made:
        m, error = min(line.landmarks, n), None
        if line.landmarks == 0:
            error = 0.0
        elif line.landmarks > 0 and x is not None:
            tried = min(m, LANDMARKS)
            known[tried] = error = known[tried] if tried in known else unseen(kernel, x, tried)
        slow = "too slow" if line.need.seconds > seconds else ""
        reason = line.refused or ("too large" if line.need.memory - table > room and line.plan is None else slow)
        most = error is not None and x is not None and m > max(min(LANDMARKS, len(x) - SAMPLE // 4), 1)
        reason = "" if line.chosen else reason
        found.append(
            Option(
                line.learner, line.how, line.need.memory, line.need.seconds, error, reason, line.chosen, line.plan, most
            )
        )
    return sorted(found, key=lambda o: (not o.chosen, bool(o.refused), o.seconds))


def _ridges(e: Effort, name: str, price: Callable[[Effort, planning.Plan, float], Need]) -> list[_Line]:
    """KernelRidge or KernelClassifier by each of the four algorithms."""
    columns = 1 if name == "KernelClassifier" and e.outputs == 2 else e.outputs
    spent = e.kernel_of(e.n, 0.5 if name == "KernelRidge" else 0.35).seconds
    left = max(e.seconds - spent, 1.0)
    chosen = planning.choose(e.n, left, e.speed, columns)
    found = []
    for p in planning.proposals(e.n, left, e.speed, columns):
        plan = p.plan
        words = {
            "cholesky": "exactly, by Cholesky", "cg": "the whole kernel, by conjugate gradients",
            "nystrom": f"{plan.landmarks:,} landmarks, normal equations",
            "falkon": f"{plan.landmarks:,} landmarks, by CG",
        }  # fmt: skip
        marks = plan.landmarks if plan.algorithm in ("nystrom", "falkon") else 0
        taken = plan.algorithm == chosen.algorithm
        found.append(_Line(name, words[plan.algorithm], price(e, plan, p.seconds), marks, p.refused, taken, plan))
    return found


def _near(e: Effort, most: int = FLAT) -> str:
    return "" if e.d <= most else f"more than {most} columns"


def _streamed(e: Effort, name: str, classes: bool) -> list[_Line]:
    """Falkon and EigenPro."""
    kept = max(e.n - e.n // 10, 1)
    m = min(costs.STREAMED, kept)
    kind = "Classifier" if classes else "Regressor"
    return [
        _Line(f"Falkon{kind}", f"{m:,} landmarks, rows streamed", costs.falkon(e, classes), m),
        _Line(f"EigenPro{kind}", f"{m:,} landmarks, rows streamed", costs.eigenpro(e, m, classes), m),
        _Line(f"EigenPro{kind}", "every row a landmark", costs.eigenpro(e, None, classes)),
    ]


def _regression(e: Effort) -> list[_Line]:
    ridge = _ridges(e, "KernelRidge", costs.ridge)
    plan = next(line.plan for line in ridge if line.chosen)
    p, exact = min(costs.INDUCING, e.n), e.n <= planning.EXACT_ROWS
    marks = min(planning.LANDMARKS, e.n)
    one = "" if e.outputs > 1 else "one output"
    return [
        *ridge, *_streamed(e, "regression", False),
        _Line("GaussianProcessRegressor", "exactly, by Cholesky" if exact else f"{marks:,} landmarks",
              costs.process(e), 0 if exact else marks),
        _Line("GaussianProcessRegressor", 'method="cg": the whole kernel', costs.whole_process(e), 0),
        _Line("VariationalGaussianProcess", f"{p:,} inducing points, any likelihood", costs.variational(e), p),
        _Line("MultitaskGaussianProcess", "tasks that learn from each other", costs.multitask(e), 0, one),
        _Line("VecchiaGaussianProcess", f"{costs.NEIGHBOURS} neighbours", costs.vecchia(e), -1, _near(e)),
        _Line("LatentVecchiaProcess", "15 neighbours, any likelihood", costs.latent(e), -1,
              _near(e) or ("one output only" if e.outputs > 1 else "")),
        _Line("NeighbourRidge", "each point from its nearest rows", costs.neighbours(e), -1, _near(e, 3)),
        _Line("SpectralRegressor", "all eigenpairs" if e.n <= 2000 else "eigenpairs of 1,000 landmarks",
              costs.spectral(e), 0 if e.n <= 2000 else 1000),
        _Line("RecursiveFeatureMachine", "a learned metric, then as KernelRidge", costs.machine(e, *_solved(e, ridge)),
              plan.landmarks if plan is not None and plan.algorithm in ("nystrom", "falkon") else 0),
        _Line("TransformedKernelRidge", "unlabelled rows count; all eigenpairs" if e.n <= 2000 else
              "unlabelled rows count; 300 eigenpairs", costs.transformed(e), 0 if e.n <= 2000 else -1),
    ]  # fmt: skip


def _solved(e: Effort, lines: list[_Line]) -> tuple[planning.Plan, float]:
    """(the plan of the chosen line, the seconds of its solve)."""
    plan = next(line.plan for line in lines if line.chosen)
    left = max(e.seconds - e.kernel_of(e.n, 0.5).seconds, 1.0)
    same = (p for p in planning.proposals(e.n, left, e.speed, e.outputs) if plan and p.plan.algorithm == plan.algorithm)
    found = next(same)
    return found.plan, found.seconds


def _classification(e: Effort) -> list[_Line]:
    first = _ridges(e, "KernelClassifier", costs.classifier)
    p = min(costs.INDUCING, e.n)
    two = "" if e.outputs == 2 else "two classes only"
    whole = e.n <= 10_000 and 24.0 * e.n * e.n <= memory_budget()
    return [
        *first, *_streamed(e, "classification", True),
        _Line("KernelSVC", "the whole Gram, by LIBSVM" if whole else "500 landmarks, by LIBLINEAR", costs.svc(e),
              0 if whole else 500),
        _Line("KernelMeanClassifier", "nearest mean of a class; nothing is solved", costs.means(e), 0),
        _Line("VariationalGaussianProcessClassifier", f"{p:,} inducing points", costs.variational(e, True), p),
        _Line("LatentVecchiaProcess", '15 neighbours, likelihood="bernoulli"', costs.latent(e), -1, _near(e) or two),
        _Line("RecursiveFeatureClassifier", "a learned metric, then as KernelClassifier",
              costs.machine(e, *_solved(e, first), True), 0 if e.n <= planning.EXACT_ROWS else 1000),
        _Line("TransformedKernelClassifier", "unlabelled rows count", costs.transformed(e), 0 if e.n <= 2000 else -1),
    ]  # fmt: skip


def _unsupervised(e: Effort) -> list[_Line]:
    c = 8 if e.outputs == 1 else e.outputs
    exact = e.n <= planning.EXACT_ROWS and 32.0 * e.n * e.n <= memory_budget()
    return [
        _Line("KernelPCA", f"{e.outputs} components of the whole Gram", costs.components(e), 0),
        _Line("KernelKMeans", f"{c} clusters, ten starts side by side", costs.means_of_clusters(e), 0),
        _Line("KernelSpectralClustering", f"{c} clusters of a random walk", costs.walks(e), 0),
        _Line("KernelNovelty", "exactly, by Cholesky" if exact else "1,000 landmarks", costs.novelty(e),
              0 if exact else 1000),
        _Line("KernelNovelty", 'method="mean": nothing is solved', costs.means(e), 0),
    ]  # fmt: skip


def explain(
    n: int, d: int, outputs: int = 1, *, task: str = "regression", kernel: Kernel | None = None,
    x: Tensor | None = None, seconds: float = 60.0,
) -> None:  # fmt: skip
    """Print `options`, a line for each learner: what `mercer fit` takes, then what fits by its seconds, then the rest.

    A learner with several ways stands there with the quickest that fits. Arguments as in `options`.
    """
    found = options(n, d, outputs, task=task, kernel=kernel, x=x, seconds=seconds)
    unit = {"regression": "output", "classification": "class", "unsupervised": "component"}[task]
    many = unit + ("es" if unit == "class" else "s") * (outputs > 1)
    size = f"{n:,} rows, {d} columns, {outputs} {many}"
    print(f"{size}; memory budget {mib(memory_budget())}, time {span(seconds)}", *lines(found), sep="\n")


def lines(found: list[Option]) -> list[str]:
    """The table of `explain`: the first option of each learner, and what its last column is."""
    first: dict[str, Option] = {}
    for o in found:
        first.setdefault(o.learner, o)
    kept = list(first.values())
    wide = max(len(o.learner) for o in kept) + 2
    rest = max(len(o.how) for o in kept) + 2
    table = [f"   {'learner':<{wide}}{'how':<{rest}}{'memory':>10}{'time':>11}{'landmark error':>16}"]
    for o in kept:
        error = "-" if o.error is None else "0" if o.error == 0 else f"{'<' if o.most else ''}{o.error:.1%}"
        mark = "->" if o.chosen else "  "
        row = f"{mark} {o.learner:<{wide}}{o.how:<{rest}}{mib(o.memory):>10}{span(o.seconds):>11}{error:>16}"
        table.append(f"{row}  {o.refused}".rstrip())
    return [*table, f"   {WHERE}"]
