"""Shared set-up: float64 references on one thread, and the table of reasoned exceptions at the end of a run."""

from __future__ import annotations

import pytest
import torch

from tests.catalogue import CANNOT


@pytest.fixture(autouse=True, scope="session")
def _usual_rates(tmp_path_factory):
    """The planner's choices do not depend on what was measured on this machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def _settled():
    torch.set_num_threads(1)  # the runner uses one process per core
    torch.manual_seed(0)  # what draws without a generator draws the same in every order of the tests
    yield


@pytest.fixture
def cannot(request: pytest.FixtureRequest):
    """cannot(case, property): skip with the written reason when the pair stands in the table, else run."""

    def look_up(case: str, what: str) -> None:
        reason = CANNOT.get((case, what))
        if reason is not None:
            pytest.skip(f"cannot: {reason}")

    return look_up


def pytest_terminal_summary(terminalreporter):
    skipped = [r for r in terminalreporter.stats.get("skipped", []) if "cannot: " in str(r.longrepr)]
    terminalreporter.write_line(f"{len(skipped)} cells stand in a table of reasoned exceptions")
