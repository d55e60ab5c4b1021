"""Clocks of fits: seconds where they were given, counted work where they were not, and the user's word over both."""

from __future__ import annotations

import math
import time

import pytest

from mercer.learn.clock import CUBED, SQUARED, UNTOLD, Clock, Room


def ago(seconds: float | None, past: float, **more: float) -> Clock:
    """A clock of so many seconds that was started `past` seconds ago."""
    return Clock(seconds, time.perf_counter() - past, **more)


@pytest.mark.parametrize("seconds", [None, 1e6])
def test_an_interrupt_ends_a_fit_that_has_time_left(seconds: float | None) -> None:
    clock = Clock.of(seconds)
    assert not clock.over() and not clock.late()
    clock.interrupted = True
    assert clock.over() and clock.late() and clock.over(10.0) and clock.late(10.0)


def test_with_seconds_only_time_counts() -> None:
    clock = ago(1000.0, 300.0)
    clock.count(1e9)
    assert clock.limit() == 1000.0 and clock.gone() == pytest.approx(300.0, abs=60.0)
    assert not clock.over() and not clock.late() and not clock.over(0.5) and not clock.late(0.5)
    assert clock.over(0.2) and clock.late(0.2)
    past = ago(1000.0, 2000.0)
    assert past.over() and past.late() and not past.over(3.0) and not past.late(3.0)


def test_without_seconds_only_counted_work_does() -> None:
    clock = ago(None, 1e6, patience=10.0)
    assert clock.limit() == 10.0 and clock.gone() == 0.0 and not clock.over() and Clock.of(None).limit() == UNTOLD
    clock.count(4.0)
    clock.count(2.0)
    assert clock.gone() == 6.0 and clock.over(0.5) and not clock.over(0.7)
    clock.count(4.0)
    assert not clock.over()  # all of it, and no more
    clock.count(0.5)
    assert clock.over() and not clock.late() and not clock.late(0.0)  # no seconds were given to be late of


def test_steps_fit_in_what_is_left_of_their_share() -> None:
    clock = ago(None, 1e6, patience=10.0)
    clock.count(3.0)
    counted, measured = Room(clock, 0.5, 0.0, 100, 7), Room(clock, 0.5, 0.25, 100, 7)
    assert counted.seconds(2000) == pytest.approx(CUBED * 2000**3 + SQUARED * 2000**2 * 7, rel=1e-12)
    assert measured.seconds(100) == 0.25 and measured.seconds(400) == pytest.approx(0.25 * 4**2.5, rel=1e-12)
    assert measured.fits(100, 8) and not measured.fits(100, 8.1)  # 0.5 * 10 - 3 = 2 seconds
    most = 2.0 / counted.seconds(2000)
    assert counted.fits(2000, math.floor(most)) and not counted.fits(2000, math.ceil(most))
    clock.count(3.0)
    assert not measured.fits(100, 1) and Room(clock, 1.0, 0.25, 100, 7).fits(100, 16)
