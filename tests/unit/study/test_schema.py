"""Numbers that no key of a study may have, or not together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.project import TINY
from tests.support.studies import refused


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"lengths": {"train": 16, "test": 8}}, "test 8 is below train 16"),
        ({"seeds": list(range(8_000))}, "more than 10000 runs; give fewer seeds"),
        ({"seeds": list(range(50_000))}, "bytes; files of this kind have 100000 at most"),
        ({"training": {**TINY["training"], "steps": 2**64}}, "training.steps = .*must be at most 1000000"),
        ({"training": {**TINY["training"], "batch": True}}, "training.batch = True: must be an integer"),
        ({"training": {**TINY["training"], "learning_rate": "0.1"}}, "learning_rate = '0.1': must be a number"),
        ({"alignment": {"alpha": 1e308, "schedule": {"kind": "linear", "start": 0.0, "end": 1e10}}}, "is no number"),
        ({"alignment": {"schedule": {"kind": "ratio", "power": 1e6}}}, "leave the range of numbers"),
        (
            {"alignment": {"schedule": {"kind": "exponential", "start": 1e-308, "end": 1e308}}},
            "range of numbers|no number",
        ),
    ],
)
def test_numbers_that_cannot_be_meant_are_refused(folder: Path, changes: dict[str, Any], said: str) -> None:
    refused(folder, said, **changes)
