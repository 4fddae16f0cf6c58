"""Which of an evaluation's items one of several jobs measures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeVar

Item = TypeVar("Item")


class Share(NamedTuple):
    """The share of job `number`, from 0, of `of` jobs."""

    number: int
    of: int

    def of_all(self, items: Sequence[Item]) -> list[tuple[int, Item]]:
        """Every `of`-th item, with its number among all: sorted by what they cost, the jobs get about equal parts."""
        return list(enumerate(items))[self.number :: self.of]


WHOLE = Share(0, 1)
