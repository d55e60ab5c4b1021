"""What each learner's fit takes, its learning of the kernel and its intervals included: counts over `Effort`."""

from __future__ import annotations

import math

from mercer.budget import memory_budget
from mercer.learn.effort import Effort, Need
from mercer.learn.plan import EXACT_ROWS, LANDMARKS, Plan
from mercer.learn.sequential import height
from mercer.learn.sparse import planned
from mercer.learn.task import COPIES, DENSE, HELD, SMALL, WORTH
from mercer.learn.vecchia import CALIBRATED, STAGES

SHARE = 0.4  # of the seconds, for the kernel, of fits over many rows
STREAMED, INDUCING, NEIGHBOURS = 1000, 300, 30  # landmarks of those, of variational processes; of Vecchia
STEPS, LEVELS = 15, 4  # of Falkon, usually; penalties tried at once
NEWTON, INNER = 20, (6, 12)  # steps of the log loss; products each, of two classes and of more
EPOCHS, BATCH, SUBSAMPLE = 15, 512, 2000  # of EigenPro, usually: a batch is as small as it gets
FLAT, CLIMBS, PASSES = 4000, 25, 15  # rows that a variational process climbs with at once; its steps, or epochs
MOVES = 5  # natural gradients for each trial where there is no closed form
GRADIENTS, EVIDENCE = 1.2, 20  # trials of an iteration; products of a sampled likelihood with its probes
TRIALS = {25: 28, 8: 11}  # gradients of so many iterations
ROUNDS, WIDER = 10, 5  # of a latent process; points in its groups for each neighbour
FIVE = 5  # the rows of each fold left out, and all
LINEAR, LLOYD, WALK, PAIRS = (
    150,
    120,
    250,
    40,
)  # passes of LIBLINEAR; rounds of k-means without clear clusters; products of Lanczos


def _held(n: int) -> int:
    return min(HELD, max(n // 10, 1))


def ridge(e: Effort, plan: Plan, solve: float) -> Need:
    """KernelRidge by this plan. solve: its seconds."""
    took = e.table() + e.kernel_of(e.n, 0.5)
    if plan.algorithm == "cholesky":
        took += e.exact(e.n, 3 if e.n > 1000 else 1)
    else:
        took += Need(solve, plan.memory)
    return took.times(e.again(e.d)) + e.intervals(e.n)


def classifier(e: Effort, plan: Plan, solve: float) -> Need:
    """KernelClassifier: least squares on memberships, then log odds in the same kernel where they are better."""
    took = e.table() + e.kernel_of(e.n, 0.35)
    took += e.exact(e.n, 3 if e.n > 1000 else 1) if plan.algorithm == "cholesky" else Need(solve, plan.memory)
    return (took + _odds(e)).times(e.again(e.d))


def _odds(e: Effort) -> Need:
    """Penalties and stretches on 2,000 rows and 300 landmarks, then folds of up to 3e7 values; `logistic.fit`."""
    some, few, classes = min(e.n, 2000), min(e.n, 300), e.outputs
    folds = 1 if classes * some > 10_000 else 4
    each = 25 * 4.0 * some * few * classes / (e.speed.flops / 2)  # reading the features bounds it
    search = Need(8 * folds * each) + e.eigenpairs(few).times(8) + Need(8 * e.values(2 * some * few))
    m = min(600, e.n)
    rows = min(e.n, int(3e7 / m))
    kept = (1 if rows > 20_000 else 4) * 60 + 100
    fit = kept * 4.0 * rows * m * classes / (e.speed.flops / 2) + e.values(rows * m) + e.multiplied(4.0 * rows * m * m)
    return search + Need(min(fit, 0.6 * e.seconds), 20.0 * rows * m) + e.eigenpairs(m).times(2)


def process(e: Effort) -> Need:
    """GaussianProcessRegressor: exact to 5,000 rows, landmarks above."""
    took = e.table() + e.learning(e.n, 3, 0.5) + e.sharpening(e.n)
    if e.n <= EXACT_ROWS:
        took += e.exact(e.n, 1)
    else:
        m = min(LANDMARKS, e.n, max(200, int((memory_budget() / 96) ** 0.5)))
        took += e.normal(e.n, m, 1) + Need(e.values(float(e.n) * m) + e.multiplied(2.0 * e.n * m * m), 48.0 * m * m)
    return took + e.intervals(e.n)


def whole_process(e: Effort) -> Need:
    """GaussianProcessRegressor(method="cg"): a likelihood of all rows, climbed by products."""
    took = e.table() + e.learning(e.n, 3, 0.5) + e.sharpening(e.n)
    one = e.product(e.n, e.n, 17, times=EVIDENCE) + Need(e.factored(2.0 * e.n * 500**2))
    climb = one.times(40 * GRADIENTS)
    took += Need(min(climb.seconds, max(0.7 * e.seconds, one.seconds)), climb.memory)
    return took + e.product(e.n, e.n, 5, times=60).beside(24.0 * e.n * min(1500, e.n)) + e.intervals(e.n)


def _whitened(e: Effort, kept: float, m: int, levels: int, sample: float) -> Need:
    took = e.values(sample * m + m * m) + e.factored(sample * m * m) + e.multiplied(2.0 * sample * m * m)
    return Need(took + e.factored((2 + levels) * m**3 / 3), 8.0 * m * m * (COPIES + levels))


def _rows_kept(e: Effort, kept: float, columns: int, size: int) -> float:
    """Bytes of scaled rows: all of them in a quarter of the budget, else blocks."""
    return min(kept * (size * e.d + 48.0 * columns), memory_budget() / 4) + 24.0 * min(kept, 2**17) * e.d


def falkon(e: Effort, classes: bool = False) -> Need:
    """FalkonRegressor and FalkonClassifier."""
    held = _held(e.n)
    kept, m = e.n - held, min(STREAMED, e.n - held)
    wide = float(e.n) * m <= SMALL
    outputs = e.outputs if not classes or e.outputs > 2 else 1
    columns = outputs * (1 if classes else LEVELS)
    sample = min(kept, 4.0 * m) if classes else min(kept, DENSE * m, max(2 * m, WORTH * kept / max(m, 1)))
    products = 2 * NEWTON * (INNER[outputs > 1] + wide) if classes else 2 * STEPS
    took = e.product(kept, m, columns, wide, products)
    more = 2.0 * NEWTON if classes else 3.0
    took += Need(0.0 if wide else more * kept * m * e.pair(columns, True))
    took += Need(NEWTON * e.factored(sample * m * m + outputs * m**3 / 3)) if classes else Need()
    took += Need(STEPS * e.factored(4.0 * m * m * columns)) + e.product(held, m, columns, wide, STEPS)
    room = 8.0 * m * m * (COPIES + columns) + _rows_kept(e, kept, columns, 8 if wide else 4)
    solve = (_whitened(e, kept, m, LEVELS, sample) + took).beside(room + (8.0 * sample * m if classes else 0))
    return e.drawn(SHARE) + solve + (Need() if classes else e.intervals(held))


def eigenpro(e: Effort, landmarks: int | None, classes: bool = False) -> Need:
    """EigenProRegressor and EigenProClassifier; landmarks: None where every row is one."""
    held = _held(e.n)
    kept = e.n - held
    outputs = e.outputs if not classes or e.outputs > 2 else 1
    batches, s = -(-kept // BATCH), min(SUBSAMPLE, kept)
    q = max(min(700, kept // 20, s // 3), 1)
    if landmarks is None:
        each = Need(float(kept) * (kept * e.pair(outputs) + s * e.pair(outputs)) + 2 * batches * e.call)
        setup = Need(e.values(s * s) + e.multiplied(16.0 * s * s * q), 24.0 * s * s + 8.0 * s * q * 4)
        room = kept * (4.0 * e.d + 56.0 * outputs) + 16.0 * s * q
    else:
        m = min(landmarks, kept)
        pairs = kept * float(m) * (e.pair(3 * outputs) + e.pair(2 * outputs))
        each = Need(pairs + batches * (2 * e.call + 2.0 * m * m * outputs / e.speed.products))
        setup = Need(e.values(m * m + s * m) + e.factored(float(s) * m * m + 1.4 * m**3) + e.multiplied(6.0 * m**3))
        setup += e.eigenpairs(min(m, s)) if m <= 1000 else Need(e.multiplied(16.0 * min(m, s) ** 2 * q))
        room = 8.0 * m * m * 4 + 24.0 * s * m
    judged = e.product(held, landmarks or kept, 3 * outputs)
    steps = setup + (each + judged).times(EPOCHS) + e.eigenpairs(min(1000, kept)).times(0.3)
    return e.drawn(SHARE) + steps.beside(room) + (Need() if classes else e.intervals(held))


def variational(e: Effort, classes: bool = False) -> Need:
    """VariationalGaussianProcess, Gaussian noise, and the classifier."""
    n, m = e.n, min(INDUCING, e.n)
    outputs = e.outputs if not classes or e.outputs > 2 else 1
    took = e.table() + e.learning(min(n, 5000), 2, 0.3, 8)
    one = e.factored(4.0 * n * m * m + 4.0 * m**3) + e.values(2.0 * n * m) + e.multiplied(8.0 * n * m * m)
    one += (outputs - 1) * e.multiplied(4.0 * n * m * m)
    if classes:
        moves = outputs * (MOVES if n <= FLAT else 1)
        one += moves * (e.multiplied(6.0 * n * m * m) + 3e-7 * n)
    rows = n if n <= FLAT else 1000
    batches = 1 if n <= FLAT else n / 1000
    one += (batches - 1) * e.factored(4.0 * m**3)
    climb = Need(min((CLIMBS if n <= FLAT else PASSES) * one, 0.75 * e.seconds), planned(m, rows, outputs))
    return took + climb + Need(3 * one, 8.0 * m * 2048 * 4)


def vecchia(e: Effort) -> Need:
    """VecchiaGaussianProcess."""
    n, k = e.n, min(NEIGHBOURS, e.n - 1) + 1
    took = e.table() + e.learning(n, 3, 0.3)
    group = k * k * e.entry + e.factored(k**3)
    for rows, steps, share in STAGES:
        if rows == STAGES[0][0] or n > STAGES[0][0]:
            climb = TRIALS[steps] * min(n, rows) * group
            took += Need(n * e.order * math.log2(max(n, 2)) / 9 + min(climb, share * e.seconds))
    blocks = min(height(k), n) * 8.0 * 8 * k * k
    calibrated = min(n, CALIBRATED) * (k * k * e.entry / 2 + e.factored(k**3 / 3))
    return took + Need(calibrated, blocks + 80.0 * n * k)


def latent(e: Effort, neighbours: int = 15) -> Need:
    """LatentVecchiaProcess."""
    n, k = e.n, min(neighbours, e.n - 1) + 1
    wide = WIDER * k

    def rounds(places: int, count: int) -> Need:
        group = e.factored(wide**3 / 3 + wide * wide * k) + wide * wide * e.entry / 3
        whole = places <= 3000
        columns = places if whole else 32
        solves = 4.0 * places * k * columns / 2.5e8
        blocks = 24.0 * wide**2 * min(height(wide), places)
        return Need(count * (places * group + solves), 48.0 * places * columns + blocks)

    few = min(n, 600)
    learned = rounds(few, ROUNDS).times(30 * GRADIENTS)
    took = Need(min(learned.seconds, 0.6 * e.seconds), learned.memory) + Need(n * e.order * 2)
    return e.table() + took + rounds(n, 2 * ROUNDS)


def neighbours(e: Effort) -> Need:
    """NeighbourRidge."""
    k, some = 21, min(e.n, 2000)
    each = k * k * e.entry / 3 + e.factored(k**3) + 1e-5
    tried = 12 * 6 * (some / 3) + 8 * (e.d + 1) * some
    return e.table() + Need(tried * each + e.n * each, 4096 * 8.0 * k * (2 * k + e.d + 4) * 2) + e.intervals(e.n)


def spectral(e: Effort) -> Need:
    """SpectralRegressor: all eigenpairs to 2,000 rows, else those of landmarks."""
    took = e.table() + e.kernel_of(e.n, 0.5)
    if e.n <= 2000:
        took += e.eigenpairs(e.n)
    else:
        m = min(1000, e.n)
        features = 2 * (e.values(float(e.n) * m) + e.factored(float(e.n) * m * m)) + e.multiplied(2.0 * e.n * m * m)
        took += Need(features, 8.0 * 14 * m * m + 24.0 * 2048 * m) + e.eigenpairs(m).times(FIVE)
    return took.times(e.again(e.d)) + e.intervals(e.n)


def machine(e: Effort, plan: Plan, solve: float, classes: bool = False) -> Need:
    """RecursiveFeatureMachine and its classifier: five rounds of two fits with five noises, then as KernelRidge."""
    kept = min(e.n, 20_000)
    kept -= min(kept // 5, 4000)
    m = min(1000, max(kept // 4, 500))
    one = e.exact(kept, 5) if kept <= m else e.normal(kept, m, 5)
    rounds = one.times(3 + 2 * 5)
    took = e.table() + Need(min(rounds.seconds, max(0.6 * e.seconds, 3 * one.seconds)), one.memory)
    took += e.exact(e.n, 3 if e.n > 1000 else 1) if plan.algorithm == "cholesky" else Need(solve, plan.memory)
    took = took.times(e.again(e.d * (e.d + 1) // 2))
    return took + (_odds(e) if classes else e.intervals(e.n))


def multitask(e: Effort) -> Need:
    """MultitaskGaussianProcess, all tasks at every row."""
    n, some = e.n, min(e.n, 1000)
    one = e.eigenpairs(some) + Need(e.gradient(some), 72.0 * some**2)
    took = e.table() + Need(min(60 * GRADIENTS * one.seconds, 0.7 * e.seconds), one.memory)
    if n <= EXACT_ROWS:
        return took + e.eigenpairs(n) + Need(e.values(float(n) ** 2))
    return took + e.product(n, n, 17, True, 100) + Need(e.factored(2.0 * n * 500**2), 24.0 * n * 500)


def transformed(e: Effort) -> Need:
    """TransformedKernelRidge and its classifier, all rows labelled."""
    n, r = e.n, 300
    near = min(n, 1000) * float(n) * (2 + e.d) * 3e-9
    if n <= 2000:
        svd = e.multiplied(4 * 22.0 * n**3)
        return e.table() + Need(near + svd, 56.0 * n * n) + e.eigenpairs(n)
    eig = e.product(n, n, r, True, 9) + Need(9 * e.factored(4.0 * n * r * r), 48.0 * n * r)
    return e.table() + Need(near + 4 * e.factored(10.0 * n * r * r)) + eig


def svc(e: Effort) -> Need:
    """KernelSVC: LIBSVM on the whole Gram to 10,000 rows, LIBLINEAR on 500 features above."""
    n, machines = float(e.n), 1 if e.outputs <= 2 else e.outputs
    if n <= 10_000 and 24 * n * n <= memory_budget():
        return e.table() + Need(e.values(n * n) * 2 + machines * 2e-8 * n * n, 24.0 * n * n)
    r = 500
    took = e.values(n * r) + e.factored(n * r * r) + machines * LINEAR * n * r * 2e-9
    return e.table() + Need(took, 24.0 * n * r)


def means(e: Effort) -> Need:
    """KernelMeanClassifier."""
    return e.table() + e.product(e.n, e.n, e.outputs, True)


def components(e: Effort) -> Need:
    """KernelPCA by eigenvectors."""
    n, s = e.n, e.outputs
    if n <= 500:
        return e.table() + e.eigenpairs(n)
    return e.table() + e.product(n, n / 2, s, True, PAIRS) + Need(e.multiplied(60 * 4.0 * n * 60), 8.0 * n * 120)


def means_of_clusters(e: Effort) -> Need:
    """KernelKMeans: ten starts side by side, some rounds."""
    n, c = e.n, 8 if e.outputs == 1 else e.outputs
    return e.table() + e.product(n, n, 10 * c, True, LLOYD).beside(40.0 * n * c * 10)


def walks(e: Effort) -> Need:
    """KernelSpectralClustering."""
    n, c = e.n, 8 if e.outputs == 1 else e.outputs
    took = e.eigenpairs(n) if n <= 500 else e.product(n, n / 2, 1, True, WALK) + Need(0.0, 8.0 * n * 150)
    return e.table() + took + Need(10 * 20 * 2e-8 * n * c)


def novelty(e: Effort) -> Need:
    """KernelNovelty by variance: exact to 5,000 rows, 1,000 landmarks above."""
    n = e.n
    if n <= EXACT_ROWS and 32.0 * n * n <= memory_budget():
        return e.table() + Need(e.values(float(n) ** 2) + e.factored(float(n) ** 3), 32.0 * n * n)
    m = min(1000, n // 2)
    took = 2 * e.values(float(n) * m) + e.multiplied(4.0 * n * m * m) + e.factored(2.0 * n * m * m)
    return e.table() + Need(took, 40.0 * m * m + 32.0 * 4096 * m)
