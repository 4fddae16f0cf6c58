"""A study on a real cluster whatever happens to its jobs: its numbers are those of a quiet run on one machine."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import pytest

from longshort.training import checkpoints
from tests.slurm.cluster import Cluster
from tests.slurm.study import (
    ARMS,
    Driver,
    allocated,
    assert_equal_numbers,
    assert_equal_training,
    assert_went_on,
    faulty_study,
    flip_a_bit,
    heartbeat_of,
    jobs_of,
    log_of,
    record_of,
    step_of,
    without,
)
from tests.support.project import ROOT, SYNTHETIC, make_project
from tests.support.waiting import BY_A_PROCESS, PATIENCE, wait_until

pytestmark = pytest.mark.slurm


def test_a_study_whose_jobs_are_killed_ends_as_if_nothing_had_happened(
    cluster: Cluster, reference: Path, tmp_path: Path
) -> None:
    """Everything as typed: the base on two nodes, of which one loses its rank; then SIGKILL, scancel, the death of one
    rank of two, a divergence."""
    project = make_project(tmp_path / "project", faulty_study())
    shutil.copytree(ROOT / "slurm", project / "slurm")
    driver = Driver(cluster, project)
    process = driver.start()

    base = driver.training("base", 5)
    os.kill(base.rank_on("n2"), signal.SIGKILL)
    # Its other rank does not wait for it, which would take half an hour.
    assert cluster.wait_for(base.job) == "FAILED", driver.said()
    killed = driver.training("baseline", 5)
    os.killpg(killed.group, signal.SIGKILL)
    cancelled = driver.training("constant", 5)
    cluster.run("scancel", cancelled.job)
    one_dies = driver.training("hidden", 5)
    os.kill(one_dies.ranks[-1], signal.SIGKILL)
    second = driver.start()
    assert second.wait(timeout=PATIENCE) != 0
    assert f"study tiny is driven by another snakemake, process {process.pid} on" in driver.log.read_text()
    assert process.wait(timeout=PATIENCE) == 0, driver.said()

    assert_equal_numbers(project, reference)
    assert_went_on(project, "base", "baseline", "constant", "hidden")
    for arm in ("base", "baseline", "constant", "hidden"):
        beat = heartbeat_of(project, arm)
        assert beat is not None and (beat["state"], beat["attempt"]) == ("finished", 2), (arm, beat)
        assert len(jobs_of(cluster, project, "train", arm)) == 2
    assert jobs_of(cluster, project, "evaluate", "constant") == ["COMPLETED"]
    assert "diverged" in (project / "results/tiny/tables/main.md").read_text()
    assert jobs_of(cluster, project, "train", "hidden+output") == ["COMPLETED"]
    assert jobs_of(cluster, project, "train", "hidden")[0] == "FAILED"
    # The base had a GPU on each of two nodes, and the arm of two processes both of its own on one.
    assert allocated(cluster, project, "base")[0] == "billing=2,cpu=2,gres/gpu=2,mem=8000M,node=2"
    assert "gres/gpu=2" in (one_node := allocated(cluster, project, "hidden")[-1]) and "node=1" in one_node


def test_the_synthetic_study_runs_there_too(cluster: Cluster, tmp_path: Path) -> None:
    project = make_project(tmp_path / "project", SYNTHETIC | {"tasks": ["mean"], "encodings": ["none"]})
    shutil.copytree(ROOT / "slurm", project / "slurm")
    Driver(cluster, project).run()
    record = json.loads(next(project.glob("results/runs/*/synthetic/record.json")).read_text())
    assert record["machine"]["job"] in cluster.run("sacct", "-nPX", "--starttime=now-1hours", "--format=JobID")
    assert (project / "results/tiny/report.html").exists()


def test_what_slurm_refuses_is_explained_and_nothing_is_lost(cluster: Cluster, without_constant: Path) -> None:
    driver = Driver(cluster, without_constant, record_of(without_constant, "constant"))
    before = sorted(without_constant.glob("results/**/*.parquet"))
    process = driver.start("--retries", "0", environment={"SBATCH_PARTITION": "nowhere"})
    assert process.wait(timeout=PATIENCE) != 0
    said = driver.log.read_text()
    assert "invalid partition specified" in said and "write it into slurm/site.yaml" in said
    assert set(before) <= set(without_constant.glob("results/**/*.parquet"))


def test_trainings_beyond_the_number_that_may_be_submitted_wait_for_others(
    cluster: Cluster, reference: Path, tmp_path: Path
) -> None:
    """Three are ready where two jobs are allowed: each is submitted once, and none fails."""
    ready = [arm for arm in ARMS if arm != "hidden"]  # of two processes, which is another test's
    project = without(reference, tmp_path, *ready)
    driver = Driver(cluster, project, "metrics")
    together: list[int] = []

    def queue() -> str:
        return cluster.run("squeue", "--noheader", "--me")

    wait_until(lambda: not queue(), queue, BY_A_PROCESS)
    try:
        cluster.allow_submitted(2)
        process = driver.start("--retries", "0", "--until", "train")

        def ended() -> bool:
            together.append(len(queue().splitlines()))
            return process.poll() is not None

        wait_until(ended, driver.said, BY_A_PROCESS)
    finally:
        cluster.allow_submitted(-1)
    assert process.returncode == 0 and max(together) == 2, driver.said()
    for arm in ready:
        assert_equal_training(project, reference, arm)
        assert jobs_of(cluster, project, "train", arm) == ["COMPLETED"]


def test_a_driver_that_is_started_again_goes_on_where_its_jobs_are(
    cluster: Cluster, reference: Path, without_constant: Path
) -> None:
    """Killed while a training runs; the newest checkpoint is damaged meanwhile."""
    driver = Driver(cluster, without_constant, record_of(without_constant, "constant"))
    process = driver.start()
    training = driver.training("constant", 20)
    process.kill()
    process.wait()
    cluster.run("scancel", "--signal=KILL", training.job)
    cluster.wait_for(training.job)
    newest = max(training.work.glob("checkpoint-*/longshort-manifest.json"), key=lambda path: step_of(path)).parent
    flip_a_bit(newest / "model.safetensors")

    process = driver.start()
    going_on = driver.training("constant", 40)
    said = log_of(without_constant, "constant")
    damaged = newest.name.split("-")[1]
    assert f"checkpoint of step {damaged} is not used: model.safetensors is not the file" in said.read_text()
    os.kill(going_on.group, signal.SIGSTOP)  # it has not ended before it is asked to
    process.kill()
    process.wait()
    process = driver.start()
    wait_until((going_on.work / checkpoints.STOP).exists, driver.said)
    os.kill(going_on.group, signal.SIGCONT)
    assert process.wait(timeout=PATIENCE) == 0, driver.said()
    asked = f"asking 1 running jobs of an earlier snakemake to save and end: {going_on.job}"
    assert asked in driver.log.read_text() and "planning anew" in driver.log.read_text()
    assert_equal_training(without_constant, reference, "constant")
    assert_went_on(without_constant, "constant")
