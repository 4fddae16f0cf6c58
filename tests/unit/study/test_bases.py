"""The bases with their context extended, the one that is trained at the test length, and LongPPL's evaluator that it
is."""

from __future__ import annotations

from pathlib import Path

import pytest

from longshort.errors import StudyError
from longshort.study.resolve import ResolvedStudy
from tests.support.studies import load

LONGPPL = {"evaluator": "long", "short": 8, "stride": 8, "gain": 0.1, "lengths": [32], "documents": 3}


def with_evaluator(config: Path, **changes: object) -> ResolvedStudy:
    return load(config, **{"model__long_base": True, "evaluations__longppl": LONGPPL, **changes})


def test_a_long_base_is_another_run_of_as_many_tokens_and_changes_no_other(config: Path) -> None:
    without, study = load(config), load(config, model__long_base=True)
    assert study.long_base is not None and study.long_base not in without.runs
    assert (study.bases, study.arm_runs) == (without.bases, without.arm_runs)
    base, long = study.runs[study.bases[0]], study.runs[study.long_base]
    assert (long.length, long.training.batch) == (64, 1) and (base.length, base.training.batch) == (16, 4)
    at_16 = {"length": 16, "training": long.training.model_copy(update={"batch": 4})}
    assert long.model_copy(update=at_16) == base
    assert study.steps_of(study.long_base) == "4" and study.base_record(study.long_base) == []
    assert study.names()[study.long_base] == "long base" and "(the base and a long one included)" in study.in_words()
    assert study.summary()["long_base"] == study.long_base and "long_base" not in without.summary()
    assert study.evaluations == without.evaluations


def test_an_extended_study_has_its_bases_extended_too_and_no_other_run_changes(config: Path) -> None:
    rope = {"kind": "yarn", "factor": 4}
    without = load(config, seeds=[0, 4], model__seed="per-run")
    study = load(config, seeds=[0, 4], model__seed="per-run", model__rope=rope)
    assert without.extended_bases == {} and "extended_bases" not in without.summary()
    assert study.bases == without.bases and set(study.runs) == {
        *study.bases.values(),
        *study.extended_bases.values(),
        *(run for runs in study.arm_runs.values() for run in runs.values()),
    }
    for seed, run in study.extended_bases.items():
        spec = study.runs[run]
        assert (spec.base, spec.rope) == (study.bases[seed], study.study.model.rope)
        assert (spec.training, spec.seed) == (None, seed)
        assert study.base_record(run) == [study.record(study.bases[seed])] and study.steps_of(run) == "4"
        assert study.names()[run] == f"extended base, {seed}"
    assert study.summary()["extended_bases"] == {str(seed): run for seed, run in study.extended_bases.items()}
    one = load(config, seeds=[0, 4], model__rope=rope)
    assert len(set(one.extended_bases.values())) == 1 and "(the base, extended too, included)" in one.in_words()


def test_one_long_base_serves_all_seeds(config: Path) -> None:
    """Key tokens are found once for an evaluator: it is the first seed's, or that of the one base."""
    study = with_evaluator(config, seeds=[3, 0], model__seed="per-run")
    assert study.runs[study.long_base].seed == 3 and len(study.runs) == 2 + 1 + 4
    one = with_evaluator(config, seeds=[3, 0])
    assert one.runs[one.long_base].seed == 0


def test_key_tokens_and_longppl_are_of_the_base_that_finds_them(config: Path) -> None:
    study, other = with_evaluator(config), with_evaluator(config, model__seed=1)
    evaluator = study.evaluations["longppl"][1].settings.evaluator
    assert (evaluator.kind, evaluator.run, evaluator.steps) == ("long", study.long_base, "4")
    assert study.evaluations["longppl"][0] != other.evaluations["longppl"][0]
    found = [one.evaluations["longppl"][1].settings.key_tokens.id for one in (study, other)]
    assert found[0] != found[1]
    # Its job waits for the base, is shown among the others, and takes nothing from the hub.
    assert study.evaluator_record() == [study.record(study.long_base)]
    job = study.results()[-1]
    assert (job.stage, job.measured) == ("key_tokens", study.record(study.long_base)) and found[0] in job.record
    assert study.names()[job.run] == "all" and study.hub_parts() == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model__long_base": False}, "evaluator = 'long': the study trains no long base; give model.long_base true"),
        ({"lengths": {"train": 16}}, "model.long_base = True: .* lengths.test, which is None; give one above"),
        ({"model__training__batch": 6}, "long_base = True: 6 windows .* give model.training.batch a multiple of 4"),
        (
            {"evaluations__longppl": {**LONGPPL, "evaluator": {"kind": "long", "run": "0" * 16}}},
            "run and steps are found by the program; write only `evaluator: long`",
        ),
        ({"evaluations__longppl": {**LONGPPL, "evaluator": "longer"}}, "evaluations.longppl.evaluator"),
    ],
)
def test_what_no_long_base_can_be_is_refused(config: Path, changes: dict, said: str) -> None:
    with pytest.raises(StudyError, match=said):
        with_evaluator(config, **changes)
