"""The training stage: ZeRO stages, batches, trackers, what its base may be, launchers."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pandas
import pytest
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from longshort.jobs import slurm
from longshort.records.publish import read_record, write_record
from longshort.study.schema import Training
from longshort.training import launch
from tests.support import forkserver
from tests.support.project import ROOT
from tests.support.stage import Stage
from tests.support.waiting import PATIENCE


@pytest.mark.parametrize(
    ("name", "processes", "precision", "tolerance"),
    [
        ("zero0", 1, "fp32", 1e-3),
        ("zero2", 2, "fp32", 1e-3),
        ("zero3", 2, "fp32", 1e-3),
        pytest.param("zero2", 2, "bf16", 3e-2, marks=pytest.mark.wide),
        pytest.param("zero2-offload", 2, "fp32", 1e-3, marks=pytest.mark.wide),
        pytest.param("zero3-offload", 2, "bf16", 3e-2, marks=pytest.mark.wide),
    ],
)
def test_every_zero_stage_computes_the_same(
    finished: Path, tmp_path: Path, name: str, processes: int, precision: str, tolerance: float
) -> None:
    stage = Stage(finished, tmp_path)
    stage.spec["deepspeed"] = json.loads((ROOT / "config" / "deepspeed" / f"{name}.json").read_text())
    stage.spec["training"].update(processes=processes, precision=precision)
    record, log, _ = stage.run("6")
    arm = finished / "results/tiny/arms/hidden+output/seed-0/training"
    # Distances between the views are differences of nearly equal numbers: of them bf16 keeps a digit or two.
    columns = ["loss", "ce"] if precision == "bf16" else ["loss", "ce", "divergence", "hidden"]
    expected = pandas.read_parquet(arm / "2-6.parquet")[columns]
    pandas.testing.assert_frame_equal(log[expected.columns], expected, rtol=tolerance, atol=tolerance / 1000)
    reference = json.loads((arm / "2-6.json").read_text())["checkpoints"]["6"]["path"]
    ours = load_file(Path(record["checkpoints"]["6"]["path"]) / "model.safetensors")
    theirs = load_file(finished / reference / "model.safetensors")
    started_from = json.loads(stage.base.read_text())["checkpoints"]["4"]["path"]
    base = load_file(finished / started_from / "model.safetensors")
    assert ours.keys() == theirs.keys() == base.keys()
    # Of the way that the weights went. Measured: 6e-7 and 0.05; by the learning rates, step 3 is a fifth of it away.
    assert distance(ours, theirs) < (0.15 if precision == "bf16" else 1e-5) * distance(theirs, base)


def distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    return float(sum((one[key].double() - other[key].double()).square().sum() for key in one)) ** 0.5


@pytest.mark.parametrize(
    "zero", ["zero0", *(pytest.param(f"zero{stage}", marks=pytest.mark.wide) for stage in (1, 2)), "zero3"]
)
def test_positions_and_norms_are_computed_in_float32_where_weights_are_bf16(tmp_path: Path, zero: str) -> None:
    """However a context is extended, CLEX's equation included: in bf16, frequencies would move position 30,000 by
    whole turns. Cosines themselves are rounded to bf16, by 2^-9."""
    process = subprocess.run(
        [forkserver.python(), "-m", "tests.support.half_precision", str(tmp_path), zero],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"},
        capture_output=True,
        text=True,
    )
    result = next((line for line in process.stdout.splitlines() if line.startswith("RESULT ")), None)
    assert result, process.stdout + process.stderr
    said = json.loads(result.removeprefix("RESULT "))
    rounded = said.pop("rounded", None)
    assert len(said) == 7 and (zero != "zero0" or rounded["moved"] > 1)
    for kind, found in said.items():
        assert found["types"] == ["torch.bfloat16"] and found["moved"] < 0.01, (kind, found)
        assert found["epsilon tells"] and found["norm"] < 2**-7, (kind, found)


def test_micro_batch_accumulation_and_chunk_size_change_nothing_but_rounding(finished: Path, tmp_path: Path) -> None:
    stage = Stage(finished, tmp_path)
    _, whole, _ = stage.run("6")
    assert whole["loss"].nunique() == 6
    for options in (["--micro-batch", "1"], ["--micro-batch", "2", "--chunk-size", "10"]):
        _, parts, _ = stage.run("6", "-".join(options), *options)
        pandas.testing.assert_frame_equal(parts, whole, rtol=1e-4, atol=1e-6)
        assert not parts.equals(whole)  # they were computed otherwise


@pytest.mark.wide
def test_a_tracker_is_told_every_step_and_changes_nothing(finished_copy: Path, tmp_path: Path) -> None:
    """A training that is resumed goes on in the same folder, named by study, arm and seed."""
    stage = Stage(finished_copy, tmp_path)
    quiet, whole, _ = stage.run("6")
    tell = ("--report-to", "tensorboard", "--run-name", f"{tmp_path.name}/constant/seed-0")
    stage.run("3", "told", *tell)
    told, log, _ = stage.run("6", "told", *tell)
    pandas.testing.assert_frame_equal(log, whole, check_exact=True)
    assert [c["files"] for c in told["checkpoints"].values()] == [c["files"] for c in quiet["checkpoints"].values()]
    events = EventAccumulator(str(finished_copy / f"results/{tmp_path.name}/tensorboard/constant/seed-0"))
    events.Reload()
    for part in ("loss", "ce", "divergence", "alpha_output"):
        scalars = events.Scalars(f"train/{part}")
        assert [scalar.step for scalar in scalars] == list(whole["step"])
        assert [scalar.value for scalar in scalars] == pytest.approx(list(whole[part]))


def test_a_base_that_was_altered_is_refused_and_one_that_diverged_is_passed_on(finished: Path, tmp_path: Path) -> None:
    stage = Stage(finished, tmp_path)
    record = read_record(stage.base)
    checkpoint = record["checkpoints"]["4"]
    checkpoint["files"]["model.safetensors"] = "0" * 64
    stage.base = tmp_path / "base.json"
    write_record(stage.base, record)
    process = stage.start("6")
    assert "model.safetensors is not the file that was written" in process.communicate()[0]
    assert process.returncode != 0

    write_record(stage.base, {**record, "status": "diverged", "checkpoints": {}, "diverged": {"step": 2}})
    assert stage.run("6")[0]["status"] == "diverged"


def test_a_base_that_is_taken_as_it_is_is_another_run_with_other_weights(finished: Path, tmp_path: Path) -> None:
    stage, runs = Stage(finished, tmp_path), []
    stage.spec = {key: stage.spec[key] for key in ("data", "length", "seed")}
    stage.spec["pretrained"] = {"kind": "pretrained", "name": str(tmp_path), "revision": None}
    for weights in ("those of one machine", "those of another"):
        (tmp_path / "model.safetensors").write_text(weights)
        stage.run("0", "work", "--base")  # none: the last one counts
        runs.append(read_record(tmp_path / "work-0.json"))
    assert runs[0]["run"] == runs[1]["run"] and runs[0]["run_id"] != runs[1]["run_id"]


@pytest.mark.wide
def test_launchers_on_two_nodes_whose_clocks_differ_by_minutes_find_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", str(random.SystemRandom().randrange(12000)))
    monkeypatch.setattr(slurm, "address", lambda node: "127.0.0.1")
    command = [sys.executable, "-m", "torch.distributed.run"]
    command += launch._rendezvous(["n1", "n2"], Training(steps=1, batch=2, learning_rate=0.1, nodes=2))
    command += ["--no-python", "sh", "-c", "echo $RANK of $WORLD_SIZE"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "tests/clock")}
    launchers = []
    for node in ("n2", "n1"):  # the one that is ahead comes first, and must not take the other one for dead
        variables = {**environment, "SLURMD_NODENAME": node}
        launchers.append(subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, text=True))
        time.sleep(3)
    try:
        said = sorted(launcher.communicate(timeout=PATIENCE)[0] for launcher in launchers)
    finally:
        for launcher in launchers:
            launcher.kill()
    assert said == ["0 of 2\n", "1 of 2\n"]
