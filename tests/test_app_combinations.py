"""A learned metric in the report, and on the way from the folds to the model of all rows."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import torch

from mercer.app import insight
from mercer.app.combinations import in_words, large, of_distance, signed
from mercer.app.fitting import Trained
from mercer.app.frame import TableEncoder, training_frame
from mercer.app.head import Head
from mercer.app.heads import Lesson
from mercer.app.svg import drawing
from mercer.kernels import Gaussian, Matern, Metric
from mercer.learn import KernelRidge


def test_the_report_says_what_the_kernel_takes_as_distance() -> None:
    random = np.random.default_rng(0)
    columns = {"a": random.normal(size=400), "b": 10 * random.normal(size=400), "c": random.normal(size=400)}
    columns["kind"] = random.choice(["x", "y"], 400)
    frame, _ = training_frame(pa.table(columns), [])
    y = np.sin(columns["a"] + columns["b"] / 10)
    encoder, x = TableEncoder.fit(frame, y[:, None], 0)
    along = np.array([1.0, 1.0, 0.0, 0.0, 0.0])[:, None]  # a + b in deviations, and nothing else
    kernel = Gaussian(1.0).warp(Metric(along))
    model = KernelRidge(kernel, 0.1, learn=False, standardize=True).fit(x, y)
    found = insight.distance(Trained(encoder, [Head([0], model)], [0]))
    assert found is not None and len(found["directions"]) == 3
    shares, first = dict(found["shares"]), found["directions"][0]
    assert shares["a"] + shares["b"] == pytest.approx(1.0) and shares["c"] == shares["kind"] == 0.0
    assert first["share"] == pytest.approx(1.0) and {label for label, _ in first["parts"]} == {"a", "b"}
    for _, value in first["parts"]:
        assert value == pytest.approx(0.5**0.5, abs=0.05)  # robust deviations are not standard ones
    plain = KernelRidge(Gaussian(torch.ones(5)), 0.1, learn=False, standardize=True).fit(x, y)
    ordinary = insight.distance(Trained(encoder, [Head([0], plain)], [0]))
    assert ordinary is not None and ordinary["directions"] == [] and min(dict(ordinary["shares"]).values()) > 0.1


def test_combinations_in_words_and_in_bars() -> None:
    parts = [["height", 0.71], ["weight < 3 & more", -0.7], ["age", 0.1]]
    assert in_words({"parts": parts}) == "0.71 height - 0.70 weight < 3 & more + 0.10 age, each in deviations."
    with drawing():
        text = signed("first", "combination 1: 60 % of the distance", parts)
    assert text.startswith("<svg") and "0.71" in text and "-0.70" in text and "weight &lt; 3 &amp; more" in text


def test_shares_of_hardly_anything_are_not_drawn_but_told() -> None:
    assert large([0.6, 0.3, 0.02, 0.019, 0.001]) == (3, "8 %")  # of more columns than are listed
    assert large([0.995, 0.003]) == (1, "less than 1 %") and large([0.5, 0.5]) == (2, "")
    assert large([0.015] * 8) == (1, "98 %")  # the largest is drawn, small as it is
    parts = [["a", 0.8], ["b", 0.6]]
    shares = [["a", 0.9], ["b", 0.085], ["c", 0.014]]
    found = {"shares": shares, "directions": [{"share": s, "parts": parts} for s in (0.97, 0.024, 0.003)]}
    with drawing():
        columns, *others = of_distance(found)
    assert "not drawn have 2 %" in columns["caption"] and ">c<" not in columns["svg"] and ">b<" in columns["svg"]
    assert len(others) == 2 and "All other" not in others[0]["caption"]
    assert others[1]["caption"].endswith("All other combinations have less than 1 % of the distance.")


def test_a_metric_is_carried_to_other_coordinates() -> None:
    kernel = Matern(1.5, 2.0).warp(Metric([[1.0, 0.0], [0.5, 2.0]]))
    moved = Lesson([0], ["a", "b"], kernel, 0.2).on(["b", "new", "a"])
    assert moved is not None and moved[1] == 0.2
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(moved[0].block(x, x), kernel.block(x[:, [2, 0]], x[:, [2, 0]]))
