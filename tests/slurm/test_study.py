"""A study on a real cluster whatever happens to its jobs: its numbers are those of a quiet run on one machine."""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from longshort.training import checkpoints
from tests.slurm.cluster import NODES, UNFINISHED, Cluster
from tests.slurm.study import (
    ARMS,
    BASE_STEPS,
    STEPS,
    Driver,
    allocated,
    assert_equal_numbers,
    assert_equal_training,
    assert_went_on,
    flip_a_bit,
    heartbeat_of,
    jobs_of,
    log_of,
    record_of,
    run_of,
    state_of,
    step_of,
    text_of,
    use_only,
)
from tests.support.project import ROOT, SYNTHETIC, TINY, edit_study, make_project, run_snakemake
from tests.support.waiting import PATIENCE, wait_until

pytestmark = pytest.mark.slurm


def study(**changes: object) -> dict[str, Any]:
    """Checkpoints after every step; the base on two nodes, an arm by two processes, an arm that diverges."""
    made = copy.deepcopy(TINY)
    made["model"]["training"].update(nodes=2, steps=BASE_STEPS, checkpoint_minutes=0)
    made["arms"] = ARMS
    made["training"].update(steps=STEPS, checkpoint_minutes=0)
    made["overrides"] = {
        "hidden": {"training": {"processes": 2}},
        "hidden+output": {"training": {"learning_rate": 1e30}},
    }
    made["checkpoints"] = [STEPS]
    made["needs"] = {"device": "gpu"}
    return {**made, **changes}


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The study on this machine, without SLURM."""
    project = make_project(tmp_path_factory.mktemp("reference") / "project", study())
    run_snakemake(project, "metrics")
    return project


@pytest.fixture
def without_constant(reference: Path, tmp_path: Path) -> Path:
    """The finished study, but for the arm `constant`. Its training is what a fault can cost; evaluations and tables
    after faults: the first test."""
    return without(reference, tmp_path, "constant")


def without(reference: Path, folder: Path, *arms: str) -> Path:
    project = Path(shutil.copytree(reference, folder / "project", symlinks=True))
    shutil.copytree(ROOT / "slurm", project / "slurm")
    for arm in arms:
        record = json.loads((project / record_of(project, arm)).read_text())
        shutil.rmtree(project / "work" / record["run_id"])
        shutil.rmtree(project / "results/runs" / run_of(project, arm))
    shutil.rmtree(project / "work/evaluations")
    shutil.rmtree(project / "results/tiny")  # the engine asks for nothing that only finished tables would need
    return project


def test_a_study_whose_jobs_are_killed_ends_as_if_nothing_had_happened(
    cluster: Cluster, reference: Path, tmp_path: Path
) -> None:
    """Everything as typed: the base on two nodes, of which one loses its rank; then SIGKILL, scancel, the death of one
    rank of two, a divergence."""
    project = make_project(tmp_path / "project", study())
    shutil.copytree(ROOT / "slurm", project / "slurm")
    driver = Driver(cluster, project)
    process = driver.start()

    base = driver.training("base", 5)
    os.kill(base.rank_on("n2"), signal.SIGKILL)
    # Its other rank does not wait for it, which would take half an hour.
    wait_until(lambda: cluster.squeue()[base.job] not in UNFINISHED, lambda: f"{cluster.squeue()}{driver.said()}")
    assert cluster.squeue()[base.job] == "FAILED"
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
    for rule in ("perplexity", "misalignment"):
        assert jobs_of(cluster, project, rule, "constant") == ["COMPLETED"]
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
    """Four are ready where two jobs are allowed: each is submitted once, and none fails."""
    project = without(reference, tmp_path, *ARMS)
    driver = Driver(cluster, project, "metrics")
    together: list[int] = []
    wait_until(lambda: not cluster.run("squeue", "--noheader", "--me"), lambda: cluster.run("squeue"))
    try:
        cluster.allow_submitted(2)
        process = driver.start("--retries", "0", "--until", "train")

        def ended() -> bool:
            together.append(len(cluster.run("squeue", "--noheader", "--me").splitlines()))
            return process.poll() is not None

        wait_until(ended, driver.said)
    finally:
        cluster.allow_submitted(-1)
    assert process.returncode == 0 and max(together) == 2, driver.said()
    for arm in ARMS:
        assert_equal_training(project, reference, arm)
        assert jobs_of(cluster, project, "train", arm) == ["COMPLETED"]


def test_of_a_preempted_training_exactly_one_begins_again(
    cluster: Cluster, reference: Path, without_constant: Path
) -> None:
    """Preempted twice: as a training that saves and ends, and as one that hangs until SLURM kills it."""
    driver = Driver(cluster, without_constant, record_of(without_constant, "constant"))
    process = driver.start()
    driver.training("constant", 5)
    cluster.submit("sleep 5", "--partition=urgent", "--nodes=2", "--exclusive")
    second = driver.training("constant", 20, attempt=2)
    cluster.run("scancel", "--signal=STOP", "--full", second.job)
    cluster.submit("sleep 5", "--partition=urgent", "--nodes=2", "--exclusive")
    assert process.wait(timeout=PATIENCE) == 0, driver.said()
    assert_equal_training(without_constant, reference, "constant")
    assert_went_on(without_constant, "constant")
    states = jobs_of(cluster, without_constant, "train", "constant")
    assert states in (["PREEMPTED", "PREEMPTED", "COMPLETED"], ["FAILED", "PREEMPTED", "COMPLETED"])


def test_a_study_whose_cluster_fails_ends_as_if_nothing_had_happened(
    cluster: Cluster, reference: Path, without_constant: Path
) -> None:
    """Accounting is down. A node is lost with a training that hangs, and comes back while the next attempt waits for
    that one to end; then nothing answers for a while."""
    driver = Driver(cluster, without_constant, record_of(without_constant, "constant"))
    cluster.stop_database()
    process = driver.start()
    first = driver.training("constant", 5)
    beat = heartbeat_of(without_constant, "constant")
    assert beat is not None
    for one in (first.group, *first.ranks):
        os.kill(one, signal.SIGSTOP)
    cluster.kill_daemon(beat["node"])
    log = log_of(without_constant, "constant")
    waits = f"waiting: work/{first.work.name} is owned by"
    wait_until(lambda: waits in text_of(log), lambda: text_of(log) + driver.said())
    cluster.start_node(beat["node"])
    wait_until(lambda: "training from step" in text_of(log), lambda: text_of(log) + driver.said())
    cluster.stop_controller()
    time.sleep(20)
    cluster.start_controller()
    assert process.wait(timeout=PATIENCE) == 0, driver.said()
    cluster.start_database()
    assert_equal_training(without_constant, reference, "constant")
    assert_went_on(without_constant, "constant")
    assert f"after: its node failed (job {first.job})" in log.read_text()


def set_n2_ahead(project: Path) -> None:
    """By three minutes, for all jobs of a project: this folder is on their PYTHONPATH."""
    shutil.copy(ROOT / "tests/clock/sitecustomize.py", project / "src")


def test_nodes_whose_clocks_differ_train_together(cluster: Cluster, reference: Path, tmp_path: Path) -> None:
    project = without(reference, tmp_path, "base")
    set_n2_ahead(project)
    use_only(cluster, *NODES)  # SLURM drains a node that was lost with jobs, as in the test before; people resume it
    Driver(cluster, project, record_of(project, "base")).run("--retries", "0")
    assert_equal_training(project, reference, "base")


def test_an_attempt_on_a_node_with_another_clock_is_waited_for(
    cluster: Cluster, reference: Path, without_constant: Path
) -> None:
    """A training hangs on a node whose clock is three minutes ahead; its next attempt is on the other node."""
    driver = Driver(cluster, without_constant, record_of(without_constant, "constant"))
    set_n2_ahead(without_constant)
    use_only(cluster, "n2")
    try:
        process = driver.start()
        first = driver.training("constant", 5)
        beat = heartbeat_of(without_constant, "constant")
        assert beat is not None and beat["node"] == "n2" and beat["beat"] > time.time() + 120
        assert state_of(without_constant, "constant") == "running"
        for one in (first.group, *first.ranks):
            os.kill(one, signal.SIGSTOP)
        use_only(cluster, "n1")
        cluster.kill_daemon("n2")
        log = log_of(without_constant, "constant")
        waits = f"waiting: work/{first.work.name} is owned by"
        wait_until(lambda: waits in text_of(log), lambda: text_of(log) + driver.said())
        use_only(cluster, *NODES)
        cluster.start_node("n2")
        assert process.wait(timeout=PATIENCE) == 0, driver.said()
    finally:
        use_only(cluster, "n1", "n2")
    assert_equal_training(without_constant, reference, "constant")
    assert_went_on(without_constant, "constant")


def test_a_training_that_lacks_memory_gets_more(cluster: Cluster, reference: Path, without_constant: Path) -> None:
    edit_study(without_constant, needs={"device": "gpu", "training_memory_mb": 700})
    driver = Driver(cluster, without_constant, record_of(without_constant, "constant"))
    driver.run()
    assert_equal_training(without_constant, reference, "constant")
    beat = heartbeat_of(without_constant, "constant")
    assert beat is not None and beat["state"] == "finished" and beat["memory_mb"] == 700 * beat["attempt"]
    assert beat["earlier"] and all("out of memory" in ending for ending in beat["earlier"])


def test_a_training_whose_disk_is_full_goes_on_where_there_is_room(
    cluster: Cluster, reference: Path, without_constant: Path
) -> None:
    """Room for a few checkpoints' files, until somebody gives it more."""
    work = without_constant / "work" / json.loads((reference / record_of(reference, "constant")).read_text())["run_id"]
    # What is left of a finished one are weights: a fifth, and of so few weights less.
    saved = next((reference / "work" / work.name).glob("checkpoint-*"))
    room = int(2.5 * 6 * sum(path.stat().st_size for path in saved.rglob("*.safetensors")))
    work.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o"]
    subprocess.run([*mount, f"size={room}", "small", str(work)], check=True)
    try:
        driver = Driver(cluster, without_constant, record_of(without_constant, "constant"))
        process = driver.start()
        log = log_of(without_constant, "constant")
        full = re.compile(rf"no space for work/{work.name}: it needs \S+ kB, and the file system {work} has")
        wait_until(lambda: bool(full.search(text_of(log))), lambda: text_of(log) + driver.said())
        assert not (without_constant / record_of(without_constant, "constant")).exists()
        subprocess.run([*mount, "remount,size=100m", str(work)], check=True)
        assert process.wait(timeout=PATIENCE) == 0, driver.said()
        assert_equal_training(without_constant, reference, "constant")
        assert_went_on(without_constant, "constant")
        assert jobs_of(cluster, without_constant, "train", "constant")[0] == "FAILED"
    finally:
        subprocess.run(["umount", "--lazy", str(work)], check=True)


def test_a_training_that_outlasts_its_time_saves_ahead_of_the_limit_and_goes_on(
    cluster: Cluster, reference: Path, without_constant: Path
) -> None:
    """A minute at first, and SLURM, which looks every 30 seconds, is asked for a signal 20 seconds ahead of its end."""
    edit_study(without_constant, needs={"device": "gpu", "training_minutes": 1}, training__checkpoint_minutes=30)
    driver = Driver(cluster, without_constant, record_of(without_constant, "constant"))
    process = driver.start("--default-resources", "slurm_extra='--signal=TERM@20'", "--retries", "5")
    training = driver.training("constant", 5)
    os.kill(training.group, signal.SIGSTOP)  # however fast the machine is, it does not end in time
    wait_until((training.work / checkpoints.STOP).exists, driver.said)
    os.kill(training.group, signal.SIGCONT)
    assert process.wait(timeout=PATIENCE) == 0, driver.said()
    assert_equal_training(without_constant, reference, "constant")
    assert_went_on(without_constant, "constant")
    *early, last = jobs_of(cluster, without_constant, "train", "constant")
    assert early and set(early) <= {"FAILED", "TIMEOUT"} and last == "COMPLETED"


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
