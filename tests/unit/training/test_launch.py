"""What the launcher counts as trained, and what it remembers of it."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from longshort.errors import Interrupted, JobFailed, LongshortError, UserError
from longshort.jobs.ownership import sole_owner
from longshort.records.publish import Altered, write_json, write_record
from longshort.study.schema import Training
from longshort.training import checkpoints, launch, log
from tests.support import corpora
from tests.support.waiting import PATIENCE, wait_until

DIVERGES = 4
TICKS = 0.04  # seconds: the system's clock of processes counts hundredths, for user and system of each

MADE = {"commit": "one", "environment": "e1", "machine": {"host": "here"}}
TRAINING = Training(steps=9, batch=1, learning_rate=0.1)


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A training whose processes write their checkpoints at once. Where a file says so they diverge, are asked to stop,
    end before the first step, or fail while they save."""

    def run_processes(job_file: Path, *_: Any) -> tuple[bool, str]:
        work = job_file.parent
        subprocess.run([sys.executable, "-c", "import time\nwhile time.process_time() < 0.2: pass"], check=True)
        end = DIVERGES if (tmp_path / "diverges").exists() else 100
        asked = (tmp_path / "asked").exists()
        if (tmp_path / "begins").exists():
            return asked, ""
        if (tmp_path / "fails").exists():
            if (tmp_path / "loses").exists():
                write_json(work / "owner.json", {**json.loads((work / "owner.json").read_text()), "token": "another"})
            checkpoints.folder(work, 1).mkdir()
            (checkpoints.folder(work, 1) / "model.safetensors").write_text("half of it")
            if asked:
                return True, "OSError: no space left on device"
            raise JobFailed("the training failed: no space left on device")
        for step in (step for step in json.loads(job_file.read_text())["targets"] if step < end):
            checkpoints.folder(work, step).mkdir()
            (checkpoints.folder(work, step) / "model.safetensors").write_text(f"step {step}")
            checkpoints.seal(checkpoints.folder(work, step))
        if max(json.loads(job_file.read_text())["targets"]) >= end:
            write_json(work / checkpoints.DIVERGED, {"step": end})
        return asked, ""

    monkeypatch.setattr(launch, "_run_processes", run_processes)
    return {
        "data": str(corpora.published(tmp_path / "data").parent),
        "threads": 1,
        "end": None,
        "content": None,
        "made": MADE,
    }


def used() -> float:
    """CPU seconds of this process and of those that have ended below it, as the system counts them; and of those that
    live there, as the fork server of other tests may."""
    rusages = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    total = sum(rusage.ru_utime + rusage.ru_stime for rusage in rusages)
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            total += sum(process.cpu_times()[:4])
    return total


def complete(job: dict[str, Any], work: Path, wanted: list[int]) -> tuple[list[int], int]:
    with sole_owner(work) as owner:
        there, trained, _ = launch.complete(job, work, wanted, TRAINING, owner)
    return there, trained


def test_what_was_spent_is_remembered_where_nothing_is_left_to_train(job: dict[str, Any], tmp_path: Path) -> None:
    work, before = tmp_path / "work", used()
    assert complete(job, work, [2, 6]) == ([2, 6], 6)
    spent = launch.spent(work)
    assert spent["steps"] == 6 and 0.2 - TICKS <= spent["cpu_seconds"] <= used() - before + TICKS
    assert complete(job, work, [2, 6]) == ([2, 6], 0)
    assert launch.spent(work) == spent
    assert complete(job, work, [2, 4, 6]) == ([2, 4, 6], 4)
    assert launch.spent(work)["steps"] == 10
    assert launch.spent(work)["cpu_seconds"] >= spent["cpu_seconds"] + 0.2 - TICKS


def test_what_a_step_was_made_by_is_remembered_whoever_publishes_it(job: dict[str, Any], tmp_path: Path) -> None:
    work, later = tmp_path / "work", {**MADE, "commit": "two", "environment": "e2"}
    complete(job, work, [2])
    complete({**job, "made": later}, work, [2, 6])
    assert (launch.made(work, [2]), launch.made(work, [2, 6])) == (MADE, later)
    complete({**job, "made": {**MADE, "commit": "three"}}, work, [2, 6])  # finds all of them
    assert (launch.made(work, [2]), launch.made(work, [2, 6])) == (MADE, later)
    assert launch.made(tmp_path / "of an earlier version", [2]) == {}


def test_cpu_time_is_unknown_where_a_part_of_it_is(tmp_path: Path) -> None:
    """What an earlier version trained, or other nodes did."""
    launch.add_spent(tmp_path, 2, 3.0, 4.0)
    assert launch.spent(tmp_path) == {"steps": 2, "seconds": 3.0, "cpu_seconds": 4.0}
    launch.add_spent(tmp_path, 2, 3.0, None)
    launch.add_spent(tmp_path, 2, 3.0, 4.0)
    assert launch.spent(tmp_path) == {"steps": 6, "seconds": 9.0, "cpu_seconds": None}


def test_a_training_that_diverged_counts_the_steps_until_then(job: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "diverges").touch()
    assert complete(job, tmp_path / "work", [2, 6]) == ([2], DIVERGES)
    assert launch.spent(tmp_path / "work")["steps"] == DIVERGES


def test_no_step_counts_that_nothing_was_kept_of(job: dict[str, Any], tmp_path: Path) -> None:
    """Processes that are asked to stop while they start end well."""
    (tmp_path / "begins").touch()
    with pytest.raises(JobFailed, match=r"without the checkpoints of steps \[2, 6\]"):
        complete(job, tmp_path / "work", [2, 6])
    assert launch.spent(tmp_path / "work")["steps"] == 0
    (tmp_path / "asked").touch()
    with pytest.raises(Interrupted):
        complete(job, tmp_path / "work", [2, 6])
    assert launch.spent(tmp_path / "work")["steps"] == 0


def test_a_request_that_comes_with_the_last_step_is_heeded_before_more_is_trained(
    job: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "segments", lambda *_: [(0, [2]), (0, [6])])
    (tmp_path / "asked").touch()
    with pytest.raises(Interrupted):
        complete(job, tmp_path / "work", [2, 6])
    assert checkpoints.steps_there(tmp_path / "work") == [2] and launch.spent(tmp_path / "work")["steps"] == 2


@pytest.mark.parametrize("asked", [False, True])
def test_half_a_checkpoint_leaves_room_for_what_says_so(job: dict[str, Any], tmp_path: Path, asked: bool) -> None:
    """One that was asked to stop and could not save has failed: it is not gone on with from there."""
    (tmp_path / "fails").touch()
    if asked:
        (tmp_path / "asked").touch()
    with pytest.raises(JobFailed, match="failed.*no space left"):
        complete(job, tmp_path / "work", [2])
    assert checkpoints.steps_there(tmp_path / "work") == []


def test_what_another_job_writes_that_took_the_folder_over_stays(job: dict[str, Any], tmp_path: Path) -> None:
    for said in ("fails", "loses"):
        (tmp_path / said).touch()
    with pytest.raises(LongshortError):
        complete(job, tmp_path / "work", [2])
    assert checkpoints.steps_there(tmp_path / "work") == [1]


def test_what_another_study_has_not_trained_to_its_end_is_resumed_from(
    job: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was stopped at step 5 of 9; this one needs step 2 alone. What lies there is unpickled, so not of anybody."""
    work = tmp_path / "work"
    checkpoints.keep(work, [9])
    stopped = checkpoints.folder(work, 5)
    stopped.mkdir()
    for name in ("model.safetensors", "states.pt"):
        (stopped / name).write_text("of step 5")
    checkpoints.seal(stopped)
    complete(job, work, [2])
    assert checkpoints.is_resumable(work, 5)
    somebody_else = os.getuid() + 1
    with monkeypatch.context() as patched, pytest.raises(UserError, match="checkpoint-5 is not resumed from"):
        patched.delenv(launch.TRUSTED_USERS, raising=False)
        patched.setattr(os, "getuid", lambda: somebody_else)
        complete(job, work, [2, 9])
    assert complete(job, work, [2, 9]) == ([2, 9], 9 - 5)
    assert checkpoints.steps_there(work) == [2, 9]


def test_a_step_that_is_withdrawn_takes_no_row_of_the_log_along(job: dict[str, Any], tmp_path: Path) -> None:
    """It was added, before the last or after it, trained from the start, and killed."""
    work = tmp_path / "work"
    complete(job, work, [6])
    rows = "".join(json.dumps({"step": step}) + "\n" for step in range(1, 7))
    (work / log.NAME).write_text(f'{rows}{{"ste')
    (tmp_path / "fails").touch()
    with pytest.raises(JobFailed):
        complete(job, work, [2, 6])
    assert (work / log.NAME).read_text() == rows
    with pytest.raises(JobFailed):
        complete(job, work, [6, 9])
    assert (work / log.NAME).read_text() == rows


@pytest.mark.parametrize("tell", [os.kill, os.killpg])
def test_a_launcher_hands_a_request_to_stop_on_by_a_file(tmp_path: Path, tell: Any) -> None:
    """Whether SLURM signals it alone (proctrack/cgroup) or all that it has started, which is ended by neither."""
    begun, stop = tmp_path / "begun", tmp_path / "stop"
    code = "import pathlib, sys, time\npathlib.Path(sys.argv[1]).touch()\n"
    code += "while not pathlib.Path(sys.argv[2]).exists(): time.sleep(0.02)\nsys.exit(7)"
    command = ["sh", "-c", launch.HAND_ON, "sh", str(stop), sys.executable, "-c", code, str(begun), str(stop)]
    process = subprocess.Popen(command, start_new_session=True)
    try:
        wait_until(begun.exists, lambda: "it does not begin")
        tell(process.pid, signal.SIGTERM)
        assert process.wait(timeout=PATIENCE) == 7
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def test_a_process_that_the_system_killed_ends_with_the_code_that_a_shell_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """137, as for want of memory: errors.py tells what it means."""
    monkeypatch.setattr(launch, "_processes", lambda *_: (["sh", "-c", "kill -9 $$"], {}))
    with sole_owner(tmp_path) as owner, pytest.raises(JobFailed, match="exit code 137") as failed:
        launch._run_processes(tmp_path / "job.json", {"threads": 1, "report_to": []}, TRAINING, owner)
    assert failed.value.exit_code == 137


def test_an_altered_corpus_is_refused_before_a_step_is_trained(job: dict[str, Any], tmp_path: Path) -> None:
    files = {"train/a.arrow": "0", "test/b.arrow": "0"}
    write_record(tmp_path / "data/manifest.json", {"files": files, "content": "now"})
    (tmp_path / "data/train/a.arrow").write_text("x")
    with pytest.raises(Altered, match=r"train/a.arrow is not the file .* delete .*manifest.json and run"):
        complete(job, tmp_path / "work", [2])
    with pytest.raises(Altered, match="is of another corpus than when this job began"):  # prepared anew meanwhile
        complete({**job, "content": "then"}, tmp_path / "work", [2])
    assert checkpoints.steps_there(tmp_path / "work") == []


def test_a_checkpoint_of_another_user_is_not_resumed_from_unless_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "global_step3").mkdir()
    (tmp_path / "global_step3/states.pt").touch()
    launch.refuse_foreign(tmp_path)
    me = str(os.getuid())
    monkeypatch.setattr(os, "getuid", lambda: 4242)
    with pytest.raises(UserError, match=f"belongs to user {me}; export LONGSHORT_TRUSTED_USERS={me} if you trust"):
        launch.refuse_foreign(tmp_path)
    monkeypatch.setenv("LONGSHORT_TRUSTED_USERS", f"7,{me}")
    launch.refuse_foreign(tmp_path)
    assert (tmp_path / "global_step3/states.pt").exists()


def test_cpu_time_of_a_training_on_several_nodes_is_unknown(job: dict[str, Any], tmp_path: Path) -> None:
    """What its processes take on the others is not seen from here, and is not nothing."""
    work, on_two = tmp_path / "work", TRAINING.model_copy(update={"nodes": 2})
    with sole_owner(work) as owner:
        launch.complete(job, work, [2], on_two, owner)
    assert (launch.spent(work)["steps"], launch.spent(work)["cpu_seconds"]) == (2, None)
