"""Rows and checkpoints: every row once in any order, gaps named, files replaced as a whole."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import polars
import pytest
import torch
from sklearn.base import BaseEstimator

from mercer.errors import DataError, OutlierWarning, ShapeError
from mercer.kernels import Gaussian
from mercer.learn import EigenProRegressor, FalkonRegressor, checkpoint
from mercer.learn.checkpoint import Checkpoint, digest
from mercer.learn.draw import begin, drawn, memberships
from mercer.learn.ridge import KernelRidge
from mercer.learn.rows import PARTS, STRETCH, Rows


class Plain(BaseEstimator):
    def __init__(self, kernel=None, landmarks=None, epochs=1, checkpoint=None, random_state=None):
        self.kernel, self.landmarks, self.epochs = kernel, landmarks, epochs
        self.checkpoint, self.random_state = checkpoint, random_state


@pytest.mark.parametrize("n", [1, 7, 1000, STRETCH * PARTS + 17])
@pytest.mark.parametrize("size", [3, 512])
def test_every_row_comes_once(n, size):
    if n > 1000 and size == 3:
        size = 4096
    rows = Rows(np.zeros((n, 1), dtype=np.float32))
    found = list(rows.shuffled(size, 0))
    assert all(len(block) == size for block in found[:-1]) and 0 < len(found[-1]) <= size
    together = np.concatenate(found)
    np.testing.assert_array_equal(np.sort(together), np.arange(n))
    np.testing.assert_array_equal(together, np.concatenate(list(rows.shuffled(size, 0))))
    if n > 7:
        assert not np.array_equal(together, np.concatenate(list(rows.shuffled(size, 1))))
    keep = np.arange(n) % 3 == 0
    kept = list(rows.shuffled(size, 0, keep))
    np.testing.assert_array_equal(np.sort(np.concatenate(kept)), np.flatnonzero(keep))
    assert all(len(block) == size for block in kept[:-1])
    assert sum((block.stop - block.start for block in rows.blocks(size)), 0) == n


def test_blocks_of_a_sorted_table_come_from_everywhere():
    n = 640_000
    rows = Rows(np.zeros((n, 1), dtype=np.float32))
    block = next(rows.shuffled(6400, 0))
    assert np.histogram(block, 10, (0, n))[0].min() > 200  # of 640 expected in each tenth, by stretches of 64
    assert len(np.unique(block // STRETCH)) == 100


def test_tables_of_any_kind_are_read_and_places_named():
    table = np.arange(12.0).reshape(6, 2)
    y = np.arange(6.0)
    for given in (table, torch.from_numpy(table), pandas.DataFrame(table, columns=["a", "b"]), polars.DataFrame(table)):
        rows = Rows.read(Plain(), given, y, reset=True)
        np.testing.assert_array_equal(rows.take(np.array([4, 1])), table[[4, 1]])
        np.testing.assert_array_equal(rows.targets(slice(2, 4)), [[2.0], [3.0]])
        assert (len(rows), rows.columns) == (6, 2)
    bad = pandas.DataFrame(table, columns=["a", "b"])
    bad.loc[4, "b"] = np.inf
    rows = Rows.read(Plain(), bad, y, reset=True)
    rows.take(slice(0, 4))
    for at in (slice(3, 6), np.array([0, 4]), slice(None)):
        with pytest.raises(DataError, match=r"infinity at row 4, column 1 \('b'\)"):
            rows.take(at)
    with pytest.raises(DataError, match="row 4"):
        rows.refuse_gaps()
    y[3] = np.nan
    with pytest.raises(DataError, match="y holds NaN at row 3"):
        Rows.read(Plain(), table, y, reset=True).refuse_gaps()
    Rows(np.full((2, 2), 1e308)).take(slice(None))  # the sum overflows, the numbers are fine
    with pytest.raises(ShapeError):
        Rows.read(Plain(), table, np.zeros((6, 2)), reset=True, classes=True)
    with pytest.raises(DataError, match="text"):
        Rows.read(Plain(), table, ["a"] * 6, reset=True)
    with pytest.raises(DataError, match="requires y"):
        Rows.read(Plain(), table, reset=True)
    with pytest.raises(DataError, match="no y"):
        Rows(table).targets(slice(None))


def test_memory_maps_are_not_copied(tmp_path):
    x = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.float32, (1000, 4))
    rows = Rows.read(Plain(), x, np.zeros(1000), reset=True)
    assert np.shares_memory(rows.x, x)
    assert rows.take(slice(0, 2)).dtype == np.float64
    np.testing.assert_array_equal(rows.sample(5), [0, 249, 499, 749, 999])
    assert len(rows.sample()) == 1000


def test_checkpoints_are_kept_and_told_apart(tmp_path, monkeypatch):
    file = tmp_path / "fit"
    mine = Checkpoint(file, "me")
    assert mine.load() is None
    mine.save({"epoch": 1}, {"w": torch.ones(2, 1)})
    assert not file.exists()  # so soon there is nothing to lose
    mine.save({"epoch": 1}, {"w": torch.ones(2, 1)}, now=True)
    values, arrays = Checkpoint(file, "me").load()
    assert values == {"epoch": 1} and torch.equal(arrays["w"], torch.ones(2, 1))
    monkeypatch.setattr(checkpoint, "EVERY", 0.0)
    mine.save({"epoch": 2}, {"w": torch.zeros(2, 1)})
    assert mine.load()[0]["epoch"] == 2
    assert os.listdir(tmp_path) == ["fit"]
    with pytest.raises(DataError, match="another fit"):
        Checkpoint(file, "you").load()
    Path(file).write_text("no")
    with pytest.raises(DataError, match="not one of mercer"):
        mine.load()
    with pytest.raises(DataError, match="no folder"):
        Checkpoint(tmp_path / "none" / "fit", "me")
    nothing = Checkpoint(None, "")
    nothing.save({}, {}, now=True)
    assert nothing.load() is None


def test_a_saving_that_fails_leaves_the_last_one(tmp_path, monkeypatch):
    file = tmp_path / "fit"
    mine = Checkpoint(file, "me")
    mine.save({"epoch": 1}, {}, now=True)

    def full(*args):
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        mine.save({"epoch": 2}, {}, now=True)
    assert mine.load()[0]["epoch"] == 1 and os.listdir(tmp_path) == ["fit"]


def test_the_digest_tells_fits_apart():
    x, y = np.arange(40.0).reshape(20, 2), np.arange(20.0)
    found = digest(Plain(Gaussian(1.0)), Rows(x, y))
    assert found == digest(Plain(Gaussian(1.0), epochs=7, checkpoint="f"), Rows(x.copy(), y.copy()))
    long = np.zeros((130_000, 2))
    for row in (1, 49_999, 77_777, 129_999):  # every row counts
        wrong, label = long.copy(), long[:, 0].copy()
        wrong[row, 1], label[row] = 1e-9, 1e-9
        plain = digest(Plain(), Rows(long, long[:, 0]))
        assert plain != digest(Plain(), Rows(wrong, long[:, 0])) and plain != digest(Plain(), Rows(long, label))
    many = np.random.default_rng(0).normal(size=(2000, 2))
    other = many.copy()
    other[1000, 1] += 1e-9
    fits = [
        found, digest(Plain(Gaussian(1.0 + 1e-9)), Rows(x, y)), digest(Plain(Gaussian(1.0)), Rows(x + 1e-9, y)),
        digest(Plain(Gaussian(1.0)), Rows(x, y + 1e-9)), digest(Plain(Gaussian(1.0), many), Rows(x, y)),
        digest(Plain(Gaussian(1.0), other), Rows(x, y)), digest(Plain(Gaussian(1.0), random_state=1), Rows(x, y)),
        digest(KernelRidge(Gaussian(1.0)), Rows(x, y)),
    ]  # fmt: skip
    assert len(set(fits)) == len(fits)
    states = [np.random.RandomState(0) for _ in range(2)]  # an address in memory is no argument
    assert len({digest(Plain(random_state=state), Rows(x, y)) for state in states}) == 1


def test_a_draw_begins_as_kernel_ridge_does():
    random = np.random.default_rng(0)
    x = random.normal(size=(120, 2))
    y = np.sin(x[:, 0]) + 0.1 * random.normal(size=120)
    model = KernelRidge(Gaussian(1.0), 0.1, learn=True, standardize=True)
    start = begin(model, Rows(x, y), np.ones(120, dtype=bool), 3, None)
    wanted = KernelRidge(Gaussian(1.0), 0.1, learn=True, standardize=True, random_state=3).fit(x, y)
    torch.testing.assert_close(start.kernel.state_dict(), wanted.kernel_.state_dict())
    np.testing.assert_array_equal(start.scaler.scale, wanted.scaler_.scale)
    assert start.noise == wanted.alpha_
    fixed = begin(model.set_params(learn=False), Rows(x, y), np.ones(120, dtype=bool), 3, None)
    assert fixed.noise is None and fixed.kernel is not model.kernel
    keep = np.arange(120) < 50
    assert set(drawn(keep, 20, 0)) <= set(range(50)) and len(drawn(keep, 20, 0)) == 20
    np.testing.assert_array_equal(drawn(keep, 60, 0), np.arange(50))
    np.testing.assert_array_equal(memberships(np.array([0, 1, 1]), 2), [[0], [1], [1]])
    np.testing.assert_array_equal(memberships(np.array([0, 2]), 3), [[1, 0, 0], [0, 0, 1]])


@pytest.mark.parametrize("kind", [FalkonRegressor, EigenProRegressor])
@pytest.mark.parametrize("rows", [400, 2600])
def test_one_value_far_out_does_not_decide(kind: Any, rows: int) -> None:
    """Whether it stands among the rows that scales come from or beyond them, it is clipped, and said."""
    random = np.random.default_rng(0)
    x = random.normal(size=(rows + 200, 2))
    y = np.sin(x[:, 0]) + 0.1 * random.normal(size=len(x))
    for place in (7, 99):
        wrong = y[:rows].copy()
        wrong[place] = 1e12
        with pytest.warns(OutlierWarning, match=r"1e\+12 at row"):
            model = kind(random_state=0, landmarks=100).fit(x[:rows], wrong)
        assert model.score(x[rows:], y[rows:]) > 0.9
        low, high = model.predict_interval(x[rows:])
        assert np.median(high - low) < 1.0
