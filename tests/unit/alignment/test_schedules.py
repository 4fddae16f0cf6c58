"""Schedules against their formulas, by hand."""

from __future__ import annotations

import math

import pytest

from longshort.alignment import schedules


def test_values_at_the_ends_and_in_the_middle() -> None:
    at = (0, 5, 10)  # of 11 steps: u = 0, 1/2, 1
    assert [schedules.linear(step, 11, 0.2, 1.0) for step in at] == pytest.approx([0.2, 0.6, 1.0])
    assert [schedules.cosine(step, 11, 0.2, 1.0) for step in at] == pytest.approx([0.2, 0.6, 1.0])
    assert schedules.cosine(2, 9, 0.0, 1.0) == pytest.approx((1 - math.sqrt(0.5)) / 2)  # u = 1/4
    assert [schedules.exponential(step, 11, 0.01, 1.0) for step in at] == pytest.approx([0.01, 0.1, 1.0])
    assert schedules.ratio(1024, 128, 0.5) == pytest.approx(math.sqrt(8))
    curriculum = [schedules.ratio_curriculum(step, 11, 1024, 128, 1.0) for step in at]
    assert curriculum == pytest.approx([1.0, 4.5, 8.0])


def test_one_step_is_the_start() -> None:
    assert schedules.linear(0, 1, 0.3, 1.0) == 0.3


def test_scaling_keeps_the_shape() -> None:
    values = [1.0, 2.0, 6.0]
    assert schedules.scaled_to_mean(values, 1.5) == pytest.approx([0.5, 1.0, 3.0])
