"""Reading, cleaning and encoding tables; what cannot be read is one typed error."""

from __future__ import annotations

import datetime
import json
import os

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.feather
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skrub import SquashingScaler

from mercer.app import baselines, encoders, novelty, scores, targets, words
from mercer.app.columns import Column, as_kind, refined, to_column
from mercer.app.exits import UsageError
from mercer.app.frame import Frame, TableEncoder, expected, suspicious, training_frame
from mercer.app.tables import read_table, without_formulas, write_table
from mercer.errors import DataError, MercerError
from mercer.learn import KernelRidge


def column(name, values, kind="number"):
    dtype = object if kind == "text" else np.float64
    return Column(name, kind, np.array(values, dtype=dtype))


@pytest.mark.parametrize("suffix", ["csv", "tsv", "parquet", "arrow", "feather"])
def test_every_format_comes_back_as_it_was_written(tmp_path, suffix):
    table = pa.table({"a": [1.5, None, -3.0], "b": ["x", "y, z", None], "c": [True, False, None]})
    path = tmp_path / f"t.{suffix}"
    write_table(table, path)
    found = read_table(path)
    assert found.column_names == table.column_names
    assert found.column("a").to_pylist() == [1.5, None, -3.0]
    assert found.column("b").to_pylist() == ["x", "y, z", None]
    assert found.column("c").to_pylist() == [True, False, None]
    assert os.listdir(tmp_path) == [path.name]


def test_an_arrow_stream_is_a_table_too(tmp_path):
    table = pa.table({"a": [1, 2]})
    with pa.OSFile(str(tmp_path / "s"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    assert read_table(tmp_path / "s").equals(table)


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_the_separator_is_found(tmp_path, separator):
    (tmp_path / "t.csv").write_text(separator.join("abc") + "\n" + separator.join("123") + "\n")
    assert read_table(tmp_path / "t.csv").to_pylist() == [{"a": 1, "b": 2, "c": 3}]


def test_decimal_commas_are_numbers_where_commas_do_not_separate(tmp_path):
    (tmp_path / "t.csv").write_text("a;b;c;d;e\n0,143;1;x,1;0.5;1,5\nNA;2;y;1.5;2,5\n")
    found = read_table(tmp_path / "t.csv", text=["e"])
    assert found.column_names == ["a", "b", "c", "d", "e"]
    assert found.to_pylist()[0] == {"a": 0.143, "b": 1, "c": "x,1", "d": 0.5, "e": "1,5"}
    assert found.column("a").null_count == 1


def test_one_bad_word_among_decimal_commas_is_the_cell_that_is_named(tmp_path):
    (tmp_path / "t.csv").write_text("a;b\n0,5;1\n1,5;2\noops;3\n2,5;4\n")
    encoder = TableEncoder([encoders.NumberEncoder("a", 0.0, 1.0, False, False, -1.0, 1.0)])
    with pytest.raises(DataError, match="row 3 holds 'oops'; correct this cell"):
        expected(read_table(tmp_path / "t.csv"), encoder)


def test_text_that_must_stay_text_is_named_when_it_is_not_utf8(tmp_path):
    (tmp_path / "t.csv").write_bytes(b"a,b\n1,x\n2,caf\xe9\n")
    with pytest.raises(DataError, match="line 3 holds '2,café'"):
        read_table(tmp_path / "t.csv", text=["b"])


@pytest.mark.parametrize(
    ("name", "content", "error", "says"),
    [
        ("t.csv", b"", DataError, "is empty"),
        ("t.csv", b"  \n \n", DataError, "is empty"),
        ("t.csv", b"a,b\n", DataError, "no rows"),
        ("t.csv", b"a,a\n1,2\n", DataError, "several columns named 'a'"),
        ("t.csv", b"a,b\n1,2\n1,2,3\n", DataError, "line 3 has 3 cells, expected 2 .*: '1,2,3'; mend that line"),
        ("t.csv", b"a;b\n1;2\n4;5\n1\n", DataError, "line 4 has 1 cell, expected 2"),
        ("t.csv", b"a,b\n1,\xff\xfe\n", DataError, "not UTF-8: line 2"),
        ("t.csv", "a,b\n1,x\n2,café\n".encode("latin-1"), DataError, "line 3 holds '2,café', read as Latin-1"),
        ("t.csv", "a,prénom\n1,x\n".encode("latin-1"), DataError, "line 1 holds 'a,prénom'.*save it as UTF-8"),
        ("t.csv", "a,b\n1,é\n".encode("utf-16"), DataError, "is UTF-16 text; save it as UTF-8"),
        ("t.csv", "a,b\n1,2\n".encode("utf-16-be"), DataError, "is UTF-16 text; save it as UTF-8"),
        ("t.png", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", DataError, "is not a table"),
        ("t.csv", b"\0\0\0\0", DataError, "is not a table"),
        ("t.parquet", b"a,b\n1,2\n", DataError, "is not a parquet file"),
        ("t.parquet", b"PAR1garbage garbagePAR1", DataError, "cannot be read as a table"),
        ("t.arrow", b"ARROW1\0\0garbage", DataError, "cannot be read as a table"),
    ],
)
def test_what_is_no_table_is_said(tmp_path, name, content, error, says):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(error, match=says):
        read_table(tmp_path / name)


def test_places_that_cannot_be_read_or_written_are_usage_errors(tmp_path):
    with pytest.raises(UsageError, match="is a directory"):
        read_table(tmp_path)
    with pytest.raises(UsageError, match="does not exist"):
        read_table(tmp_path / "none.csv")
    for out, says in ((tmp_path, "a name that ends"), (tmp_path / "no" / "o.csv", "create it first")):
        with pytest.raises(UsageError, match=says):
            write_table(pa.table({"a": [1]}), out)


@settings(max_examples=150, deadline=None)
@given(
    data=st.binary(max_size=300),
    name=st.sampled_from(["t.csv", "t.parquet", "t.arrow", "t"]),
    head=st.sampled_from([b"", b"PAR1", b"ARROW1\0\0", b"a,b\n1,2\n"]),
)
def test_any_bytes_are_a_table_or_a_mercer_error(tmp_path_factory, data, name, head):
    path = tmp_path_factory.mktemp("bytes") / name
    path.write_bytes(head + data)
    try:
        table = read_table(path)
    except MercerError as error:
        assert str(error)
    else:
        assert table.num_rows > 0


def test_formulas_are_defused_in_csv_only(tmp_path):
    table = pa.table({"=cmd": ["=1+1", "+a", "-b", "@c", "\td", "plain", None], "n": [-1, 2, 3, 4, 5, 6, 7]})
    safe = without_formulas(table)
    assert safe.column_names == ["'=cmd", "n"]
    assert safe.column(0).to_pylist() == ["'=1+1", "'+a", "'-b", "'@c", "'\td", "plain", None]
    assert safe.column(1).to_pylist()[0] == -1
    write_table(table, tmp_path / "o.csv")
    assert "'=1+1" in (tmp_path / "o.csv").read_text() and '"=1+1' not in (tmp_path / "o.csv").read_text()
    write_table(table, tmp_path / "o.parquet")
    assert read_table(tmp_path / "o.parquet").equals(table)


@pytest.mark.parametrize(
    ("values", "kind", "plain"),
    [
        (pa.array([1, None, 3], pa.int8()), "number", [1.0, None, 3.0]),
        (pa.array([1.5, float("inf"), float("nan")]), "number", [1.5, None, None]),
        (pa.array([True, None, False]), "flag", [1.0, None, 0.0]),
        (pa.array(["a", " NA ", "", "b "]), "text", ["a", None, None, "b"]),
        (pa.array(["a", None, "a"]).dictionary_encode(), "text", ["a", None, "a"]),
        (pa.array([datetime.date(1970, 1, 2), None]), "date", [86400.0, None]),
        (pa.array([datetime.datetime(1970, 1, 1, 0, 0, 1, 500000)]), "date", [1.5]),
        (pa.array([datetime.timedelta(seconds=2)]), "number", [2.0]),
        (pa.array([datetime.time(0, 1)]), "number", [60.0]),
        (pa.nulls(2), "number", [None, None]),
    ],
)
def test_arrow_types_have_plain_forms(values, kind, plain):
    found = to_column("x", pa.chunked_array([values]))
    assert found.kind == kind
    assert [None if v is None or v != v else v for v in found.values.tolist()] == plain


def test_nested_and_binary_columns_are_not_used():
    table = pa.table({"a": [[1], [2]], "b": [b"x", b"y"], "c": [1.0, 2.0], "y": [1.0, 2.0]})
    frame, notes = training_frame(table, ["y"])
    assert frame.names() == ["c"]
    assert [(n.column, n.dropped) for n in notes] == [("a", True), ("b", True)]


@pytest.mark.parametrize(
    ("values", "kind", "form"),
    [
        (["1.5", None, "2"], "number", ""),
        (["02/03/2024", "23/03/2024", None], "date", "%d/%m/%Y"),
        (["2024-01-01 10:00", "2024-01-02 11:30"], "date", "%Y-%m-%d %H:%M"),
        (["1", "two"], "text", ""),
        ([None, None], "text", ""),
    ],
)
def test_text_that_holds_numbers_or_dates_is_found(values, kind, form):
    found = refined(column("x", values, "text"))
    assert (found.kind, found.format) == (kind, form)
    if kind == "date" and form == "%d/%m/%Y":
        assert found.values[0] == pd.Timestamp("2024-03-02").timestamp()


def test_text_where_numbers_were_names_the_cell():
    with pytest.raises(DataError, match=r"column 'x' held numbers .* row 2 holds 'abc'.* 2 such cells"):
        as_kind(column("x", ["1", "abc", None, "d"], "text"), "number", "")
    assert as_kind(column("x", ["1", None], "text"), "number", "").values[0] == 1.0
    assert as_kind(column("x", [1.0, np.nan, 2.5]), "text", "").values.tolist() == ["1", None, "2.5"]


@pytest.mark.parametrize(
    ("new", "trained", "says"),
    [
        (column("x", [1.0]), "date", "held dates .* row 1 holds '1'"),
        (column("x", [0.0, np.nan, 7.0]), "flag", "held true/false values .* row 3 holds '7'; correct this cell"),
        (column("x", ["yes"], "text"), "flag", "held true/false values .* row 1 holds 'yes'"),
        (column("x", [1704067200.0], "date"), "text", "held text values .* row 1 holds '2024-01-01'"),
        (column("x", [1704067200.0], "date"), "number", "held numbers .* row 1 holds '2024-01-01'"),
        (column("x", [1704067200.0], "date"), "flag", "held true/false values .* row 1 holds '2024-01-01'"),
        (column("x", ["2024-01-01", "red"], "text"), "date", "held dates .* row 2 holds 'red'"),
    ],
)
def test_values_of_another_kind_are_refused(new, trained, says):
    with pytest.raises(DataError, match=says):
        as_kind(new, trained, "")


def test_values_that_say_the_same_are_taken():
    assert as_kind(column("x", [0.0, np.nan, 1.0]), "flag", "").values[[0, 2]].tolist() == [0.0, 1.0]
    assert as_kind(column("x", ["2024-01-01", None], "text"), "date", "").values[0] == 1704067200.0
    assert as_kind(column("x", [1.0, 0.0], "flag"), "number", "").values.tolist() == [1.0, 0.0]


def test_infinities_are_counted_apart_from_missing_values():
    a = [float(i) for i in range(18)]
    table = pa.table({"x": [float("inf"), -float("inf"), *a], "z": [*a, 1.0, 2.0]})
    frame, notes = training_frame(table, [])
    assert [(n.column, n.text, n.dropped) for n in notes] == [("x", "holds 2 infinite values, taken as missing", False)]
    encoder, _ = TableEncoder.fit(frame, np.zeros((20, 1)) + 1.0, 0)
    new = pa.table({"x": [1.0, float("nan"), 2.0], "z": [float("inf"), None, 1.0]})
    assert encoder.surprises(expected(new, encoder)) == [
        "column 'z': 2 missing or infinite values, none in training; "
        "filled in, bands (or sets) of 2 rows widened for it"
    ]


def test_numbers_are_squashed_as_in_skrub():
    values = np.random.default_rng(0).standard_t(2, 300)
    encoder = encoders.NumberEncoder.fit(column("x", values))
    reference = SquashingScaler().fit_transform(pd.DataFrame({"x": values}))
    np.testing.assert_allclose(encoder.encode(column("x", values)), np.asarray(reference), atol=1e-12)
    even = np.linspace(0, 7, 50)
    np.testing.assert_allclose(
        np.diff(encoders.NumberEncoder.fit(column("x", even)).encode(column("x", even))[:, 0]).std(), 0, atol=1e-12
    )


def test_missing_values_become_a_coordinate():
    found = encoders.NumberEncoder.fit(column("x", [1.0, np.nan, 3.0])).encode(column("x", [np.nan, 2.0]))
    assert found.tolist() == [[0.0, 1.0], [0.0, 0.0]]


def test_levels_lie_at_distance_one_and_new_ones_at_the_origin():
    encoder = encoders.LevelEncoder.fit(column("x", ["a", "b", "c", None], "text"))
    z = encoder.encode(column("x", ["a", "b", "new"], "text"))
    assert np.linalg.norm(z[0] - z[1]) == pytest.approx(1.0)
    assert not z[2].any() and novelty.unseen(encoder, column("x", ["a", "b", "new"], "text")).tolist() == [
        False,
        False,
        True,
    ]


def test_mean_targets_are_shrunk_by_the_formula_and_never_see_their_own_row():
    rng = np.random.default_rng(1)
    names = np.array([f"l{i}" for i in rng.integers(0, 30, 400)], dtype=object)
    target = rng.normal(size=(400, 1))
    encoder = encoders.MeanEncoder.fit(column("x", names, "text"), target)
    one = target[names == "l3", 0]
    groups = [target[names == n, 0] for n in set(names)]
    within = sum(((g - g.mean()) ** 2).sum() for g in groups) / 400
    between = sum(len(g) * (g.mean() - target.mean()) ** 2 for g in groups) / 400
    strength = min(max(within / between, 1), 100)
    assert encoder.means["l3"][0] == pytest.approx((one.sum() + strength * target.mean()) / (len(one) + strength))
    own = np.array([f"u{i}" for i in range(400)], dtype=object)  # each level once: only leakage could correlate
    folds = rng.permutation(400) % 5
    text = column("x", own, "text")
    crossed = encoders.MeanEncoder.fit(text, target).cross_fitted(text, target, folds)
    others = np.array([target[folds != f].mean() for f in folds])
    np.testing.assert_allclose(crossed[:, 0], others, atol=1e-12)


def test_dates_turn_in_circles():
    days = pd.date_range("2023-01-01", periods=800, freq="D")
    encoder = encoders.DateEncoder.fit(column("d", days.astype("datetime64[s]").astype(np.int64), "date"))
    assert encoder.cycles == ["year", "week"]
    z = encoder.encode(
        column("d", [pd.Timestamp("2023-03-01").timestamp(), pd.Timestamp("2024-02-29").timestamp()], "date")
    )
    assert np.abs(z[0, 1:3] - z[1, 1:3]).max() < 0.03  # a year apart: the same season
    assert abs(z[0, 0] - z[1, 0]) > 0.8
    ends = [pd.Timestamp(day).timestamp() for day in ("2023-12-31", "2024-01-01", "2023-07-02")]
    z = encoder.encode(column("d", ends, "date"))[:, 1:3]
    assert np.abs(z[0] - z[1]).max() < 0.03 and np.abs(z[0] + z[2]).max() < 0.03  # a circle, and half of it


def test_numbers_and_dates_far_outside_training_are_said():
    table = pa.table({
        "a": np.linspace(-3, 3, 100), "w": ["x", "y"] * 50,
        "d": pd.date_range("2023-01-01", periods=100, freq="D"),
    })  # fmt: skip
    frame, _ = training_frame(table, [])
    encoder, _ = TableEncoder.fit(frame, np.zeros((100, 1)), 0)
    assert encoder.surprises(frame) == []
    far = pa.table({
        "a": [4.4, 4.6, -4.6, 2.0], "w": ["x"] * 4,
        "d": pd.to_datetime(["2023-04-20", "2023-01-01", "2031-01-01", "2022-12-20"]),
    })  # fmt: skip
    found = encoder.surprises(expected(far, encoder))
    assert [s.split(" far")[0] for s in found] == ["column 'a': 2 rows", "column 'd': 1 row"]


def test_trees_see_free_text_as_its_coordinates():
    rng = np.random.default_rng(0)
    words_ = np.array(["good", "bad", "new", "old", "red", "blue"])
    lines = np.array([" ".join(rng.choice(words_, 6)) for _ in range(600)], dtype=object)
    y = np.array([line.count("good") - line.count("bad") for line in lines], dtype=np.float64)
    table = pa.table({"text": lines, "a": rng.normal(size=600)})
    frame, _ = training_frame(table, [])
    encoder, x = TableEncoder.fit(frame, y[:, None], 0)
    assert list(encoder.wording()) == [0] and len(encoder.wording()[0]) > 3
    inside, outside = frame.take(np.arange(400)), frame.take(np.arange(400, 600))
    fold = baselines.Fold(x[:400], inside, x[400:], outside, 0, encoder.wording())
    found = baselines.baselines()["LightGBM"](fold, targets.Target("y", "regression", y[:400], [], "number"))
    assert np.square(found - y[400:]).mean() < 0.6 * y.var()  # nothing at all from the lines as categories


@pytest.fixture
def mixed():
    rng = np.random.default_rng(0)
    n = 120
    return pa.table({
        "n": rng.normal(size=n), "gap": [None if i % 7 == 0 else float(i) for i in range(n)],
        "flag": rng.random(n) > 0.4,
        "few": rng.choice(["red", "green"], n).tolist(), "many": [f"shop{i}" for i in rng.integers(0, 25, n)],
        "words": [f"the long description of item number {i} with colour {i % 5}" for i in rng.permutation(n)],
        "when": [datetime.datetime(2024, 1, 1) + datetime.timedelta(hours=7 * i) for i in range(n)],
        "same": ["k"] * n, "void": pa.nulls(n), "y": rng.normal(size=n),
    }).append_column("copy", pa.chunked_array([pa.array(rng.normal(size=n))]))  # fmt: skip


def test_a_table_encoder_survives_json(mixed):
    mixed = mixed.append_column("twin", mixed.column("n"))
    frame, notes = training_frame(mixed, ["y"])
    assert {(n.column, n.text.split(":")[0]) for n in notes} == {
        ("same", "is constant"),
        ("void", "is empty"),
        ("twin", "repeats column 'n'"),
    }
    encoder, x = TableEncoder.fit(frame, mixed.column("y").to_numpy()[:, None], 0)
    assert np.isfinite(x).all() and x.shape[1] == len(encoder.labels()) == len(encoder.sources())
    state, arrays = encoder.state()
    again = TableEncoder.from_state(json.loads(json.dumps(state, allow_nan=False)), arrays)
    new = expected(mixed.slice(3, 40), again)
    np.testing.assert_array_equal(again.encode(new), encoder.encode(expected(mixed.slice(3, 40), encoder)))


def test_missing_columns_suggest_the_nearest(mixed):
    frame, _ = training_frame(mixed, ["y"])
    encoder, _ = TableEncoder.fit(frame, np.zeros((mixed.num_rows, 1)) + 1.0, 0)
    renamed = mixed.rename_columns(["Flags" if n == "flag" else n for n in mixed.column_names])
    with pytest.raises(DataError, match=r"lacks 1 column .*'flag' \(did you mean 'Flags'\?\)"):
        expected(renamed, encoder)


def test_leaks_and_row_numbers_are_reported():
    y = np.random.default_rng(0).normal(size=(200, 1))
    frame = Frame([column("leak", np.exp(y[:, 0])), column("id", np.random.default_rng(1).permutation(200) + 1.0)], 200)
    found = {n.column: n.text for n in suspicious(frame, y)}
    assert "give the target away" in found["leak"] and "row number" in found["id"]


def test_free_text_is_no_identifier():
    long = column("note", [f"the customer number {i} wrote a long complaint" for i in range(80)], "text")
    short = column("key", [f"id-{i}" for i in range(80)], "text")
    found = suspicious(Frame([long, short], 80), np.random.default_rng(0).normal(size=(80, 1)))
    assert [(n.column, n.text.split(":")[0]) for n in found] == [("key", "looks like an identifier")]


@pytest.mark.parametrize(
    ("values", "task", "says"),
    [
        ([3.0] * 20, "auto", "constant"),
        (["a"] * 20, "auto", "one class"),
        ([None] * 20, "auto", "empty in all"),
        ([1.0, 2.0] * 3, "auto", "6 rows with a known target"),
        (["a", "b"] * 10, "regression", "not numbers"),
        ([f"u{i}" for i in range(20)], "auto", "20 classes"),
        ([f"${1000 + i:,.2f}" for i in range(20)], "auto", r"'\$1,000.00' is a number only .* write it as 1000.00"),
        ([f"${1000 + i:,.2f}" for i in range(20)], "regression", "not numbers; .* no currency, percent sign"),
        ([f"{i} %" for i in range(20)], "auto", "write it as 0 in all rows"),
        ([f"{i}.5 kg" for i in range(20)], "auto", "write it as 0.5 in all rows"),
        ([*(f"{i}.5" for i in range(19)), "lots"], "auto", "'lots' is no number; correct that cell or leave it empty"),
        ([*(f"{i}.5" for i in range(17)), "?!", "x", "y"], "auto", "nor are 2 more cells"),
        ([f"item {i}" for i in range(20)], "auto", "20 classes"),
        ([datetime.date(2024, 1, i + 1) for i in range(20)], "auto", "holds dates"),
        ([[1]] * 20, "auto", "expected numbers, text"),
        ([1e9 + i * 1e-7 for i in range(20)], "regression", "varies only by rounding"),
    ],
)
def test_targets_that_cannot_be_learned_are_named(values, task, says):
    with pytest.raises(DataError, match=says):
        targets.find_targets(pa.table({"goal": values}), ["goal"], task)


def test_a_target_given_twice_is_misuse():
    with pytest.raises(UsageError, match="'y' was given 2 times"):
        targets.find_targets(pa.table({"y": [1.0, 2.0]}), ["y", "y"], "auto")


def test_targets_drop_rows_and_choose_tasks():
    table = pa.table({"a": [1.0, float("nan"), float("inf"), *np.linspace(0, 1, 57)], "b": [0, 1] * 30})
    found, rows, notes = targets.find_targets(table, ["a", "b"], "auto")
    assert [t.task for t in found] == ["regression", "classification"] and len(rows) == 58
    assert "2 rows left out" in notes[0]
    assert found[1].restored(np.array([1, 0])).to_pylist() == [1, 0]
    with pytest.raises(DataError, match=r"no column 'A1' to predict \(did you mean 'a'\?\)|no column 'A1'"):
        targets.find_targets(table, ["A1"], "auto")


@pytest.mark.parametrize(("text", "seconds"), [("60", 60), ("90s", 90), ("2m", 120), ("1.5h", 5400), (" 5 min ", 300)])
def test_times_are_read(text, seconds):
    assert words.parse_seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "-5s", "0", "1d", "1e3", "nan", "٣s", "9999999h"])
def test_wrong_times_are_named(text):
    with pytest.raises(ValueError, match="expected 1 s or more"):
        words.parse_seconds(text)


def test_hostile_names_are_made_plain():
    assert words.shown("\u202eevil\u200b\x1b[31m\n") == "evil [31m"
    assert len(words.shown("x" * 10_000)) <= 40


@pytest.mark.parametrize("unit", [1e-300, 1e-160, 1.0, 1e140])
def test_scores_and_the_learner_do_not_care_about_the_unit(unit):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 2))
    y = x[:, 0] + 0.1 * rng.normal(size=60)
    found = KernelRidge(random_state=0, time_budget=2.0).fit(x, unit * y).predict(x)
    rated = scores.score(targets.Target("y", "regression", unit * y, [], "number"), found)
    by_hand = 1 - np.mean((found / unit - y) ** 2) / y.var()
    assert rated["r2"] == pytest.approx(by_hand, abs=1e-9) and by_hand > 0.9
    assert rated["rmse"] / unit == pytest.approx(np.sqrt(np.mean((found / unit - y) ** 2)))


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ([*map(str, range(49)), "oops"], "'oops' is none, so all are taken as text; mend that cell"),
        ([f"{i} %" for i in range(50)], "'0 %' is none, so all are taken as text; mend the 50 such cells"),
        ([f"{1000 + i:,}" for i in range(50)], "'1,000' is none"), (["red", "7"] * 25, ""), (["a"] * 50 + ["b"], ""),
    ],
)  # fmt: skip
def test_a_column_that_is_almost_numbers_is_said(values, says):
    notes = training_frame(pa.table({"x": values}), [])[1]
    assert [n.dropped for n in notes] == [False] * bool(says) and all(says in n.text for n in notes)
