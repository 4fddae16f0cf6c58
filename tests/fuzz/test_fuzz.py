"""What is edited by hand, cut, exchanged or set beside a study is refused by name or taken for what it says."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz.__main__ import fuzz


@pytest.mark.parametrize(
    "mutations", [pytest.param(50, marks=pytest.mark.wide), pytest.param(1000, marks=pytest.mark.long)]
)
def test_every_mutation_comes_to_what_is_stated(finished: Path, tmp_path: Path, mutations: int) -> None:
    """No traceback, no hang, no other exit code than 0 and 1, nothing half-written, no number of what was altered."""
    found = list(fuzz(finished, tmp_path, mutations, seed=1))
    assert len(found) == mutations
    wrong = [f"{one.kind} {one.number}: {one.what}: {one.outcome}: {one.said}" for one in found if not one.good]
    assert not wrong, "\n\n".join(wrong)
