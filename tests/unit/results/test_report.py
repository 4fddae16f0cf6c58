"""Sections of the report that are words; the page as a reader has it is tested in tests/page."""

from __future__ import annotations

import re
from typing import Any

import pytest

from longshort.results import report
from tests.support.results import ARMS, make_runs


def test_a_setting_in_which_two_arms_differ_is_a_column_and_is_not_said_to_be_shared(study: dict[str, Any]) -> None:
    differing, shared = report._configuration(study).split("<summary>What all arms share</summary>")
    rows = [re.findall('<td class="left">(.*?)</td>', row) for row in differing.split("<tr>")]
    columns = {arm: values for arm, _, *values in filter(None, rows)}
    assert columns == {arm: ["0" if arm == "baseline" else "1"] for arm in ARMS}
    assert "alignment.alpha" in differing and "alignment.alpha" not in shared
    assert "training.steps: 4" in shared and "training.steps" not in differing


@pytest.mark.parametrize("ended", ["diverged", "failed", "running", "missing"])
def test_whatever_has_not_ended_as_it_should_is_a_failure(ended: str) -> None:
    runs = make_runs().assign(status="ok")
    assert "None: every training and every evaluation ended as it should" in report._failures(runs)
    runs.loc[runs.index[-1], "status"] = ended
    said = report._failures(runs)
    assert "None:" not in said and said.count("<tr>") == 1 + 1 and f'<td class="left">{ended}</td>' in said
