"""Targets of heavy tails: the scale they are learned on, the way back, and bands that hold what they promise."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest

from mercer.app import baselines, fitting, predicting, store
from mercer.app.bands import as_wide_as, measure_numbers, unlike
from mercer.app.fitting import Outcome, train
from mercer.app.frame import training_frame
from mercer.app.head import MEAN, MEDIAN, PLAIN, Head, remarks
from mercer.app.heads import Lesson, fit_head, groups, usual_forms
from mercer.app.jobs import Job, compute
from mercer.app.progress import Watch
from mercer.app.tables import write_table
from mercer.app.targets import Target
from mercer.kernels import Gaussian
from mercer.learn.conformal import LocalConformal
from mercer.learn.tails import LogScale, heavy, less, pull


def made(n: int, seed: int) -> pa.Table:
    """y: a log-normal of a thousandfold range; z: an ordinary number."""
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(2, n))
    z = np.sin(a) + b + 0.2 * rng.normal(size=n)
    return pa.table({"a": a, "b": b, "y": 1e6 * np.exp(1.5 * a + rng.normal(size=n)), "z": z})


@pytest.mark.parametrize(
    ("draw", "expected"),
    [
        (lambda rng: rng.normal(size=2000), False),
        (lambda rng: rng.exponential(size=2000), False),
        (lambda rng: rng.uniform(size=2000), False),
        (lambda rng: np.exp(1.5 * rng.normal(size=2000)), True),
        (lambda rng: rng.standard_t(1.5, size=2000), True),
        (lambda rng: (rng.random(2000) < 0.02).astype(float), False),
        (lambda rng: np.exp(3 * rng.normal(size=30)), False),
    ],
    ids=["normal", "exponential", "uniform", "lognormal", "student", "two values", "few rows"],
)
def test_only_heavy_tails_of_enough_rows_are_looked_into(draw, expected) -> None:
    assert heavy(draw(np.random.default_rng(0))) is expected


def test_the_scale_is_a_logarithm_where_that_is_normal() -> None:
    rng = np.random.default_rng(0)
    y = np.exp(2 * rng.normal(size=3000))
    scale = LogScale.of(y)
    assert np.corrcoef(scale.forward(y), np.log(y))[0, 1] > 0.995
    np.testing.assert_allclose(LogScale.of(-y).forward(-y), -scale.forward(y), rtol=1e-9)
    np.testing.assert_allclose(scale.back(scale.forward(y)), y, rtol=1e-9)
    even = LogScale.of(rng.standard_t(1.5, size=3000))
    assert abs(even.centre) < 0.2 and 0.1 < even.spread < 2


def test_the_mean_is_that_of_what_left_out_rows_were_missed_by() -> None:
    """Duan's smearing estimate, row by row, without the closed form."""
    rng = np.random.default_rng(0)
    left, wrong = rng.normal(size=200), rng.normal(size=200) + 0.3 * rng.exponential(size=200)
    scale = LogScale(2.0, 3.0).seen(left + wrong, left)
    direct = [np.mean([2 + 3 * math.sinh(t + e) for e in wrong]) for t in (-1.0, 0.0, 2.0)]
    np.testing.assert_allclose(scale.mean(np.array([-1.0, 0.0, 2.0])), direct, rtol=1e-12)
    np.testing.assert_allclose(scale.medians().mean(left), scale.back(left), rtol=1e-12)
    assert (scale.low, scale.high) == (left.min(), left.max())


def test_predictions_worse_than_the_mean_are_drawn_to_it() -> None:
    rng = np.random.default_rng(0)
    signal, noise = rng.normal(size=(2, 1000))
    y = 5 + signal
    assert pull(y, 5 + 0.3 * noise + signal) is None
    to, share = pull(y, 5 + 3 * signal)
    assert to == pytest.approx(y.mean()) and share == pytest.approx(1 / 3, rel=0.01)
    assert pull(y, 5 - signal) == (pytest.approx(y.mean()), 0.0)
    wild = y.copy()
    wild[0] += 1e6  # one row is chance
    assert pull(y, wild) is None


def test_heavy_tails_are_learned_apart_and_the_last_model_follows_the_folds() -> None:
    rng = np.random.default_rng(0)
    values = [rng.normal(size=100), np.exp(2 * rng.normal(size=100)), rng.normal(size=100)]
    targets = [Target(name, "regression", v, [], "number") for name, v in zip("abc", values, strict=True)]
    targets.append(Target("k", "classification", np.arange(100) % 2, ["n", "y"], "text"))
    assert groups(targets) == [[0, 2], [1], [3]]
    assert groups(targets, {2: MEDIAN}) == [[0], [1], [2], [3]]
    forms = [MEAN, PLAIN, MEAN]
    learned = [Lesson([1], ["a"], Gaussian(1.0), 0.1, f) for f in forms] + [Lesson([0, 2], ["a"], Gaussian(1.0), 0.1)]
    assert usual_forms(learned) == {1: MEAN, 0: PLAIN, 2: PLAIN}
    assert usual_forms(learned[1:3]) == {}  # left-out rows of all will decide


@pytest.mark.parametrize("form", [PLAIN, MEDIAN, MEAN])
def test_a_settled_form_is_kept(form: str) -> None:
    table = made(80, 0)
    frame, _ = training_frame(table, ["y", "z"])
    target = Target("y", "regression", table.column("y").to_numpy(), [], "number")
    lesson = Lesson([0], ["a", "b"], Gaussian([1.0, 1.0]), 0.1, form)
    trained, _ = train(frame, [target], 0.5, 0, [lesson])
    assert trained.heads[0].form() == form


def test_bands_are_as_wide_as_the_last_model_needs_them() -> None:
    """Another model than the judged ones, which misses rows left out of it by three times as much."""
    rng = np.random.default_rng(0)
    x, judged, missed = rng.normal(size=(400, 2)), rng.normal(size=(400, 2)), rng.normal(size=(400, 2))
    usual = LocalConformal(scale=False, time_budget=0.1).fit(x, judged)
    wide, times = as_wide_as(usual, judged, missed * [3.0, 1.0])
    assert times[0] == pytest.approx(3, rel=0.2) and times[1] == 1
    new = rng.normal(size=(4000, 2))
    low, high = wide.interval(np.zeros((4000, 2)), new)
    truth = rng.normal(size=(4000, 2)) * [3.0, 1.0]
    held = ((low <= truth) & (truth <= high)).mean(0)
    assert (np.abs(held - 0.9) < 0.04).all()
    before = usual.interval(np.zeros((4000, 2)), new)
    assert ((before[0] <= truth) & (truth <= before[1])).mean(0)[0] < 0.6
    assert as_wide_as(usual, judged, None)[0] is usual
    assert "'y' (3.0 times)" in unlike(["y", "z"], np.array([3.0, 1.0])) and "'z'" not in unlike(["y", "z"], times)


def test_a_value_of_its_own_is_no_tail() -> None:
    rng = np.random.default_rng(0)
    y = np.exp(1.5 * rng.normal(size=1000))
    assert heavy(y) and not heavy(np.where(rng.random(1000) < 0.6, 0.0, y))


def test_a_last_model_is_no_worse_than_the_mean_where_the_folds_were() -> None:
    rng = np.random.default_rng(0)
    y, noise = rng.normal(size=300) + 7, rng.normal(size=300)
    found = 7 + 2 * noise
    outcome = Outcome(np.arange(300) % 3, [found.copy()], {}, middle=[found.copy()])
    target = Target("y", "regression", y, [], "number")
    model = SimpleNamespace(predict=lambda x: x[:, 0])
    head = fitting._no_worse(outcome, Head([0], model), [target])
    x = 7 + 5 * rng.normal(size=(1000, 1))
    assert np.square(head.latent(x)[:, 0] - y.mean()).mean() < 0.02
    np.testing.assert_array_equal(outcome.found[0], found)  # the scores stay those of the folds
    assert outcome.middle[0].std() < 0.2 * found.std()  # the bands are those of what is predicted
    assert "worse than by the mean of 'y'" in remarks([head], [target])[0]
    log = Head([0], model, LogScale(0.0, 1.0, 2.0, 0.0, -9.0, 9.0))
    middling = Outcome(np.arange(300) % 3, [found.copy()], {}, middle=[y + 0.1 * noise])
    assert log.form() == MEAN and fitting._no_worse(middling, log, [target]).form() == MEDIAN
    bad = Outcome(np.arange(300) % 3, [found.copy()], {}, middle=[found.copy()])
    assert fitting._no_worse(bad, log, [target]).pulls
    np.testing.assert_array_equal(bad.middle[0], found)  # bands of a logarithmic scale stay around medians
    good = Outcome(np.arange(300) % 3, [y + 0.1 * noise], {}, middle=[y + 0.1 * noise])
    assert fitting._no_worse(good, Head([0], model), [target]).pulls == ()


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    place = tmp_path_factory.mktemp("tails")
    write_table(made(500, 0), place / "t.parquet")
    patch = pytest.MonkeyPatch()
    patch.setattr(baselines, "optional", lambda name: None)
    with Watch(15, 7, quiet=True) as watch:
        done = compute(Job(place / "t.parquet", ("z", "y"), place / "m", seconds=15, quiet=True), watch)
    patch.undo()
    store.save(place / "m", done.model, {})
    return place, done, store.load(place / "m")


def held(found, table, name: str) -> float:
    low, y, high = (
        c.to_numpy() for c in (found.column(f"{name}_lower"), table.column(name), found.column(f"{name}_upper"))
    )
    return float(((low <= y) & (y <= high)).mean())


def test_a_log_normal_target_is_learned_on_its_scale_and_said_so(fitted) -> None:
    _, done, _ = fitted
    forms = {done.model.targets[i].name: head.form() for head in done.model.trained.heads for i in head.targets}
    assert forms["z"] == PLAIN and forms["y"] in (MEAN, MEDIAN)
    notes = " ".join(done.facts["notes"])
    assert "'y' has heavy tails and is learned on a logarithmic scale" in notes and "'z' has heavy" not in notes
    assert "; learned on a logarithmic scale" in " ".join(done.facts["algorithms"])


def test_bands_of_heavy_tails_hold_and_are_lopsided(fitted) -> None:
    """Of 500 scores and 4,000 rows a 90 % promise has a deviation of 1.4 points."""
    new, model = made(4000, 1), fitted[2]
    found = predicting.predictions(model, new)
    assert abs(held(found, new, "y") - 0.9) < 0.045 and abs(held(found, new, "z") - 0.9) < 0.045
    low, high = found.column("y_lower").to_numpy(), found.column("y_upper").to_numpy()
    ratio = np.median(high / np.maximum(low, 1.0))  # exp(2 * 1.645) where all is known
    assert math.exp(2 * 1.645) * 0.75 < ratio < math.exp(2 * 1.645) * 2
    y, mean = new.column("y").to_numpy(), found.column("y").to_numpy()
    assert np.square(y - mean).sum() < np.square(y - y.mean()).sum()


def test_what_was_measured_is_in_the_units_of_the_target(fitted) -> None:
    _, done, _ = fitted
    y = next(t for t in done.facts["targets"] if t["name"] == "y")
    judged = done.judged[1]
    assert y["coverage"]["measured"] == pytest.approx(
        ((judged.low <= judged.true) & (judged.true <= judged.high)).mean()
    )
    assert abs(y["coverage"]["measured"] - 0.9) < 0.045
    rows = done.oof.column("row").to_numpy() - 1
    np.testing.assert_allclose(judged.true, made(500, 0).column("y").to_numpy()[rows])
    level = np.log(judged.high / np.maximum(judged.low, 1.0))
    assert (judged.low < judged.high).all() and np.median(level) < 2 * 2 * 1.645


def test_bands_of_heavy_tails_hold_where_a_cell_is_unknown(fitted) -> None:
    new = made(4000, 2)
    blank = new.set_column(0, "a", pa.chunked_array([pa.nulls(4000, pa.float64())]))
    found = predicting.predictions(fitted[2], blank)
    assert held(found, new, "y") > 0.9 - 0.045


def test_a_folder_gives_back_scale_and_pull(fitted, tmp_path) -> None:
    _, done, again = fitted
    new = made(50, 3)
    assert predicting.predictions(done.model, new).equals(predicting.predictions(again, new))
    heads = [replace(h, pulls=((1.0, 0.25),) * len(h.targets)) for h in done.model.trained.heads]
    drawn = replace(done.model, trained=replace(done.model.trained, heads=heads))
    store.save(tmp_path / "m", drawn, {})
    found = predicting.predictions(store.load(tmp_path / "m"), new)
    for name in "yz":
        plain = predicting.predictions(done.model, new).column(name).to_numpy()
        np.testing.assert_allclose(found.column(name).to_numpy(), 1 + 0.25 * (plain - 1))
    stored = json.loads((tmp_path / "m" / "model.json").read_text())["heads"]
    assert [h["scale"] is None for h in stored] == [True, False]


def test_bands_go_back_to_the_units_in_order() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(100, 2)), rng.normal(size=(100, 1))
    _, (even,) = measure_numbers(x, y, np.zeros((100, 1)), np.arange(100) % 5, 0, 0.1)
    scale = LogScale(0.0, 2.0)
    back = even.on(scale.back)
    np.testing.assert_allclose(back.low, 2 * np.sinh(even.low))
    assert back.size == pytest.approx(np.median(back.high - back.low)) and back.curve == even.curve


def test_squares_of_left_out_rows_may_keep_the_plain_scale() -> None:
    """Half zeros: the logarithm's medians are nearer as a rule, but its means are far from those of the rows."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 2))
    counts = np.where(rng.random(400) < 0.5, 0, rng.poisson(np.exp(1 + x[:, 0]))).astype(float)
    growth = np.exp(2 * x[:, 0] + 0.7 * rng.normal(size=400))
    forms = [
        fit_head([0], [Target("y", "regression", y, [], "number")], x, 1.0, 0).form() for y in (counts, growth, x[:, 0])
    ]
    assert forms == [PLAIN, MEAN, PLAIN]


def test_one_row_does_not_choose_between_two_scales() -> None:
    first, second = np.full(100, 1.0), np.full(100, 1.1)
    assert less(first, second) and not less(second, first)
    first[0], second[1] = 1e9, 1e3
    assert less(first, second)


def test_a_last_model_unlike_the_judged_ones_widens_the_bands_of_the_fit(tmp_path, monkeypatch) -> None:
    usual = fitting.fit_head

    def unlike_on_all_rows(*args: object) -> Head:
        head = usual(*args)
        return replace(head, missed=3 * head.missed) if len(args[2]) == 150 else head

    write_table(made(150, 0).select(["a", "b", "z"]), tmp_path / "t.parquet")
    monkeypatch.setattr(baselines, "optional", lambda name: None)
    scores = []
    for fit in (usual, unlike_on_all_rows):
        monkeypatch.setattr(fitting, "fit_head", fit)
        with Watch(3, 4, quiet=True) as watch:
            done = compute(Job(tmp_path / "t.parquet", ("z",), tmp_path / "m", seconds=3, folds=2, quiet=True), watch)
        scores.append(np.abs(done.model.calibrators[0].scores).mean())
        assert ("wider bands of 'z'" in " ".join(done.facts["notes"])) is (fit is not usual)
    assert scores[1] > 2 * scores[0]


def test_nothing_beyond_what_left_out_rows_were_predicted_is_predicted() -> None:
    """Exponentials of a line go astray at the first far row."""
    scale = LogScale(0.0, 1.0, 1.5, 0.0, -2.0, 3.0)
    head = Head([0], SimpleNamespace(predict=lambda x: x[:, 0]), scale)
    latent = head.latent(np.array([[-50.0], [1.0], [50.0]]))
    assert latent[:, 0].tolist() == [-2.0, 1.0, 3.0]
    assert head.answer(latent)[2, 0] == pytest.approx(1.5 * math.sinh(3.0))


def test_many_rows_in_a_plane_are_learned_on_the_scale_too() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(5200, 2))
    y = np.exp(2 * np.sin(x[:, 0]) + 1.2 * rng.normal(size=5200))
    head = fit_head([0], [Target("y", "regression", y, [], "number")], x, 1.0, 0)
    assert head.name() == "NeighbourRidge" and head.form() == MEAN
    new = rng.normal(size=(2000, 2))
    expected = np.exp(2 * np.sin(new[:, 0]) + 0.72)  # the mean of a log-normal
    assert np.corrcoef(head.answer(head.latent(new))[:, 0], expected)[0, 1] > 0.9
