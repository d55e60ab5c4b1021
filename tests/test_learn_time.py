"""Short of time: first steps are always taken, what was learned elsewhere is used, many columns are screened."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mercer.kernels import Gaussian
from mercer.learn import KernelClassifier, KernelRidge, LocalConformal
from mercer.learn.likelihood import Likelihood
from mercer.learn.plan import Plan, sentence
from mercer.learn.refine import refine
from mercer.learn.screen import screened
from mercer.learn.tune import PROMISED, Clock, learn


def problem(n: int, d: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d))
    return x, np.sin(x[:, 0]) + 0.3 * x[:, 1] * x[:, 2] + x[:, 3] + 0.05 * rng.normal(size=n)


def test_a_budget_that_is_gone_still_buys_the_first_steps() -> None:
    x, y = problem(1000, 20)
    model = KernelRidge(time_budget=0.01, random_state=0).fit(x[:600], y[:600])
    assert model.plan_.steps >= PROMISED
    scales = model.kernel_.lengthscale
    assert float(scales[4:].min()) > float(scales[[0, 1, 2]].max())  # sixteen columns mean nothing
    assert model.score(x[600:], y[600:]) > 0.97  # common lengthscales stay below 0.9


def test_a_kernel_that_was_hardly_learned_says_so() -> None:
    x, y = (torch.tensor(a, dtype=torch.float64) for a in problem(60, 4))
    gone = learn([Gaussian(torch.full((4,), 2.0))], 0.1, x, y[:, None], Clock.of(0.0), torch.Generator(), promised=0)
    assert gone.steps == 1 and gone.hasty()
    some = learn([Gaussian(torch.full((4,), 2.0))], 0.1, x, y[:, None], Clock.of(None), torch.Generator())
    assert not some.hasty()
    assert "hardly learned: there was time for 3 steps" in sentence(Plan("cholesky", 9, steps=3, hasty=True))
    assert "hardly" not in sentence(Plan("cholesky", 9, steps=30))


@pytest.mark.parametrize("learner", [KernelRidge, KernelClassifier])
def test_learning_may_begin_where_others_came_to(learner: type) -> None:
    """A short wave in one of thirty columns is not found in no time, but it is kept."""
    rng = np.random.default_rng(0)
    x = rng.uniform(-2, 2, size=(800, 30))
    y = np.sin(25 * x[:, 0])
    y = y + 0.05 * rng.normal(size=800) if learner is KernelRidge else (y > 0).astype(int)
    scale = np.median(np.abs(x[:500, 0] - np.median(x[:500, 0]))) / 0.6745
    told = Gaussian(torch.tensor([0.06 / scale, *[80.0] * 29], dtype=torch.float64))
    alone, begun = (
        learner(time_budget=0.01, random_state=0).begin_at(known).fit(x[:500], y[:500])
        for known in ([], [(Gaussian(torch.full((30,), 5.0)), 0.1), (told, 0.01)])
    )
    assert alone.score(x[500:], y[500:]) < 0.7
    assert begun.score(x[500:], y[500:]) > 0.9
    kernel, noise = begun.learned()
    assert float(kernel.lengthscale[0]) < 0.5 and 0 < noise < 0.5


def test_kernels_learned_elsewhere_are_judged_however_late_it_is() -> None:
    x, y = (torch.tensor(a, dtype=torch.float64) for a in problem(200, 4))
    judge = KernelRidge()._judge
    good = Gaussian(torch.tensor([2.0, 3.0, 3.0, 5.0]))
    bad = Gaussian(torch.full((4,), 0.05))
    late = Clock.of(0.0)
    assert refine(bad, 0.1, x, y[:, None], judge, late, 1e-6, known=[(good, 0.01)])[0] is good
    assert refine(good, 0.01, x, y[:, None], judge, late, 1e-6, known=[(bad, 0.1)])[0] is not bad


def wide(kind: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(650, 800))
    signal = {"line": x[:, :5].sum(1), "curve": 1.5 * x[:, 0] ** 2 + 2 * x[:, 1], "nothing": np.zeros(650)}[kind]
    return x, signal + 0.5 * rng.normal(size=650)


@pytest.mark.parametrize(("kind", "least", "most"), [("line", 0.8, 1.0), ("curve", 0.7, 1.0), ("nothing", -0.05, 0.05)])
def test_few_of_very_many_columns_are_found_and_none_where_there_are_none(kind: str, least: float, most: float) -> None:
    x, y = wide(kind, 0)
    model = KernelRidge(time_budget=0.5, random_state=0).fit(x[:150], y[:150])
    assert least < model.score(x[150:], y[150:]) < most


def test_only_tables_of_many_columns_are_screened() -> None:
    x, y = (torch.tensor(a[:150], dtype=torch.float64) for a in wide("line", 0))
    found = screened(x, y[:, None], torch.Generator())
    scales = found[0].get_parameter("log_lengthscale").detach().exp()
    assert float(scales[:5].max()) < 0.3 * float(scales[5:].median())
    assert screened(x[:, :50], y[:, None], torch.Generator()) == []
    assert screened(x[:, :60].repeat(9, 1), y.repeat(9)[:, None], torch.Generator()) == []


def test_bands_keep_to_their_share_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(500, 30))
    wrong = np.exp(x[:, 0]) * rng.normal(size=500)
    calls, usual = [0], Likelihood.evaluate

    def counted(self: Likelihood, *args: object, **more: object) -> object:
        calls[0] += 1
        return usual(self, *args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(Likelihood, "evaluate", counted)
    counts = []
    for seconds in (0.0, None):
        calls[0] = 0
        LocalConformal(time_budget=seconds).fit(x, wrong)
        counts.append(calls[0])
    assert counts[0] < 20 < counts[1]
