"""What jobs/engine.py says of Snakemake and its SLURM plugin, asked of the real ones in a workflow of two rules."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from longshort.errors import StudyError
from longshort.jobs import engine
from tests.support import forkserver
from tests.support.project import ROOT
from tests.support.waiting import PATIENCE, wait_until

RUN = "0123456789abcdef"
RECORD = f"runs/{RUN}/training/2-6.json"
# Longer in base64 than the name of a file may be.
LONG = f"runs/{RUN}/{'-'.join(map(str, range(70)))}/2-6.json"
WORKFLOW = f"""
from longshort.study.resources import growing

rule all:
    input: "{RECORD}", "{LONG}"

rule train:
    output: record="runs/{{run}}/{{place}}/{{steps}}.json", log="runs/{{run}}/{{place}}/{{steps}}.parquet"
    log: "runs/{{run}}/{{place}}/{{steps}}.log"
    params: code="one"
    resources: mem_mb=growing(100), slurm_partition="here", runtime=5
    shell: "test ! -e {{log}}; echo {{resources.mem_mb}} > {{log}};"
        " while test -e hang; do sleep 0.1; done; touch {{output}}"
"""
PYTHON = sys.executable
NEEDED = "test {resources.mem_mb} -ge 200"


@pytest.fixture
def workflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "executable", forkserver.python())
    Path("Snakefile").write_text(WORKFLOW)
    return Path("Snakefile")


def run(*arguments: str, check: bool = True) -> str:
    command = engine.command(*arguments, "--cores", "1")
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert bool(done.returncode) is not check, done.stdout
    return done.stdout


def planned() -> dict[str, str]:
    """Of each job that makes a record: why it would run."""
    return {str(job.record): job.reason for job in engine.dry_run("any") if job.rule == "train"}


def test_the_dry_run_names_jobs_and_what_is_remembered_decides_over_them(workflow: Path) -> None:
    first, last = sorted(engine.dry_run("any"), key=lambda job: job.rule)[0], engine.dry_run("any", RECORD)[0]
    assert (first.rule, first.wildcards, first.outputs) == ("all", {}, [])
    assert last.wildcards == {"run": RUN, "place": "training", "steps": "2-6"}
    assert (last.rule, last.run, last.steps, last.record) == ("train", RUN, "2-6", Path(RECORD))
    assert last.outputs == [Path(RECORD), Path(RECORD).with_suffix(".parquet")]
    assert planned().keys() == {RECORD, LONG} and planned()[RECORD].startswith("Missing output files")
    run("all")
    assert planned() == {}
    remembers = engine.remembered()
    assert remembers(RECORD) and remembers(LONG) and not remembers(RECORD.replace("2-6", "2-8"))
    workflow.write_text(WORKFLOW.replace("growing(100)", "growing(300)"))  # resources are no provenance
    assert planned() == {}
    workflow.write_text(WORKFLOW.replace('"one"', '"two"'))
    assert planned().keys() == {RECORD, LONG} and planned()[RECORD].startswith("Params have changed")
    for folder in engine.RECORDS:
        for file in [path for path in folder.rglob("*") if path.is_file()]:
            file.unlink()
    assert planned() == {} and not engine.remembered()(RECORD)  # what commands/stale.py is for


def test_a_refusal_to_plan_is_told_from_what_is_printed_before_it(workflow: Path) -> None:
    with pytest.raises(StudyError, match=r"^snakemake cannot plan nonsense:\nMissingRuleException"):
        engine.dry_run("any", "nonsense")


def test_what_a_killed_engine_left_is_remembered_and_made_again(workflow: Path) -> None:
    Path("hang").touch()
    command = [PYTHON, *engine.command(RECORD, "--cores", "1")[1:]]  # a fork would outlive SIGKILL
    with subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL) as killed:
        try:
            wait_until(Path(RECORD).with_suffix(".log").exists, lambda: "no job began")
        finally:
            os.killpg(killed.pid, signal.SIGKILL)
    Path("hang").unlink()
    Path(RECORD).touch()
    Path(RECORD).with_suffix(".parquet").touch()
    assert engine.remembered()(RECORD)
    assert planned().keys() == {RECORD, LONG}


def test_an_engine_inside_a_job_hands_a_request_to_stop_on(workflow: Path) -> None:
    """Where SLURM tracks processes by cgroups it signals that engine alone, which itself only notes it."""
    heeds = "trap 'touch told; exit 1' TERM; touch begun; while true; do sleep 0.1; done"
    asks = re.search(r"if not workflow.is_main_process:\n.*\n", (ROOT / "Snakefile").read_text())
    assert asks is not None
    rule = f'rule:\n    output: "out"\n    shell: "{heeds}"\n'
    workflow.write_text(f"from longshort.commands import engine_run\n{asks[0]}{rule}")
    process = subprocess.Popen([PYTHON, "-m", "snakemake", "--cores", "1", "--mode", "subprocess", "out"])
    try:
        wait_until(Path("begun").exists, lambda: "no job began")
        process.terminate()
        assert process.wait(timeout=PATIENCE) != 0
    finally:
        process.kill()
    assert Path("told").exists()


def test_a_job_that_failed_is_given_more_and_its_log_is_deleted_before(workflow: Path) -> None:
    """jobs/heartbeat.py keeps a second name of the log."""
    workflow.write_text(WORKFLOW.replace("touch {output}", f"{NEEDED} && touch {{output}}"))
    run(RECORD, "--retries", "1")
    assert Path(RECORD).with_suffix(".log").read_text() == "200\n"


def test_what_the_plugin_calls_jobs_and_says_of_a_refusal(workflow: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    programs = Path("bin").absolute()
    programs.mkdir()
    for name in ("sacctmgr", "sshare", "sinfo", "scontrol", "squeue", "sacct", "sbatch"):
        (programs / name).write_text(
            '#!/bin/sh\nprintf "%s\\n" "$@" > asked.$(basename "$0")\necho "Not you" >&2\nexit 1\n'
        )
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", os.pathsep.join([str(programs), *os.get_exec_path()]))
    run(RECORD, "--executor", "slurm", "--jobs", "1", "--slurm-init-seconds-before-status-checks", "1", check=False)
    asked = Path("asked.sbatch").read_text().splitlines()
    assert engine.ids_in(asked[asked.index("--comment") + 1]) == {RUN}
    log = Path(asked[asked.index("--output") + 1].replace("%j", "42"))
    log.parent.mkdir(parents=True)  # the plugin has tidied up
    log.touch()
    assert [path.absolute() for path in engine.slurm_logs("42")] == [log]
    said = "".join(path.read_text() for path in Path(".snakemake/log").iterdir())
    assert engine.refusals(said) == ["Not you"]
