"""What a run of the engine computes again after a change, and what it finds finished."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas
import pytest
import yaml

from tests.support.project import TINY, edit, edit_study, make_project, planned, run_python, run_snakemake, write_study
from tests.support.reruns import AFTER, RESULTS, files, reverse_ages
from tests.support.waiting import wait_until

# As `training from step 2 to 4` in the log of a training.
TRAINED = re.compile(r"training from step (\d+) to (\d+)")


def record_of(project: Path, arm: str) -> Path:
    """The record that a training of the arm's first seed publishes, or of the base."""
    code = f"s = resolve.load('tiny'); print(s.record(s.bases[0] if {arm!r} == 'base' else s.arm_runs[{arm!r}][0]))"
    return project / run_python(project, "-c", f"from longshort.study import resolve; {code}").stdout.strip()


def published(record: Path) -> tuple[dict[str, Any], pandas.DataFrame, list[tuple[int, int]]]:
    """Weights by step, the log without its timing, and the steps (from, to) that the job trained."""
    said = [(int(first), int(last)) for first, last in TRAINED.findall(record.with_suffix(".log").read_text())]
    weights = {step: one["files"] for step, one in json.loads(record.read_text())["checkpoints"].items()}
    return weights, pandas.read_parquet(record.with_suffix(".parquet")).drop(columns="tokens_per_second"), said


def train(project: Path, arm: str) -> tuple[dict[str, Any], pandas.DataFrame, list[tuple[int, int]]]:
    record = record_of(project, arm)
    run_snakemake(project, str(record.relative_to(project)))
    return published(record)


def without_longbench(project: Path) -> None:
    study = yaml.safe_load((project / "config/studies/tiny.yaml").read_text())
    del study["evaluations"]["longbench_e"]
    write_study(project, study)


def test_an_added_checkpoint_leaves_those_before_and_after_it_as_they_are(finished_copy: Path) -> None:
    """It is trained from the start, as what is kept of the step before it are weights alone."""
    record = record_of(finished_copy, "constant")
    before, log, _ = published(record)
    work = finished_copy / "work" / json.loads(record.read_text())["run_id"]
    kept = {path: path.stat().st_mtime_ns for path in files(work) if path.parent.name.startswith("checkpoint")}
    edit_study(finished_copy, checkpoints=[2, 4, 6])
    after, log_after, trained = train(finished_copy, "constant")
    assert trained == [(0, 4)]
    assert kept == {path: path.stat().st_mtime_ns for path in kept}
    assert {step: after[step] for step in ("2", "6")} == before and after["4"] not in before.values()
    pandas.testing.assert_frame_equal(log_after, log, check_exact=True)


@pytest.mark.wide
def test_a_later_last_step_goes_on_where_no_schedule_knows_it(finished_copy: Path) -> None:
    edit_study(finished_copy, training__learning_rate_schedule="constant", training__steps=4, checkpoints=[4])
    short, _, trained = train(finished_copy, "constant")
    assert trained == [(0, 4)]
    edit_study(finished_copy, training__steps=6, checkpoints=[4, 6])
    weights, log, trained = train(finished_copy, "constant")
    assert trained == [(4, 6)] and weights["4"] == short["4"]
    # Bit for bit what is trained in one go.
    record = record_of(finished_copy, "constant")
    shutil.rmtree(finished_copy / "work" / json.loads(record.read_text())["run_id"])
    record.unlink()
    whole, whole_log, trained = train(finished_copy, "constant")
    assert trained == [(0, 6)] and whole == weights
    pandas.testing.assert_frame_equal(whole_log, log, check_exact=True)


def test_a_later_last_step_starts_anew_where_a_schedule_ends_there(finished_copy: Path) -> None:
    edit_study(finished_copy, training__steps=8, checkpoints=[6, 8])  # the learning rate falls along a cosine
    assert train(finished_copy, "constant")[2] == [(0, 8)]


def prepared_again(project: Path, _: Path) -> Path:
    next(project.glob("results/data/*/manifest.json")).unlink()
    return project


def forgotten(project: Path, folder: Path) -> Path:
    """A fresh clone with the results but not the engine's own records, each input newer than what was made of it."""
    clone = make_project(folder / "clone", TINY)
    shutil.copy(project / "config/studies/tiny.yaml", clone / "config/studies/tiny.yaml")
    for name in ("modules", "results", "work"):
        shutil.copytree(project / name, clone / name, symlinks=True)
    reverse_ages(clone)
    return clone


@pytest.mark.parametrize(
    ("lose", "options"),
    [pytest.param(prepared_again, ["--forcerun", "data"], marks=pytest.mark.wide), (forgotten, [])],
)
def test_what_is_finished_is_found(
    finished_copy: Path, tmp_path: Path, lose: Callable[[Path, Path], Path], options: list[str]
) -> None:
    """The engine runs the jobs; each of them finds the same inputs, and publishes what it once computed."""
    edit_study(finished_copy, arms=["baseline"], overrides={})
    without_longbench(finished_copy)
    project = lose(finished_copy, tmp_path)
    runs = [record_of(project, arm).parents[1] for arm in ("base", "baseline")]
    before = {path: path.read_bytes() for run in runs for path in run.rglob("*.parquet")}
    run_snakemake(project, "metrics", *options)
    logs = {path: path.read_text() for run in runs for path in run.rglob("*.log")}
    trained = [path for path in logs if path.parent.name == "training"]
    measured = [path for path in logs if path.parents[1].name in ("perplexity", "misalignment")]
    assert len(trained) == 2 and not any(TRAINED.search(logs[path]) for path in trained)
    assert len(measured) == 4 and all("found finished" in logs[path] for path in measured)
    assert {path: path.read_bytes() for path in before} == before


def test_other_items_are_measured_anew(finished_copy: Path) -> None:
    edit(finished_copy, "src/longshort/evaluation/standin.py", "type=int, default=0", "type=int, default=1")
    run = record_of(finished_copy, "constant").parents[1].relative_to(finished_copy)
    numbers = next(finished_copy.glob(f"{run}/longbench_e/*/2-6.parquet"))
    run_snakemake(finished_copy, str(numbers.relative_to(finished_copy)))
    assert "numbers in" in numbers.with_suffix(".log").read_text()


@pytest.mark.wide
def test_one_byte_of_a_training_document_trains_anew(project: Path) -> None:
    """One of a test document does not: what is trained on is the same. Measured is anew what either was changed for."""
    edit_study(project, arms=["baseline"], evaluations={"perplexity": TINY["evaluations"]["perplexity"]})

    def change(split: str) -> list[list[tuple[int, int]]]:
        """The steps that the base and the arm trained."""
        sources = map(json.loads, next(project.glob("results/data/*/sources.jsonl")).read_text().splitlines())
        document = project / "corpus" / min(source["name"] for source in sources if source["split"] == split)
        content = document.read_bytes()
        document.write_bytes(bytes([content[0] ^ 1]) + content[1:])
        assert planned(project) == {"data": 1, "train": 2, "perplexity": 2, **AFTER}
        run_snakemake(project, "metrics")
        measured = [path.read_text() for path in project.glob("results/runs/*/perplexity/*/*.log")]
        assert len(measured) == 2 and all("numbers in" in log and "found finished" not in log for log in measured)
        return [published(record_of(project, arm))[2] for arm in ("base", "baseline")]

    run_snakemake(project, "metrics")
    assert change("test") == [[], []]
    assert change("train") == [[(0, 4)], [(0, 6)]]


def test_an_arm_that_is_taken_out_loses_no_results(finished_copy: Path) -> None:
    before = {path for folder in ("runs", "data", "evaluations") for path in files(finished_copy / "results" / folder)}
    before |= set(files(finished_copy / "work"))
    edit_study(finished_copy, arms=["baseline", "constant"], overrides={})
    run_snakemake(finished_copy, "metrics")
    assert before <= set(files(finished_copy))
    metrics = pandas.read_parquet(finished_copy / "results/tiny/metrics.parquet")
    assert set(metrics["arm"]) == {"(base)", "baseline", "constant"}


@pytest.mark.wide
def test_a_killed_study_goes_on_where_it_was(finished_copy: Path) -> None:
    """Engine and jobs are killed together, between and within jobs: what was finished is not touched. What a killed
    training's numbers are: tests/workflow/test_faults.py. A killed engine whose jobs live: there, and on a cluster in
    tests/slurm/test_study.py."""
    edit_study(finished_copy, seeds=[0, 1], arms=["baseline", "constant"], overrides={})
    edit_study(finished_copy, evaluations={"perplexity": TINY["evaluations"]["perplexity"]})
    trainings = "results/runs/*/training/2-6"
    old = set(finished_copy.glob("results/runs/*/*/**/2-6.log"))
    engine = subprocess.Popen(
        [sys.executable, "-m", "snakemake", "metrics", "--cores", "1", "--config", "study=tiny"],
        cwd=finished_copy,
        env={**os.environ, "PYTHONPATH": str(finished_copy / "src")},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    # One job after the other: where a second one has a log, the first one is finished.

    def logs() -> set[Path]:
        return set(finished_copy.glob("results/runs/*/*/**/2-6.log")) - old

    wait_until(lambda: len(logs()) >= 2, lambda: f"exit code {engine.poll()}")
    os.killpg(engine.pid, signal.SIGKILL)
    engine.wait()
    first = min(logs(), key=lambda path: path.stat().st_mtime)
    finished = {path: path.stat().st_mtime_ns for path in first.parent.glob("2-6.*")}
    assert len(finished) == 4  # log, record, numbers and heartbeat

    run_snakemake(finished_copy, "--unlock")
    run_snakemake(finished_copy, "metrics", "--rerun-incomplete")
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    assert len(list(finished_copy.glob(f"{trainings}.json"))) == 4 + 2
    assert planned(finished_copy) == {"tables": 1, "plots": 1, "report": 1}
    edit_study(finished_copy, seeds=[0])
    assert planned(finished_copy) == RESULTS
