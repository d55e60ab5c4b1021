"""Every example runs, is short, and finds what its question asks for."""

from __future__ import annotations

import ast
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))


def _six_uses(found: dict[str, Any]) -> bool:
    exact = found["k"].block(found["x"], found["x"])
    return (
        found["error"] < 0.05
        and found["p_value"] < 0.01
        and len(set(found["coreset"].tolist())) == 16
        and found["feature_error"] < 0.1
        and found["attended"].shape == (400, 1)
        and found["smooth"].shape == (3, 32, 32)
        and found["tangent"].shape == exact.shape
    )


# What must hold of the variables that an example leaves behind.
ANSWERS = {
    "one_kernel_six_uses": _six_uses,
    "has_the_distribution_changed": lambda f: (
        f["same"].p_value > 0.1 > 0.02 > max(f["changed"].p_value, f["energy"].p_value)
    ),
    "which_rows_stand_for_all": lambda f: all(3 * ours < random for ours, random in f["errors"].values()),
    "replace_softmax_attention": lambda f: f["exact"] < 1e-6 and f["linear"][1024] < 0.1 < f["linear"][16],
    "how_wide_is_the_blur": lambda f: abs(f["width"] - 0.073) < 1e-3,
    "learn_at_32_predict_at_128": lambda f: max(f["error"], f["between"]) < 1e-4,
    "what_would_a_wide_network_learn": lambda f: f["gaps"][1024] < 0.1 < f["gaps"][4],
    "ridge_on_a_hundred_thousand_rows": lambda f: f["error"] < 0.03,
}


def test_every_example_has_an_answer_to_check():
    assert {path.stem for path in EXAMPLES} == set(ANSWERS)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_example(path, capsys):
    with torch.random.fork_rng():
        found = runpy.run_path(str(path), run_name="__main__")
    assert ANSWERS[path.stem](found)
    assert capsys.readouterr().out.strip()


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_examples_are_short_and_ask_a_question(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 60
    tree = ast.parse(text)
    assert ast.get_docstring(tree)
    if path.stem == "one_kernel_six_uses":
        code = [line for line in text.split('"""')[2].splitlines() if line.strip()]
        assert len(code) <= 20, len(code)
