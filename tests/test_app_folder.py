"""The model folder: whole or refused. Whatever is changed in it, the answer is one typed error, never a wrong model."""

from __future__ import annotations

import json
import shutil
import struct
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from safetensors.numpy import load, save
from typer.testing import CliRunner

from mercer.app import bands, folder, planning, store
from mercer.app.encoders import LevelEncoder, MeanEncoder, NumberEncoder, WordEncoder
from mercer.app.exits import USAGE, UsageError
from mercer.app.fitting import Trained
from mercer.app.folder import staging
from mercer.app.frame import TableEncoder
from mercer.app.heads import Head
from mercer.app.main import app
from mercer.app.schema import Manifest
from mercer.app.targets import Target
from mercer.budget import memory
from mercer.errors import DataError, MercerError
from mercer.learn import KernelClassifier, KernelRidge, LocalConformal
from mercer.learn.options import options
from mercer.learn.plan import choose


def small_model():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 13))
    ridge = KernelRidge(learn=False, random_state=0).fit(x, x[:, 0])
    judge = KernelClassifier(learn=False, random_state=0).fit(x, (x[:, 1] > 0).astype(int))
    encoder = TableEncoder([
        NumberEncoder("a", 0.0, 1.0, True, False, -1.0, 1.0), LevelEncoder("b", ["x", "y"], False),
        MeanEncoder("c", {"p": [0.5]}, {"p": 3}, [0.1], False), WordEncoder("d", rng.normal(size=(8, 2048))),
    ])  # fmt: skip
    goals = [
        Target("y", "regression", np.empty(0), [], "number"),
        Target("k", "classification", np.empty(0), ["n", "y"], "text"),
    ]
    local = LocalConformal(scale=False).fit(np.hstack([x, x[:, :1]]), x[:, 1:2])
    sets = bands.ClassSets.of(rng.random(40), np.arange(40) % 2)
    return store.Model(goals, Trained(encoder, [Head([0], ridge), Head([1], judge)], [0, 2]), [local, sets]), x


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    model, x = small_model()
    out = tmp_path_factory.mktemp("folder") / "model"
    store.save(out, model, {"card.md": b"# card", "run.json": b"{}"})
    return out, model, x


def changed(saved, tmp_path_factory):
    return shutil.copytree(saved[0], tmp_path_factory.mktemp("copy") / "model")


def test_a_folder_gives_back_the_same_model(saved):
    out, model, x = saved
    again = store.load(out)
    for old, new in zip(model.trained.heads, again.trained.heads, strict=True):
        np.testing.assert_array_equal(old.model.predict(x), new.model.predict(x))
    found = model.calibrators[0].interval(x[:, :1], np.hstack([x, x[:, :1]]))
    np.testing.assert_array_equal(found, again.calibrators[0].interval(x[:, :1], np.hstack([x, x[:, :1]])))
    assert again.targets[1].classes == ["n", "y"] and again.trained.encoder.labels() == model.trained.encoder.labels()


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(["model.json", "model.safetensors", "card.md", "run.json"]), place=st.floats(0, 0.999999),
    change=st.sampled_from(["flip", "cut", "insert", "delete"]), byte=st.integers(1, 255),
)  # fmt: skip
def test_any_change_of_any_file_is_refused(saved, tmp_path_factory, name, place, change, byte):
    copy = changed(saved, tmp_path_factory)
    data = bytearray((copy / name).read_bytes())
    at = int(place * len(data))
    if change == "flip":
        data[at] ^= byte
    elif change == "cut":
        del data[at:]
    elif change == "insert":
        data[at:at] = bytes([byte])
    if change == "delete":
        (copy / name).unlink()
    else:
        (copy / name).write_bytes(data)
    if change in ("insert", "flip") and name == "model.json" and json_equal(saved[0] / name, copy / name):
        assert store.load(copy)  # a blank more, or a tab for one: the same JSON
    else:
        with pytest.raises(MercerError):
            store.load(copy)
    shutil.rmtree(copy.parent)


def json_equal(a, b):
    try:
        return json.loads(a.read_bytes()) == json.loads(b.read_bytes())
    except ValueError:
        return False


SCALE = {"centre": 0.0, "spread": 1.0, "even": 2.0, "odd": 1.0, "low": -1.0, "high": 1.0}


def fitted(part):
    """The fitted attributes in the state of a learner or of bands."""
    return part["state"]["fitted"]


def named(manifest):
    """The arguments of the first learner's kernel."""
    return fitted(manifest["heads"][0])["kernel_"]["kernel"]["arguments"]


def resealed(copy, change):
    """A manifest changed by someone who knows how to seal it."""
    manifest = json.loads((copy / "model.json").read_text())
    change(manifest)
    manifest["files"] = {
        n: folder.file_sha256(copy / n) if (copy / n).is_file() else d for n, d in manifest["files"].items()
    }
    manifest["seal"] = folder.seal(manifest)
    (copy / "model.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.update(extra=1),
        lambda m: m.update(version=1),
        lambda m: m["files"].update({"../../evil": "0" * 64}),
        lambda m: m["columns"][0].update(encoder="pickle"),
        lambda m: m["columns"][0].update(scale=0.0),
        lambda m: m["columns"][0].update(extra=[]),
        lambda m: m["columns"].clear(),
        lambda m: m["heads"][0].update(estimator="os.system"),
        lambda m: fitted(m["heads"][0])["kernel_"]["kernel"].update(name="eval"),
        lambda m: fitted(m["heads"][0]).pop("kernel_"),
        lambda m: m["heads"][0].update(targets=[5]),
        lambda m: m["heads"].pop(),
        lambda m: m["bands"].pop(),
        lambda m: m["bands"][0].update(kind="sets"),
        lambda m: m["targets"][0].update(task="anything"),
        lambda m: m["columns"].pop(0),
        lambda m: m["columns"][0].update(absent=True),
        lambda m: m["columns"][1]["levels"].append("z"),
        lambda m: m["columns"][2]["means"].update(p=[0.5, 0.5]),
        lambda m: m["columns"][2]["counts"].clear(),
        lambda m: fitted(m["heads"][0]).update(alpha_=-1.0),
        lambda m: fitted(m["heads"][0]).update(n_features_in_=12),
        lambda m: fitted(m["heads"][1])["calibration_"]["fields"].update(temperature=0.0),
        lambda m: m["heads"][0]["state"].update({"class": "KernelClassifier"}),
        lambda m: m["heads"][0]["state"].update(format=99),
        lambda m: m["heads"].reverse(),
        lambda m: m["heads"][0].update(pulls=[[0.0, 0.5]] * 7),
        lambda m: m["heads"][0].update(scale=SCALE | {"spread": 0.0}),
        lambda m: m["heads"][0].update(scale=SCALE | {"odd": -3.0}),
        lambda m: m["heads"][0].update(scale=SCALE | {"low": 2.0}),
        lambda m: m["heads"][0].update(scale=SCALE | {"high": 1e4}),
        lambda m: m["heads"][1].update(scale=SCALE),
        lambda m: fitted(m["bands"][0]).update(width=0.0),
        lambda m: fitted(m["bands"][0]).update(unit=-1.0),
        lambda m: m["targets"][0].update(task="classification", classes=["a", "b"]),
        lambda m: m["targets"][1].update(classes=["n"]),
        lambda m: m["files"].clear(),
        lambda m: m["files"].pop("model.safetensors"),
        lambda m: m["targets"][0].update(name="a"),
        lambda m: m["targets"][0].update(name="k"),
        lambda m: m["columns"][1].update(column="a"),
        lambda m: fitted(m["heads"][0]).update(alpha_=1e308),
        lambda m: fitted(m["heads"][1])["calibration_"]["fields"].update(temperature=1e308),
        lambda m: named(m).update(lengthscale=[1e308] * 13),
        lambda m: named(m).update(lengthscale=1e-308),
        lambda m: named(m).update(lengthscale=10**400),
        lambda m: fitted(m["bands"][0]).update(width=1e308),
        lambda m: m["columns"][0].update(center=1e308),
        lambda m: m["columns"][0].update(scale=1e308),
        lambda m: m["columns"][2].update(prior=[-1e308]),
    ],
)
def test_a_sealed_folder_with_wrong_content_is_refused_too(saved, tmp_path_factory, change):
    copy = changed(saved, tmp_path_factory)
    resealed(copy, change)
    with pytest.raises(DataError):
        store.load(copy)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("head.0.points", lambda a: a[:, :8]), ("head.0.points", lambda a: a[:-1]), ("head.0.points", lambda a: a[:0]),
        ("head.0.weights", lambda a: np.hstack([a, a])), ("head.0.weights", lambda a: a[:, 0]),
        ("head.0.common.scale", lambda a: 0 * a), ("head.0.common.centre", lambda a: a[:1]),
        ("head.0.target.scale", lambda a: -a), ("head.1.classes", lambda a: 2 * a), ("head.1.classes", lambda a: 0 * a),
        ("head.0.target.centre", lambda a: np.append(a, a)), ("head.1.calibration.bias", lambda a: a[:1]),
        ("bands.0.points", lambda a: a[:, :2]), ("bands.0.weights", lambda a: a[:1]),
        ("bands.0.scores", lambda a: a[:, 0]), ("bands.0.scores", lambda a: np.hstack([a, a])),
        ("bands.0.scores", lambda a: a[::-1]), ("bands.0.scores", lambda a: a[:0]),
        ("bands.0.shrink", lambda a: np.append(a, a)), ("bands.0.relevance", lambda a: a[:2]),
        ("bands.0.scaler.scale", np.zeros_like), ("bands.1.chances", lambda a: a + 1),
        ("bands.1.codes", lambda a: a[1:]),
        ("bands.1.chances", lambda a: a[None]), ("bands.1.chances", lambda a: a[:0]),
        ("column.3", lambda a: a[:7]), ("column.3", lambda a: a[:, :9]), ("column.3", lambda a: a[0]),
    ],
)  # fmt: skip
def test_sealed_arrays_that_do_not_fit_together_are_refused(saved, tmp_path_factory, name, change):
    copy = changed(saved, tmp_path_factory)
    arrays = load((copy / "model.safetensors").read_bytes())
    arrays[name] = np.ascontiguousarray(change(arrays[name]))
    (copy / "model.safetensors").write_bytes(save(arrays))
    resealed(copy, lambda m: None)
    with pytest.raises(DataError, match="do not fit together"):
        store.load(copy)


@pytest.mark.parametrize(
    "text", ['{"a": NaN}', '{"a": 1, "a": 2}', "[" * 100_000, '{"a": Infinity}', "\xff", "", '"text"', "[]"]
)
def test_json_is_strict(tmp_path, text):
    (tmp_path / "model.json").write_text(text, encoding="latin-1")
    with pytest.raises(DataError):
        folder.read_manifest(tmp_path)


def test_huge_headers_and_many_tensors_are_refused_before_they_are_parsed(tmp_path):
    for data in (
        struct.pack("<Q", 2**40) + b"{}", b"", b"1234567", struct.pack("<Q", 2**20 + 1) + b" " * (2**20 + 1),
        save({f"t{i}": np.zeros(0, dtype=np.float32) for i in range(4097)}),
        save({"a": np.array([np.nan])}), save({"a": np.array([np.inf])}), save({"a.scaler.scale": np.array([np.nan])}),
        save({"a": np.array([1e308])}), save({"a.scaler.scale": np.array([1e308])}),
    ):  # fmt: skip
        (tmp_path / "model.safetensors").write_bytes(data)
        with pytest.raises(DataError):
            folder.read_arrays(tmp_path)


def test_the_format_holds_no_pickle_and_no_unknown_key(saved):
    for path in saved[0].iterdir():
        assert b"\x80\x04\x95" not in path.read_bytes()
    with pytest.raises(ValidationError):
        Manifest.model_validate({"version": 1})


def test_conformal_sets_cover_as_the_formula_says():
    rng = np.random.default_rng(3)
    chances = rng.dirichlet([1.0, 1.0, 1.0], 4000)
    codes = np.array([rng.choice(3, p=p) for p in chances])
    sets = bands.ClassSets.fit(chances[:2000], codes[:2000])
    held = sets.members(chances[2000:])[np.arange(2000), codes[2000:]].mean()
    assert abs(held - 0.9) < 4 * np.sqrt(0.9 * 0.1 * (1 / 2000 + 1 / 2000))
    assert bands.conformal_rank(9, 0.9) == 9 and bands.conformal_rank(8, 0.9) == 9


def test_bands_are_measured_on_rows_that_did_not_calibrate_them():
    """Residuals of pure noise of two sizes: coverage near the promise, and wide where the noise is."""
    rng = np.random.default_rng(0)
    x = rng.random((1500, 1))
    noise = rng.normal(size=(1500, 1)) * np.where(x > 0.5, 2.0, 0.5)
    folds = np.arange(1500) % 5
    local, (found,) = bands.measure_numbers(x, noise, np.zeros_like(noise), folds, 0)
    half = bands.widest(local, 0.9) * local.spread(x)
    np.testing.assert_allclose(half, local.interval(np.zeros_like(noise), x, 0.9)[1])
    assert abs(found.inside.mean() - 0.9) < 4 * np.sqrt(0.09 / 1500)
    width = found.high - found.low
    assert np.median(width[x[:, 0] > 0.6]) > 2.5 * np.median(width[x[:, 0] < 0.4])
    assert abs(np.histogram(found.pit, 10, (0, 1))[0] - 150).max() < 5 * np.sqrt(150)


def test_no_fold_vouches_for_itself():
    """One fold of large residuals among small ones: judged by the others it is hardly held, by itself it would be."""
    rng = np.random.default_rng(0)
    folds = np.arange(300) % 3
    noise = rng.normal(size=(300, 1)) * np.where(folds == 0, 100.0, 1.0)[:, None]
    (found,) = bands.measure_numbers(rng.random((300, 1)), noise, np.zeros_like(noise), folds, 0)[1]
    assert found.inside[folds == 0].mean() < 0.6 and found.inside[folds > 0].mean() > 0.97


def refused(*words):
    """The one line that a refused command leaves."""
    found = CliRunner().invoke(app, [str(w) for w in words], catch_exceptions=False)
    assert found.exit_code == USAGE and "Traceback" not in found.output, found.output
    return found.stderr


def contents(place):
    return {str(p.relative_to(place)): p.read_bytes() for p in place.rglob("*") if p.is_file()}


@pytest.mark.parametrize("kind", ["keras", "damaged", "extra", "hidden", "directory"])
def test_a_folder_with_anything_that_is_not_ours_is_never_replaced(saved, tmp_path_factory, kind):
    copy = changed(saved, tmp_path_factory)
    if kind == "keras":
        shutil.rmtree(copy)
        copy.mkdir()
        (copy / "model.json").write_text('{"class_name": "Sequential", "config": {}}')
    elif kind == "damaged":
        (copy / "model.json").write_text((copy / "model.json").read_text().replace("}", "} "))
        (copy / "model.json").write_text((copy / "model.json").read_text()[:-30])
    elif kind == "directory":
        (copy / "card.md").unlink()
        (copy / "card.md").mkdir()
        (copy / "card.md" / "notes.txt").write_text("mine")
    else:
        (copy / {"extra": "thesis.tex", "hidden": ".git"}[kind]).write_text("years of work")
    before = contents(copy)
    with pytest.raises(UsageError, match="another --out"):
        folder.check_place(copy)
    with pytest.raises(UsageError):
        store.save(copy, saved[1], {})  # what appeared during the work is safe too
    assert contents(copy) == before and len(list(copy.parent.iterdir())) == 1


def test_our_own_folder_is_replaced(saved, tmp_path_factory):
    copy = changed(saved, tmp_path_factory)
    folder.check_place(copy)
    store.save(copy, saved[1], {"card.md": b"# new"})
    assert (copy / "card.md").read_bytes() == b"# new" and not (copy / "run.json").exists()


@pytest.mark.parametrize("out", [".", "..", "../..", "../../link"])
def test_the_directory_of_the_shell_is_never_swapped_away(tmp_path, monkeypatch, out):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "a")
    (tmp_path / "t.csv").write_text("a,y\n" + "".join(f"{i},{i % 7}.5\n" for i in range(30)))
    monkeypatch.chdir(tmp_path / "a" / "b")
    said = refused("fit", "../../t.csv", "-t", "y", "--out", out, "--time", "2s")
    assert "you are in" in said or (out == "../.." and "holds the table" in said)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "link", "t.csv"]


def test_outputs_never_replace_an_input_or_change_a_model(saved, tmp_path_factory, monkeypatch):
    copy = changed(saved, tmp_path_factory)
    here = copy.parent
    monkeypatch.chdir(here)
    (here / "in.csv").write_text("a,b,c,d\n1,x,p,text\n")
    (here / "soft.csv").symlink_to(here / "in.csv")
    (here / "hard.csv").hardlink_to(here / "in.csv")
    (here / "way").symlink_to(copy)
    before = contents(here)
    for name in ("in.csv", "soft.csv", "hard.csv"):
        assert "also an input" in refused("predict", copy, here / "in.csv", "-o", here / name)
    for out in (copy / "oof.parquet", copy / "new.csv", here / "way" / "p.csv"):
        assert "inside the model folder" in refused("predict", saved[0], here / "in.csv", "-o", out)
    for out in (copy / "model.json", copy / "report.html", here / "way" / "model.json"):
        assert "inside the model folder" in refused("report", saved[0], "-o", out)
    (copy / "t.csv").write_text("a,y\n1,2\n")
    assert "holds the table" in refused("fit", copy / "t.csv", "-t", "y", "--out", copy)
    (copy / "t.csv").unlink()
    said = refused("report", copy, "-o", "nodir/x.html")
    assert "nodir" in said and "create it first" in said and "partial" not in said
    assert contents(here) == before


def test_a_plan_is_said_for_every_algorithm_there_is():
    facts = {
        "rows": 9, "columns": 2, "coordinates": 3, "targets": [{"name": "y", "task": "regression"}], "dropped": [],
        "notes": [], "trainings": 6, "seconds": 60.0, "budget": 2**30,
        "learners": [{**asdict(o), "plan": None} for o in options(9, 3)],
    }  # fmt: skip
    with memory(2**33):  # not what happens to be free
        found = [choose(n, s) for n in (100, 20_000, 50_000, 1_000_000) for s in (1.0, 15.0, 7200.0)]
    plans = {p.algorithm: p for p in found}
    assert set(plans) == {"cholesky", "cg", "nystrom", "falkon"}
    for name in (*plans, "neighbours"):
        plan = plans.get(name, plans["cholesky"])
        said = planning.as_text(facts | {"algorithm": name, "landmarks": plan.landmarks, "memory": plan.memory})
        assert "trainings" in said and (name not in ("nystrom", "falkon") or f"{plan.landmarks:,} landmarks" in said)


@pytest.mark.parametrize("name", ["zz", "*", "[ab]"])
def test_only_remains_of_our_own_killed_runs_are_cleared(tmp_path, name):
    ours = tmp_path / f".{name}.999999999.partial"
    foreign = [tmp_path / f".{name}.backup.partial", tmp_path / ".other.999999999.partial"]
    for place in (ours, *foreign):
        place.mkdir()
        (place / "file").write_text("kept")
    with staging(tmp_path / name):
        assert not ours.exists()
    assert all((place / "file").read_text() == "kept" for place in foreign)
