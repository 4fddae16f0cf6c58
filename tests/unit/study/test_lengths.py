"""Arms of another training length."""

from __future__ import annotations

from pathlib import Path

import pytest

from longshort.errors import StudyError
from tests.support.studies import arms_yaml, load


def test_an_arm_of_another_length_reads_as_many_tokens_a_step(config: Path) -> None:
    """Of the baseline it differs in length and windows alone: 4 windows of 16 tokens are one of 64, or two of 32."""
    arms_yaml(config, half={"lengths": {"train": 32}, "alignment": {"alpha": 0}})
    study = load(config, arms=["baseline", "constant", "half", "long"])
    baseline = study.runs[study.arm_runs["baseline"][0]]
    for arm, length, windows in (("half", 32, 2), ("long", 64, 1)):
        run = study.runs[study.arm_runs[arm][0]]
        assert (run.length, run.training.batch, run.alignment.max_extra) == (length, windows, length // 2)
        same_training = run.training.model_copy(update={"batch": 4})
        same_views = run.alignment.model_copy(update={"max_extra": 8})
        at_16 = {"length": 16, "training": same_training, "alignment": same_views}
        assert run.model_copy(update=at_16) == baseline
    said = {arm["name"]: arm for arm in study.summary()["arms"]}
    assert [name for name, arm in said.items() if arm.get("reference")] == ["half", "long"]
    assert said["long"]["settings"]["lengths"] == {"train": 64} and list(said)[2:] == ["baseline", "constant"]
    assert study.arm_runs["constant"] == load(config).arm_runs["constant"]


def test_a_forward_holds_as_many_tokens_unless_the_arm_says(config: Path) -> None:
    """Micro-batches are of windows, too; they are no part of the identity."""
    training = {"steps": 6, "batch": 16, "micro_batch": 4, "learning_rate": 0.01}
    arms_yaml(config, own={"lengths": {"train": 64}, "alignment": {"alpha": 0}, "training": {"micro_batch": 2}})
    found = {}
    for arm in ("long", "own"):
        study = load(config, training=training, arms=["baseline", arm])
        one = study.runs[study.arm_runs[arm][0]].training
        found[arm] = study.arm_runs[arm][0], one.batch, one.micro_batch
    assert found["long"][0] == found["own"][0]
    assert found["long"][1:] == (4, 1) and found["own"][1:] == (4, 2)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"training__batch": 6},
            "arm long: 6 windows of 16 tokens a step are no whole number of windows of 64 tokens for each of 1 "
            "process; give training.batch a multiple of 4",
        ),
        ({"training__processes": 2}, "of 64 tokens for each of 2 processes; give training.batch a multiple of 8"),
        ({"lengths": {"train": 16}}, "arm long: lengths.train = 'test': the study has no lengths.test"),
        ({"lengths__test": 256}, r"arm long: lengths.train = 256 tokens: longer than .* \(model.max_length 128\)"),
    ],
)
def test_what_does_not_divide_or_fit_is_refused(config: Path, changes: dict, said: str) -> None:
    with pytest.raises(StudyError, match=said):
        load(config, arms=["baseline", "long"], **changes)


def test_a_length_is_a_number_or_the_word(config: Path) -> None:
    arms_yaml(config, wrong={"lengths": {"train": "longer"}})
    with pytest.raises(StudyError, match="lengths.train = 'longer': must be an integer above 1, or test"):
        load(config)
