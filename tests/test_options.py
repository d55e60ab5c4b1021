"""What could learn from a table: memory and error against their formulas, the choice against what a fit does."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

import mercer
from mercer.app import planning
from mercer.kernels import Gaussian, Laplace
from mercer.learn import KernelRidge
from mercer.learn.options import explain, options, unseen


def test_what_centres_leave_is_the_schur_complement():
    g = torch.Generator().manual_seed(3)
    x = torch.rand(130, 2, generator=g, dtype=torch.float64)
    order = torch.randperm(130, generator=torch.Generator().manual_seed(0))
    z, rest = x[order[:30]].numpy(), x[order[30:]].numpy()

    def k(a, b):
        return 2.0 * np.exp(-np.abs(a[:, None] - b[None]).sum(-1) / 0.7)

    left = 2.0 - np.einsum("ij,ji->i", k(rest, z) @ np.linalg.inv(k(z, z)), k(z, rest))
    assert unseen(Laplace(0.7).scale(2.0), x, 30) == pytest.approx(math.sqrt(left.mean() / 2.0), rel=1e-9)
    assert unseen(Laplace(0.7), x, 30) > unseen(Laplace(7.0), x, 30)  # smoother: fewer landmarks do


def test_the_first_line_is_what_a_fit_does():
    random = np.random.default_rng(0)
    x = random.normal(size=(300, 3))
    model = KernelRidge(Gaussian(1.0), alpha=0.1, learn=False).fit(x, x[:, 0])
    first = options(300, 3)[0]
    assert first.chosen and first.plan is not None
    assert first.plan.algorithm == model.plan_.algorithm == "cholesky"
    assert first.memory == model.plan_.memory == 4 * 8 * 300**2  # kernel, factor, inverse, temporary
    assert first.error == 0


def test_memory_and_time_rule_learners_out():
    with mercer.memory("1M"):
        found = options(5000, 2, seconds=1e6)
    exact = next(o for o in found if o.how.startswith("exactly"))
    assert exact.refused == "too large" and exact.memory == 4 * 8 * 5000**2
    assert found[0].chosen and "landmarks" in found[0].how
    assert all(o.memory <= 2**20 or o.refused or o.chosen or o.plan is not None for o in found)
    hurried = options(10**6, 10, seconds=1e-6)
    assert {o.refused for o in hurried if o.learner == "FalkonRegressor"} == {"too slow"}
    assert [o.learner for o in hurried if o.refused == "more than 4 columns"]


def test_errors_need_rows_and_fall_with_centres():
    x = torch.randn(700, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    blind = {o.how: o.error for o in options(20_000, 4)}
    seen = {o.how: o.error for o in options(20_000, 4, x=x, kernel=Gaussian(3.0))}
    assert blind["1,000 landmarks, rows streamed"] is None
    few, many = seen["300 inducing points, any likelihood"], seen["1,000 landmarks, rows streamed"]
    assert few is not None and many is not None and 0 < many < few < 0.2


def test_the_table_in_words(capsys):
    explain(20_000, 12, 2, seconds=30)
    out = capsys.readouterr().out
    assert out.startswith("20,000 rows, 12 columns, 2 outputs; memory budget")
    assert out.count("->") == 1
    for name in ("EigenProRegressor", "VecchiaGaussianProcess", "SpectralRegressor", "more than 4 columns"):
        assert name in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [((0, 3), "n is 0"), ((5, 2.5), "d is 2.5"), ((5, 2, True), "outputs is True")],
)
def test_sizes_are_whole_numbers(arguments, words):
    with pytest.raises(ValueError, match=words):
        options(*arguments)


def test_seconds_are_positive():
    with pytest.raises(ValueError, match="seconds is 0"):
        options(5, 2, seconds=0)


def test_mercer_plan_shows_the_learners(tmp_path):
    random = np.random.default_rng(0)
    path = tmp_path / "t.csv"
    rows = random.normal(size=(80, 3))
    path.write_text("a,b,y\n" + "\n".join(",".join(f"{v:.4f}" for v in row) for row in rows))
    facts = planning.run(path, ["y"], "auto", 20.0, None)
    text = planning.as_text(json.loads(json.dumps(facts)))
    chosen = [o for o in facts["learners"] if o["chosen"]]
    assert len(chosen) == 1 and chosen[0]["how"] == "exactly, by Cholesky"
    assert facts["algorithm"] == "cholesky" and facts["memory"] == chosen[0]["memory"]
    assert "-> KernelRidge" in text
