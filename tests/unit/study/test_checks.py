"""What a study cannot ask for, whatever its keys say one by one."""

from __future__ import annotations

from pathlib import Path

import pytest

from longshort.errors import StudyError
from longshort.study import resolve
from tests.support.studies import arms_yaml, refused


@pytest.mark.parametrize(
    ("patch", "said"),
    [
        ({"alignment": {"alhpa": 1}}, r"alignment.alhpa = 1: unknown key; did you mean 'alpha'"),
        ({"training": {"step": 1}}, r"training.step = 1: unknown key; did you mean 'steps'"),
        ({"control": "unused"}, r"control = 'unused': an arm is no control of itself"),
    ],
)
def test_an_arm_that_no_study_uses_is_checked_too(config: Path, patch: dict, said: str) -> None:
    arms_yaml(config, unused=patch)
    with pytest.raises(StudyError, match=r"config/arms.yaml, arm unused: " + said):
        resolve.load("tiny")


@pytest.mark.parametrize("name", ["runs", "data", "evaluations", "a b", "$(touch PWNED)", "-x", "x" * 65, "é"])
def test_a_study_has_a_name_that_is_no_other_folder_and_no_command(folder: Path, name: str) -> None:
    refused(folder, "which all studies share|would be a file name", name)
