"""A study on the cluster: its driver, its trainings while they run, what SLURM and its records say of them."""

from __future__ import annotations

import copy
import json
import os
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import pandas
import psutil

from tests.slurm.cluster import NODES, Cluster
from tests.support.project import ROOT, TINY, UNFINISHED
from tests.support.waiting import BY_A_PROCESS, PATIENCE, wait_until

STEPS, BASE_STEPS = 90, 45
ARMS = ["baseline", "constant", "hidden", "hidden+output"]


def faulty_study(minutes: int = 0) -> dict[str, Any]:
    """The base on two nodes, an arm by two processes, an arm that diverges.

    minutes: between checkpoints; 0: one after every step, where something is killed.
    """
    made = copy.deepcopy(TINY)
    made["model"]["training"].update(nodes=2, steps=BASE_STEPS, checkpoint_minutes=minutes)
    made["arms"] = ARMS
    made["training"].update(steps=STEPS, checkpoint_minutes=minutes)
    made["overrides"] = {
        "hidden": {"training": {"processes": 2}},
        "hidden+output": {"training": {"learning_rate": 1e30}},
    }
    made["checkpoints"] = [STEPS]
    made["needs"] = {"device": "gpu", "evaluations": "together"}  # three starts less of a run; apart: contract/
    return made


def without(reference: Path, folder: Path, *arms: str) -> Path:
    ignored = shutil.ignore_patterns(*UNFINISHED)
    project = Path(shutil.copytree(reference, folder / "project", symlinks=True, ignore=ignored))
    shutil.copytree(ROOT / "slurm", project / "slurm")
    for arm in arms:
        record = json.loads((project / record_of(project, arm)).read_text())
        shutil.rmtree(project / "work" / record["run_id"])
        shutil.rmtree(project / "results/runs" / run_of(project, arm))
    shutil.rmtree(project / "work/evaluations")
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


RUNS: dict[str, str] = {}  # every test's project has the same


def run_of(project: Path, arm: str) -> str:
    if arm not in RUNS:
        RUNS[arm] = _run_of(project, arm)
    return RUNS[arm]


def _run_of(project: Path, arm: str) -> str:
    code = f"s = resolve.load('tiny'); print(s.bases[0] if {arm!r} == 'base' else s.arm_runs[{arm!r}][0])"
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

    def over() -> bool:
        return not {"PENDING", "RUNNING"} & {row[0] for row in rows()}

    wait_until(over, lambda: f"not over: {rows()}", BY_A_PROCESS)
    return [row[1].split()[0] for row in rows()]


def jobs_of(cluster: Cluster, project: Path, rule: str, arm: str) -> list[str]:
    return accounted(cluster, project, rule, arm, "State")


def allocated(cluster: Cluster, project: Path, arm: str) -> list[str]:
    """What each training of an arm had."""
    return accounted(cluster, project, "train", arm, "AllocTRES")


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


def step_of(manifest: Path) -> int:
    return int(manifest.parent.name.split("-")[1])


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
