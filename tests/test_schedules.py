"""The factor rises in a line, stays, and falls by half a cosine."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest

from stanley_fast.schedules import warm_up_and_decay


def test_its_three_parts() -> None:
    factor = warm_up_and_decay(1000, warm_up=100, decay=0.3, final=0.2)
    assert [factor(t) for t in range(100)] == pytest.approx([(t + 1) / 100 for t in range(100)])
    assert {factor(t) for t in range(99, 701)} == {1.0}
    falling = [factor(t) for t in range(700, 1001)]
    assert all(a > b for a, b in pairwise(falling))
    assert falling == pytest.approx(
        [0.6 + 0.4 * math.cos(math.pi * n / 300) for n in range(301)], abs=1e-12
    )
    assert factor(1000) == factor(5000) == pytest.approx(0.2)


@pytest.mark.parametrize("settings", [{}, {"decay": 0.0, "final": 0.0}, {"final": 1.0}])
def test_without_rise_and_fall_it_is_1(settings: dict) -> None:
    factor = warm_up_and_decay(50, **settings)
    assert {factor(t) for t in range(60)} == {1.0}


def test_down_to_nothing() -> None:
    factor = warm_up_and_decay(10, decay=1.0, final=0.0)
    assert factor(0) == 1.0
    assert factor(5) == pytest.approx(0.5)
    assert factor(10) == 0.0


def test_a_rise_into_the_fall() -> None:
    factor = warm_up_and_decay(10, warm_up=10, decay=1.0, final=0.0)
    assert factor(4) == pytest.approx(0.5 * (1 + math.cos(0.4 * math.pi)) / 2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"iterations": 0}, "iterations must be 1 or more, got 0"),
        ({"warm_up": -1}, "warm_up must be 0 or more, got -1"),
        ({"warm_up": 0.5}, "warm_up must be an integer, got 0.5"),
        ({"final": -0.1}, "final must be 0 or more and finite, got -0.1"),
        ({"decay": 1.1}, r"decay must be in \[0, 1\], got 1.1"),
        ({"decay": math.nan}, r"decay must be in \[0, 1\], got nan"),
    ],
)
def test_bad_arguments(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        warm_up_and_decay(**{"iterations": 10, **settings})
