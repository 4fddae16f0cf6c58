"""Looks and labels of plots."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longshort.results import drawing


def test_looks_are_distinct_in_grey_too() -> None:
    names = [f"arm{number}" for number in range(30)]
    study = {"arms": [{"name": name, "runs": {"0": name}} for name in names], "tables": []}
    looks = drawing.looks_of(study).values()
    assert len({(look.marker, str(look.line)) for look in looks}) == 30
    assert len({(look.colour, str(look.line)) for look in looks}) == 30


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12), st.floats(0.01, 0.2))
def test_labels_do_not_overlap(wanted: list[float], height: float) -> None:
    places = drawing.spread_apart(wanted, [height] * len(wanted), 0.0, 1.0)
    gap = min(height, 1 / max(len(wanted) - 1, 1))
    ordered = sorted(places)
    assert all(after - before > gap - 1e-9 for before, after in pairwise(ordered))
    assert ordered[0] > -1e-9 and ordered[-1] < 1 + 1e-9
    assert all(places[i] < places[j] for i in range(len(wanted)) for j in range(len(wanted)) if wanted[i] < wanted[j])


def test_labels_that_have_room_stay() -> None:
    assert drawing.spread_apart([0.9, 0.1, 0.5], [0.1] * 3, 0, 1) == pytest.approx([0.9, 0.1, 0.5])
    # Two at one place part evenly: the least movement.
    assert drawing.spread_apart([0.5, 0.5], [0.1, 0.1], 0, 1) == pytest.approx([0.45, 0.55])
