"""Twelve nasty tables, three learners: each answer is right, or a typed error or warning says what is wrong."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
import pytest

from mercer.errors import DataError, MercerWarning, OutlierWarning
from mercer.learn import GaussianProcessRegressor, KernelClassifier, KernelRidge

LEARNERS = {"ridge": KernelRidge, "process": GaussianProcessRegressor, "classifier": KernelClassifier}
DROP = 0.05
Table = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
_clean: dict[str, float] = {}


def table(name: str) -> Table:
    """200 rows to learn from and 200 to judge: y = sin(2 x0) + noise, or its sign."""
    random = np.random.default_rng(0)
    x = random.normal(size=(400, 4))
    y = np.sin(2 * x[:, 0]) + 0.05 * random.normal(size=400)
    if name == "classifier":
        y = np.where(y > 0, 1.0, 0.0)
    return x[:200], y[:200], x[200:], y[200:]


def duplicates(x: np.ndarray, y: np.ndarray, tx: np.ndarray, ty: np.ndarray) -> Table:
    return np.concatenate([x, x]), np.concatenate([y, y]), tx, ty


def offset(x: np.ndarray, y: np.ndarray, tx: np.ndarray, ty: np.ndarray) -> Table:
    return x + 1e5, y, tx + 1e5, ty


def wide(x: np.ndarray, y: np.ndarray, tx: np.ndarray, ty: np.ndarray) -> Table:
    factor = np.array([1.0, 1e6, 1e6, 1e6])
    return x * factor, y, tx * factor, ty


def huge(x: np.ndarray, y: np.ndarray, tx: np.ndarray, ty: np.ndarray) -> Table:
    return x, 1e12 + 1e9 * y, tx, 1e12 + 1e9 * ty


def useless(x: np.ndarray, y: np.ndarray, tx: np.ndarray, ty: np.ndarray) -> Table:
    def more(a: np.ndarray) -> np.ndarray:
        return np.concatenate([a, np.full((len(a), 1), 7.0), a[:, :1]], 1)

    return more(x), y, more(tx), ty


def integers(x: np.ndarray, y: np.ndarray, tx: np.ndarray, ty: np.ndarray) -> Table:
    """Whole numbers above 2^24 in float32, wide enough apart to survive."""
    factor = 1e7

    def whole(a: np.ndarray) -> np.ndarray:
        return np.round(a * factor + 2**26).astype(np.float32)

    return whole(x), y, whole(tx), ty


RIGHT: dict[str, Callable[..., Table]] = {
    "duplicates": duplicates,
    "offset": offset,
    "wide": wide,
    "huge": huge,
    "useless": useless,
    "integers": integers,
}


def score(name: str, data: Table) -> float:
    """R2, or accuracy, on the rows to judge."""
    x, y, tx, ty = data
    return LEARNERS[name](random_state=0).fit(x, y).score(tx, ty)


def clean(name: str) -> float:
    if name not in _clean:
        _clean[name] = score(name, table(name))
    return _clean[name]


@pytest.mark.parametrize("name", LEARNERS)
def test_clean(name: str) -> None:
    assert clean(name) > (0.9 if name == "classifier" else 0.97)


@pytest.mark.parametrize("case", RIGHT)
@pytest.mark.parametrize("name", LEARNERS)
def test_right(name: str, case: str) -> None:
    assert score(name, RIGHT[case](*table(name))) > clean(name) - DROP


@pytest.mark.parametrize("name", ["ridge", "process"])
def test_an_outlier_in_y_is_announced_and_does_no_harm(name: str) -> None:
    x, y, tx, ty = table(name)
    y = y.copy()
    y[17] = 1e6
    with pytest.warns(OutlierWarning, match="row 17"):
        found = score(name, (x, y, tx, ty))
    assert found > clean(name) - DROP


def test_an_outlier_in_labels_is_another_class() -> None:
    x, y, tx, ty = table("classifier")
    y = y.copy()
    y[17] = 1e6
    assert score("classifier", (x, y, tx, ty)) > clean("classifier") - DROP


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", LEARNERS)
def test_gaps_are_named_when_fitting_and_when_predicting(name: str, bad: float) -> None:
    x, y, tx, _ = table(name)
    model = LEARNERS[name](random_state=0, learn=False).fit(x, y)
    broken = tx.copy()
    broken[5, 2] = bad
    with pytest.raises(DataError, match="row 5, column 2"):
        model.predict(broken)
    broken = x.copy()
    broken[9, 1] = bad
    with pytest.raises(DataError, match="row 9, column 1"):
        LEARNERS[name]().fit(broken, y)
    if name != "classifier":
        target = y.copy()
        target[3] = bad
        with pytest.raises(DataError, match=r"y holds .* at row 3"):
            LEARNERS[name]().fit(x, target)


@pytest.mark.parametrize("name", LEARNERS)
def test_a_gap_names_its_column(name: str) -> None:
    pandas = pytest.importorskip("pandas")
    x, y, _, _ = table(name)
    frame = pandas.DataFrame(x, columns=["a", "b", "c", "age"])
    frame.loc[4, "age"] = np.nan
    with pytest.raises(DataError, match="'age'"):
        LEARNERS[name]().fit(frame, y)


@pytest.mark.parametrize("name", LEARNERS)
def test_numbers_written_as_text_are_refused_by_cell(name: str) -> None:
    pandas = pytest.importorskip("pandas")
    x, y, tx, _ = table(name)
    model = LEARNERS[name](random_state=0, learn=False).fit(x.astype(object), y)
    with pytest.raises(DataError, match="X holds text .* at row 0, column 0"):
        LEARNERS[name]().fit(x.astype(str), y)
    broken = tx.astype(object)
    broken[7, 2] = "1.5"
    with pytest.raises(DataError, match=r"X holds text \('1.5'\) at row 7, column 2;"):
        model.predict(broken)
    with pytest.raises(DataError, match=r"row 0, column 3 \('age'\)"):
        LEARNERS[name]().fit(pandas.DataFrame(x, columns=["a", "b", "c", "age"]).astype({"age": str}), y)
    if name != "classifier":
        with pytest.raises(DataError, match="y holds text"):
            LEARNERS[name]().fit(x, y.astype(str))


@pytest.mark.parametrize("name", LEARNERS)
def test_whole_numbers_that_float32_has_merged_are_announced(name: str) -> None:
    x, y, _, _ = table(name)
    merged = (2**26 + np.round(10 * x)).astype(np.float32)
    with pytest.warns(MercerWarning, match="float32"):
        LEARNERS[name](learn=False).fit(merged, y)


@pytest.mark.parametrize("name", LEARNERS)
def test_one_row_is_refused(name: str) -> None:
    x, y, _, _ = table(name)
    with pytest.raises(DataError, match="1 sample"):
        LEARNERS[name]().fit(x[:1], y[:1])


@pytest.mark.parametrize("name", ["ridge", "process"])
@pytest.mark.parametrize("value", [0.0, 3.5, -1e12])
def test_a_constant_target_is_predicted(name: str, value: float) -> None:
    x, _, tx, _ = table(name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = LEARNERS[name]().fit(x, np.full(len(x), value))
    np.testing.assert_allclose(model.predict(tx), value, rtol=1e-12)


def test_a_single_class_is_refused() -> None:
    x, y, _, _ = table("classifier")
    with pytest.raises(DataError, match="one class"):
        KernelClassifier().fit(x, np.zeros_like(y))
