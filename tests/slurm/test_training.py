"""A training on a real cluster whatever happens to it or to the cluster: its numbers are those of a quiet one."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pytest

from longshort.training import checkpoints
from tests.slurm.cluster import NODES, Cluster
from tests.slurm.study import (
    Driver,
    assert_equal_training,
    assert_went_on,
    heartbeat_of,
    jobs_of,
    log_of,
    record_of,
    state_of,
    text_of,
    use_only,
    without,
)
from tests.support.project import ROOT, edit_study
from tests.support.waiting import PATIENCE, wait_until

pytestmark = pytest.mark.slurm


def test_of_a_preempted_training_exactly_one_begins_again(
    cluster: Cluster, reference: Path, without_constant: Path
) -> None:
    """Preempted twice: as a training that saves and ends, and as one that hangs until SLURM kills it."""
    driver = Driver(cluster, without_constant, record_of(without_constant, "constant"))
    process = driver.start()
    first = driver.training("constant", 5)
    for one in (first.group, *first.ranks):
        os.kill(one, signal.SIGSTOP)  # however fast the machine is, it does not end before it is told
    cluster.submit("sleep 5", "--partition=urgent", "--nodes=2", "--exclusive")
    wait_until((first.work / checkpoints.STOP).exists, driver.said)
    for one in (*first.ranks, first.group):
        with suppress(ProcessLookupError):  # SLURM continues what it ends
            os.kill(one, signal.SIGCONT)
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
    edit_study(without_constant, needs={"device": "gpu", "training_memory_mb": 700}, training__checkpoint_minutes=30)
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
