"""A training that was ended goes on where it was, bit by bit; what is finished is not trained again."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pandas
import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file

from longshort.commands import storage
from longshort.models import load
from longshort.records.publish import folder_digests, write_record
from longshort.training import checkpoints
from tests.support import forkserver
from tests.support.project import ROOT
from tests.support.stage import Stage


def test_resume_is_bit_exact_and_trains_only_what_is_missing(finished: Path, tmp_path: Path) -> None:
    """Two processes: what is there is not trained again, and what is damaged is, past the sound weights before it. An
    added step: below, and tests/contract/test_resuming.py. Several damaged checkpoints: test_faults.py."""
    stage = Stage(finished, tmp_path)
    stage.spec["training"]["processes"] = 2
    whole, log, _ = stage.run("3-6")
    again, _, said = stage.run("3-6")
    assert "training from" not in said and again["checkpoints"] == whole["checkpoints"]
    assert again["trained"] == 0 and again["spent"] == whole["spent"] and whole["spent"]["steps"] == 6

    # One flipped bit in the newest checkpoint.
    shutil.copytree(tmp_path / "work", tmp_path / "damaged")
    broken = next((tmp_path / "damaged").glob("*/checkpoint-6/model.safetensors"))
    content = bytearray(broken.read_bytes())
    content[-1] ^= 1
    broken.write_bytes(bytes(content))
    mended, mended_log, said = stage.run("3-6", "damaged")
    assert "checkpoint of step 6 is not used: model.safetensors is not the file that was written" in said
    assert "training from step 0 to 6" in said
    for step, checkpoint in whole["checkpoints"].items():
        assert mended["checkpoints"][step]["files"] == checkpoint["files"]
    pandas.testing.assert_frame_equal(mended_log, log, check_exact=True)


@pytest.mark.wide
@pytest.mark.parametrize(
    ("zero", "precision"),
    [("zero0", "fp32"), ("zero1", "fp32"), *((f"zero{stage}", "bf16") for stage in (0, 1, 2, 3))],
)
def test_the_newest_checkpoint_resumes_bit_exactly_to_an_added_step_and_earlier_ones_are_weights(
    finished: Path, tmp_path: Path, zero: str, precision: str
) -> None:
    """Two processes; ZeRO-2 and 3 in fp32: test_faults.py. What a checkpoint takes, with states and without, is what
    `longshort plan` says; ZeRO-0 in bf16 keeps a fifth more."""
    stage = Stage(finished, tmp_path)
    stage.spec["deepspeed"] = json.loads((ROOT / f"config/deepspeed/{zero}.json").read_text())
    stage.spec["training"].update(processes=2, precision=precision)
    stage.run("2-4", "parts")
    work = next((tmp_path / "parts").iterdir())
    weights = {path.name for path in (work / "checkpoint-2").iterdir()} - {checkpoints.MANIFEST}
    assert weights == {"config.json", "generation_config.json", "model.safetensors"}
    tensors = load_file(work / "checkpoint-2/model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {load.DTYPES[precision]}
    count = sum(tensor.numel() for tensor in tensors.values())
    of_weights = (work / "checkpoint-4/model.safetensors").stat().st_size
    states = sum(path.stat().st_size for path in (work / "checkpoint-4").rglob("*optim_states.pt"))
    states += sum(path.stat().st_size for path in (work / "checkpoint-4").rglob("*model_states.pt"))
    assert of_weights / count == pytest.approx(storage.WEIGHTS[precision], rel=0.1)
    assert states / count == pytest.approx(storage.STATES[precision], rel=0.25 if zero == "zero0" else 0.15)

    parts, log, said = stage.run("2-4-6", "parts")
    assert "training from step 4 to 6" in said
    whole, whole_log, _ = stage.run("2-4-6", "whole")
    for step, checkpoint in whole["checkpoints"].items():
        assert parts["checkpoints"][step]["files"] == checkpoint["files"]
        assert {path.name for path in (work / f"checkpoint-{step}").iterdir()} == {*weights, checkpoints.MANIFEST}
    pandas.testing.assert_frame_equal(log, whole_log, check_exact=True)


class Harmful:
    """What a pickle makes of it is a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


def test_a_checkpoint_that_would_run_code_is_refused(finished: Path, tmp_path: Path) -> None:
    """Sealed anew by who changed it."""
    stage = Stage(finished, tmp_path)
    stage.spec["training"]["processes"] = 2
    stage.run("3")
    checkpoint = next((tmp_path / "work").glob("*/checkpoint-3"))
    for path in checkpoint.rglob("*.pt"):
        torch.save({**torch.load(path, weights_only=False), "more": Harmful(tmp_path / "made")}, path)
    checkpoints.seal(checkpoint)
    process = stage.popen([forkserver.python(), *stage.arguments("3-6", "work")])
    said, _ = process.communicate()
    assert process.returncode != 0 and "Weights only load failed" in said
    assert not (tmp_path / "made").exists()


@pytest.mark.wide
def test_resume_at_the_end_of_an_epoch_is_bit_exact(finished: Path, tmp_path: Path) -> None:
    """Eight windows and a batch of four: an epoch ends after every second step."""
    tokens = [(k * k) % 97 for k in range(9 * 32)]
    Dataset.from_dict({"name": ["d"], "input_ids": [tokens]}).save_to_disk(str(tmp_path / "data/train"))
    stage = Stage(finished, tmp_path)
    stage.data = tmp_path / "data/manifest.json"
    files = {f"train/{name}": sha for name, sha in folder_digests(tmp_path / "data/train").items()}
    write_record(stage.data, {"content": "c", "splits": {"train": {"sha256": "t"}}, "files": files})
    whole, log, said = stage.run("6", "whole")
    assert "8 slots of 32 tokens an epoch" in said
    stage.run("4", "parts")
    parts, parts_log, said = stage.run("4-6", "parts")
    assert "training from step 4 to 6" in said
    assert parts["checkpoints"]["6"]["files"] == whole["checkpoints"]["6"]["files"]
    pandas.testing.assert_frame_equal(parts_log, log, check_exact=True)


@pytest.mark.wide
def test_a_resume_with_the_weights_of_clex_is_bit_exact_and_its_draws_know_no_micro_batch(
    finished: Path, tmp_path: Path
) -> None:
    stage = Stage(finished, tmp_path)
    stage.spec["rope"] = {"kind": "clex", "max_factor": 4, "time_step": 0.1, "width_factor": 1, "activation": "tanh"}
    stage.spec["rope"]["draws_per"] = "window"
    stage.spec["deepspeed"] = json.loads((ROOT / "config" / "deepspeed" / "zero3.json").read_text())
    stage.spec["training"]["processes"] = 2
    whole, log, _ = stage.run("6", "whole")
    stage.run("3", "parts")
    one, other = (
        torch.load(state, weights_only=False)["cpu"]
        for state in sorted((tmp_path / "parts").glob("*/checkpoint-3/rng_state_?.pth"))
    )
    assert not torch.equal(one, other)  # as each process drops out other inputs
    parts, parts_log, said = stage.run("3-6", "parts")
    assert "training from step 3 to 6" in said
    assert parts["checkpoints"]["6"]["files"] == whole["checkpoints"]["6"]["files"]
    pandas.testing.assert_frame_equal(parts_log, log, check_exact=True)
    _, small, _ = stage.run("6", "small", "--micro-batch", "1")
    pandas.testing.assert_frame_equal(small, log, rtol=1e-4, atol=1e-6)
    assert not small.equals(log)  # it was computed otherwise
    model = load.load(parts["checkpoints"]["6"]["path"])
    assert model.get_decoder().rotary_emb.inv_freq_down.abs().max() > 0  # zero before it learned


@pytest.mark.wide
@pytest.mark.parametrize("kind", ["lora", "qlora"])
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


def test_a_step_before_the_divergence_is_trained_whenever_it_is_asked_for(finished: Path, tmp_path: Path) -> None:
    stage = Stage(finished, tmp_path, arm="step-linear")
    late, _, _ = stage.run("6")
    assert late["status"] == "diverged" and late["checkpoints"] == {} and late["diverged"]["step"] > 1
    both, _, said = stage.run("1-6")
    assert both["status"] == "diverged" and list(both["checkpoints"]) == ["1"] and "training from step 0 to 1" in said
    assert stage.run("1")[0]["status"] == "ok"
