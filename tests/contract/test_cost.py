"""What planned jobs are estimated to take: the steps that they would train, from what finished ones took."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from longshort.commands import cost
from longshort.commands.cost import Work
from longshort.commands.resuming import Resuming
from longshort.records import layout
from longshort.records.publish import read_record
from longshort.study import resolve
from longshort.training import checkpoints
from tests.support.project import edit_study

OTHER_CODE = "0" * 16


@pytest.fixture
def here(finished_copy: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(finished_copy)
    return finished_copy


def training(study: resolve.ResolvedStudy, arm: str = "constant") -> Work:
    return Work("train", study.arm_runs[arm][0], study.steps_key)


def steps(study: resolve.ResolvedStudy, *works: Work, **given: Any) -> float:
    """How many steps the seconds of the last job stand for, as finished trainings tell."""
    found = cost.seconds_of(study, list(works), **given)
    whole = cost.seconds_of(study, list(works), data_anew=True)[works[-1]]
    assert "finished trainings of this model" in whole[1]
    return 6 * found[works[-1]][0] / whole[0] if found[works[-1]][0] != cost.JOB_START else 0


def test_only_the_missing_steps_are_counted(here: Path) -> None:
    study = resolve.load("tiny")
    assert steps(study, training(study)) == 0  # it is only published again
    edit_study(here, checkpoints=[2, 3, 4, 6])
    study = resolve.load("tiny")
    assert steps(study, training(study)) == pytest.approx(4)  # to 4, as of 2 there are weights alone
    assert cost.estimate(study, [training(study)], 1).storage_bytes == pytest.approx(
        2 / 4 * cost.estimate(study, [training(study)], 1, data_anew=True).storage_bytes
    )
    shutil.rmtree(here / "work")
    assert steps(study, training(study)) == pytest.approx(6)


def test_other_code_or_another_base_trains_all_steps(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = resolve.load("tiny")
    base = Work("train", study.bases[0], str(study.base_steps))
    assert steps(study, base, training(study)) == 0  # the base is only published again, so the arm is
    code = type(study).training_code
    for changed in ({study.bases[0]}, set(study.runs)):
        monkeypatch.setattr(
            type(study),
            "training_code",
            lambda study, run, changed=changed: OTHER_CODE if run in changed else code(study, run),
        )
        assert steps(study, base, training(study)) == pytest.approx(6)


def test_a_later_last_step_counts_from_where_it_goes_on(here: Path) -> None:
    constant_rate = {"training__learning_rate_schedule": "constant", "checkpoints": [6, 8]}
    edit_study(here, training__steps=8, **constant_rate)
    study = resolve.load("tiny")
    run = study.arm_runs["constant"][0]
    assert Resuming(study).pieces(run, [6, 8]) == [(0, [6, 8])]
    base = checkpoints.last_of(read_record(Path(study.record(study.bases[0]))))
    assert base is not None
    manifest = read_record(Path(f"results/data/{study.data}/manifest.json"))
    spec = json.loads(study.texts[run])
    work = Path("work") / checkpoints.identity_of(spec, study.training_code(run), manifest, base["files"])
    checkpoints.folder(work, 6).mkdir(parents=True)
    (checkpoints.folder(work, 6) / "optimizer.pt").touch()
    checkpoints.seal(checkpoints.folder(work, 6))
    assert Resuming(study).pieces(run, [6, 8]) == [(6, [8])]
    assert Resuming(study, data_anew=True).pieces(run, [6, 8]) == [(0, [6, 8])]


def test_the_first_finished_training_corrects_those_of_other_kinds(here: Path) -> None:
    """By hand: the base reads one view with two processes, an arm two with one. With an adapter it is another kind."""
    edit_study(here, training__adapter={"kind": "lora", "rank": 2, "alpha": 2, "targets": ["q_proj"]})
    study = resolve.load("tiny")
    (seconds, source) = cost.seconds_of(study, [training(study)])[training(study)]
    spent = read_record(Path(study.record(study.bases[0])))["spent"]
    a_step_of_the_base, without_weight_gradients = 2 * spent["seconds"] / spent["steps"], 4 / 6
    assert seconds == pytest.approx(cost.JOB_START + 6 * 2 * without_weight_gradients * a_step_of_the_base)
    assert "as 1 finished trainings of this study reached" in source


def test_finished_work_is_read_once(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: Counter[Path] = Counter()

    def counted(path: Path, **how: Any) -> dict[str, Any]:
        read[path] += 1
        return read_record(path, **how)

    monkeypatch.setattr(cost, "read_record", counted)
    study = resolve.load("tiny")
    work = [
        Work(rule, run, study.steps_of(run)) for run in study.runs for rule in ("train", "perplexity", "misalignment")
    ]
    cost.estimate(study, work, 1)
    assert len(read) > 10 and max(read.values()) == 1


def test_operations_are_counted_of_the_whole_work_finished_or_not(here: Path) -> None:
    """By hand: 3 blocks of 4 x 16 x 16 and 3 x 16 x 32 weights; 6 steps of 4 windows of 16 tokens, twice."""
    study = resolve.load("tiny")
    cost.write_down(study)
    planned = read_record(Path("results/tiny/planned.json"))
    weights = 3 * (4 * 16 * 16 + 3 * 16 * 32)
    for run, views, steps in ((study.bases[0], 1, 4), (study.arm_runs["constant"][0], 2, 6)):
        said = planned[f"{run}/training/{study.steps_of(run)}"]["operations"]
        assert said == pytest.approx(6 * weights * steps * 4 * 16 * views, rel=0.02)  # the norms are hundredths


def test_what_is_written_down_is_the_time_of_all_processes_of_a_job(here: Path) -> None:
    """The base, whose checkpoints are there, is published by two: a start of a job each. What is done needs no time."""
    study = resolve.load("tiny")
    base = f"{study.bases[0]}/training/{study.base_steps}"
    Path("results/tiny/planned.json").unlink()
    Path(study.record(study.bases[0])).unlink()
    cost.write_down(study)
    planned = read_record(Path("results/tiny/planned.json"))
    assert {job: said["seconds"] for job, said in planned.items() if "seconds" in said} == {base: 2 * cost.JOB_START}


def test_a_training_that_is_published_again_still_tells_what_it_took(here: Path) -> None:
    """And one that diverged counts the steps until then: this one at its first."""
    study = resolve.load("tiny")
    spent = {arm: read_record(Path(study.record(study.arm_runs[arm][0])))["spent"]["steps"] for arm in study.arms}
    assert spent["constant"] == 6 and 0 < spent["step-linear"] < 6
    # All arms read two views of as many tokens a step: what constant takes is six steps of the median one.
    known = [read_record(Path(study.record(run)))["spent"] for run in study.runs if not study.is_base(run)]
    a_step = median(each["seconds"] / each["steps"] for each in known)
    anew = cost.seconds_of(study, [training(study)], data_anew=True)[training(study)]
    assert anew == (pytest.approx(6 * a_step), "from 4 finished trainings of this model")


def test_an_evaluation_takes_as_long_at_each_checkpoint(here: Path) -> None:
    study = resolve.load("tiny")
    known = {run: read_record(Path(study.evaluation_record("perplexity", run)))["seconds"] for run in study.runs}
    one = median(seconds / (1 if study.is_base(run) else 2) for run, seconds in known.items())
    run = study.arm_runs["constant"][0]
    for steps, times in (("6", 1), ("2-6", 2), ("2-4-6", 3)):
        asked = Work("perplexity", run, steps)
        assert cost.seconds_of(study, [asked])[asked][0] == pytest.approx(times * one)


def test_key_tokens_wait_for_their_evaluator_and_longppl_for_them(here: Path) -> None:
    """With enough places at a time the whole takes what the longest chain does: base, search, measurement."""
    longppl = {"evaluator": "long", "short": 16, "stride": 8, "lengths": [64], "documents": 3}
    edit_study(here, evaluations__longppl=longppl, model__long_base=True, model__training__batch=8)
    study = resolve.load("tiny")
    assert study.long_base is not None
    base = Work("train", study.long_base, "4")
    search, measured = Work(layout.KEY_TOKENS, study.data, ""), Work("longppl", study.bases[0], "4")
    seconds = {base: 50.0, search: 7.0, measured: 3.0, training(study): 20.0}
    assert cost._wall_seconds(study, seconds, 4) == 60
    assert cost._wall_seconds(study, seconds, 1) == 50 + 7 + 3 + 20
    planned = cost.estimate(study, [search], 1)
    # 3 documents, each once whole and in 6 windows of 24 tokens, 2 operations for each of the blocks' weights.
    operations = 2 * 3 * (4 * 16 * 16 + 3 * 16 * 32) * 3 * (64 + 6 * 24)
    reached, _ = cost._Known(study, [search], False).reached or (cost.THROUGHPUT["cpu"], 0)
    assert planned.wall_seconds == pytest.approx(cost.JOB_START + operations / reached)
    assert any(source.startswith("key_tokens: counted") for source in planned.sources)
