"""A training is what its specification says, put together without a step being trained."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from accelerate.state import AcceleratorState
from torch.utils import cpp_extension
from transformers import TrainingArguments, get_scheduler

from longshort.data.windows import TokenStream, Windows, collate
from longshort.jobs import ownership
from longshort.jobs.ownership import Owner, about_me
from longshort.models.rope import shifted_sparse
from longshort.records.publish import write_json
from longshort.study.run import RunSpec
from longshort.study.schema import Training
from longshort.training import launch, log, trainer
from tests.support import corpora
from tests.support.models import ARCHITECTURE
from tests.support.project import ROOT
from tests.support.waiting import wait_until

SEED, LENGTH, STEPS, BATCH, VOCABULARY, SEPARATOR = 5, 16, 6, 4, 257, 256
TRAINING = {"steps": STEPS, "batch": BATCH, "learning_rate": 0.3}
ZERO2 = json.loads((ROOT / "config/deepspeed/zero2.json").read_text())
# What of a study's training is no matter of transformers' arguments: the job says it, or another part reads it.
OF_THE_JOB = {"micro_batch", "chunk_size", "gradient_checkpointing", "threads", "checkpoint_minutes", "logging_steps"}
OF_THE_JOB |= {"report_to"}
READ_ELSEWHERE = {"deepspeed", "attention", "adapter"} | OF_THE_JOB


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The world of one process, which transformers asks for; what it, accelerate and a training set for good ends with
    the test."""
    for name, value in {**launch.ALONE, "ACCELERATE_USE_DEEPSPEED": "true"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(cpp_extension, "FileBaton", cpp_extension.FileBaton)
    yield
    monkeypatch.undo()  # one test says itself that the processes are connected
    AcceleratorState._reset_state(reset_partial_state=True)
    if dist.is_initialized():
        dist.destroy_process_group()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    corpora.put(tmp_path / "texts/rows.jsonl", corpora.lines(corpora.ROWS))
    corpora.prepare(tmp_path / "texts")
    return tmp_path / "out"


def spec_of(training: Any = TRAINING, **changes: Any) -> RunSpec:
    corpus = {"kind": "text", "path": "texts"}
    values = {
        "data": {"corpus": corpus, "tokenizer": {"kind": "bytes"}, "validation": 0.1, "test": 0.3},
        "length": LENGTH,
        "seed": SEED,
        "architecture": ARCHITECTURE.model_dump(),
        "training": training,
        "deepspeed": ZERO2,
    }
    return RunSpec.model_validate({**values, **changes})


def job_of(folder: Path, **changes: Any) -> dict[str, Any]:
    """The launcher's job file, for a training in a folder with its corpus."""
    (folder / "work").mkdir(exist_ok=True)
    job = {"data": str(folder / "out"), "base": None, "work": str(folder / "work"), "micro_batch": 2, "chunk_size": 0}
    job |= {"gradient_checkpointing": False, "logging_steps": 1, "targets": [STEPS], "keep": [STEPS]}
    return {**job, "checkpoint_minutes": 30, "report_to": [], "run_name": "study/arm/seed-5", **changes}


def built(folder: Path, spec: RunSpec) -> trainer.LongShortTrainer:
    job = job_of(folder)
    return trainer.build_trainer(job, spec, trainer.arguments_of(job, spec), Owner(folder / "owner.json", "mine"))


def test_transformers_is_told_all_that_a_study_says_of_the_optimisation(tmp_path: Path) -> None:
    """Each with a value that is nobody's default; a setting that is added belongs here or to READ_ELSEWHERE."""
    odd = Training(
        steps=7,
        batch=36,
        learning_rate=0.3,
        learning_rate_schedule="linear",
        warmup_steps=3,
        weight_decay=0.01,
        adam_beta1=0.8,
        adam_beta2=0.85,
        adam_epsilon=1e-7,
        max_gradient_norm=0.3,
        precision="bf16",
        processes=2,
        nodes=3,
    )
    changed = {name for name, field in Training.model_fields.items() if getattr(odd, name) != field.default}
    assert changed == Training.model_fields.keys() - READ_ELSEWHERE
    job = job_of(tmp_path, micro_batch=3, gradient_checkpointing=True)
    told = trainer.arguments_of(job, spec_of(odd.model_dump()))
    expected = {
        "max_steps": 7,
        "per_device_train_batch_size": 3,
        "gradient_accumulation_steps": 36 // (3 * 2 * 3),
        "learning_rate": 0.3,
        "lr_scheduler_type": "linear",
        "warmup_steps": 3,
        "weight_decay": 0.01,
        "adam_beta1": 0.8,
        "adam_beta2": 0.85,
        "adam_epsilon": 1e-7,
        "max_grad_norm": 0.3,
        "bf16": True,
        "activation_checkpointing": True,
        "deepspeed": ZERO2,
        "seed": SEED,
        "run_name": "study/arm/seed-5",
    }
    assert {name: getattr(told, name) for name in expected} == expected
    assert told.hf_deepspeed_config.config["gradient_clipping"] == 0.3


@pytest.mark.parametrize(
    ("schedule", "after_warm_up"),
    [
        ("constant", [1, 1, 1, 1]),
        ("linear", [1, 0.75, 0.5, 0.25]),
        ("cosine", [(1 + math.cos(math.pi * quarter / 4)) / 2 for quarter in range(4)]),
    ],
)
def test_the_learning_rate_rises_to_its_peak_and_goes_by_its_schedule_from_there(
    tmp_path: Path, schedule: str, after_warm_up: list[float]
) -> None:
    spec = spec_of({**TRAINING, "learning_rate_schedule": schedule, "warmup_steps": 2})
    told = trainer.arguments_of(job_of(tmp_path), spec)
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=told.learning_rate)
    scheduler = get_scheduler(told.lr_scheduler_type, optimiser, int(told.warmup_steps), told.max_steps)
    rates = []
    for _ in range(STEPS):
        rates += scheduler.get_last_lr()
        optimiser.step()
        scheduler.step()
    assert rates == pytest.approx([0.3 * share for share in (0, 0.5, *after_warm_up)])


@pytest.mark.parametrize(
    ("alignment", "draws"),
    [
        (None, {"max_extra": None, "halves": True}),
        ({"max_extra": [3, 4, 5, 6, 7, 8]}, {"max_extra": [3, 4, 5, 6, 7, 8]}),
        ({"max_extra": 8, "sampling_per": "row"}, {"max_extra": 8, "extra_per_row": True}),
    ],
)
def test_a_training_reads_the_windows_of_its_seed_with_the_l_extra_that_it_asks_for(
    data: Path, alignment: dict[str, Any] | None, draws: dict[str, Any]
) -> None:
    """A fine-tuning of one view reads the text of the others, and not what its base was trained on first."""
    read = trainer.build_windows(spec_of(alignment=alignment, base="0" * 16), data, SEPARATOR)
    stream = TokenStream(data / "train", SEPARATOR)
    asked = Windows(stream, length=LENGTH, seed=SEED, batch=BATCH, steps=STEPS, **draws)
    assert len(read) == STEPS * BATCH
    assert all(np.array_equal(read[sample]["window"], asked[sample]["window"]) for sample in range(len(read)))
    of_a_base = trainer.build_windows(spec_of(), data, SEPARATOR)
    assert (read.slot, of_a_base.slot, len(of_a_base[0]["window"])) == (2 * LENGTH, LENGTH + 1, LENGTH + 1)


@pytest.mark.parametrize(("attention", "is_sparse"), [("full", False), ("shifted-sparse", True)])
def test_a_model_trains_by_the_attention_that_a_study_asks_for(
    data: Path, tmp_path: Path, attention: str, is_sparse: bool
) -> None:
    made = built(tmp_path, spec_of({**TRAINING, "attention": attention}))
    layer = made.model.get_decoder().layers[0].self_attn
    assert (layer.config._attn_implementation == shifted_sparse.NAME) == is_sparse


@pytest.mark.parametrize(("kind", "layer"), [("lora", "Linear"), ("qlora", "Linear4bit")])
def test_the_base_of_a_qlora_alone_is_in_four_bits(tmp_path: Path, kind: str, layer: str) -> None:
    trainer.build_model(spec_of(), None, VOCABULARY, SEPARATOR).save_pretrained(tmp_path / "base")
    adapter = {"kind": kind, "rank": 2, "alpha": 4.0}
    spec = spec_of({**TRAINING, "precision": "bf16", "adapter": adapter}, architecture=None, base="0123")
    model = trainer.build_model(spec, tmp_path / "base", VOCABULARY, SEPARATOR)
    projection = model.get_decoder().layers[0].self_attn.q_proj
    assert type(projection).__name__ == layer and type(model.lm_head).__name__ == "Linear"
    assert model.lm_head.weight.dtype == torch.bfloat16
    if kind == "qlora":
        assert projection.weight.quant_type == "nf4" and projection.weight.compress_statistics
        assert projection.compute_dtype == torch.bfloat16


def test_the_row_of_a_step_is_that_of_all_processes(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two seconds, two micro-batches of two windows, and another process with the same numbers: parts of the loss are
    means, tokens a sum."""
    now = 10.0
    monkeypatch.setattr(trainer, "time", SimpleNamespace(perf_counter=lambda: now))
    made = built(tmp_path, spec_of())
    windows = made.train_dataset
    batches = [collate([windows[first], windows[first + 1]], LENGTH) for first in (0, 2)]
    losses = [made.compute_loss(made.model, batch).item() for batch in batches]
    monkeypatch.setattr(TrainingArguments, "world_size", 2)
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "all_reduce", lambda values: values.mul_(2))
    now = 12.0
    made.state.global_step = 1
    made.log({"loss": sum(losses) / 2, "learning_rate": 0.3})
    [row] = log.read(tmp_path / "work" / log.NAME, last=1)
    assert row["ce"] == pytest.approx(sum(losses) / 2) and losses[0] != losses[1]
    assert row["tokens_per_second"] == 2 * (2 * 2 * LENGTH) / 2.0


def test_a_training_says_itself_that_its_folder_is_not_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may outlive its stage, and a next attempt on another host sees no process, but only how old the file is."""
    job = job_of(tmp_path, owner="mine", resume=0, spec=str(tmp_path / "spec.json"))
    write_json(tmp_path / "spec.json", spec_of().model_dump(mode="json"))
    file = tmp_path / "work/owner.json"
    write_json(file, {**about_me(), "token": "mine"})
    os.utime(file, (0, 0))

    def train(resume_from_checkpoint: str | None) -> None:
        wait_until(lambda: file.stat().st_mtime > 0, lambda: f"{file} is as it was")

    steps = SimpleNamespace(train=train, is_world_process_zero=lambda: True, model=torch.nn.Linear(1, 1))
    monkeypatch.setattr(trainer.deepspeed, "init_distributed", lambda **_: None)  # it compiles where nothing is yet
    monkeypatch.setattr(trainer, "build_trainer", lambda *_: steps)
    monkeypatch.setattr(ownership, "BEAT", 0.01)
    trainer.train(job)


def test_processes_drop_out_other_inputs_each_on_whichever_node_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first of all keeps what the Trainer seeds all of them with, and so a training by one process its draws."""
    job = job_of(tmp_path, owner="mine", resume=0, spec=str(tmp_path / "spec.json"))
    write_json(tmp_path / "spec.json", spec_of().model_dump(mode="json"))
    drawn = []
    steps = SimpleNamespace(train=lambda **_: drawn.append(torch.rand(4).tolist()), is_world_process_zero=lambda: False)
    monkeypatch.setattr(trainer.deepspeed, "init_distributed", lambda **_: None)
    monkeypatch.setattr(trainer, "build_trainer", lambda *_: torch.manual_seed(SEED) and steps)
    monkeypatch.setattr(TrainingArguments, "local_process_index", 0)
    with torch.random.fork_rng():
        for number in range(3):
            monkeypatch.setattr(TrainingArguments, "process_index", number)
            trainer.train(job)
        torch.manual_seed(SEED)
        assert drawn[0] == torch.rand(4).tolist()
    assert len(set(map(tuple, drawn))) == 3
