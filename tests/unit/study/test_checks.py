"""What a study cannot ask for, whatever its keys say one by one."""

from __future__ import annotations

from pathlib import Path

import pytest

from longshort.errors import StudyError
from longshort.study import resolve
from tests.support.studies import arms_yaml, check, refused


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


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            {"claims": ["constant"], "primary": None},
            r"claims = \['constant'\]: of the primary number, and the study names",
        ),
        (
            {"margin": 2.0, "primary": None},
            "margin = 2.0: of the primary number, and the study names none; give primary",
        ),
        ({"claims": ["constnat"]}, r"claims = 'constnat': the study has no such arm; name one of baseline, constant"),
        ({"claims": ["baseline"]}, "claims = 'baseline': an arm without a control is compared with the baseline"),
        ({"claims": ["constant", "constant"]}, "claims"),
        ({"margin": 0.0}, "margin"),
    ],
)
def test_what_is_claimed_is_of_the_primary_number_and_of_an_arm_that_is_compared(
    folder: Path, given: dict, said: str
) -> None:
    refused(folder, said, **{"primary": "perplexity@32", **given})


def test_a_training_is_asked_to_save_when_it_has_begun(folder: Path) -> None:
    refused(folder, "save_minutes = 240 leaves a training no minute", needs={"save_minutes": 240})
    check(folder, needs={"training_minutes": 1})


def test_temperatures_are_fitted_on_documents_that_there_are(folder: Path) -> None:
    data = {"corpus": {"kind": "text", "path": "corpus"}, "validation": 0, "test": 0.3}
    perplexity = {"lengths": [16, 32], "documents": 3}
    refused(
        folder, "temperature_documents = 8: data.validation is 0", data=data, evaluations={"perplexity": perplexity}
    )
    check(folder, data=data, evaluations={"perplexity": {**perplexity, "temperature_documents": 0}})


def test_several_jobs_share_out_what_is_a_job_of_its_own(folder: Path) -> None:
    longbench = {"source": {"kind": "stand-in", "items_per_task": 1}, "max_length": 128, "max_new_tokens": 4, "jobs": 2}
    evaluations = {"longbench_e": longbench}
    check(folder, evaluations=evaluations, needs={"evaluations": "apart"})
    for together in ({"evaluations": "together"}, {}):
        refused(folder, r"evaluations.longbench_e.jobs = 2: .* give apart", evaluations=evaluations, needs=together)


@pytest.mark.parametrize("name", ["runs", "data", "evaluations", "a b", "$(touch PWNED)", "-x", "x" * 65, "é"])
def test_a_study_has_a_name_that_is_no_other_folder_and_no_command(folder: Path, name: str) -> None:
    refused(folder, "which all studies share|would be a file name", name)
