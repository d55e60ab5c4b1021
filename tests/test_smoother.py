"""Kernel smoothers against brute force and scikit-learn; interpolation with a linear head on digits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.ensemble import RandomForestClassifier, VotingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
from sklearn.utils.estimator_checks import parametrize_with_checks

from mercer.budget import memory
from mercer.claims import Claim
from mercer.errors import DataError, MercerWarning, StructureError
from mercer.kernels import ExpDot, Gaussian, Laplace, Linear, Matern, Wendland
from mercer.learn import InterpolatedClassifier, KernelSmootherClassifier, KernelSmootherRegressor, nearest
from tests.catalogue import KERNELS

CHECKED = [KernelSmootherRegressor(), KernelSmootherClassifier(), InterpolatedClassifier(folds=2)]


def table(n: int, d: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    x = random.normal(size=(n, d))
    return x, np.stack([np.sin(2 * x[:, 0]) + x[:, 1], x[:, 2] ** 2], 1) + 0.1 * random.normal(size=(n, 2))


@parametrize_with_checks(CHECKED)
def test_scikit_learn_checks(estimator, check) -> None:
    check(estimator)


@pytest.mark.parametrize("case", [c for c in KERNELS if Claim.POSITIVE in c.make(3).claims], ids=lambda c: c.name)
@pytest.mark.parametrize("neighbours", [None, 1, 7, 90])
def test_means_equal_the_double_loop(case, neighbours) -> None:
    """Every kernel that is never negative, by its scalar formula: sum k y / sum k, over all rows or the nearest."""
    x, z = case.points(60, 3, seed=1).tolist(), case.points(9, 3, seed=2).tolist()
    y = table(60)[1]
    want = []
    for b in z:
        weights = np.array([case.formula(b, a) for a in x])
        kept = np.argsort(-weights, kind="stable")[: neighbours or 60]
        want.append((weights[kept, None] * y[kept]).sum(0) / weights[kept].sum())
    model = KernelSmootherRegressor(case.make(3), neighbours=neighbours).fit(np.array(x), y)
    got = model.predict(np.array(z))
    if len({case.formula(b, a) for b in z for a in x}) < 500 and neighbours in (1, 7):  # ties: any of them may serve
        for row, b in zip(got, z, strict=True):
            weights = np.array([case.formula(b, a) for a in x])
            among = y[weights >= np.sort(weights)[-neighbours] * (1 - 1e-12)]
            assert (row >= among.min(0) - 1e-12).all() and (row <= among.max(0) + 1e-12).all()
    else:
        np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-12)


def test_left_out_means_are_those_of_fits_without_the_row() -> None:
    x, y = table(40)
    x[7] = x[3]  # a twin stands for itself
    for neighbours in (None, 5):
        for kernel in (Matern(1.5, 0.7), ExpDot(1.1)):
            model = KernelSmootherRegressor(kernel, neighbours=neighbours).fit(x, y)
            for i in (0, 3, 7, 22):
                rest = np.arange(40) != i
                other = KernelSmootherRegressor(kernel, neighbours=neighbours).fit(x[rest], y[rest])
                np.testing.assert_allclose(model.left_out_[i], other.predict(x[[i]])[0], rtol=1e-10, atol=1e-12)


def test_one_neighbour_and_wide_weights_are_scikit_learn_neighbours() -> None:
    x, y = table(200)
    new = table(50, seed=1)[0]
    for kernel, p in ((Gaussian(1e4), 2), (Laplace(1e4), 1)):  # weights are equal to 1e-7: their difference is seen
        mine = KernelSmootherRegressor(kernel, neighbours=6).fit(x, y)
        theirs = KNeighborsRegressor(6, p=p).fit(x, y)
        np.testing.assert_allclose(mine.predict(new), theirs.predict(new), atol=1e-2 if p == 1 else 1e-6)
    labels = np.where(y[:, 0] > 0, "up", "down")
    mine, theirs = KernelSmootherClassifier(neighbours=1).fit(x, labels), KNeighborsClassifier(1).fit(x, labels)
    scaled = mine.scaler_(x).numpy(), mine.scaler_(new).numpy()
    np.testing.assert_array_equal(mine.predict(new), theirs.fit(scaled[0], labels).predict(scaled[1]))


def test_chances_are_shares_of_the_weights() -> None:
    x, y = table(120)
    labels = np.digitize(y[:, 0], [-0.5, 0.5])
    new = table(30, seed=1)[0]
    weights = np.exp(-((new[:, None] - x[None]) ** 2).sum(-1) / (2 * 0.4**2))
    want = np.stack([weights[:, labels == c].sum(1) for c in range(3)], 1) / weights.sum(1, keepdims=True)
    model = KernelSmootherClassifier(Gaussian(0.4)).fit(x, labels)
    np.testing.assert_allclose(model.predict_proba(new), want, rtol=1e-9, atol=1e-13)
    np.testing.assert_array_equal(model.predict(new), want.argmax(1))
    assert isinstance(model.predict_proba(torch.from_numpy(new)), torch.Tensor)


def test_far_rows_get_the_nearest_and_rows_without_weight_say_so() -> None:
    x, y = table(50)
    far = np.array([[80.0, 0.0, 0.0]])
    nearest_row = ((x - far) ** 2).sum(1).argmin()
    for neighbours in (None, 50):  # exp(-80^2 / 2 / 0.01) is 0 in float64; its logarithm is not
        got = KernelSmootherRegressor(Gaussian(0.1), neighbours=neighbours).fit(x, y).predict(far)
        np.testing.assert_allclose(got[0], y[nearest_row], rtol=1e-9)
        with pytest.warns(MercerWarning, match="row 0 of X is so far"):
            got = KernelSmootherRegressor(Wendland(9.0, 1, 3), neighbours=neighbours).fit(x, y).predict(far)
        np.testing.assert_allclose(got[0], y.mean(0))


def test_small_memory_gives_the_same_answers(monkeypatch) -> None:
    x, y = table(300)
    new = table(40, seed=1)[0]
    for kernel in (Gaussian(0.5), ExpDot(1.0)):
        for neighbours in (None, 9):
            whole = KernelSmootherRegressor(kernel, neighbours=neighbours).fit(x, y)
            with memory(2**18), pytest.MonkeyPatch.context() as patch:
                patch.setattr(nearest, "COLUMNS", 64)
                small = KernelSmootherRegressor(kernel, neighbours=neighbours).fit(x, y)
                np.testing.assert_allclose(small.predict(new), whole.predict(new), rtol=1e-10)
            np.testing.assert_allclose(small.left_out_, whole.left_out_, rtol=1e-9, atol=1e-12)


def test_the_lengthscale_is_the_best_that_was_tried_and_intervals_cover() -> None:
    x, y = table(600)
    new, truth = table(600, seed=1)
    model = KernelSmootherRegressor(random_state=0).fit(x, y[:, 0])
    error = np.square(model.predict(new) - truth[:, 0]).mean()
    scale = float(model.kernel_.lengthscale)
    for factor in (0.4, 2.5):
        other = KernelSmootherRegressor(Gaussian(scale * factor), standardize=True).fit(x, y[:, 0])
        assert error < np.square(other.predict(new) - truth[:, 0]).mean()
    low, high = model.predict_interval(new, 0.9)
    assert 0.86 < ((low <= truth[:, 0]) & (truth[:, 0] <= high)).mean() < 0.94


def test_models_come_back_from_their_state() -> None:
    x, y = table(60)
    for model in (KernelSmootherRegressor(neighbours=5), KernelSmootherRegressor(Matern(1.5, 0.7))):
        again = type(model).from_state(*model.fit(x, y).get_state())
        np.testing.assert_array_equal(again.predict(x[:5] + 0.1), model.predict(x[:5] + 0.1))
    model = KernelSmootherClassifier(neighbours=3).fit(x, y[:, 0] > 0)
    again = KernelSmootherClassifier.from_state(*model.get_state())
    np.testing.assert_array_equal(again.predict_proba(x), model.predict_proba(x))


def test_what_cannot_be_is_named() -> None:
    x, y = table(20)
    with pytest.raises(StructureError, match="may be negative"):
        KernelSmootherRegressor(Linear()).fit(x, y)
    with pytest.raises(ValueError, match="neighbours is 0; expected a whole number >= 1"):
        KernelSmootherClassifier(neighbours=0).fit(x, y[:, 0] > 0)
    with pytest.raises(ValueError, match="share is 1.5"):
        InterpolatedClassifier(share=1.5).fit(x, y[:, 0] > 0)
    with pytest.raises(DataError, match="one class only"):
        InterpolatedClassifier().fit(x, np.ones(20))


def test_interpolation_is_soft_voting_with_these_weights() -> None:
    x, y = table(150)
    labels = np.array(["a", "b", "c"])[np.digitize(y[:, 0], [-0.5, 0.5])]
    new = table(40, seed=1)[0]
    near, head = KernelSmootherClassifier(Gaussian(0.5)), LogisticRegression()
    mine = InterpolatedClassifier(head, near, share=0.3).fit(x, labels)
    theirs = VotingClassifier([("near", near), ("head", head)], voting="soft", weights=[0.3, 0.7]).fit(x, labels)
    np.testing.assert_allclose(mine.predict_proba(new), theirs.predict_proba(new), rtol=1e-12)
    np.testing.assert_array_equal(mine.predict(new), theirs.predict(new))


def test_the_share_follows_what_is_better_and_even_where_nothing_tells() -> None:
    x = table(200)[0]
    wavy, straight = np.sin(4 * x[:, 0]) > 0, x[:, 0] + x[:, 1] > 0
    assert InterpolatedClassifier(random_state=0).fit(x[:, :1], wavy).share_ > 0.8
    forest = RandomForestClassifier(20, random_state=0)
    found = InterpolatedClassifier(head=forest, smoother=KernelSmootherClassifier(Gaussian(30.0)), random_state=0)
    assert found.fit(x, straight).share_ < 0.2 and found.scores_.shape == (21,)
    three = InterpolatedClassifier().fit(x[:3], ["a", "b", "c"])
    assert three.share_ == 0.5 and three.scores_ is None
    some = InterpolatedClassifier(random_state=0).fit(x[:9], ["a"] * 4 + ["b"] * 4 + ["c"])  # c is never judged
    assert some.predict_proba(x[8:9])[0, 2] > 0.1 and some.predict_proba(x[:2]).shape == (2, 3)


def test_interpolation_does_not_lower_accuracy_on_digits_at_any_label_budget() -> None:
    """The paper's claim, with pixels for features: means of three draws at 1 to 30 labels for each of ten classes."""
    x, y = load_digits(return_X_y=True)
    x = x / 16
    gains = {}
    for each in (1, 3, 10, 30):
        right = []
        for seed in range(3):
            random = np.random.default_rng(seed)
            some = np.concatenate([random.permutation(np.flatnonzero(y == c))[:each] for c in range(10)])
            rest = np.setdiff1d(np.arange(len(y)), some)
            model = InterpolatedClassifier(random_state=0).fit(x[some], y[some])
            head = np.asarray(model.head_.predict(x[rest]))
            right.append(((model.predict(x[rest]) == y[rest]).mean(), (head == y[rest]).mean()))
        both, alone = np.mean(right, 0)
        gains[each] = both - alone
    assert all(gain >= 0 for gain in gains.values()), gains
    assert gains[10] > 0.015 and gains[30] > 0.02, gains  # where there is most to win
