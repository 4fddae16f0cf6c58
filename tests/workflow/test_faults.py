"""What happens to a training's processes, and what the next attempt makes of it: the numbers of an undisturbed one."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pandas
import pytest

from longshort.jobs import ownership
from longshort.records.publish import text_of
from longshort.training import launch
from tests.support.project import ROOT, edit, edit_study, on_a_small_disk, run_python, run_snakemake
from tests.support.stage import Stage, kill_everything, ranks, wait_for_step, whole_lines
from tests.support.waiting import PATIENCE, wait_until

STEPS = 40
# A checkpoint after every step.
OFTEN = ("--checkpoint-minutes", "0")


def long_stage(finished: Path, folder: Path, processes: int = 2, zero: str = "zero2") -> Stage:
    stage = Stage(finished, folder)
    stage.spec["deepspeed"] = json.loads((ROOT / f"config/deepspeed/{zero}.json").read_text())
    stage.spec["training"].update(steps=STEPS, processes=processes)
    return stage


def ask_the_stage(stage: subprocess.Popen[str], group: int) -> None:
    stage.terminate()


def ask_one_rank(stage: subprocess.Popen[str], group: int) -> None:
    """On several nodes SLURM's signal reaches the training processes, and the launcher of the job does not get it."""
    os.kill(ranks(group)[0], signal.SIGTERM)


@pytest.mark.parametrize(
    ("fault", "processes", "zero", "options"),
    [
        (kill_everything, 1, "zero2", OFTEN),
        pytest.param(kill_everything, 2, "zero3", OFTEN, marks=pytest.mark.wide),
        pytest.param(ask_the_stage, 2, "zero3", ("--micro-batch", "1"), marks=pytest.mark.wide),
        pytest.param(ask_one_rank, 2, "zero2", (), marks=pytest.mark.wide),
    ],
)
def test_the_next_attempt_ends_as_if_nothing_had_happened(
    finished: Path,
    tmp_path: Path,
    fault: Callable[[subprocess.Popen[str], int], None],
    processes: int,
    zero: str,
    options: tuple[str, ...],
) -> None:
    """Weights and log, bit for bit: SIGKILL of all processes, SIGTERM to the stage, SIGTERM to one rank; with
    accumulation (micro-batch 1 of 4 windows), with ZeRO-2 and ZeRO-3. Of one process only SIGKILL, for machines without
    SLURM: one that is killed, cancelled, preempted, asked to stop ahead of its time, out of memory or disk, and one
    rank of two that dies, are in tests/slurm. The whole study: tests/contract/test_resuming.py."""
    stage = long_stage(finished, tmp_path, processes, zero)
    micro_batch = options[options.index("--micro-batch") :] if "--micro-batch" in options else ()
    whole, log, _ = stage.run(f"{STEPS}", "undisturbed", *micro_batch)
    random.seed(f"{fault.__name__} {zero}")
    at = random.randrange(3, STEPS - 10)
    process = stage.start(f"{STEPS}", "work", *options)
    fault(process, wait_for_step(tmp_path / "work", at))
    said, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode != 0, said
    if fault in (ask_the_stage, ask_one_rank):
        reached = max(int(path.name.split("-")[1]) for path in (tmp_path / "work").glob("*/checkpoint-*"))
        assert at <= reached < STEPS and f"checkpoint at step {reached}, to resume from" in said
        assert process.returncode == 143 and f"the next attempt goes on after step {reached}" in said
    assert not list((tmp_path / "work").glob("*/owner.json")) or fault is kill_everything

    record, rows, said = stage.run(f"{STEPS}", "work", *options)
    assert "training from step 0" not in said
    assert record["checkpoints"][f"{STEPS}"]["files"] == whole["checkpoints"][f"{STEPS}"]["files"]
    pandas.testing.assert_frame_equal(rows, log, check_exact=True)
    raw = [json.loads(line)["step"] for line in whole_lines(next((tmp_path / "work").glob("*/log.jsonl")))]
    assert raw == list(range(1, STEPS + 1))
    # Checkpoints that served to resume are gone.
    assert [path.name for path in (tmp_path / "work").glob("*/checkpoint-*")] == [f"checkpoint-{STEPS}"]


@pytest.mark.wide
@pytest.mark.parametrize("processes", [1, 2])
def test_a_training_outlives_its_stage_and_the_next_one_waits_for_it(
    finished: Path, tmp_path: Path, processes: int
) -> None:
    """As when the system runs out of memory and ends the stage: two trainings would write one folder."""
    stage = long_stage(finished, tmp_path, processes)
    process = stage.start(f"{STEPS}", "work", *OFTEN)
    training = wait_for_step(tmp_path / "work", 1)
    os.killpg(training, signal.SIGSTOP)  # until it is waited for
    process.kill()
    process.wait()
    second = stage.start(f"{STEPS}", "work", *OFTEN)
    assert second.stdout is not None
    try:
        assert any("waiting: " in line for line in second.stdout)
    finally:
        os.killpg(training, signal.SIGCONT)
    said = second.stdout.read()
    assert second.wait() == 0 and "training from step" not in said
    record = json.loads((tmp_path / f"work-{STEPS}.json").read_text())
    rows = pandas.read_parquet(tmp_path / f"work-{STEPS}.parquet")
    assert record["trained"] == 0 and list(rows["step"]) == list(range(1, STEPS + 1))


@pytest.mark.wide
@pytest.mark.parametrize("processes", [1, 2])
def test_a_stage_that_is_asked_to_stop_while_it_starts_ends_soon(
    finished: Path, tmp_path: Path, processes: int
) -> None:
    stage = long_stage(finished, tmp_path, processes)
    process = stage.start(f"{STEPS}")

    def started() -> bool:
        return any(json.loads(owner.read_text())["group"] for owner in (tmp_path / "work").glob("*/owner.json"))

    wait_until(started, lambda: f"exit code {process.poll()}")
    process.terminate()
    said, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 143 and "the next attempt goes on after step 0" in said
    heartbeat = json.loads((tmp_path / f"work-{STEPS}.heartbeat").read_text())
    assert heartbeat["state"] == "interrupted" and heartbeat["attempt"] == 1


@pytest.mark.wide
def test_of_several_damaged_checkpoints_those_whose_weights_are_sound_are_kept(finished: Path, tmp_path: Path) -> None:
    """A missing optimiser file in the newest, cut weights in the one before: that one alone is trained anew. A newest
    one without its states while a training runs: tests/unit/training/test_checkpoints.py."""
    stage = long_stage(finished, tmp_path)
    whole, log, _ = stage.run("10-20-30")
    for name in (f"work-10-20-30{suffix}" for suffix in (".json", ".parquet")):
        (tmp_path / name).unlink()
    work = next((tmp_path / "work").iterdir())
    next((work / "checkpoint-30").rglob("*optim_states.pt")).unlink()
    cut = next((work / "checkpoint-20").glob("model.safetensors"))
    cut.write_bytes(cut.read_bytes()[:-100])
    mended, rows, said = stage.run("10-20-30")
    assert "checkpoint of step 30 is not resumed from: " in said and "is missing" in said
    assert "checkpoint of step 20 is not used: model.safetensors is not the file that was written" in said
    assert "training from step 0 to 20" in said
    assert mended["checkpoints"] == whole["checkpoints"]
    pandas.testing.assert_frame_equal(rows, log, check_exact=True)


@pytest.mark.wide
def test_a_disk_that_is_full_when_a_step_is_logged_is_named(finished: Path, tmp_path: Path) -> None:
    """A page each for the lock, the job and the wanted steps, and two for the log. A checkpoint that does not fit:
    tests/slurm/test_training.py."""
    stage = long_stage(finished, tmp_path, 1, "zero0")
    _, log, _ = stage.run("40", "undisturbed")
    work = tmp_path / "work"
    process = stage.popen(on_a_small_disk(work, 5 * 4096, stage.command("40")))
    said, _ = process.communicate()
    assert process.returncode == 0 and "exit code 1" in said, said
    assert re.search(rf"the training failed: .*no space for {work}/\w+/log.jsonl: it needs \d+ B", said), said
    assert "a checkpoint was not written" not in said
    rows = pandas.read_parquet(tmp_path / "work-40.parquet").drop(columns="tokens_per_second")
    pandas.testing.assert_frame_equal(rows, log, check_exact=True)


@pytest.mark.wide
def test_an_engine_that_was_killed_and_started_again_waits_for_its_orphan(finished_copy: Path) -> None:
    """Snakemake alone is killed: its job trains on, and is halted until the job of the next one waits for it."""
    edit_study(finished_copy, training__steps=STEPS, checkpoints=[STEPS], arms=["baseline"], overrides={})
    code = "from longshort.study import resolve; s = resolve.load('tiny'); print(s.record(s.arm_runs['baseline'][0]))"
    record = finished_copy / run_python(finished_copy, "-c", code).stdout.strip()
    known = set((finished_copy / "work").iterdir())

    def start(*options: str) -> subprocess.Popen[bytes]:
        target = str(record.relative_to(finished_copy))
        return subprocess.Popen(
            [sys.executable, "-m", "snakemake", target, "--cores", "1", *options, "--config", "study=tiny"],
            cwd=finished_copy,
            env={**os.environ, "PYTHONPATH": str(finished_copy / "src")},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def owners() -> list[Path]:
        found = [owner for owner in (finished_copy / "work").glob("*/owner.json") if owner.parent not in known]
        return [owner for owner in found if ownership.content(owner).get("group")]

    engine = start()
    wait_until(lambda: bool(owners()), lambda: f"exit code {engine.poll()}")
    (owner,) = owners()
    training = ownership.content(owner)["group"]
    os.killpg(training, signal.SIGSTOP)
    engine.kill()
    engine.wait()

    run_snakemake(finished_copy, "--unlock")
    engine, log = start("--rerun-incomplete"), record.with_suffix(".log")
    waits = f"waiting: {owner.parent.relative_to(finished_copy)} is owned by"
    wait_until(lambda: waits in text_of(log), lambda: f"exit code {engine.poll()}")
    os.killpg(training, signal.SIGCONT)
    assert engine.wait() == 0
    assert json.loads(record.read_text())["trained"] == 0
    steps = [json.loads(line)["step"] for line in whole_lines(owner.with_name("log.jsonl"))]
    assert steps == list(range(1, STEPS + 1)) == list(pandas.read_parquet(record.with_suffix(".parquet"))["step"])


@pytest.mark.wide
def test_a_lock_that_a_killed_process_left_on_what_deepspeed_compiled_stops_no_one(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = Path(launch.environment(1)["TORCH_EXTENSIONS_DIR"])
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(shutil.copytree(compiled, tmp_path / "compiled")))
    for folder in (tmp_path / "compiled").iterdir():
        (folder / "lock").touch()
    long_stage(finished, tmp_path).run("1")


@pytest.mark.wide
def test_another_number_of_processes_is_refused(finished: Path, tmp_path: Path) -> None:
    stage = long_stage(finished, tmp_path)
    stage.run("2")
    job = next((tmp_path / "work").glob("*/job.json"))
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=1", "--module"]
    done = run_python(finished, *launcher, "longshort.training.worker", "--job", str(job), check=False)
    assert done.returncode != 0
    assert "this run is one of 2 processes, as its specification says, and 1 were started" in done.stderr


def test_code_that_changed_since_a_job_looked_at_it_is_refused(finished_copy: Path, tmp_path: Path) -> None:
    """As while it waited for its folder, or loaded a large base."""
    Stage(finished_copy, tmp_path).run("2")
    job = next((tmp_path / "work").glob("*/job.json"))
    edit(finished_copy, "src/longshort/training/trainer.py", "import argparse\n", "import abc\nimport argparse\n")
    done = run_python(finished_copy, "-m", "longshort.training.worker", "--job", str(job), check=False)
    assert done.returncode != 0 and "longshort.training.trainer changed after this job began" in done.stderr
