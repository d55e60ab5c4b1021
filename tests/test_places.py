"""Rows equal to training rows: their predictions and bands use what was observed there; all other rows as ever."""

from __future__ import annotations

import json
from functools import cache

import numpy as np
import pyarrow as pa
import pytest
import torch

from mercer.app import fitting, store
from mercer.app.columns import Column
from mercer.app.frame import Frame, expected
from mercer.app.head import MEAN, Head
from mercer.app.heads import fit_head
from mercer.app.jobs import Job, compute
from mercer.app.progress import Watch
from mercer.app.tables import write_table
from mercer.app.targets import Target
from mercer.app.unknown import Witnesses
from mercer.kernels import Matern
from mercer.learn import GaussianProcessRegressor, KernelRidge
from mercer.learn.copies import Repeats
from mercer.learn.places import Places


def visits(
    seed: int, places: int = 150, most: int = 6, effect: float = 0.7, noise: float = 0.5, outputs: int = 1
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(rows, targets, the places, the truth there): y = f(x) + u of the place + e of the row, 1 to `most` rows each."""
    random = np.random.default_rng(seed)
    at = random.normal(size=(places, 2))
    truth = np.sin(at[:, :1]) + at[:, 1:] + effect * random.normal(size=(places, outputs))
    each = np.repeat(np.arange(places), random.integers(1, most + 1, places))
    each = random.permutation(each)
    y = truth[each] + noise * random.normal(size=(len(each), outputs))
    return at[each], y if outputs > 1 else y[:, 0], at, truth


def miss(found: np.ndarray, truth: np.ndarray) -> float:
    return float(np.square(found - truth[:, 0]).mean())


@cache
def seen(seed: int = 0, **more: float) -> KernelRidge:
    x, y, _, _ = visits(seed, **more)
    return KernelRidge(Matern(2.5, 2.0), standardize=True, time_budget=2.0, random_state=0).fit(x, y)


def dense(model: KernelRidge, x: np.ndarray) -> tuple[np.ndarray, float]:
    """(k(x, x) + s_u 1[x = x'] + s_e I of all rows, s_u) from the learned kernel and noises, by definition."""
    z = model.coordinates(x)
    own = float((1 - model._shares.min()) / (1 - 1 / model._repeats.sizes.max()))
    within, between = own * model.alpha_, (1 - own) * model.alpha_
    equal = (x[:, None] == x[None]).all(2)
    k = model.kernel_.block(z, z).detach().numpy()
    return k + between * equal + within * np.eye(len(x)), between


def test_predictions_are_those_of_the_process_with_a_term_for_equal_places() -> None:
    model, (x, y, at, _) = seen(), visits(0)
    a, between = dense(model, x)
    new = np.concatenate([at, at + 0.3, [[4.0, -4.0]]])
    scaled = model.target_.forward(y[:, None])
    cross = model.kernel_.block(model.coordinates(new), model.coordinates(x)).detach().numpy()
    cross = cross + between * (new[:, None] == x[None]).all(2)
    wanted = model.target_.back(cross @ np.linalg.solve(a, scaled))[:, 0]
    assert model.places_ is not None and 0 < between < model.alpha_
    np.testing.assert_allclose(model.predict(new), wanted, rtol=0, atol=1e-8)
    assert np.array_equal(model.at_places(new), np.arange(301) < 150)


def test_rows_left_out_alone_are_those_of_the_same_process() -> None:
    """One row out, its equals in: the closed form against y - (A^-1 y) / diag(A^-1) of all rows."""
    model, (x, y, _, _) = seen(), visits(0)
    inverse = np.linalg.inv(dense(model, x)[0])
    scaled = model.target_.forward(y[:, None])
    wanted = scaled - (inverse @ scaled) / np.diagonal(inverse)[:, None]
    found = model.places_.left_out
    alone = np.array([(x == row).all(1).sum() == 1 for row in x])
    assert np.isnan(found[alone]).all() and alone.any()
    np.testing.assert_allclose(found[~alone], wanted[~alone], rtol=0, atol=1e-8)
    apart, together = model.left_out_[~alone] - y[~alone], model.target_.back(found)[~alone, 0] - y[~alone]
    assert model.places_.less[0] == pytest.approx(1 - (together**2).sum() / (apart**2).sum(), rel=1e-9)


def test_widths_are_those_of_the_process_with_the_rows_that_were_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A new row at a place is told by its n rows, a left-out one by the n - 1 others: both by a dense process."""
    monkeypatch.setattr("mercer.learn.conformal.ENOUGH", 10**6)  # one constant column has no relevance to learn
    x, y, at, _ = visits(2, places=60, most=3, noise=0.4)
    between, within = 0.5, 0.16
    twins = Repeats.of(torch.from_numpy(x))
    assert twins is not None
    points, y = x[twins.picked], y[:, None]

    def f(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.exp(-0.5 * np.square(a[:, None] - b[None]).sum(2))

    sizes, total = twins.sizes.numpy(), between + within
    a = f(points, points) + np.diag(between + within / sizes)
    means, inverse = twins.means(torch.from_numpy(y)).numpy(), np.linalg.inv(a)
    apart = means - (inverse @ means) / np.diagonal(inverse)[:, None]
    free = torch.from_numpy((between + within / sizes) * np.diagonal(inverse))
    found = Places.learned(
        twins, torch.from_numpy(points), torch.from_numpy(y), y, apart, within / total, free,
        lambda z, _: np.ones((len(z), 1)), 0.01,
    )  # fmt: skip
    assert found is not None and len(at) == len(points)
    same = between * (x[:, None] == x[None]).all(2)
    inverse = np.linalg.inv(f(x, x) + same + within * np.eye(len(x)))
    cross = f(points, x) + between * (points[:, None] == x[None]).all(2)
    new = 1 + between + within - np.einsum("ij,jk,ik->i", cross, inverse, cross)
    np.testing.assert_allclose(found.width[:, 0], np.sqrt(new / within), rtol=1e-9)
    several = sizes[twins.place] > 1
    wrong, variance = (inverse @ y)[:, 0] / np.diagonal(inverse), 1 / np.diagonal(inverse)
    wanted = np.sort((wrong / np.sqrt(variance / within))[several])
    assert found.conformal.shrink.tolist() == [0.0]  # one and the same place to look widths up: no local scale
    np.testing.assert_allclose(found.conformal.scores[:, 0], wanted, rtol=1e-8)


def test_new_places_are_predicted_as_without_and_known_ones_better(monkeypatch: pytest.MonkeyPatch) -> None:
    model, (x, y, at, truth) = seen(), visits(0)
    monkeypatch.setattr(KernelRidge, "_at_places", False)
    plain = KernelRidge(Matern(2.5, 2.0), standardize=True, time_budget=2.0, random_state=0)
    plain.begin_at([model.learned()]).fit(x, y)
    assert plain.places_ is None
    new = np.random.default_rng(5).normal(size=(100, 2))
    both = np.concatenate([new, at])
    np.testing.assert_array_equal(model.predict(both)[:100], model.predict_new(both)[:100])
    low, high = model.conformal_.interval(*model_at(model, new), 0.9)
    np.testing.assert_array_equal(model.predict_interval(new)[0], model.target_.back(low)[:, 0])
    np.testing.assert_array_equal(model.predict_interval(new)[1], model.target_.back(high)[:, 0])
    error, usual = (
        float(np.square(found - truth[:, 0]).mean()) for found in (model.predict(at), model.predict_new(at))
    )
    assert error < 0.6 * usual
    np.testing.assert_array_equal(plain.predict(at), plain.predict_new(at))


def model_at(model: KernelRidge, new: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(scores, where widths are looked up) of rows at new places."""
    z = model.coordinates(new)
    scores = model._scores(z)
    return scores, np.concatenate([z.numpy(), scores], 1)


@pytest.mark.parametrize("rows", ["distinct", "copies", "few", "noise"])
def test_nothing_is_believed_without_evidence(rows: str) -> None:
    """No twins; twins that are copies, y included; few twins; twins whose place explains nothing."""
    x, y, _, _ = visits(1, effect=0.0 if rows == "noise" else 0.7)
    if rows == "distinct":
        x, y = x + 1e-3 * np.random.default_rng(0).normal(size=x.shape), y
    if rows == "copies":
        first = np.unique(x, axis=0, return_index=True)[1]
        x, y = np.concatenate([x[first]] * 2), np.concatenate([y[first]] * 2)
    if rows == "few":
        first = np.unique(x, axis=0, return_index=True)[1]
        kept = np.union1d(first, np.arange(25))
        x, y = x[kept], y[kept]
    model = KernelRidge(Matern(2.5, 2.0), standardize=True, time_budget=1.0, random_state=0).fit(x, y)
    assert model.places_ is None and not model.at_places(x).any()
    np.testing.assert_array_equal(model.predict(x), model.predict_new(x))


def test_a_given_noise_is_what_a_row_is_worth() -> None:
    x, y, _, _ = visits(0)
    for model in (KernelRidge(Matern(2.5, 2.0), 0.3, time_budget=1.0), GaussianProcessRegressor(time_budget=1.0)):
        assert model.fit(x, y).places_ is None  # a process says what f is, of which no place has a share of its own


def test_intervals_hold_at_known_and_at_new_places() -> None:
    held, width = {"known": [], "new": []}, {"known": [], "new": []}
    for seed in range(2):
        x, y, at, truth = visits(10 + seed, places=300)
        model = KernelRidge(Matern(2.5, 2.0), standardize=True, time_budget=1.0, random_state=0).fit(x, y)
        random = np.random.default_rng(20 + seed)
        new = random.normal(size=(1000, 2))
        there = np.sin(new[:, 0]) + new[:, 1] + 0.7 * random.normal(size=1000)
        again = random.integers(0, len(x), 2000)  # as training rows are: more at places of many
        home = (x[again][:, None] == at[None]).all(2).argmax(1)
        for name, rows, f in (("known", at[home], truth[home, 0]), ("new", new, there)):
            low, high = model.predict_interval(rows)
            true = f + 0.5 * random.normal(size=len(rows))
            held[name].append(((low <= true) & (true <= high)).mean())
            width[name].append((high - low).mean())
    assert 0.88 < np.mean(held["known"]) < 0.92 and 0.87 < np.mean(held["new"]) < 0.93
    assert np.mean(width["known"]) < 0.8 * np.mean(width["new"])


def test_an_output_without_an_effect_is_predicted_as_ever() -> None:
    x, y, at, truth = visits(3, outputs=2)
    y[:, 1] = np.sin(x[:, 0]) + 0.5 * np.random.default_rng(4).normal(size=len(x))
    model = KernelRidge(Matern(2.5, 2.0), standardize=True, time_budget=1.0, random_state=0).fit(x, y)
    assert model.places_ is not None and model.places_.helps.tolist() == [0]
    found, usual = model.predict(at), model.predict_new(at)
    np.testing.assert_array_equal(found[:, 1], usual[:, 1])
    assert np.square(found - truth)[:, 0].mean() < 0.7 * np.square(usual - truth)[:, 0].mean()
    low, high = model.predict_interval(at)
    scores, where = model_at(model, at)
    wanted = model.target_.back(model.conformal_.interval(scores, where, 0.9)[0])
    np.testing.assert_array_equal(low[:, 1], wanted[:, 1])
    assert (high - low)[:, 0].mean() < 0.9 * (2 * (model.predict_new(at) - wanted)[:, 0]).mean()


def test_landmarks_know_places_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mercer.learn.plan.EXACT_ROWS", 100)
    x, y, at, truth = visits(0)
    model = KernelRidge(Matern(2.5, 2.0), standardize=True, time_budget=2.0, random_state=0).fit(x, y)
    exact = seen()
    assert model.plan_.algorithm != "cholesky" and model.places_ is not None
    np.testing.assert_allclose(model.predict(at), exact.predict(at), rtol=0, atol=0.25)
    assert (
        np.square(model.predict(at) - truth[:, 0]).mean() < 0.7 * np.square(model.predict_new(at) - truth[:, 0]).mean()
    )
    ratio = np.subtract(*model.predict_interval(at)).mean() / np.subtract(*exact.predict_interval(at)).mean()
    assert 0.85 < ratio < 1.2


def test_a_state_keeps_what_is_known_of_places() -> None:
    model, (_, _, at, _) = seen(), visits(0)
    values, arrays = model.get_state()
    again = KernelRidge.from_state(json.loads(json.dumps(values)), arrays)
    new = np.concatenate([at, at + 0.1])
    np.testing.assert_array_equal(again.predict(new), model.predict(new))
    np.testing.assert_array_equal(again.predict_interval(new), model.predict_interval(new))


def test_places_are_found_by_equality_in_every_number() -> None:
    random = np.random.default_rng(0)
    points = random.integers(-2, 3, size=(60, 3)).astype(float)
    points = np.unique(points, axis=0)
    none = np.zeros((len(points), 1))
    places = Places(points, none, none, none, seen().conformal_)
    rows = random.integers(-3, 4, size=(500, 3)) * np.where(random.random((500, 3)) < 0.3, -1.0, 1.0)
    equal = (rows[:, None] == points[None]).all(2)
    np.testing.assert_array_equal(places.find(rows), np.where(equal.any(1), equal.argmax(1), -1))
    assert np.signbit(rows[rows == 0]).any() and equal.any() and not equal.any(1).all()
    assert len(places.find(rows[:0])) == 0


def tabled(x: np.ndarray, y: np.ndarray) -> pa.Table:
    return pa.table({"a": x[:, 0], "b": x[:, 1], "y": y})


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """(folder, what a fit left) of an ordinary target and of its exponential, which has heavy tails."""
    place = tmp_path_factory.mktemp("places")
    x, y, _, _ = visits(0, places=250)
    write_table(tabled(x, y).append_column("z", pa.array(np.exp(2 * y))), place / "t.parquet")
    job = Job(place / "t.parquet", ("y", "z"), place / "m", seconds=5.0, folds=2, quiet=True)
    with Watch(5.0, 4, True) as watch:
        return place, compute(job, watch)


def test_a_fit_uses_equal_rows_and_says_so(found) -> None:
    _, fitted = found
    x, _, at, truth = visits(0, places=250)
    model = fitted.model
    said = [note for note in fitted.facts["notes"] if "places are known" in note]
    assert len(said) == 2 and "250 places" in said[0] and "'y'" in said[0] and "bands of their own" in said[0]
    frame = expected(tabled(np.concatenate([at, at + 0.2]), np.zeros(500)), model.trained.encoder)
    answer, bands = model.answer(frame)
    usual = model.trained.predict(frame)
    for k, back in enumerate((lambda t: t, lambda t: np.log(np.maximum(t, 1e-9)) / 2)):
        np.testing.assert_array_equal(answer[k][250:], usual[k][250:])
        np.testing.assert_array_equal(bands[k][0][250:], model.bands(frame, usual)[k][0][250:])
        error, before = (np.square(back(f[k][:250]) - truth[:, 0]).mean() for f in (answer, usual))
        assert error < 0.7 * before
        random = np.random.default_rng(7)
        home = (x[random.integers(0, len(x), 3000)][:, None] == at[None]).all(2).argmax(1)
        new = truth[home, 0] + 0.5 * random.normal(size=3000)
        new = new if k == 0 else np.exp(2 * new)
        low, high = (side[home] for side in bands[k])
        assert 0.86 < ((low <= new) & (new <= high)).mean() < 0.94


def test_means_of_a_logarithmic_scale_have_the_spread_of_known_places() -> None:
    """exp(y): on the way back the mean is exp(s^2 / 2) times the median, of a smaller s where the place is known."""
    x, y, at, truth = visits(0, places=250)
    target = Target("z", "regression", np.exp(y), [], "number")
    head = fit_head([0], [target], x, 2.0, 0, (), MEAN)
    assert head.form() == MEAN and head.near.even < 0.95 * head.scale.even
    found = head.at_places(at, 0.9)[0][:, 0]
    mean = np.exp(truth[:, 0] + 0.5**2 / 2)
    assert 0.85 < found.mean() / mean.mean() < 1.18
    medians = head.near.back(head.model.predict(at))
    assert np.median(found / medians) == pytest.approx(np.exp(0.5**2 / 2), abs=0.15)


def test_a_folder_gives_back_what_is_known_of_places(found, tmp_path) -> None:
    _, fitted = found
    _, _, at, _ = visits(0, places=250)
    store.save(tmp_path / "m", fitted.model, {})
    again = store.load(tmp_path / "m")
    frame = expected(tabled(np.concatenate([at, at + 0.2]), np.zeros(500)), again.trained.encoder)
    for mine, theirs in zip(fitted.model.answer(frame), again.answer(frame), strict=True):
        for a, b in zip(mine, theirs, strict=True):
            np.testing.assert_array_equal(a, b)


def test_a_row_with_an_unknown_cell_is_at_no_known_place(found) -> None:
    _, fitted = found
    model = fitted.model
    centre = model.trained.encoder.blank()
    head: Head = model.trained.heads[0]
    blank = tabled(np.full((1, 2), np.nan), np.zeros(1))
    frame = expected(blank, model.trained.encoder)
    places = head.model.places_
    points = places.points.copy()
    points[0] = head.model.coordinates(centre[None]).numpy()[0]
    head.model.places_ = Places(points, places.means + 9.0, places.gain, places.width, places.conformal)
    try:
        assert head.known(model.trained.encoder.encode(frame)).all()
        np.testing.assert_array_equal(model.answer(frame)[0][0], model.trained.predict(frame)[0])
    finally:
        head.model.places_ = places


def test_judged_rows_and_witnesses_are_at_new_places(found) -> None:
    """What measures new places never sees what equal rows said."""
    _, fitted = found
    model = fitted.model
    assert isinstance(model.witnesses, Witnesses)
    head = model.trained.heads[0]
    assert head.known(model.witnesses.x).all()
    np.testing.assert_array_equal(head.latent(model.witnesses.x)[:, 0], head.model.predict_new(model.witnesses.x))


def test_rows_of_new_groups_are_at_new_places() -> None:
    """A group's rows are equal to each other, and those of a new group to none: its effect is no place's."""
    x, y, _, _ = visits(0)
    frame = Frame([Column("a", "number", x[:, 0]), Column("b", "number", x[:, 1])], len(x))
    target = Target("y", "regression", y, [], "number")
    for named in (None, np.unique(x, axis=0, return_inverse=True)[1].reshape(-1)):
        with Watch(2.0, 4, True) as watch:
            outcome = fitting.fit(frame, [target], 0, watch, 2, named)
        assert (outcome.best.heads[0].model.places_ is None) == (named is not None)
        assert any("places are known" in note for note in outcome.notes) == (named is None)
