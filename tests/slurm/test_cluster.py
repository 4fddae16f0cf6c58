"""What SLURM 22.05 does with jobs, where the workflow relies on it."""

from __future__ import annotations

import os
import subprocess
import time
from datetime import datetime
from pathlib import Path

import pytest
from typer.testing import CliRunner

from longshort.cli import app
from longshort.study import resolve
from tests.slurm.cluster import NODES, Cluster
from tests.support.project import ROOT
from tests.support.waiting import BY_A_PROCESS, PATIENCE, wait_until

pytestmark = pytest.mark.slurm

HEEDS = "trap 'echo told after $SECONDS s; exit 7' TERM; echo started; while :; do sleep 0.1; done"
IGNORES = "trap 'echo told after $SECONDS s' TERM; echo started; while :; do sleep 0.1; done"


def step(script: str) -> str:
    """A batch script with one step, whose exit code is the job's; as Snakemake's jobs are."""
    return f'srun bash -c "{script}"'.replace("$", r"\$")


def submit_running(cluster: Cluster, script: str, *options: str) -> str:
    job = cluster.submit(script, *options)
    wait_until(lambda: "started" in cluster.output(job), lambda: f"job {job} is {cluster.squeue()[job]}")
    return job


@pytest.mark.parametrize("node", NODES)
def test_a_job_runs_on_each_node(cluster: Cluster, node: str) -> None:
    job = cluster.submit("echo $SLURMD_NODENAME", f"--nodelist={node}")
    assert cluster.wait_for(job) == "COMPLETED" and cluster.output(job).split() == [node]


def test_a_job_of_two_nodes_runs_on_both_with_their_gpus(cluster: Cluster) -> None:
    job = cluster.submit("srun printenv SLURMD_NODENAME", "--nodes=2", "--ntasks-per-node=1", "--gres=gpu:a100:2")
    assert cluster.wait_for(job) == "COMPLETED" and sorted(cluster.output(job).split()) == NODES
    cluster.wait_for_accounting(job, ("COMPLETED", "0:0"))
    assert "gres/gpu=4" in cluster.run("sacct", "-nXP", f"--jobs={job}", "--format=AllocTRES")
    # Untyped, all of one node: the next one waits.
    first = submit_running(cluster, HEEDS, "--nodelist=n1", "--gres=gpu:8")
    second = cluster.submit("true", "--nodelist=n1", "--gres=gpu:1")
    wait_until(
        lambda: "(Resources)" in cluster.run("squeue", f"--job={second}"), lambda: str(cluster.squeue()), BY_A_PROCESS
    )
    cluster.run("scancel", first)
    assert cluster.wait_for(second) == "COMPLETED"


def test_constraints_choose_the_node_and_the_impossible_is_refused(cluster: Cluster) -> None:
    job = cluster.submit("echo $SLURMD_NODENAME", "--constraint=slow")
    assert cluster.wait_for(job) == "COMPLETED" and cluster.output(job).split() == ["n2"]
    with pytest.raises(AssertionError, match="Requested node configuration is not available"):
        cluster.submit("true", "--gres=gpu:9")
    with pytest.raises(AssertionError, match="Invalid account"):
        cluster.submit("true", "--account=nobody")


def test_status_says_why_a_job_waits_and_what_to_do(
    cluster: Cluster, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project)
    for name, value in cluster.environment.items():
        monkeypatch.setenv(name, value)
    run = resolve.load("tiny").arm_runs["constant"][0]

    def submit(*options: str) -> str:
        comment = f"--comment=rule_train_wildcards_{run}_2-6"  # as the engine's plugin has it
        return cluster.submit("true", comment, f"--chdir={project}", *options)

    def said() -> str:
        return " ".join(CliRunner().invoke(app, ["status", "--study", "tiny"]).output.split())

    held = submit("--hold")
    wait_until(lambda: f"yours to mend: it is held: `scontrol release {held}`" in said(), said, BY_A_PROCESS)
    cluster.run("scontrol", "release", held)
    assert cluster.wait_for(held) == "COMPLETED" and "queued" not in said()
    cluster.run("scontrol", "update", "NodeName=n1", "State=DRAIN", "Reason=test")
    try:
        drained = submit("--nodelist=n1")
        expected = "nothing to mend: nodes are down or drained"
        wait_until(lambda: expected in said() and f"constant, 0, train (job {drained})" in said(), said, BY_A_PROCESS)
    finally:
        cluster.run("scontrol", "update", "NodeName=n1", "State=RESUME")
    assert cluster.wait_for(drained) == "COMPLETED"


def test_the_exit_code_of_a_job_is_accounted(cluster: Cluster) -> None:
    job = cluster.submit("exit 3")
    assert cluster.wait_for(job) == "FAILED"
    cluster.wait_for_accounting(job, ("FAILED", "3:0"))


def test_a_cancelled_job_is_told_and_accounted(cluster: Cluster) -> None:
    job = submit_running(cluster, step(HEEDS))
    cluster.run("scancel", job)
    assert cluster.wait_for(job) == "CANCELLED"
    cluster.wait_for_accounting(job, ("CANCELLED by 0", "0:0"))
    assert "told after" in cluster.output(job)


def test_a_preempted_job_is_told_at_once_and_ended_after_the_grace_time(cluster: Cluster) -> None:
    """Only steps are told. One that ends by itself has simply ended: nothing says preempted, nothing is requeued."""
    on_n1 = "--nodelist=n1"
    heeds = submit_running(cluster, step(HEEDS), on_n1, "--requeue")
    ignores = submit_running(cluster, step(IGNORES), on_n1, "--no-requeue")
    requeued = submit_running(cluster, step(IGNORES), on_n1, "--requeue")
    no_step = submit_running(cluster, IGNORES, on_n1, "--no-requeue")
    urgent = cluster.submit("true", "--partition=urgent", "--exclusive", on_n1)
    assert cluster.wait_for(heeds) == "FAILED"
    assert [cluster.squeue()[job] for job in (ignores, requeued, no_step)] == ["RUNNING"] * 3
    cluster.wait_for_accounting(heeds, ("FAILED", "7:0"))
    assert "told after" in cluster.output(ignores) and "told after" in cluster.output(requeued)
    assert "told after" not in cluster.output(no_step)
    assert cluster.wait_for(urgent) == "COMPLETED"
    cluster.wait_for_accounting(ignores, ("PREEMPTED", "0:0"))
    cluster.wait_for_accounting(no_step, ("PREEMPTED", "0:0"))
    assert "Restarts=1" in cluster.run("scontrol", "show", "job", requeued)
    assert cluster.squeue()[requeued] in ("PENDING", "RUNNING")
    cluster.run("scancel", requeued)


def test_a_signal_ahead_of_the_time_limit_reaches_the_step(cluster: Cluster) -> None:
    """SLURM looks every 30 seconds: it comes up to so much earlier than asked for, and never later."""
    job = submit_running(cluster, step(HEEDS), "--time=1", "--signal=TERM@10")
    assert cluster.wait_for(job) == "FAILED"
    told = int(cluster.output(job).partition("told after")[2].split()[0])
    shown = cluster.run("scontrol", "show", "job", job)
    start, end = (
        datetime.fromisoformat(shown.partition(f" {name}=")[2].split()[0]) for name in ("StartTime", "EndTime")
    )
    assert told <= 50 and (end - start).total_seconds() >= 20 - 1, (told, shown)


def test_a_node_that_fails_loses_its_job_and_comes_back(cluster: Cluster) -> None:
    job = submit_running(cluster, step(IGNORES), "--nodelist=n2", "--no-requeue")
    cluster.stop_node("n2")
    assert cluster.wait_for(job) == "NODE_FAIL"
    cluster.start_node("n2")
    again = cluster.submit("true", "--nodelist=n2")
    assert cluster.wait_for(again) == "COMPLETED"


def test_a_job_outlives_the_controller_and_the_database(cluster: Cluster) -> None:
    job = submit_running(cluster, "echo started; sleep 4")
    cluster.stop_database()
    cluster.stop_controller()
    cluster.start_controller()
    assert cluster.wait_for(job) == "COMPLETED"
    cluster.start_database()
    cluster.wait_for_accounting(job, ("COMPLETED", "0:0"))


def test_what_the_engine_asks_waits_for_a_controller(cluster: Cluster) -> None:
    environment = {**os.environ, **cluster.environment}
    environment["PATH"] = f"{ROOT / 'slurm/bin'}{os.pathsep}{environment['PATH']}"
    cluster.stop_controller()
    cluster.stop_database()
    asked = [
        subprocess.Popen(command, env=environment, cwd=cluster.folder, stdout=subprocess.PIPE, text=True)
        for command in (
            ["sbatch", "--parsable", "--wrap=true"],
            ["squeue", "--noheader", "--states=all"],
            ["sacct", "--noheader", "--name", "nobody"],
        )
    ]
    time.sleep(2)
    assert [process.poll() for process in asked] == [None, None, None]
    cluster.start_controller()
    said = [process.communicate(timeout=PATIENCE)[0] for process in asked]
    assert [process.returncode for process in asked] == [0, 0, 0]
    cluster.start_database()
    assert cluster.wait_for(said[0].strip()) == "COMPLETED"


def test_a_submission_beyond_the_limit_waits_until_a_job_has_ended(cluster: Cluster) -> None:
    environment = {**os.environ, **cluster.environment}
    environment["PATH"] = f"{ROOT / 'slurm/bin'}{os.pathsep}{environment['PATH']}"

    def is_empty() -> bool:
        return not cluster.run("squeue", "--noheader", "--me")

    def submit() -> subprocess.Popen[str]:
        command = ["sbatch", "--parsable", "--wrap=true"]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, env=environment, cwd=cluster.folder, stdout=pipe, stderr=pipe, text=True)

    wait_until(is_empty, lambda: cluster.run("squeue"), BY_A_PROCESS)
    first = submit_running(cluster, HEEDS)
    try:
        cluster.allow_submitted(1)
        second = submit()
        time.sleep(2)
        assert second.poll() is None
        cluster.run("scancel", first)
        said, _ = second.communicate(timeout=PATIENCE)
        assert second.returncode == 0 and cluster.wait_for(said.strip()) == "COMPLETED"
        # There is nothing to wait for where nothing is allowed.
        cluster.allow_submitted(0)
        wait_until(is_empty, lambda: cluster.run("squeue"), BY_A_PROCESS)
        third = submit()
        _, said = third.communicate(timeout=PATIENCE)
        assert third.returncode != 0 and "SubmitJob" in said
    finally:
        cluster.allow_submitted(-1)
