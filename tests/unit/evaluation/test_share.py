"""Shares of several jobs are all of the items, each once, by the numbers that one job gives them."""

from __future__ import annotations

import pytest

from longshort.evaluation.share import WHOLE, Share


@pytest.mark.parametrize("jobs", [1, 2, 3, 7])
def test_shares_are_the_whole_in_equal_parts(jobs: int) -> None:
    items = ["a", "b", "c", "d", "e"]
    parts = [Share(number, jobs).of_all(items) for number in range(jobs)]
    assert sorted(one for part in parts for one in part) == list(enumerate(items)) == WHOLE.of_all(items)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
