"""Which results an accepted change of the code covers."""

from __future__ import annotations

from pathlib import Path

import pytest

from longshort.commands import accept
from longshort.errors import StudyError
from longshort.identity.accepted import ACCEPTED
from longshort.identity.code import code_hash
from longshort.metrics.catalog import METRICS
from longshort.records.publish import write_json, write_record
from longshort.study import resolve
from longshort.study.wiring import KEY_TOKENS, TRAINING
from tests.support.project import edit_study


def test_other_settings_of_an_evaluation_and_other_checkpoints_are_not_covered(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project)
    study = resolve.load("tiny")
    run = study.arm_runs["constant"][0]
    change = {"arm": "constant", "runs": [run], "from": "old", "modules": [], "because": "x", "time": "t"}
    trained = {"stage": TRAINING, "to": code_hash(TRAINING, study.runs[run].modules), "records": [study.record(run)]}
    measured = {
        "stage": METRICS["perplexity"].module,
        "to": code_hash(METRICS["perplexity"].module),
        "records": [study.evaluation_record("perplexity", run)],
    }
    write_json(ACCEPTED, [change | trained, change | measured])

    def covered() -> tuple[bool, bool]:
        study = resolve.load("tiny")
        return study.training_code(run) == "old", study.evaluation_code("perplexity", run) == "old"

    assert covered() == (True, True)
    edit_study(project, evaluations__perplexity__lengths=[16, 24, 32])
    assert covered() == (True, False)
    edit_study(project, evaluations__perplexity__lengths=[16, 32], checkpoints=[2, 4, 6])
    assert covered() == (False, False)


def test_a_record_that_was_altered_is_not_accepted(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)
    study = resolve.load("tiny")
    for run in study.runs:
        for record in [study.record(run), *(study.evaluation_record(metric, run) for metric in study.evaluations)]:
            write_json(Path(record), {"status": "ok"})
    with pytest.raises(StudyError, match="is not the record that was published; delete it"):
        accept.accept(study, "constant", "no reason")


def test_what_all_arms_rest_on_is_accepted_with_an_arm(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)
    edit_study(
        project,
        model__long_base=True,
        model__training__batch=8,
        evaluations__longppl={"evaluator": {"kind": "long"}, "short": 16, "stride": 8, "lengths": [64], "documents": 2},
    )
    study = resolve.load("tiny")
    for result in study.results():
        write_record(Path(result.record), {"code": "old", "modules": {}})
    changes = accept.accept(study, "constant", "a comment")
    covered = {record for change in changes for record in change["records"]}
    arms = {"baseline": study.arm_runs["baseline"][0], "constant": study.arm_runs["constant"][0]}
    assert covered == {result.record for result in study.results() if result.run != arms["baseline"]}
    again = resolve.load("tiny")
    assert again.training_code(str(study.long_base)) == "old" != again.training_code(arms["baseline"])
    assert [made.code for made in again.key_tokens()] == ["old"]
    told = {change["stage"] for change in again.summary()["accepted"]}  # what tables and report read
    assert told == {change["stage"] for change in changes} and KEY_TOKENS in told


def test_what_is_not_finished_of_what_arms_share_is_left_out(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)
    edit_study(project, model__long_base=True, model__training__batch=8)
    study = resolve.load("tiny")
    for result in study.results():
        if result.run != study.long_base:
            write_record(Path(result.record), {"code": "old", "modules": {}})
    assert accept.accept(study, "constant", "a comment")
