"""What plans say that trainings of large models take."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from longshort.commands import cost
from longshort.commands.plan import _size
from longshort.records import hub, layout
from longshort.study import resolve
from tests.support.project import ROOT
from tests.support.studies import FROM_THE_HUB


def test_the_size_of_a_local_model_is_that_of_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """But for its norms. Operations are counted by the blocks, checkpoints are priced with the embeddings: bf16 weights
    and to go on from them (the learning rate is constant) a copy, float32 weights and AdamW's two moments; three at a
    time."""
    config = LlamaConfig(
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        vocab_size=128256,
    )
    config.save_pretrained(tmp_path)
    with torch.device("meta"):
        parameters = dict(LlamaForCausalLM(config).named_parameters())
    matrices = {name: weight.numel() for name, weight in parameters.items() if weight.dim() == 2}
    in_blocks = sum(count for name, count in matrices.items() if name.startswith("model.layers."))
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(cost, "_finished_trainings", list)
    study = resolve.load("llama3-8b-yarn-pg19")
    model = study.study.model.model_copy(update={"name": str(tmp_path), "revision": None})
    study = replace(study, study=study.study.model_copy(update={"model": model}))
    run = study.arm_runs["constant"][study.study.seeds[0]]
    planned = cost.estimate(study, [cost.Work("train", run, "100")], 1)
    assert planned.storage_bytes == (2 + 2 + 4 + 8) * sum(matrices.values())
    assert planned.storage_peak_bytes == 3 * planned.storage_bytes
    training = study.runs[run].training
    assert training is not None
    operations = 6 * in_blocks * 100 * training.batch * study.runs[run].length * 2
    assert 3600 * planned.device_hours == pytest.approx(
        operations / cost.THROUGHPUT["gpu"] + cost.JOB_START * training.world_size
    )
    assert sum("6.98e+09" in source for source in planned.sources) == 1


@pytest.mark.parametrize("study", FROM_THE_HUB)
def test_the_header_of_a_study_says_what_it_needs(study: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `longshort plan` says it; of what jobs there are a contract is tested elsewhere."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(cost, "_finished_trainings", list)
    monkeypatch.setattr(cost, "_finished_evaluations", lambda *_: [])
    monkeypatch.setattr(hub, "fetched_config", lambda _: [])  # as before anything is fetched
    resolved = resolve.load(study)
    work = [cost.Work("train", run, resolved.steps_of(run)) for run in resolved.runs]
    work += [cost.Work(metric, run, resolved.steps_of(run)) for run in resolved.runs for metric in resolved.evaluations]
    work.append(cost.Work(layout.KEY_TOKENS, resolved.data, ""))
    planned = cost.estimate(resolved, work, jobs_at_once=8)
    header = (ROOT / f"config/studies/{study}.yaml").read_text().split("\ntitle:")[0]
    hours = re.search(r"about ([\d,.]+) h of device", header)
    disk = re.search(r", ([\d.]+ .B) of checkpoints\n#   at most ([\d.]+ .B) of checkpoints while", header)
    assert hours and disk
    assert float(hours[1].replace(",", "")) == pytest.approx(planned.device_hours, rel=0.01, abs=0.05)
    assert disk.groups() == (_size(planned.storage_bytes), _size(planned.storage_peak_bytes))
    each = ", ".join(f"{part} {_size(taken)}" for part, taken in planned.memory.items())
    takes = f"takes about {_size(sum(planned.memory.values()))} a process: {each}"
    assert takes in " ".join(header.replace("\n#", " ").split())
