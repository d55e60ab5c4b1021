"""What the report says a model has learned is measured on its predictions; yardsticks and pictures are honest."""

from __future__ import annotations

import re
from importlib.resources import files

import jinja2
import numpy as np
import pyarrow as pa
import pytest

from mercer.app import figures, insight, opening
from mercer.app.baselines import Fold, baselines
from mercer.app.columns import Column
from mercer.app.fitting import Trained, train
from mercer.app.frame import Frame, TableEncoder, training_frame
from mercer.app.heads import Head
from mercer.app.scores import NAMES
from mercer.app.svg import drawing
from mercer.app.targets import Target, find_targets
from mercer.learn import KernelRidge


def trained_on(data, seconds=2.0):
    table = pa.table(data)
    goals, _, _ = find_targets(table, ["y"], "auto")
    frame, _ = training_frame(table, ["y"])
    return train(frame, goals, seconds, 0)[0], frame


def test_relevance_measures_how_far_the_fitted_function_moves():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 200))
    gap = np.where(np.arange(200) % 67 == 0, np.nan, rng.normal(size=200))  # 3 missing: an indicator of its own
    model, frame = trained_on({"a": a, "gap": gap, "b": b, "y": 3 * a + b + np.where(np.isnan(gap), 2.0, 0.0)})
    share = dict(zip(frame.names(), insight.relevance(model), strict=True))
    assert sum(share.values()) == pytest.approx(1.0)
    assert share["a"] > 2 * share["b"] > 2 * share["gap"]


def test_relevance_does_not_count_coordinates():
    rng = np.random.default_rng(1)
    colours = rng.choice([f"c{i}" for i in range(8)], 300)
    a = rng.normal(size=300)
    table = pa.table({"a": a, "colour": colours.tolist()})
    frame, _ = training_frame(table, [])
    encoder, x = TableEncoder.fit(frame, a[:, None], 0)
    assert x.shape[1] == 9
    ridge = KernelRidge(learn=False, random_state=0).fit(x, a)  # one lengthscale for all nine coordinates
    share = insight.relevance(Trained(encoder, [Head([0], ridge)], [0]))
    assert share[0] > 0.8


def test_a_model_without_sample_rows_has_no_relevance():
    model, _ = trained_on({"a": np.arange(40.0), "y": np.arange(40.0) ** 0.5})
    assert insight.relevance(Trained(TableEncoder(model.encoder.encoders), model.heads, model.classes)) == []


def test_an_offset_of_the_target_is_no_handicap_for_the_trees():
    pytest.importorskip("lightgbm")
    x = np.random.default_rng(2).normal(size=(300, 1))
    frame = Frame([Column("a", "number", x[:, 0])], 300)
    train, test = np.arange(240), np.arange(240, 300)
    fold = Fold(x[train], frame.take(train), x[test], frame.take(test), 0, {})
    far = baselines()["LightGBM"](fold, Target("y", "regression", x[train, 0] + 1e12, [], "number"))
    assert np.corrcoef(far - 1e12, x[test, 0])[0, 1] > 0.98
    assert np.abs(far - 1e12 - x[test, 0]).mean() < 0.2


def words_in(svg):
    return [w.strip() for w in re.findall(r"<text[^>]*>([^<]*)</text>", svg)]


def test_both_axes_of_predicted_and_true_have_the_same_ticks():
    true = np.linspace(-3, 210, 400)
    with drawing():
        svg = figures.predicted_and_true("y", true, 0.7 * true + 20, true - 9, true + 9)
    numbers = [w for w in words_in(svg) if re.fullmatch(r"-?[\d.]+", w)]
    assert len(numbers) >= 8 and numbers[: len(numbers) // 2] == numbers[len(numbers) // 2 :]


def test_of_many_classes_the_most_frequent_are_drawn_and_said():
    table = np.diag(np.arange(1, 31))
    with drawing():
        many = words_in(figures.confusion("k", table, [f"c{i}" for i in range(30)]))
        few = words_in(figures.confusion("k", table[:3, :3], ["c0", "c1", "c2"]))
    assert "predicted (12 of 30 classes, most frequent first)" in many
    assert [w for w in many if w.startswith("c")] == [f"c{i}" for i in range(29, 17, -1)] * 2
    assert "predicted" in few and [w for w in few if w.startswith("c")] == ["c0", "c1", "c2"] * 2


def test_every_number_of_a_stacked_table_carries_its_heading():
    row = {"name": "mercer", "scores": {"r2": 0.5, "mae": 2.0, "rmse": 3.0}, "error": 0.01, "seconds": 1.0}
    board = opening.leaderboard({"targets": [{"name": "y", "task": "regression", "ranks": "r2", "leaderboard": [row]}]})
    place = files("mercer.app") / "templates"
    page = jinja2.Environment(autoescape=True).from_string((place / "report.html").read_text("utf-8"))
    cells = re.findall(r'<td class="(\w+)"(?: data-head="([^"]*)")?>', page.render(sections=[board], css=""))
    assert [c for c in cells if c[0] == "n"] == [("n", h) for h in [NAMES[k] for k in row["scores"]] + ["time"]]
    narrow = (place / "report.css").read_text("utf-8").split("@media (max-width: 600px)")[1]
    assert "content: attr(data-head)" in narrow and "thead { display: none; }" in narrow


def test_a_long_table_is_folded_after_the_ten_columns_that_matter_most():
    def page(n):
        column = {"kind": "number", "distinct": 9, "missing": 0.0, "summary": "", "note": ""}
        facts = {
            "columns": [{"name": f"c{i}", **column} for i in range(n)], "data_sentence": "", "notes": [],
            "importance": [{"column": f"c{i}"} for i in reversed(range(n - 1))],
        }  # fmt: skip
        place = files("mercer.app") / "templates"
        template = jinja2.Environment(autoescape=True).from_string((place / "report.html").read_text("utf-8"))
        return template.render(sections=[opening.data(facts)], css="")

    first, folded = page(40).split("<details>")
    names = [re.findall(r'data-head="column">([^<]*)<', part) for part in (first, folded)]
    assert names[0] == [f"c{i}" for i in range(38, 28, -1)] and "<summary>30 more</summary>" in folded
    assert len(names[1]) == 30 and names[1][-1] == "c39"  # a column that is not used comes last
    assert "<details>" not in page(12) and "<script" not in first + folded
