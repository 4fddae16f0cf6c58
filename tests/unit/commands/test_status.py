"""How far a study is, from records and heartbeats alone."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from longshort.cli import app
from longshort.collecting import numbers
from longshort.commands import status
from longshort.jobs import heartbeat, ownership, slurm
from longshort.records import layout
from longshort.records.publish import write_record
from longshort.study import resolve
from tests.support.waiting import PATIENCE, wait_until

HERE = {key: ownership.about_me()[key] for key in ("host", "boot", "pid", "born")}
ALTERED = {"status": "as it was"}


@pytest.fixture
def study(project: Path, monkeypatch: pytest.MonkeyPatch) -> resolve.ResolvedStudy:
    monkeypatch.chdir(project)
    return resolve.load("tiny")


def out_of(study: resolve.ResolvedStudy, arm: str) -> Path:
    return Path(study.record(study.arm_runs[arm][0]))


def write_beat(out: Path, **given: Any) -> None:
    facts = {"stage": "training", "state": "running", "attempt": 1, "host": "n7", "node": None, "pid": 1, "job": "42"}
    path = heartbeat.path_of(out)
    path.parent.mkdir(parents=True, exist_ok=True)
    silent = given.pop("silent", 0.0)
    # The clock of its node is ten minutes behind.
    path.write_text(json.dumps({**facts, "began": time.time() - 660, "beat": time.time() - 600, **given}))
    os.utime(path, (time.time() - silent,) * 2)


def test_jobs_that_share_out_an_evaluation_are_shown_until_it_is_done(
    study: resolve.ResolvedStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = Path(study.evaluation_record("perplexity", study.arm_runs["constant"][0]))
    monkeypatch.setattr(resolve.ResolvedStudy, "jobs_of", lambda study, metric: 2 if metric == "perplexity" else 1)
    first, second = (Path(layout.stage_of(record).share(number, 2).record) for number in range(2))
    write_beat(Path(layout.stage_of(record).share(0, 3).record), state="failed")  # when it asked for three
    write_beat(first, done=3, total=5)
    write_beat(second, state="finished")
    write_record(second, {"share": [1, 2]})

    def shown() -> dict[str, str]:
        return {one.stage: one.state for one in status.stages(study) if one.record.is_relative_to(record.parent)}

    assert shown() == {"perplexity": "pending", "perplexity 0-of-2": "running", "perplexity 1-of-2": "done"}
    write_record(record, {"run": "x"})
    assert shown() == {"perplexity": "done"}


def state_of(study: resolve.ResolvedStudy, arm: str) -> str:
    run = study.arm_runs[arm][0]
    return next(one.state for one in status.stages(study) if one.run == run and one.stage == "training")


@pytest.mark.parametrize(
    ("beat", "record", "state"),
    [
        (None, None, "pending"),
        ({}, None, "running"),
        ({"state": "waiting"}, None, "waiting"),
        ({"silent": 1000.0}, None, "lost"),
        ({"state": "waiting", "silent": 1000.0}, {"status": "ok"}, "lost"),
        (HERE, None, "running"),
        ({**HERE, "silent": 1000.0}, None, "running"),  # a file system that hangs takes no process away
        ({**HERE, "born": -1}, None, "lost"),  # another process has its number now
        ({**HERE, "boot": "another"}, None, "running"),  # another machine may have this one's name
        ({**HERE, "boot": "another", "silent": 1000.0}, None, "lost"),
        ({"host": socket.gethostname(), "pid": 2**22 + 1}, None, "lost"),
        ({"state": "failed"}, None, "failed"),
        ({"state": "interrupted"}, None, "interrupted"),
        ({"state": "finished"}, {"status": "ok"}, "done"),
        ({"state": "finished"}, {"status": "diverged"}, "diverged"),
        ({"state": "finished"}, None, "pending"),  # its result was taken away
        ({}, {"status": "ok"}, "running"),  # it is made again
        (None, {"status": "ok"}, "done"),  # the results of somebody else
        ({"state": "failed"}, {"status": "ok"}, "done"),  # that of an earlier attempt
        ({"state": "finished"}, ALTERED, "altered"),
        ({}, ALTERED, "running"),  # it is made again
    ],
)
def test_the_state_of_a_stage(
    study: resolve.ResolvedStudy, beat: dict[str, Any] | None, record: dict[str, Any] | None, state: str
) -> None:
    out = out_of(study, "constant")
    out.parent.mkdir(parents=True)
    if beat is not None:
        write_beat(out, **beat)
    if record is not None:
        write_record(out, record)
    if record is ALTERED:
        out.write_text(out.read_text().replace("as it was", "edited"))
    assert state_of(study, "constant") == state
    in_tables = {"pending": "missing", "altered": "missing", "done": "missing", "diverged": "missing"}
    assert numbers.unfinished(out) == in_tables.get(state, state)
    if beat is not None:
        assert heartbeat.may_live(heartbeat.path_of(out)) is (state in ("running", "waiting"))


def test_what_is_shown(study: resolve.ResolvedStudy) -> None:
    running, failed = out_of(study, "constant"), out_of(study, "baseline")
    write_beat(
        running,
        done=3,
        total=6,
        unit="steps",
        loss=1.25,
        tokens_per_second=1234.4,
        seconds_left=75.2,
        node="n1",
        memory_mb=4096.0,
        peak_memory_mb=2611.2,
    )
    write_beat(
        failed, state="failed", attempt=3, earlier=["killed", "out of memory (job 41)"], message="the disk is full"
    )
    failed.with_suffix(".log").write_text("".join(f"line {number}\n" for number in range(20)))
    shown = CliRunner().invoke(app, ["status", "--study", "tiny"])
    assert shown.exit_code == 0
    assert "9 jobs: 1 failed, 1 running, 7 pending" in shown.output
    row = next(line for line in shown.output.splitlines() if "constant, 0" in line)
    *values, silent, ago = row.split()[2:]
    assert values == "training running 3 of 6 steps 1.2500 1234 0:01:15 n1 42 2.5 of 4.0 GiB 1".split()
    assert re.fullmatch(r"0:0\d:\d\d", silent) and ago == "ago"
    assert "3, after: out of memory (job 41)" in shown.output
    assert "baseline, 0, training failed: the disk is full" in shown.output
    assert "line 19" in shown.output and "line 12" in shown.output and "line 11" not in shown.output
    rows = json.loads(CliRunner().invoke(app, ["status", "--study", "tiny", "--json"]).output)
    assert {row["state"] for row in rows} == {"failed", "running", "pending"} and rows[0]["attempt"] == 3


def test_what_jobs_wrote_cannot_speak_to_the_terminal(study: resolve.ResolvedStudy) -> None:
    out = out_of(study, "constant")
    write_beat(out, state="failed", message="\x1b]0;owned\x07\u202etxt.exe\x9b2J")
    out.with_suffix(".log").write_text("a\tline\x1b[2J\r\nanother\x00")
    for command in (["status"], ["status", "--json"]):
        said = CliRunner().invoke(app, [*command, "--study", "tiny"]).output
        assert "failed" in said
        assert not [letter for letter in said if letter not in "\n\t" and unicodedata.category(letter) in ("Cc", "Cf")]


def test_an_altered_record_is_named_with_what_to_do(study: resolve.ResolvedStudy) -> None:
    out = out_of(study, "constant")
    write_record(out, ALTERED)
    out.write_text(out.read_text().replace("as it was", "edited"))
    said = CliRunner().invoke(app, ["status", "--study", "tiny"]).output
    assert "9 jobs: 1 altered, 8 pending" in said
    assert f"constant, 0, training altered: {out} is not the record that was published; delete it" in said


def test_why_queued_jobs_wait_and_for_whom(study: resolve.ResolvedStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    """squeue's answers, as SLURM 22.05 gave them; jobs of another folder and of another study are none of ours."""
    base, constant, baseline = study.bases[0], study.arm_runs["constant"][0], study.arm_runs["baseline"][0]
    evaluation, here = study.evaluations["perplexity"][0], Path.cwd()
    answers = [
        f"7|PENDING|Resources|{here}|rule_train_wildcards_{base}_4",
        f"8|PENDING|JobHeldUser|{here}|rule_train_wildcards_{constant}_2-6",
        f"9|PENDING|Resources|{here}|rule_data_wildcards_{study.data}",
        f"10|PENDING|PartitionTimeLimit|{here}|rule_perplexity_wildcards_{evaluation}_{baseline}_2-6",
        f"11|RUNNING|None|{here}|rule_train_wildcards_{baseline}_2-6",
        f"12|PENDING|JobHeldUser|/elsewhere|rule_train_wildcards_{constant}_2-6",
        f"13|PENDING|JobHeldUser|{here}|rule_train_wildcards_0123456789abcdef_2-6",
    ]
    monkeypatch.setattr(slurm, "ask", lambda *command: "\n".join(answers) + "\n" if command[0] == "squeue" else None)
    monkeypatch.setenv("COLUMNS", "400")
    said = CliRunner().invoke(app, ["status", "--study", "tiny"]).output
    queued = [" ".join(line.split()) for line in said.split("\n\n")[1:]]
    assert [line.partition(":")[0] for line in queued] == [
        "queued, yours to mend", "queued, yours to mend", "queued, nothing to mend"
    ]  # fmt: skip
    assert "it is held: `scontrol release 8` lets it run (JobHeldUser): constant, 0, train (job 8)" in queued[0]
    assert "it asks for more than it may have: lower `needs`" in queued[1] and "baseline, 0, perplexity" in queued[1]
    assert queued[2].endswith("its turn has not come (Resources): base, train (job 7); data (job 9)")
    rows = json.loads(CliRunner().invoke(app, ["status", "--study", "tiny", "--json"]).output)
    assert {(row["queued_as"], row["ours"]) for row in rows if "queued_as" in row} == {
        ("7", False), ("8", True), ("10", True)
    }  # fmt: skip


@pytest.mark.parametrize(
    ("reason", "words", "ours"),
    [
        ("JobHeldAdmin", "ask who runs the cluster", True),
        ("launch failed requeued held", "ask who runs the cluster", True),
        ("DependencyNeverSatisfied", "`scancel 5`", True),
        ("QOSMaxCpuPerJobLimit", "more than it may have", True),
        ("AssocMaxWallDurationPerJobLimit", "more than it may have", True),
        ("BadConstraints", "nothing fits", True),
        ("InvalidAccount", "nothing fits", True),
        ("ReqNodeNotAvail, UnavailableNodes:n[1-2]", "sinfo -R", False),
        ("Nodes required for job are DOWN, DRAINED or reserved for jobs in higher priority partitions", "sinfo", False),
        ("AssocMaxJobsLimit", "when others have ended", False),
        ("QOSMaxJobsPerUserLimit", "when others have ended", False),
        ("AssocGrpCpuLimit", "when others have ended", False),
        ("AssocGrpCPURunMinutesLimit", "when others have ended", False),
        ("AssocGrpCPUMinutesLimit", "hours of its account or quality of service are spent", True),
        ("QOSGrpGRESMinutes", "hours of its account or quality of service are spent", True),
        ("Priority", "its turn", False),
        ("None", "its turn", False),
    ],
)
def test_slurms_reasons_in_words(reason: str, words: str, ours: bool) -> None:
    said = slurm.Job("5", "PENDING", "", "", reason).waits_for
    assert words in said[0] and said[1] is ours


def test_watching_goes_on_until_it_is_interrupted(study: resolve.ResolvedStudy, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "longshort.cli", "status", "--study", "tiny", "--watch", "--seconds", "0.5"]
    said = tmp_path / "said"

    def interruptible() -> None:  # whoever is started in the background ignores interrupts, and hands that on
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    with said.open("wb") as out, subprocess.Popen(command, stdout=out, preexec_fn=interruptible) as watching:
        wait_until(lambda: "9 pending" in said.read_text(), said.read_text)
        write_beat(out_of(study, "constant"), done=1, total=6, unit="steps")
        wait_until(lambda: "1 running" in said.read_text(), said.read_text)
        watching.send_signal(signal.SIGINT)
        assert watching.wait(timeout=PATIENCE) == 0
