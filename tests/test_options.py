"""What could learn from a table: memory and error against their formulas, the choice against what a fit does."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

import mercer
from mercer.app import planning
from mercer.app.fitting import train
from mercer.app.prepared import prepare
from mercer.budget import mib
from mercer.errors import ShapeError
from mercer.kernels import Gaussian, Laplace
from mercer.learn import KernelClassifier, KernelRidge, costs
from mercer.learn.effort import Effort, Need
from mercer.learn.options import TASKS, WHERE, explain, lines, options, unseen
from mercer.learn.plan import Speed, span

USUAL = Speed()


def effort(n: int, d: int = 4, outputs: int = 1, seconds: float = 60.0) -> Effort:
    """Of a machine whose rates are known."""
    return Effort(Gaussian(2.0), n, d, outputs, seconds, USUAL, entry=1e-7, call=1e-3, order=1e-4)


def test_what_landmarks_leave_is_the_schur_complement():
    g = torch.Generator().manual_seed(3)
    x = torch.rand(130, 2, generator=g, dtype=torch.float64)
    order = torch.randperm(130, generator=torch.Generator().manual_seed(0))
    z, rest = x[order[:30]].numpy(), x[order[30:]].numpy()

    def k(a, b):
        return 2.0 * np.exp(-np.abs(a[:, None] - b[None]).sum(-1) / 0.7)

    left = 2.0 - np.einsum("ij,ji->i", k(rest, z) @ np.linalg.inv(k(z, z)), k(z, rest))
    assert unseen(Laplace(0.7).scale(2.0), x, 30) == pytest.approx(math.sqrt(left.mean() / 2.0), rel=1e-9)
    assert unseen(Laplace(0.7), x, 30) > unseen(Laplace(7.0), x, 30)  # smoother: fewer landmarks do


def _said(n, d, outputs, task, seconds):
    """(the algorithm and the landmarks that are announced)."""
    found = options(n, d, outputs, task=task, seconds=seconds)
    first = found[0]
    assert [o for o in found if o.chosen] == [first] and first.plan is not None and not first.refused
    return first.plan.algorithm


@pytest.mark.parametrize(
    ("n", "d", "seconds", "limit", "algorithm"),
    [(300, 3, 20.0, "1G", "cholesky"), (1200, 4, 20.0, "1G", "cholesky"), (1200, 4, 20.0, "8M", "nystrom"),
     (1500, 2, 20.0, "48M", "cg")],
)  # fmt: skip
def test_fits_take_what_the_plan_says(n, d, seconds, limit, algorithm):
    random = np.random.default_rng(0)
    x = random.normal(size=(n, d))
    y = np.sin(x[:, 0]) + 0.3 * random.normal(size=n)
    with mercer.memory(limit):
        assert _said(n, d, 1, "regression", seconds) == algorithm
        model = KernelRidge(Gaussian(1.0), alpha=0.1, learn=False, time_budget=seconds, random_state=0).fit(x, y)
        assert model.plan_.algorithm == algorithm
        assert _said(n, d, 2, "classification", seconds) == algorithm
        labels = KernelClassifier(Gaussian(1.0), alpha=0.1, learn=False, time_budget=seconds, random_state=0)
        assert labels.fit(x, y > 0).plan_.algorithm == algorithm


@pytest.mark.parametrize(
    ("rows", "columns", "limit", "algorithm"),
    [(60, 3, None, "cholesky"), (1200, 4, 8 * 2**20, "nystrom"), (5200, 2, None, "neighbours")],
)
def test_a_training_does_what_mercer_plan_says(tmp_path, rows, columns, limit, algorithm):
    random = np.random.default_rng(0)
    table = random.normal(size=(rows, columns))
    table = np.column_stack([table, np.sin(table[:, 0]) + 0.1 * random.normal(size=rows)])
    path = tmp_path / "t.csv"
    head = ",".join([*(f"x{i}" for i in range(columns)), "y"])
    path.write_text(head + "\n" + "\n".join(",".join(f"{v:.5f}" for v in row) for row in table))
    facts = planning.run(path, ["y"], "auto", 12.0, limit)
    assert facts["algorithm"] == algorithm
    ready = prepare(path, ["y"], "auto", None)
    with mercer.memory(limit or 2**31):
        trained, _ = train(ready.frame, ready.targets, facts["share"], 0)
    assert {head.model.plan_.algorithm for head in trained.heads} == {algorithm}


def test_memory_and_time_rule_learners_out():
    with mercer.memory("1M"):
        found = options(5000, 2, seconds=1e6)
    exact = next(o for o in found if o.learner == "KernelRidge" and o.how.startswith("exactly"))
    assert exact.refused == "too large" and exact.memory >= 6 * 8 * 5000**2  # matrices of the exact path
    assert found[0].chosen and "landmarks" in found[0].how
    hurried = options(10**6, 10, seconds=1e-6)
    assert {o.refused for o in hurried if o.learner == "FalkonRegressor"} == {"too slow"}
    assert [o.learner for o in hurried if o.refused == "more than 4 columns"]


def test_parts_follow_one_another():
    a, b = Need(1.0, 100.0), Need(2.0, 30.0)
    assert a + b == Need(3.0, 100.0) and a.times(3) == Need(3.0, 100.0) and b.beside(5) == Need(2.0, 35.0)


def test_parts_are_counted():
    e = effort(3000)
    rate = USUAL.flops / 2  # of factorisations
    assert e.gradient(500) == pytest.approx(500**3 / rate + 500**2 * 1e-7)
    assert e.exact(3000, 3).seconds == pytest.approx(3 * 3000**3 / rate + 3000**2 / USUAL.values)
    assert e.exact(3000, 3).memory == 6 * 8 * 3000**2
    assert e.eigenpairs(1000).seconds == pytest.approx(9e9 / USUAL.flops)
    # a large matrix is not kept, a small one is read again for each product
    assert e.product(10**6, 1000, 4, times=10).memory < 4 * 10**9 < e.product(10**6, 1000, 4).seconds * 1e20
    assert e.product(1000, 100, 4, times=1e6).memory == 4 * 1000 * 100


def test_learning_ends_with_its_share_of_the_time_but_keeps_its_promise():
    whole, short, hardly = (effort(2000, seconds=s).learning(2000, 3, 0.5).seconds for s in (1e6, 2.0, 1e-3))
    assert whole > 1.0 == short > hardly > 0
    assert (
        effort(10**6).drawn(costs.SHARE).seconds < 1.2 * effort(10**5).drawn(costs.SHARE).seconds + 1
    )  # a draw is a draw


def test_many_rows_cost_in_proportion_and_no_more_memory():
    with mercer.memory("512M"):
        for price in (costs.falkon, lambda e: costs.eigenpro(e, 1000)):
            few, many = (price(effort(n, 10, seconds=1e6)) for n in (10**6, 4 * 10**6))
            assert few.seconds < many.seconds < 4.1 * few.seconds and many.memory < 2**30


def test_errors_need_rows_and_fall_with_landmarks():
    x = torch.randn(700, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    blind = {o.how: o.error for o in options(20_000, 4)}
    seen = {o.how: o for o in options(20_000, 4, x=x, kernel=Gaussian(3.0))}
    assert blind["1,000 landmarks, rows streamed"] is None
    few, many = seen["300 inducing points, any likelihood"], seen["1,000 landmarks, rows streamed"]
    assert few.error is not None and many.error is not None and 0 < many.error < few.error < 0.2
    assert many.most and not few.most  # 700 rows cannot tell what 1,000 landmarks leave


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize(("n", "d", "outputs"), [(40, 1, 1), (3000, 3, 3), (10**6, 30, 10)])
def test_tables_are_short_and_whole(task, n, d, outputs):
    found = options(n, d, outputs, task=task, seconds=30)
    said = lines(found)
    names = {o.learner for o in found}
    assert (
        len(names) <= 12 and len(said) == len(names) + 2 and "landmark error" in said[0] and said[-1].strip() == WHERE
    )
    assert all(math.isfinite(o.seconds) and o.seconds > 0 and o.memory > 0 for o in found)
    assert sum(o.chosen for o in found) == (task != "unsupervised")
    assert max(len(line) for line in said) <= 150


def test_every_learner_stands_in_a_table():
    found = {o.learner for task in TASKS for o in options(1000, 3, 2, task=task)}
    heads = ("Kernel", "Falkon", "EigenPro", "Gaussian", "Vari", "Vecchia", "Latent", "Multi", "Neigh", "Spec", "Recur")
    made = {
        name for name in mercer.learn.__all__ if name.startswith((*heads, "Transformed")) and "Smoother" not in name
    }
    assert made <= found <= set(mercer.learn.__all__)


def test_the_table_in_words(capsys):
    explain(20_000, 12, 2, seconds=30)
    out = capsys.readouterr().out
    assert out.startswith("20,000 rows, 12 columns, 2 outputs; memory budget") and "time 30 s" in out
    assert out.count("->") == 1
    for name in ("EigenProRegressor", "VecchiaGaussianProcess", "SpectralRegressor", "more than 4 columns"):
        assert name in out
    explain(900, 2, 3, task="classification")
    assert "900 rows, 2 columns, 3 classes" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (0.0123, "0.012 s"), (0.3, "0.3 s"), (9.4, "9.4 s"), (9.6, "10 s"), (12.2, "12 s"), (250, "4 min"),
     (7200, "2 h"), (1e6, "12 days")],
)  # fmt: skip
def test_seconds_in_words(seconds, text):
    assert span(seconds) == text


@pytest.mark.parametrize(
    ("size", "text"),
    [(2**10, "0.001 MiB"), (2**20 * 5.25, "5.250 MiB"), (2**20 * 38.5, "38.5 MiB"), (2**20 * 500, "500 MiB"),
     (2**30 * 2.5, "2.50 GiB"), (2**40, "1,024 GiB")],
)  # fmt: skip
def test_bytes_in_words(size, text):
    assert mib(size) == text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [((0, 3), "n is 0"), ((5, 2.5), "d is 2.5"), ((5, 2, True), "outputs is True")],
)
def test_sizes_are_whole_numbers(arguments, words):
    with pytest.raises(ValueError, match=words):
        options(*arguments)


def test_seconds_and_tasks_are_checked():
    with pytest.raises(ValueError, match="seconds is 0"):
        options(5, 2, seconds=0)
    with pytest.raises(ValueError, match="task is 'ranking'; expected one of regression, classification"):
        options(5, 2, task="ranking")


def test_mercer_plan_shows_the_learners(tmp_path):
    random = np.random.default_rng(0)
    path = tmp_path / "t.csv"
    rows = random.normal(size=(80, 3))
    cells = [",".join(f"{v:.4f}" for v in row) + f",{chr(117 + i % 3)}" for i, row in enumerate(rows)]
    path.write_text("a,b,y,kind\n" + "\n".join(cells))
    facts = planning.run(path, ["y"], "auto", 20.0, None)
    text = planning.as_text(json.loads(json.dumps(facts)))
    chosen = [o for o in facts["learners"] if o["chosen"]]
    assert len(chosen) == 1 and chosen[0]["how"] == "exactly, by Cholesky"
    assert facts["algorithm"] == "cholesky" and facts["memory"] == chosen[0]["memory"]
    assert "-> KernelRidge" in text and " MB" not in text and "up to 20 s" in text
    text = planning.as_text(planning.run(path, ["kind"], "auto", 20.0, None))
    assert "-> KernelClassifier" in text and "FalkonRegressor" not in text


@pytest.mark.parametrize("task", ["regression", "classification", "unsupervised"])
def test_the_smallest_tables_and_wrong_arguments(task: str, capsys: pytest.CaptureFixture[str]) -> None:
    explain(1, 1, task=task)
    assert "landmark error" in capsys.readouterr().out
    with pytest.raises(TypeError, match="kernel is str"):
        explain(10, 2, kernel="rbf", task=task)
    for x in ("rows", torch.zeros(5, 3), torch.zeros(0, 2)):
        with pytest.raises(ShapeError, match="expected a tensor n' x 2"):
            explain(10, 2, x=x, task=task)
