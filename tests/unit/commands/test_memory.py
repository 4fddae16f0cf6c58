"""The estimate of a training's memory, against sums that are done by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from longshort.commands import memory
from longshort.models.settings import Adapter, Weights
from longshort.study.schema import Training
from tests.support.project import ROOT

LLAMA = memory.Model(layers=32, width=4096, inner=11008, kv_share=1.0, vocabulary=32000)
WEIGHTS = 6_738_149_376  # of Llama-2-7B, but for its norms


def taken(zero: str, processes: int, **changes: object) -> dict[str, float]:
    deepspeed = json.loads((ROOT / f"config/deepspeed/{zero}.json").read_text())
    shape = {"steps": 1, "batch": processes, "learning_rate": 0.1, "precision": "bf16", "processes": processes}
    training = Training.model_validate({**shape, **changes})
    return memory.of_training(LLAMA, training, 4096, deepspeed, 1, True, "cuda")


def test_weights_are_those_of_the_architecture() -> None:
    assert LLAMA.weights == WEIGHTS
    grouped = {"num_hidden_layers": 32, "hidden_size": 4096, "intermediate_size": 14336, "vocab_size": 128256}
    llama3 = memory.Model.of({**grouped, "num_attention_heads": 32, "num_key_value_heads": 8})
    assert llama3.weights == pytest.approx(8.03e9, rel=1e-3)
    adapter = Adapter(kind="lora", rank=8, alpha=16.0, targets=["q_proj", "v_proj"])
    assert memory.adapted(LLAMA, adapter) == 32 * 2 * 8 * (4096 + 4096)  # 4,194,304, as LoRA's users know it
    assert memory.guessed(WEIGHTS, 32).weights == pytest.approx(WEIGHTS, rel=0.001)


def test_weights_are_counted_where_they_are_here(tmp_path: Path) -> None:
    """Experts stand in no other number of a configuration that is known here."""
    dense = {"num_hidden_layers": 1, "hidden_size": 8, "intermediate_size": 16, "vocab_size": 10}
    (tmp_path / "config.json").write_text(json.dumps({**dense, "num_attention_heads": 2}))
    named = Weights(name=str(tmp_path))
    assert memory.existing(named, 1)[0].weights == 2 * 80 + 4 * 64 + 3 * 128
    save_file({f"experts.{number}": torch.zeros(8, 16) for number in range(64)}, tmp_path / "model.safetensors")
    save_file({"again": torch.zeros(8, 16)}, tmp_path / "consolidated.safetensors")
    model, _ = memory.existing(named, 1)
    assert model.weights == 64 * 128 and model.in_blocks == 4 * 64 + 3 * 128


def test_zero_divides_what_its_stage_says() -> None:
    """Table 1 of ZeRO's paper: 2 bytes of weights, 2 of gradients, 12 of optimiser; DeepSpeed adds 4 of gradients."""
    gradients = "activations or gradients"
    assert taken("zero0", 8)["weights"] == taken("zero2", 8)["weights"] == 2 * WEIGHTS
    assert taken("zero0", 8)["optimiser"] == 16 * WEIGHTS
    assert taken("zero1", 8)["optimiser"] == taken("zero3", 8)["optimiser"] == 16 * WEIGHTS / 8
    assert taken("zero1", 8)[gradients] == 2 * WEIGHTS
    # At the end of the forward pass, with checkpointing: the inputs of 32 blocks at 8,192 positions, and of one all.
    activations = 2 * 8192 * 32 * 4096 + 8192 * (2 * 8 * 4096 + 2 * (6 * 4096 + 4 * 11008))
    assert taken("zero3", 8)[gradients] == activations
    assert taken("zero2", 1)[gradients] == 2 * (memory.BUCKET + WEIGHTS)
    assert taken("zero2", 8, batch=16)[gradients] == activations + 2 * WEIGHTS / 8
    assert taken("zero3", 8)["weights"] == 2 * (WEIGHTS / 8 + memory.LIVE)
    assert taken("zero2-offload", 8)["optimiser"] == taken("zero3-offload", 8)["weights"] == 0
    qlora = {"kind": "qlora", "rank": 64, "alpha": 16.0, "targets": ["q_proj"]}
    assert taken("zero2", 1, adapter=qlora)["weights"] < WEIGHTS
