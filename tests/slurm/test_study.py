"""A study on a real cluster whatever happens to its jobs: its numbers are those of a quiet run on one machine."""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pandas
import psutil
import pytest

from longshort.training import checkpoints
from tests.slurm.cluster import NODES, UNFINISHED, Cluster
from tests.support.project import ROOT, SYNTHETIC, TINY, edit_study, make_project, run_snakemake
from tests.support.waiting import PATIENCE, wait_until

pytestmark = pytest.mark.slurm

STEPS, BASE_STEPS = 120, 60
ARMS = ["baseline", "constant", "hidden", "hidden+output"]


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
    return without(reference, "constant", tmp_path)


def without(reference: Path, arm: str, folder: Path) -> Path:
    project = Path(shutil.copytree(reference, folder / "project", symlinks=True))
    shutil.copytree(ROOT / "slurm", project / "slurm")
    run = run_of(project, arm)
    record = json.loads((project / record_of(project, arm)).read_text())
    shutil.rmtree(project / "work" / record["run_id"])
    shutil.rmtree(project / "work/evaluations")
    shutil.rmtree(project / "results/runs" / run)
    shutil.rmtree(project / "results/tiny")  # the engine asks for nothing that only finished tables would need
    return project


class Driver:
    """`snakemake --profile slurm` in a project, with the cluster's environment."""

    def __init__(self, cluster: Cluster, project: Path, target: str = "all") -> None:
        self.cluster, self.project, self.target = cluster, project, target
        self.log = project / "driver.log"

    def start(self, *options: str, environment: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
        given = {"PYTHONPATH": str(self.project / "src"), **(environment or {})}
        environment = {**os.environ, **self.cluster.environment, **given}
        environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment["PATH"]])
        command = [sys.executable, "-m", "snakemake", "--profile", "slurm", self.target]
        # A test does not wait as long as a person: for the status of a job, for a file.
        command += ["--slurm-init-seconds-before-status-checks", "2", "--seconds-between-status-checks", "2"]
        command += ["--latency-wait", "10", *options, "--config", "study=tiny"]
        with self.log.open("ab") as out:
            return subprocess.Popen(command, cwd=self.project, env=environment, stdout=out, stderr=out)

    def run(self, *options: str) -> str:
        process = self.start(*options)
        assert process.wait(timeout=PATIENCE) == 0, self.said()
        return self.said()

    def said(self) -> str:
        logs = [*self.project.glob("results/runs/*/*/*.log"), *self.project.glob(".snakemake/slurm_logs/**/*.log")]
        return "\n".join(f"== {log}\n{log.read_text()[-3000:]}" for log in [self.log, *logs])

    def training(self, arm: str, steps: int = 1, attempt: int = 1) -> Training:
        """An arm's training at an attempt, as soon as it has trained so many steps."""
        found: list[Training] = []

        def trains() -> bool:
            found[:] = [one for one in [self._training(arm, attempt)] if one is not None and one.steps >= steps]
            return bool(found)

        wait_until(trains, lambda: f"{arm} does not train\n{self.said()}")
        return found[0]

    def _training(self, arm: str, attempt: int) -> Training | None:
        beat = heartbeat_of(self.project, arm)
        if beat is None or beat["attempt"] < attempt:
            return None
        for path in self.project.glob("work/*/owner.json"):
            try:
                owner = json.loads(path.read_text())
                steps = len((path.parent / "log.jsonl").read_text().splitlines())
            except FileNotFoundError:
                continue
            if owner["job"] == beat["job"] and owner["group"]:
                return Training(path.parent, owner["job"], owner["group"], steps)
        return None


class Training(NamedTuple):
    work: Path
    job: str
    group: int
    steps: int

    def rank_on(self, node: str) -> int:
        """Of a training on several nodes."""
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                command, where = process.cmdline(), process.environ()
                is_rank = "longshort.training.worker" in command and "torch.distributed.run" not in command
                if is_rank and (where.get("SLURM_JOB_ID"), where.get("SLURMD_NODENAME")) == (self.job, node):
                    return process.pid
        raise AssertionError(f"job {self.job} has no training process on {node}")

    @property
    def ranks(self) -> list[int]:
        if "torch.distributed.run" not in psutil.Process(self.group).cmdline():  # a single process needs none
            return [self.group]
        listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(self.group)], capture_output=True, text=True)
        return [int(pid) for pid in listed.stdout.split()]


@cache
def run_of(project: Path, arm: str) -> str:
    code = f"s = resolve.load('tiny'); print(s.base if {arm!r} == 'base' else s.arm_runs[{arm!r}][0])"
    environment = {**os.environ, "PYTHONPATH": str(project / "src")}
    command = [sys.executable, "-c", f"from longshort.study import resolve; {code}"]
    return subprocess.run(
        command, cwd=project, env=environment, capture_output=True, text=True, check=True
    ).stdout.strip()


def heartbeat_of(project: Path, arm: str) -> dict[str, Any] | None:
    found = list((project / "results/runs" / run_of(project, arm) / "training").glob("*.heartbeat"))
    return json.loads(found[0].read_text()) if found else None


def record_of(project: Path, arm: str) -> str:
    return f"results/runs/{run_of(project, arm)}/training/{BASE_STEPS if arm == 'base' else STEPS}.json"


def log_of(project: Path, arm: str) -> Path:
    """Of the last attempt to train it."""
    return (project / record_of(project, arm)).with_suffix(".log")


def assert_went_on(project: Path, *arms: str) -> None:
    """The last attempt began where an earlier one was."""
    for arm in arms:
        assert "training from step 0" not in (said := log_of(project, arm).read_text()), said


def numbers(project: Path) -> pandas.DataFrame:
    table = pandas.read_parquet(project / "results/tiny/metrics.parquet").drop(columns="commit")
    keys = ["arm", "seed", "step", "metric", "length", "task"]
    return table.sort_values(keys).reset_index(drop=True)


def assert_equal_numbers(project: Path, reference: Path) -> None:
    pandas.testing.assert_frame_equal(numbers(project), numbers(reference), check_exact=True)
    for arm in ("base", *ARMS):
        assert_equal_training(project, reference, arm)


def assert_equal_training(project: Path, reference: Path, arm: str) -> None:
    """Weights, and the log of every step."""
    records = [folder / record_of(reference, arm) for folder in (project, reference)]
    ours, theirs = (json.loads(record.read_text())["checkpoints"] for record in records)
    assert {step: one["files"] for step, one in ours.items()} == {step: one["files"] for step, one in theirs.items()}
    logs = [pandas.read_parquet(record.with_suffix(".parquet")) for record in records]
    ours, theirs = (log.drop(columns="tokens_per_second", errors="ignore") for log in logs)
    pandas.testing.assert_frame_equal(ours, theirs, check_exact=True)
    if arm != "hidden+output":  # which diverges before its second step
        assert list(ours["step"]) == list(range(1, len(ours) + 1))


def accounted(cluster: Cluster, project: Path, rule: str, arm: str, field: str) -> list[str]:
    """A field of all jobs that a project's rule had for an arm, as soon as accounting knows that they have ended."""
    job = f"rule_{rule}_wildcards_{run_of(project, arm)}"

    def rows() -> list[list[str]]:
        fields = f"--format=State,{field},WorkDir,Comment"
        listed = cluster.run("sacct", "-nPX", "--starttime=now-2hours", fields).splitlines()
        jobs = [line.split("|") for line in listed]
        # Every test's project has the same runs.
        return [one for one in jobs if Path(one[2]) == project and job in one[3]]

    wait_until(lambda: not {"PENDING", "RUNNING"} & {row[0] for row in rows()}, lambda: f"not over: {rows()}")
    return [row[1].split()[0] for row in rows()]


def jobs_of(cluster: Cluster, project: Path, rule: str, arm: str) -> list[str]:
    return accounted(cluster, project, rule, arm, "State")


def allocated(cluster: Cluster, project: Path, arm: str) -> list[str]:
    """What each training of an arm had."""
    return accounted(cluster, project, "train", arm, "AllocTRES")


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
    project = without(reference, "base", tmp_path)
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


def text_of(log: Path) -> str:
    """The engine deletes a log before the next attempt."""
    return log.read_text() if log.exists() else ""


def use_only(cluster: Cluster, *nodes: str) -> None:
    for node in NODES:
        state = "resume" if node in nodes else "drain"
        with suppress(AssertionError):  # it is that already
            cluster.run("scontrol", "update", f"nodename={node}", f"state={state}", "reason=test")


def state_of(project: Path, arm: str) -> str:
    """Of its training, as `longshort status` says."""
    command = [sys.executable, "-m", "longshort.cli", "status", "--study", "tiny", "--json"]
    environment = {**os.environ, "PYTHONPATH": str(project / "src")}
    done = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, check=True)
    rows = json.loads(done.stdout)
    return next(row["state"] for row in rows if row["run"] == run_of(project, arm) and row["stage"] == "training")


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
    saved = next((reference / "work" / work.name).glob("checkpoint-*"))
    room = int(2.5 * sum(path.stat().st_size for path in saved.rglob("*")))
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


def step_of(manifest: Path) -> int:
    return int(manifest.parent.name.split("-")[1])


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
