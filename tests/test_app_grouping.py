"""Groups: none is in two folds, bands hold on new ones, and tables that need them are told so."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest
from sklearn.datasets import load_diabetes
from typer.testing import CliRunner

from mercer.app import baselines, grouping
from mercer.app.bands import measure_classes, measure_numbers, one_of_each
from mercer.app.columns import Column
from mercer.app.exits import UsageError
from mercer.app.fitting import split
from mercer.app.frame import Frame
from mercer.app.grouping import group_codes, unsaid
from mercer.app.main import app
from mercer.app.tables import write_table
from mercer.app.targets import Target
from mercer.errors import DataError


def patients(groups=100, each=8, jitter=0.05, seed=0):
    """(features, target, group): each group at a place of its own, with an effect that no column tells."""
    random = np.random.default_rng(seed)
    place, effect = random.normal(size=(groups, 3)), random.normal(size=groups)
    x = np.repeat(place, each, axis=0) + jitter * random.normal(size=(groups * each, 3))
    y = x[:, 0] + np.repeat(effect, each) + 0.3 * random.normal(size=groups * each)
    return x, y, np.repeat(np.arange(groups), each)


def framed(**columns):
    kinds = {name: "text" if values.dtype == object else "number" for name, values in columns.items()}
    return Frame([Column(n, kinds[n], v) for n, v in columns.items()], len(next(iter(columns.values()))))


def number(y):
    return Target("y", "regression", y, [], "number")


def test_a_row_without_a_group_is_its_own():
    codes, said = group_codes(pa.table({"p": ["a", "b", None, "a", None], "y": [1, 2, 3, 4, 5]}), "p", ["y"])
    assert codes[0] == codes[3] and len(set(codes.tolist())) == 4
    assert "4 of 'p' in 5 rows" in said[0] and "2 rows without 'p'" in said[1]


@pytest.mark.parametrize(
    ("name", "error", "says"),
    [
        ("y", UsageError, "is a target"),
        ("patiant", DataError, "did you mean 'patient'"),
        ("one", DataError, "one group: always 'x'; expected two or more"),
        ("nested", DataError, "expected numbers, text"),
    ],
)
def test_a_group_that_cannot_be_meant_is_named(name, error, says):
    table = pa.table({"patient": ["a", "b"], "one": ["x", "x"], "nested": [[1], [2]], "y": [1, 2]})
    with pytest.raises(error, match=says):
        group_codes(table, name, ["y"])


@pytest.mark.parametrize(("kinds", "folds"), [(40, 5), (4, 4), (3, 3), (2, 2)])
def test_no_group_is_in_two_folds_and_few_groups_make_few_folds(kinds, folds):
    random = np.random.default_rng(0)
    groups = np.arange(120) % kinds
    label = Target("c", "classification", random.integers(0, 2, size=120), ["no", "yes"], "text")
    for targets in ([number(random.normal(size=120))], [label]):
        parts = split(targets, 5, 0, groups)
        assert len(parts) == folds
        assert np.array_equal(np.sort(np.concatenate([test for _, test in parts])), np.arange(120))
        for training, test in parts:
            assert not set(groups[training]) & set(groups[test])


def test_folds_that_leave_one_class_to_learn_from_are_not_used():
    groups = np.repeat([0, 1], 10)
    assert split([Target("c", "classification", groups, ["a", "b"], "text")], 5, 0, groups) == []


def test_bands_hold_on_new_groups():
    """Calibrated with all rows they held 83 %: rows of a group look for their width at each other's errors."""
    held = {True: [], False: []}
    for seed in range(3):
        (x, y, groups), (new, truth, _) = patients(seed=seed), patients(seed=100 + seed)
        y, truth, found = (y - x[:, 0])[:, None], (truth - new[:, 0])[:, None], np.zeros((800, 1))
        for grouped, kept in held.items():
            bands, _ = measure_numbers(
                np.hstack([x, found]), y, found, groups % 2, seed, 0.2, groups if grouped else None
            )
            low, high = bands.interval(found, np.hstack([new, found]), 0.9)
            kept.append(float(((low <= truth) & (truth <= high)).mean()))
    assert 0.86 < np.mean(held[True]) < 0.95 and np.mean(held[False]) < np.mean(held[True]) - 0.03


def test_one_row_of_each_group_and_class_calibrates_sets():
    groups, true = np.repeat(np.arange(30), 4), np.tile([0, 0, 1, 1], 30)
    sets, _ = measure_classes(true, np.full((120, 2), 0.5), groups % 5, 0, groups)
    assert np.bincount(sets.codes).tolist() == [30, 30]
    kept = one_of_each(groups, 0)
    assert groups[kept].tolist() == list(range(30))


def test_a_table_that_needs_groups_is_told(monkeypatch):
    monkeypatch.setattr(grouping, "_SECONDS", np.inf)
    x, y, groups = patients()
    names = np.array([f"p{g}" for g in groups], dtype=object)
    for ids in (names, groups.astype(float)):
        (text,) = unsaid(framed(patient=ids, a=x[:, 0], b=x[:, 1], c=x[:, 2]), [number(y)])
        assert "rows of one 'patient' are alike" in text and "if predictions are for new ones, give --group" in text
    label = Target("c", "classification", (y > 0).astype(int), ["no", "yes"], "text")
    (text,) = unsaid(framed(patient=names, a=x[:, 0], b=x[:, 1], c=x[:, 2]), [label])
    assert "accuracy 0." in text
    x, y, groups = patients(jitter=5.0)  # the columns do not tell the group, its name alone does
    (text,) = unsaid(framed(patient=names, a=x[:, 0], b=x[:, 1], c=x[:, 2]), [number(y - x[:, 0])])
    assert "rows of one 'patient'" in text


def test_plain_categories_and_whole_numbers_raise_no_alarm(monkeypatch):
    monkeypatch.setattr(grouping, "_SECONDS", np.inf)
    table = load_diabetes(scaled=False)
    data = dict(zip(table.feature_names, table.data.T, strict=True))
    assert unsaid(framed(**data), [number(table.target)]) == []
    random = np.random.default_rng(0)
    city, product, age = random.integers(0, 40, 5000), random.integers(0, 200, 5000), random.integers(18, 80, 5000)
    a, b = random.normal(size=(2, 5000))
    y = np.sin(2 * a) + b + random.normal(size=40)[city] + random.normal(size=200)[product] + age / 10
    words = {n: np.array([f"{n}{v}" for v in c], dtype=object) for n, c in (("city", city), ("product", product))}
    assert unsaid(framed(a=a, b=b, age=age.astype(float), **words), [number(y + random.normal(size=5000))]) == []


def test_the_command_says_how_it_was_judged_and_predicts_without_the_column(tmp_path, monkeypatch):
    monkeypatch.setattr(baselines, "optional", lambda name: None)
    x, y, groups = patients(groups=24, each=4, jitter=1.0)
    table = pa.table({"patient": [f"p{g}" for g in groups], "a": x[:, 0], "b": x[:, 1], "y": y})
    write_table(table, tmp_path / "t.parquet")
    write_table(table.select(["b", "a"]), tmp_path / "new.parquet")

    def run(*words):
        found = CliRunner().invoke(app, [str(w) for w in words], catch_exceptions=False)
        assert found.exit_code == 0, found.output + found.stderr
        return found

    out = tmp_path / "m"
    told = run("fit", tmp_path / "t.parquet", "-t", "y", "--group", "patient", "--time", "12s", "--folds", 2, "-o", out)
    assert "judged on new groups: 24 of 'patient' in 96 rows" in told.stderr
    assert "rows of new groups, by 'patient'" in told.stdout and "of 24 groups" in told.stdout
    facts = json.loads((out / "run.json").read_text())
    assert "--group patient" in facts["command"] and "on new groups, each 'patient' left out whole" in facts["verdict"]
    assert "patient" not in [c["name"] for c in facts["columns"]]
    assert "for new groups of 'patient'" in (out / "card.md").read_text()
    page = (out / "report.html").read_text()
    assert "--group patient" in page and "left out whole" in page and "R² on new groups" in page
    run("predict", out, tmp_path / "new.parquet", "-o", tmp_path / "p.csv")
    plan = json.loads(run("plan", tmp_path / "t.parquet", "-t", "y", "--group", "patient", "--json").stdout)
    assert plan["trainings"] == 6 and plan["columns"] == 2
