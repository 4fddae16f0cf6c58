"""The training stage as a process: resume, damage, kills, ZeRO stages, what its base may be."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas
import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from longshort import slurm
from longshort.models import load
from longshort.publish import folder_digests, read_record, write_record
from longshort.training import launch
from tests.conftest import ROOT


class Stage:
    """`python -m longshort.training` on the finished study's corpus and base, with a specification of its own."""

    def __init__(self, finished: Path, folder: Path, arm: str = "hidden+output") -> None:
        self.finished, self.folder = finished, folder
        self.spec: dict[str, Any] = json.loads((finished / f"results/tiny/arms/{arm}/seed-0/spec.json").read_text())
        self.base = next(finished.glob("results/runs/*/training/4.json"))
        self.data = next(finished.glob("results/data/*/manifest.json"))

    def command(self, steps: str, work: str = "work", *options: str) -> list[str]:
        (self.folder / "spec.json").write_text(json.dumps(self.spec))
        command = [sys.executable, "-m", "longshort.training", "--spec", self.folder / "spec.json", "--base", self.base]
        command += ["--data", self.data, "--steps", steps]
        command += ["--out", self.folder / f"{work}-{steps}.json", "--work", self.folder / work, *options]
        return [str(part) for part in command]

    def start(self, steps: str, work: str = "work", *options: str) -> subprocess.Popen[str]:
        return self.popen(self.command(steps, work, *options))

    def popen(self, command: list[str]) -> subprocess.Popen[str]:
        return subprocess.Popen(
            command,
            cwd=self.finished,
            env={**os.environ, "PYTHONPATH": str(self.finished / "src")},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, steps: str, work: str = "work", *options: str) -> tuple[dict[str, Any], pandas.DataFrame, str]:
        """Record, log without its timing, and what was printed."""
        process = self.start(steps, work, *options)
        printed, _ = process.communicate()
        assert process.returncode == 0, printed
        out = self.folder / f"{work}-{steps}.json"
        log = pandas.read_parquet(out.with_suffix(".parquet"))
        return json.loads(out.read_text()), log.drop(columns="tokens_per_second", errors="ignore"), printed


@pytest.mark.parametrize("processes", [1, 2])
def test_resume_is_bit_exact_and_trains_only_what_is_missing(finished: Path, tmp_path: Path, processes: int) -> None:
    """An added step, a damaged checkpoint: each resumes from the newest sound one before it."""
    stage = Stage(finished, tmp_path)
    stage.spec["training"]["processes"] = processes
    whole, log, _ = stage.run("3-6")
    again, _, said = stage.run("3-6")
    assert "training from" not in said and again["checkpoints"] == whole["checkpoints"]
    assert again["trained"] == 0 and again["spent"] == whole["spent"] and whole["spent"]["steps"] == 6
    added, added_log, said = stage.run("3-5-6")
    assert "training from step 3 to 5" in said and said.count("training from") == 1
    assert {step: added["checkpoints"][step] for step in ("3", "6")} == whole["checkpoints"]
    pandas.testing.assert_frame_equal(added_log, log, check_exact=True)

    # One flipped bit in the newest checkpoint.
    shutil.copytree(tmp_path / "work", tmp_path / "damaged")
    broken = next((tmp_path / "damaged").glob("*/checkpoint-6/model.safetensors"))
    content = bytearray(broken.read_bytes())
    content[-1] ^= 1
    broken.write_bytes(bytes(content))
    mended, mended_log, said = stage.run("3-6", "damaged")
    assert "checkpoint of step 6 is not used: model.safetensors is not the file that was written" in said
    assert "training from step 5 to 6" in said
    for step, checkpoint in whole["checkpoints"].items():
        assert mended["checkpoints"][step]["files"] == checkpoint["files"]
    pandas.testing.assert_frame_equal(mended_log, log, check_exact=True)


def test_resume_at_the_end_of_an_epoch_is_bit_exact(finished: Path, tmp_path: Path) -> None:
    """Eight windows and a batch of four: an epoch ends after every second step."""
    tokens = [(k * k) % 97 for k in range(9 * 32)]
    Dataset.from_dict({"name": ["d"], "input_ids": [tokens]}).save_to_disk(str(tmp_path / "data/train"))
    stage = Stage(finished, tmp_path)
    stage.data = tmp_path / "data/manifest.json"
    files = {f"train/{name}": sha for name, sha in folder_digests(tmp_path / "data/train").items()}
    write_record(stage.data, {"content": "c", "splits": {"train": {"sha256": "t"}}, "files": files})
    whole, log, said = stage.run("6", "whole")
    assert "8 windows of up to 32 tokens an epoch" in said
    stage.run("4", "parts")
    parts, parts_log, said = stage.run("4-6", "parts")
    assert "training from step 4 to 6" in said
    assert parts["checkpoints"]["6"]["files"] == whole["checkpoints"]["6"]["files"]
    pandas.testing.assert_frame_equal(parts_log, log, check_exact=True)


@pytest.mark.parametrize("zero", ["zero2", pytest.param("zero3", marks=pytest.mark.long)])
def test_a_resume_with_the_weights_of_clex_is_bit_exact(finished: Path, tmp_path: Path, zero: str) -> None:
    stage = Stage(finished, tmp_path)
    stage.spec["rope"] = {"kind": "clex", "max_factor": 4, "time_step": 0.1, "width_factor": 1, "activation": "tanh"}
    stage.spec["deepspeed"] = json.loads((ROOT / "config" / "deepspeed" / f"{zero}.json").read_text())
    stage.spec["training"]["processes"] = 2
    whole, log, _ = stage.run("6", "whole")
    stage.run("3", "parts")
    parts, parts_log, said = stage.run("3-6", "parts")
    assert "training from step 3 to 6" in said
    assert parts["checkpoints"]["6"]["files"] == whole["checkpoints"]["6"]["files"]
    pandas.testing.assert_frame_equal(parts_log, log, check_exact=True)
    model = load.load(parts["checkpoints"]["6"]["path"])
    assert model.get_decoder().rotary_emb.inv_freq_down.abs().max() > 0  # zero before it learned


@pytest.mark.parametrize("kind", [pytest.param("lora", marks=pytest.mark.long), "qlora"])
def test_an_adapter_is_trained_resumed_and_added_to_its_base(finished: Path, tmp_path: Path, kind: str) -> None:
    stage = Stage(finished, tmp_path)
    adapter = {"kind": kind, "rank": 4, "alpha": 8.0, "dropout": 0.1, "targets": ["q_proj", "down_proj"]}
    stage.spec["rope"] = {"kind": "pi", "factor": 2.0}
    stage.spec["deepspeed"] = json.loads((ROOT / "config" / "deepspeed" / "zero2.json").read_text())
    stage.spec["training"].update(processes=2, precision="bf16", adapter=adapter)
    whole, log, _ = stage.run("6", "whole")
    stage.run("3", "parts")
    parts, parts_log, said = stage.run("3-6", "parts")
    assert "training from step 3 to 6" in said
    pandas.testing.assert_frame_equal(parts_log, log, check_exact=True)
    checkpoint = parts["checkpoints"]["6"]
    assert checkpoint["files"] == whole["checkpoints"]["6"]["files"]
    assert set(checkpoint["files"]) == {"config.json", "adapter_config.json", "adapter_model.safetensors"}

    base = load.load(finished / checkpoint["adapts"]["path"])
    model = load.load(checkpoint["path"], adapts=finished / checkpoint["adapts"]["path"])
    assert model.config.rope_parameters["factor"] == 2.0
    products = load_file(f"{checkpoint['path']}/adapter_model.safetensors")
    for name, weight in model.state_dict().items():
        place = f"base_model.model.{name.removesuffix('.weight')}"
        expected = base.state_dict()[name]
        if f"{place}.lora_A.weight" in products:
            a, b = (products[f"{place}.lora_{one}.weight"].float() for one in "AB")
            assert b.abs().max() > 0  # zero before it learned
            expected = expected + 8.0 / 4 * b @ a
        torch.testing.assert_close(weight, expected)


@pytest.mark.parametrize(
    ("name", "processes", "precision", "tolerance"),
    [
        ("zero0", 1, "fp32", 1e-3),
        ("zero2", 2, "fp32", 1e-3),
        ("zero3", 2, "fp32", 1e-3),
        ("zero2", 2, "bf16", 3e-2),
        pytest.param("zero2-offload", 2, "fp32", 1e-3, marks=pytest.mark.long),
        pytest.param("zero3-offload", 2, "bf16", 3e-2, marks=pytest.mark.long),
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
    assert ours.keys() == theirs.keys()
    assert all((ours[key] - theirs[key]).abs().max() < 10 * tolerance for key in ours)


def test_micro_batch_accumulation_and_chunk_size_change_nothing_but_rounding(finished: Path, tmp_path: Path) -> None:
    stage = Stage(finished, tmp_path)
    _, whole, _ = stage.run("6")
    assert whole["loss"].nunique() == 6
    for options in (["--micro-batch", "1"], ["--micro-batch", "2", "--chunk-size", "10"]):
        _, parts, _ = stage.run("6", "-".join(options), *options)
        pandas.testing.assert_frame_equal(parts, whole, rtol=1e-4, atol=1e-6)
        assert not parts.equals(whole)  # they were computed otherwise


def test_a_tracker_is_told_every_step_and_changes_nothing(finished: Path, tmp_path: Path) -> None:
    """A training that is resumed goes on in the same folder, named by study, arm and seed."""
    stage = Stage(finished, tmp_path)
    quiet, whole, _ = stage.run("6")
    tell = ("--report-to", "tensorboard", "--run-name", f"{tmp_path.name}/constant/seed-0")
    stage.run("3", "told", *tell)
    told, log, _ = stage.run("6", "told", *tell)
    pandas.testing.assert_frame_equal(log, whole, check_exact=True)
    assert [c["files"] for c in told["checkpoints"].values()] == [c["files"] for c in quiet["checkpoints"].values()]
    events = EventAccumulator(str(finished / f"results/{tmp_path.name}/tensorboard/constant/seed-0"))
    events.Reload()
    for part in ("loss", "ce", "divergence", "alpha_output"):
        scalars = events.Scalars(f"train/{part}")
        assert [scalar.step for scalar in scalars] == list(whole["step"])
        assert [scalar.value for scalar in scalars] == pytest.approx(list(whole[part]))


def test_of_a_killed_stage_no_two_trainings_write(finished: Path, tmp_path: Path) -> None:
    stage = Stage(finished, tmp_path)
    stage.spec["training"]["steps"] = 600
    stage.spec["training"]["learning_rate_schedule"] = "constant"

    def wait_for_steps() -> Path:
        deadline = time.monotonic() + 120
        while not (logs := list((tmp_path / "work").glob("*/log.jsonl"))) or not logs[0].read_text():
            assert time.monotonic() < deadline
            time.sleep(0.1)
        return logs[0]

    process = stage.start("600")
    log = wait_for_steps()
    group = json.loads((log.parent / "owner.json").read_text())["group"]
    process.send_signal(signal.SIGKILL)
    process.wait()
    os.killpg(group, 0)  # the training lives on, and the next stage waits for it
    record, rows, said = stage.run("600")
    assert "waiting:" in said and record["status"] == "ok"
    written = [json.loads(line)["step"] for line in log.read_text().splitlines()]
    assert written == list(range(1, 601)) == list(rows["step"])

    shutil.rmtree(tmp_path / "work")
    process = stage.start("600")
    group = json.loads((wait_for_steps().parent / "owner.json").read_text())["group"]
    process.send_signal(signal.SIGTERM)
    process.wait()
    assert process.returncode != 0
    with pytest.raises(ProcessLookupError):
        os.killpg(group, 0)


def test_a_step_before_the_divergence_is_trained_whenever_it_is_asked_for(finished: Path, tmp_path: Path) -> None:
    stage = Stage(finished, tmp_path, arm="step-linear")
    late, _, _ = stage.run("6")
    assert late["status"] == "diverged" and late["checkpoints"] == {} and late["diverged"]["step"] > 1
    both, _, said = stage.run("1-6")
    assert both["status"] == "diverged" and list(both["checkpoints"]) == ["1"] and "training from step 0 to 1" in said
    assert stage.run("1")[0]["status"] == "ok"


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


def test_launchers_on_two_nodes_whose_clocks_differ_by_minutes_find_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", str(random.SystemRandom().randrange(12000)))
    monkeypatch.setattr(slurm, "address", lambda node: "127.0.0.1")
    command = [sys.executable, "-m", "torch.distributed.run"]
    command += launch._rendezvous(["n1", "n2"], {"nodes": 2, "processes": 1})
    command += ["--no-python", "sh", "-c", "echo $RANK of $WORLD_SIZE"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "tests/clock")}
    launchers = []
    for node in ("n2", "n1"):  # the one that is ahead comes first, and must not take the other one for dead
        variables = {**environment, "SLURMD_NODENAME": node}
        launchers.append(subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, text=True))
        time.sleep(3)
    try:
        said = sorted(launcher.communicate(timeout=90)[0] for launcher in launchers)
    finally:
        for launcher in launchers:
            launcher.kill()
    assert said == ["0 of 2\n", "1 of 2\n"]
