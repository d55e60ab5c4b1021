"""The command line end to end: a fit that works, then all that can go wrong, each one line and the right code."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import warnings
from html.parser import HTMLParser

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from typer.testing import CliRunner

from mercer.app import baselines, jobs
from mercer.app import fitting as fitting_module
from mercer.app.exits import DATA, INTERRUPTED, MEMORY, OK, USAGE, UsageError, one_line_errors
from mercer.app.main import app, main
from mercer.app.places import check_output
from mercer.app.tables import read_table, replaced, write_table
from mercer.app.terminal import _board
from mercer.app.verdict import promise
from mercer.errors import OutlierWarning

RTL = "evil\u202ename"
HOSTILE = "<script>alert(1)</script>"
TABLE = "a,b,y\n" + "\n".join(f"{i},{i % 3},{i * 0.37 % 5:.3f}" for i in range(40)) + "\n"


def run(*words, code=OK):
    """The result of a command, its exit code checked, no traceback anywhere."""
    found = CliRunner().invoke(app, [str(w) for w in words], catch_exceptions=False)
    assert found.exit_code == code, (found.output, found.stderr)
    assert "Traceback" not in found.output + found.stderr
    if code not in (OK, INTERRUPTED):
        lines = found.stderr.strip().splitlines()  # notes on the table and the time may come before the one that fails
        assert sum(line.startswith("mercer: ") for line in lines) <= 1 and len(lines) <= 5
    return found


@pytest.fixture(scope="module", autouse=True)
def no_trees():
    """LightGBM is a yardstick of its own; the tests of the command need only that the others run."""
    patch = pytest.MonkeyPatch()
    patch.setattr(baselines, "optional", lambda name: None)
    yield
    patch.undo()


def made_table(n=90, seed=0):
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=n), rng.normal(size=n)
    return pa.table({
        HOSTILE: a, RTL: b, "'quote\"": rng.choice(["=1+1", "<b>x</b>", "plain"], n).tolist(), "$x^$": rng.random(n),
        "n" * 10_000: rng.normal(size=n), "y": np.sin(a) + 0.3 * b + 0.1 * rng.normal(size=n),
        "kind": np.where(a + b > 0, "yes & <i>no</i>", "no").tolist(),
    })  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("app")
    write_table(made_table(), place / "t.parquet")
    run("fit", place / "t.parquet", "-t", "y", "-t", "kind", "--time", "12s", "--out", place / "model")
    return place


class Page(HTMLParser):
    """Tags and what they load."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.loads = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.loads += [v for k, v in attrs if k in ("src", "href", "xlink:href", "srcset", "data") and v]
        assert not [k for k, _ in attrs if k.startswith("on")]


def test_the_report_is_one_file_that_loads_nothing_and_runs_nothing(place):
    text = (place / "model" / "report.html").read_text()
    page = Page(text)
    assert "script" not in page.tags and "iframe" not in page.tags and "link" not in page.tags
    assert all(v.startswith(("#", "data:image/png;base64,")) for v in page.loads)
    assert "http:" not in text and "https:" not in text
    assert "default-src &#39;none&#39;" in text or "default-src 'none'" in text
    assert HOSTILE not in text and "\u202e" not in text and "n" * 60 not in text
    assert page.tags.count("svg") >= 8


def test_the_folder_holds_what_was_promised_and_strict_json(place):
    files = {p.name for p in (place / "model").iterdir()}
    assert files == {"model.json", "model.safetensors", "card.md", "report.html", "oof.parquet", "run.json"}
    manifest = json.loads((place / "model" / "model.json").read_text())
    assert set(manifest["files"]) == files - {"model.json"}
    facts = json.loads((place / "model" / "run.json").read_text())
    assert [t["task"] for t in facts["targets"]] == ["regression", "classification"]
    for target in facts["targets"]:
        assert target["leaderboard"][0]["name"] == "mercer"
        names = {
            r["name"].partition(" on ")[0] for r in target["leaderboard"]
        }  # on a share of the rows where time is short
        assert names == {"mercer", "linear", "mean"}
        assert 0.7 <= target["coverage"]["measured"] <= 1.0
    assert HOSTILE not in (place / "model" / "card.md").read_text()
    oof = pyarrow.parquet.read_table(place / "model" / "oof.parquet")
    y = made_table().column("y").to_numpy()
    rows = oof.column("row").to_numpy() - 1
    np.testing.assert_allclose(oof.column("y").to_numpy(), y[rows])
    error = np.mean((oof.column("y_predicted").to_numpy() - y[rows]) ** 2)
    r2 = facts["targets"][0]["leaderboard"][0]["scores"]["r2"]
    assert r2 == pytest.approx(1 - error / y[rows].var()) and r2 > 0.5
    held = (oof.column("y_lower").to_numpy() <= y[rows]) & (y[rows] <= oof.column("y_upper").to_numpy())
    assert facts["targets"][0]["coverage"]["measured"] == pytest.approx(held.mean())


@pytest.mark.parametrize("suffix", ["parquet", "csv", "arrow"])
def test_predictions_come_with_bands_and_chances(place, suffix):
    new, out = made_table(40, 5), place / f"p.{suffix}"
    write_table(new, place / "new.parquet")
    found = run("predict", place / "model", place / "new.parquet", "-o", out, "--json")
    facts = json.loads(found.stdout)
    assert facts["ok"] and facts["rows"] == 40 and facts["scores"][0]["scores"]["r2"] > 0.3
    table = read_table(out)
    low, y, high = (table.column(c).to_numpy() for c in ("y_lower", "y", "y_upper"))
    assert ((low < y) & (y < high)).all()
    chances = [c for c in table.column_names if c.startswith("kind_chance_")]
    np.testing.assert_allclose(sum(table.column(c).to_numpy() for c in chances), 1.0)
    assert set(table.column("kind").to_pylist()) <= {"yes & <i>no</i>", "no"}


def test_a_csv_of_the_same_rows_gives_the_same_predictions(place):
    new = made_table(30, 6).drop_columns(["y", "kind"])
    write_table(new, place / "same.parquet")
    pa.csv.write_csv(new, place / "same.csv")
    for kind in ("parquet", "csv"):
        run("predict", place / "model", place / f"same.{kind}", "-o", place / f"from-{kind}.parquet")
    a, b = (read_table(place / f"from-{kind}.parquet").column("y").to_numpy() for kind in ("parquet", "csv"))
    np.testing.assert_allclose(a, b, atol=1e-9)


def test_plan_report_and_doctor_speak_json(place):
    plan = json.loads(run("plan", place / "t.parquet", "-t", "y", "--json").stdout)
    assert plan["rows"] == 90 and plan["algorithm"] == "cholesky"
    facts = json.loads(run("report", place / "model", "-o", place / "again.html", "--json").stdout)
    assert facts["facts"]["rows_used"] == 90
    assert "Predicting" in (place / "again.html").read_text()
    assert json.loads(run("doctor", "--json").stdout)["packages"]["torch"]
    assert "torch" in run("doctor").stdout and "cholesky" in run("plan", place / "t.parquet", "-t", "y").stdout.lower()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("fit", "t.csv"), "--target"), (("fit", "t.csv", "-t", "y", "--nope"), "--nope"), (("fot",), "fot"),
        (("fit", "t.csv", "-t", "y", "--folds", "x"), "--folds"), (("predict", "m"), "table"),
        (("fit", "t.csv", "-t", "y", "--json=1"), "does not take a value"),
        (("fit", "t.csv", "-t", "y", "--seed", "-1"), "--seed"),
        (("fit", "t.csv", "-t", "y", "--seed", str(2**40)), "--seed"),
    ],
)  # fmt: skip
def test_misuse_speaks_json_too(monkeypatch, capsys, words, says):
    for more in (("--json",), ()):
        monkeypatch.setattr(sys, "argv", ["mercer", *words, *more])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        assert ended.value.code == USAGE and says in said.err.lower()
        assert said.err.startswith("mercer: ") and len(said.err.splitlines()) == 1
        if more or "--json=1" in words:
            facts = json.loads(said.out)
            assert facts["ok"] is False and facts["exit"] == USAGE and says in facts["error"].lower()
        else:
            assert said.out == ""


def test_the_console_script_returns_the_code_of_a_command(monkeypatch, capsys, tmp_path):
    for words, code in ((("--version",), OK), (("fit", "--help"), OK), (("report", str(tmp_path / "no")), USAGE)):
        monkeypatch.setattr(sys, "argv", ["mercer", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == code
    said = capsys.readouterr().out
    assert "--time TIME" in said and "[OPTIONS] TABLE\n" in said
    assert not any(raw in said for raw in ("<str>", "<list", "<int", "<path>", "{"))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("fit", "no.csv", "-t", "y"), "does not exist"), (("plan", "no.csv", "-t", "y"), "does not exist"),
        (("fit", "t.csv", "-t", "y", "--out", "t.csv"), "is a file"), (("report", "no"), "does not exist"),
        (("report", "folder"), "not a model folder"), (("predict", "no", "t.csv", "-o", "p.csv"), "does not exist"),
        (("fit", "t.csv", "-t", "y", "--task", "guess"), "--task is"), (("fit", "empty.csv", "-t", "y"), "is empty"),
        (("fit", "t.csv", "-t", "y", "-o", "theirs"), "did not write"),
    ],
)  # fmt: skip
def test_a_bad_path_or_option_is_said_before_anything_heavy_is_loaded(tmp_path, words, says):
    (tmp_path / "t.csv").write_text(TABLE)
    (tmp_path / "empty.csv").write_text("\n")
    (tmp_path / "folder").mkdir()
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "thesis.tex").write_text("years of work")
    code = (
        f"import sys; sys.argv = {['mercer', *words]!r}\n"
        "from mercer.app.main import main\n"
        "try: main()\n"
        "except SystemExit: print([m for m in ('torch', 'numpy', 'pandas', 'sklearn', 'pyarrow') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert found.stdout == "[]\n" and says in found.stderr and len(found.stderr.splitlines()) == 1


def test_warnings_of_libraries_stay_out_of_the_way_and_ours_are_one_line(capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        with one_line_errors(False):
            warnings.warn("divide by zero encountered", RuntimeWarning, stacklevel=1)
            warnings.warn(OutlierWarning("y holds\n1 value"), stacklevel=1)
    assert capsys.readouterr().err == "mercer: warning: y holds 1 value\n"


def test_a_report_replaces_a_report_and_nothing_else(place, tmp_path):
    ours, theirs = tmp_path / "r.html", tmp_path / "thesis.html"
    theirs.write_text("<html>years of work</html>")
    run("report", place / "model", "-o", ours)
    first = ours.read_bytes()
    run("report", place / "model", "-o", ours)
    assert ours.read_bytes() == first
    said = run("report", place / "model", "-o", theirs, code=USAGE).stderr
    assert "did not write" in said and theirs.read_text() == "<html>years of work</html>"


@pytest.mark.parametrize(
    ("content", "words", "code", "says"),
    [
        ("", (), DATA, "is empty"),
        ("a,b,y\n", (), DATA, "no rows"),
        ("a,b,y\n1,2,3\n", (), DATA, "1 row with a known target"),
        ("a,a,y\n1,2,3\n", (), DATA, "several columns named 'a'"),
        (TABLE.replace("a,b,y", "a,b,why"), (), DATA, "no column 'y' to predict"),
        (TABLE.replace("a,b,y", "a,b,Y"), (), DATA, "did you mean 'Y'"),
        ("a,y\n" + "1.5,2\n" * 30, (), DATA, "constant"),
        ("a,y\n" + "".join(f"{i},same\n" for i in range(30)), (), DATA, "one class"),
        ("a,y\n" + "".join(f"{i},NaN\n" for i in range(30)), (), DATA, "empty in all"),
        ("y\n" + "".join(f"{i}.5\n" for i in range(30)), (), DATA, "no column is left"),
        ("k,y\n" + "".join(f"1,{i}.5\n" for i in range(30)), (), DATA, "is constant"),
        (TABLE, ("--time", "soon"), USAGE, "--time is 'soon'"),
        (TABLE, ("--memory", "lots"), USAGE, "--memory"),
        (TABLE, ("--memory", "10"), USAGE, "1M or more"),
        (TABLE, ("--task", "guess"), USAGE, "--task is 'guess'"),
    ],
)
def test_bad_input_to_fit_is_one_line(tmp_path, content, words, code, says):
    (tmp_path / "t.csv").write_text(content)
    found = run("fit", tmp_path / "t.csv", "-t", "y", "--out", tmp_path / "m", *words, code=code)
    assert says in found.stderr and found.stderr.startswith("mercer: ")
    assert os.listdir(tmp_path) == ["t.csv"]
    quiet = run("fit", tmp_path / "t.csv", "-t", "y", "--out", tmp_path / "m", "--json", *words, code=code)
    assert json.loads(quiet.stdout)["exit"] == code


def test_new_rows_with_known_classes_are_scored(place, tmp_path):
    table = made_table(200, 5)
    write_table(table, tmp_path / "new.parquet")
    facts = json.loads(
        run("predict", place / "model", tmp_path / "new.parquet", "-o", tmp_path / "p.csv", "--json").stdout
    )
    scores = {entry["target"]: entry for entry in facts["scores"]}
    found, true = read_table(tmp_path / "p.csv").column("kind").to_pylist(), table.column("kind").to_pylist()
    assert scores["kind"]["scores"]["accuracy"] == pytest.approx(
        np.mean([f == t for f, t in zip(found, true, strict=True)])
    )
    sets = read_table(tmp_path / "p.csv").column("kind_set").to_pylist()
    held = np.mean([t in words.split(" | ") for t, words in zip(true, sets, strict=True)])
    assert scores["kind"]["held"] == pytest.approx(held) and scores["kind"]["scores"]["log_loss"] > 0


@pytest.mark.parametrize(("name", "says"), [("Y", "'y ' with a blank"), ("huge", "beyond 1e+150")])
def test_a_target_that_cannot_be_meant_is_said(tmp_path, name, says):
    (tmp_path / "t.csv").write_text("a,y ,huge\n" + "\n".join(f"{i},{i % 7},1e308" for i in range(30)))
    assert says in run("fit", tmp_path / "t.csv", "-t", name, "-o", tmp_path / "m", code=DATA).stderr


def test_an_error_of_writing_names_the_file_that_was_asked_for(tmp_path):
    def full(place):
        raise OSError(28, "No space left on device", str(place))

    with pytest.raises(OSError, match="No space") as said:
        replaced(tmp_path / "p.csv", full)
    assert said.value.filename == str(tmp_path / "p.csv") and ".partial" not in str(said.value)
    with pytest.raises(UsageError, match=r"parquet, \.csv"):
        check_output(tmp_path / "p.txt")


def test_infinite_bands_are_called_infinite_and_few_rows_leave_a_doubt():
    held = {"measured": 1.0, "rows": 8, "between": [0.63, 1.0], "size": "8 judged rows cannot bound them"}
    board = {"name": "y", "task": "regression", "leaderboard": [{"name": "mercer", "scores": {"r2": 0.5}}]}
    (infinite, finite) = (_board(board | {"coverage": held | {"infinite": i}}, False)[-1] for i in (True, False))
    assert "infinite" in infinite and "held" not in infinite
    assert "100.0 % of 8 rows (chance range 63 to 100 %)" in finite


def test_bands_that_only_the_judges_could_not_bound_are_not_called_infinite():
    held = {"infinite": True, "rows": 16, "measured": 1.0, "between": [0.8, 1.0], "groups": None}
    assert "could not be measured: 16 judged rows" in promise("regression", held)
    assert promise("regression", held | {"rows": 8}) == "90 % bands are infinite: 8 judged rows cannot bound them"


def test_two_rows_of_a_class_are_judged_and_shown(tmp_path, monkeypatch):
    """Folds that hold one class only have no skill to speak of; the report is written all the same."""
    rng = np.random.default_rng(0)
    table = pa.table({"a": rng.normal(size=60), "y": np.where(np.arange(60) < 2, "bad", "ok")})
    write_table(table, tmp_path / "t.csv")
    monkeypatch.setattr(baselines, "optional", lambda name: None)
    words = ["fit", tmp_path / "t.csv", "--target", "y", "--time", "2s", "--folds", "2", "-o", tmp_path / "m"]
    found = run(*words)
    assert found.exit_code == OK and (tmp_path / "m" / "report.html").exists()


def test_ctrl_c_while_loading_ends_without_a_traceback(tmp_path):
    """At moments from the first import on: gone by the signal itself, or 130."""
    for wait in (0.05, 0.1, 0.2, 0.4):
        command = [sys.executable, "-m", "mercer.app", "plan", str(tmp_path / "none.csv"), "--target", "y"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        time.sleep(wait)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
        if "Fatal Python error" in said:
            continue  # the interpreter itself was still starting: not ours to quieten
        started = "mercer" in said or process.returncode in (INTERRUPTED, USAGE, DATA)
        assert "mercer/app" not in said and (started or process.returncode == -signal.SIGINT), said


def test_places_that_cannot_be_used_are_said_before_the_work(tmp_path):
    (tmp_path / "t.csv").write_text(TABLE)
    (tmp_path / "file").write_text("x")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    for table, out, says in (
        ("t.csv", "file", "is a file"), ("t.csv", "mine", "did not write"), ("none.csv", "m", "does not exist"),
        (".", "m", "is a directory"), ("t.csv", "file/m", "file"),
    ):  # fmt: skip
        found = run("fit", tmp_path / table, "-t", "y", "--out", tmp_path / out, code=USAGE)
        assert says in found.stderr
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "years of work"
    unknown = CliRunner().invoke(app, ["fot"])
    assert unknown.exit_code == USAGE and "No such command" in unknown.stderr


def test_a_full_or_read_only_disk_leaves_the_old_model(tmp_path, monkeypatch):
    (tmp_path / "t.csv").write_text(TABLE)
    words = ("fit", tmp_path / "t.csv", "-t", "y", "--time", "3s", "--out", tmp_path / "m")
    run(*words)
    before = {p.name: p.read_bytes() for p in (tmp_path / "m").iterdir()}
    real = os.fsync
    for number, text in ((28, "No space left"), (30, "Read-only"), (5, "Input/output")):

        def broken(handle, number=number, text=text):
            raise OSError(number, f"{text} on device", str(tmp_path))

        monkeypatch.setattr(os, "fsync", broken)
        assert text in run(*words, code=USAGE).stderr
        monkeypatch.setattr(os, "fsync", real)
        assert {p.name: p.read_bytes() for p in (tmp_path / "m").iterdir()} == before
        assert sorted(os.listdir(tmp_path)) == ["m", "t.csv"]


def test_out_of_memory_is_code_4(tmp_path, monkeypatch):
    (tmp_path / "t.csv").write_text(TABLE)

    def full(*_):
        raise MemoryError

    monkeypatch.setattr(jobs, "fit", full)
    found = run("fit", tmp_path / "t.csv", "-t", "y", "--out", tmp_path / "m", code=MEMORY)
    assert "--memory" in found.stderr


@pytest.mark.parametrize("after", [0, 2])
def test_ctrl_c_keeps_the_best_so_far(tmp_path, monkeypatch, after):
    (tmp_path / "t.csv").write_text(TABLE)
    calls, real = [], fitting_module.train

    def interrupted(*args, **more):
        calls.append(1)
        if len(calls) > after:
            raise KeyboardInterrupt
        return real(*args, **more)

    monkeypatch.setattr(fitting_module, "train", interrupted)
    found = run("fit", tmp_path / "t.csv", "-t", "y", "--time", "30s", "--out", tmp_path / "m", code=INTERRUPTED)
    if after == 0:
        assert "nothing was written" in found.stderr and os.listdir(tmp_path) == ["t.csv"]
        return
    facts = json.loads((tmp_path / "m" / "run.json").read_text())
    assert facts["interrupted"] and any("trained on 32 of 40 rows" in note for note in facts["notes"])
    run("predict", tmp_path / "m", tmp_path / "t.csv", "-o", tmp_path / "p.csv")


def test_changed_columns_at_predict_time_are_named(place):
    new = made_table(12, 9)
    names = new.column_names
    write_table(
        new.rename_columns(["<script>alert(2)" if n == HOSTILE else n for n in names]), place / "renamed.parquet"
    )
    found = run("predict", place / "model", place / "renamed.parquet", "-o", place / "o.csv", code=DATA)
    assert "lacks 1 column" in found.stderr and "did you mean '<script>alert(2)'" in found.stderr
    broken = new.set_column(3, "$x^$", pa.array(["one"] * 12))
    write_table(broken, place / "text.parquet")
    found = run("predict", place / "model", place / "text.parquet", "-o", place / "o.csv", code=DATA)
    assert "held numbers" in found.stderr and "'one'" in found.stderr
    assert not (place / "o.csv").exists()
    strange = new.set_column(2, "'quote\"", pa.array(["never seen"] * 12))
    write_table(strange, place / "strange.parquet")
    assert (
        "never seen in training"
        in run("predict", place / "model", place / "strange.parquet", "-o", place / "o.csv").stdout
    )
    assert (
        "a name that ends in"
        in run("predict", place / "model", place / "new.parquet", "-o", place / "o.xls", code=USAGE).stderr
    )
    assert (
        "does not exist"
        in run("predict", place / "none", place / "new.parquet", "-o", place / "o.csv", code=USAGE).stderr
    )
    assert (
        "is not a model folder" in run("predict", place, place / "new.parquet", "-o", place / "o.csv", code=DATA).stderr
    )


def test_help_loads_nothing_heavy():
    code = (
        "import sys; sys.argv = ['mercer', '--help']\n"
        "from mercer.app.main import main\n"
        "try: main()\n"
        "except SystemExit: print([m for m in ('torch', 'numpy', 'pandas', 'sklearn', 'pyarrow') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.splitlines()[-1] == "[]" and "predict" in found.stdout


@pytest.mark.parametrize("moment", [0.01, 0.3])
def test_killing_it_leaves_the_old_folder_or_the_new_one(tmp_path, place, moment):
    """SIGKILL around the moment of writing: the folder that is there is whole, and the next run cleans up."""
    code = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from mercer.app import folder, store\n"
        f"model = store.load(Path({str(place / 'model')!r}))\n"
        "print('ready', flush=True)\n"
        f"while True: store.save(Path({str(tmp_path / 'm')!r}), model, {{'card.md': b'x' * 3_000_000}})\n"
    )
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert child.stdout is not None and child.stdout.readline() == b"ready\n"
    for _ in range(400):
        if (tmp_path / "m").exists():
            break
        time.sleep(0.02)
    time.sleep(moment)
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    run("predict", tmp_path / "m", place / "t.parquet", "-o", tmp_path / "p.parquet")
    write_again = code.replace("while True: ", "")
    subprocess.run([sys.executable, "-c", write_again], check=True, capture_output=True)
    assert sorted(os.listdir(tmp_path)) == ["m", "p.parquet"]
