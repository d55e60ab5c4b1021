"""Arguments that learners share: every public one refuses what is none, and names it."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest

from mercer import learn
from mercer.kernels import Gaussian

WRONG: list[tuple[str, Any, str]] = [
    ("kernel", "rbf", "kernel is str; expected a mercer Kernel"),
    ("kernel", Gaussian, "kernel is .*; expected a mercer Kernel"),
    ("standardize", "yes", "standardize is 'yes'; expected True or False, or None"),
    ("learn", "no", "learn is 'no'; expected True or False"),
    ("time_budget", -1, "time_budget is -1; expected a number > 0, or None"),
    ("time_budget", "5s", "time_budget is '5s'"),
    ("progress", 3, "progress is 3; expected something to call"),
    ("alpha", True, "alpha is True"),
    ("noise", -1.0, "noise is -1.0"),
    ("rank", "x", "rank is 'x'; expected a whole number"),
    ("landmarks", "all", "landmarks"),
]
LEARNERS = [
    learner for name in learn.__all__ if inspect.isclass(learner := getattr(learn, name)) and hasattr(learner, "fit")
]
CASES = [
    (learner, *case)
    for learner in LEARNERS
    for case in WRONG
    if case[0] in inspect.signature(learner).parameters and learner is not learn.LocalConformal
]


@pytest.mark.parametrize(("learner", "name", "value", "message"), CASES, ids=lambda v: getattr(v, "__name__", None))
def test_arguments_that_are_none_are_named(learner: Any, name: str, value: Any, message: str) -> None:
    x = np.random.default_rng(0).normal(size=(30, 2))
    y = x[:, 0] > 0 if learner.__name__.endswith(("Classifier", "SVC")) else x[:, 0]
    with pytest.raises((ValueError, TypeError), match=message):
        learner(**{name: value}).fit(x, y)
