"""Folds, and what is said when a model is worth little."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mercer.app import fitting
from mercer.app.bands import measure_numbers
from mercer.app.columns import Column
from mercer.app.exits import Interrupted
from mercer.app.fitting import Outcome, Trained, doubts, repeated, split
from mercer.app.frame import Frame, TableEncoder
from mercer.app.heads import Head, Lesson, fit_head, whereabouts
from mercer.app.pace import Pace
from mercer.app.progress import Watch
from mercer.app.targets import Target
from mercer.kernels import Gaussian
from mercer.learn import KernelRidge


def table() -> tuple[Frame, np.ndarray]:
    a = np.array([1.0, 2.0, np.nan, 1.0, np.nan, 5.0, 1.0, 8.0])
    b = np.array(["x", "y", None, "x", None, "x", "z", "q"], dtype=object)
    return Frame([Column("a", "number", a), Column("b", "text", b)], 8), np.arange(8.0)


def test_rows_that_repeat_share_a_number_gaps_included():
    codes = repeated(table()[0])
    assert codes[0] == codes[3] and codes[2] == codes[4]
    assert len(np.unique(codes)) == 6


def test_twins_never_stand_on_both_sides_of_a_fold():
    random = np.random.default_rng(0)
    groups = random.integers(0, 40, size=200)
    number = Target("y", "regression", random.normal(size=200), [], "number")
    label = Target("c", "classification", random.integers(0, 2, size=200), ["no", "yes"], "text")
    for targets in ([number], [label]):
        parts = split(targets, 5, 0, groups)
        assert sorted(np.concatenate([test for _, test in parts]).tolist()) == list(range(200))
        for training, test in parts:
            assert not set(groups[training]) & set(groups[test])


def test_a_class_of_one_row_is_in_training_or_the_fold_is_left_out():
    codes = np.array([0] * 49 + [1])
    found = split([Target("y", "classification", codes, ["a", "b"], "text")], 5, 0)
    assert len(found) == 4 and all(len(np.unique(codes[training])) == 2 for training, _ in found)


def test_copies_calibrate_bands_once():
    """Four copies of each residual would look like a spread known exactly at every place."""
    random = np.random.default_rng(0)
    x, y, found = random.normal(size=(150, 3)), random.normal(size=(150, 1)), 0.01 * random.normal(size=(150, 1))
    folds = np.arange(150) % 5
    once, _ = measure_numbers(np.hstack([x, found]), y, found, folds, 0)
    again, (measured,) = measure_numbers(
        *(np.tile(a, (4, 1)) for a in (np.hstack([x, found]), y, found)), np.tile(folds, 4), 0
    )
    assert len(again.scores) == len(once.scores) == 150 and len(measured.inside) == 600
    new = random.normal(size=(500, 4))
    np.testing.assert_allclose(again.spread(new), once.spread(new))


class Time:
    """A watch whose seconds pass only when told."""

    def __init__(self, seconds: float):
        self.seconds, self.now = seconds, 0.0

    def left(self) -> float:
        return self.seconds - self.now


def paced(seconds: float, overrun: float, factor: float) -> tuple[list[float], float]:
    """(what each training was asked to take, the last on all rows; when it was over), five folds at most."""
    watch = Time(seconds)
    pace, asked = Pace(watch, 6), []
    while True:
        last = len(asked) == 5 or not pace.another()
        asked.append(pace.share())
        taken = factor * asked[-1] + overrun
        watch.now += taken
        if last:
            return asked, watch.now
        pace.took(asked[-1], taken)
        watch.now += 0.3
        pace.compared(0.3)


@pytest.mark.parametrize(("overrun", "factor"), [(0.0, 0.5), (0.0, 1.0), (3.0, 1.0), (1.0, 2.0), (6.0, 1.5)])
def test_seconds_are_shared_evenly_whatever_trainings_take(overrun: float, factor: float) -> None:
    asked, over = paced(60.0, overrun, factor)
    assert min(asked) >= 0.59 * asked[0]  # none is starved, that of all rows least of all
    assert len(asked) >= 3 and over < 0.78 * 60 + asked[-1] + overrun
    assert factor > 0.5 or over > 25  # time that is there is used


def test_a_short_time_makes_fewer_folds_and_not_worse_models() -> None:
    asked, _ = paced(10.0, 0.2, 1.0)
    assert 3 <= len(asked) < 6 and min(asked) > 0.9
    asked, over = paced(10.0, 0.2, 2.0)
    assert len(asked) == 3 and over < 10.0


@pytest.mark.parametrize("budget", [5.0, 20.0])
def test_time_that_trainings_leave_over_buys_the_folds_that_were_given_up(budget: float) -> None:
    """A tiny table: the first training loads and warms, the first yardsticks are slow, the rest ends by itself."""
    watch = Time(budget)
    pace, costs = Pace(watch, 6), iter([1.4, 0.3, 0.3, 0.3, 0.3])
    yardsticks = iter([1.2, 0.05, 0.05, 0.05, 0.05])
    folds = 0
    while folds < 5 and pace.another():
        asked, took, beside = pace.share(), next(costs), next(yardsticks)
        watch.now += took
        pace.took(asked, took)
        watch.now += beside
        pace.compared(beside)
        folds += 1
    assert folds == (5 if budget == 20.0 else 1)
    assert watch.now + pace.share() < 0.8 * budget + 0.5


def test_only_the_model_of_all_rows_begins_with_what_the_folds_learned(monkeypatch: pytest.MonkeyPatch) -> None:
    known, usual = [], fitting.fit_head

    def seen(*args: object) -> Head:
        known.append(args[5])
        return usual(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(fitting, "fit_head", seen)
    x = np.random.default_rng(0).normal(size=(60, 2))
    frame = Frame([Column("a", "number", x[:, 0]), Column("b", "number", x[:, 1])], 60)
    with Watch(None, quiet=True) as watch:
        outcome = fitting.fit(frame, [Target("y", "regression", np.sin(x[:, 0]), [], "number")], 0, watch, 3)
    folds = len(np.unique(outcome.folds[outcome.judged()]))
    assert folds == 3 and [len(k) for k in known] == [0] * folds + [folds]
    assert len(outcome.errors) == folds and max(outcome.errors) < [0.5]


def test_what_a_fold_learned_finds_its_columns_by_name() -> None:
    lesson = Lesson([0], ["a", "b", "c"], Gaussian([1.0, 4.0, 2.0]), 0.1)
    kernel, noise = lesson.on(["c", "new", "a"])
    assert noise == 0.1 and kernel.lengthscale.detach().tolist() == pytest.approx([2.0, 2.0, 1.0])
    assert lesson.on(["a", "b", "c"])[0] is lesson.kernel
    assert Lesson([0], ["a", "b"], Gaussian(1.0) + Gaussian([1.0, 2.0]), 0.1).on(["a"]) is None


def test_a_last_model_unlike_the_judged_ones_is_announced() -> None:
    def outcome(**more: object) -> Outcome:
        return Outcome(np.zeros(3), [], {}, errors=[[0.2], [0.21], [0.19]], **more)

    def model(error: float, hasty: bool = False) -> Trained:
        plan = SimpleNamespace(error=error, hasty=hasty)
        return Trained(TableEncoder([]), [Head([0], SimpleNamespace(plan_=plan))], [0])

    assert doubts(outcome(), model(0.22)) == []
    assert "2.0 times" in doubts(outcome(), model(0.4))[0]
    assert "all rows had hardly any time" in doubts(outcome(), model(0.2, True))[0]
    assert "2 folds had hardly any time" in doubts(outcome(hasty=2), model(0.2))[0]


def test_bands_are_looked_up_in_the_distance_of_the_kernel() -> None:
    x = np.random.default_rng(0).normal(size=(80, 2))
    ridge = KernelRidge(Gaussian(torch.tensor([0.2, 20.0])), 0.1, learn=False, standardize=True).fit(x, x[:, 0])
    place = whereabouts(Head([0], ridge), x, x[:, :1])
    assert place[:, 0].std() > 50 * place[:, 1].std()


def test_folds_have_the_kind_of_learner_that_the_whole_table_has() -> None:
    x = np.random.default_rng(0).random((60, 2))
    target = Target("y", "regression", x.sum(1), [], "number")
    names = [fit_head([0], [target], x, 0.5, 0, whole=rows).name() for rows in (6000, 60)]
    assert names == ["NeighbourRidge", "KernelRidge"]
    seen: list[int] = []

    def spy(*args: object, whole: int, **kwargs: object) -> None:
        seen.append(whole)
        raise KeyboardInterrupt

    patch = pytest.MonkeyPatch()
    patch.setattr(fitting, "train", spy)
    frame = Frame([Column("a", "number", x[:, 0])], 60)
    with Watch(1, 3, quiet=True) as watch, pytest.raises(Interrupted):
        fitting.fit(frame, [target], 0, watch, 2)
    patch.undo()
    assert seen == [60]
