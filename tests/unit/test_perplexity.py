"""Perplexity against hand values and the plain full-logits computation of transformers."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, CohereConfig, GraniteConfig, LlamaConfig, LlamaForCausalLM

from longshort.evaluation import forward, perplexity

VOCABULARY, BOS = 61, 60
PREFIX = {"kind": "prefix"}
TOKENIZER = SimpleNamespace(bos_token_id=BOS)
DYNAMIC = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}


SMALL = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "max_position_embeddings": 16, "initializer_range": 0.3,
    "pad_token_id": 0, "bos_token_id": BOS, "eos_token_id": BOS,
}  # fmt: skip


def llama(rope: dict | None = None) -> LlamaForCausalLM:
    torch.manual_seed(1)
    return LlamaForCausalLM(LlamaConfig(**SMALL, rope_parameters=rope)).eval()


def data_folder(folder: Path, sizes: list[int]) -> Path:
    generator = np.random.default_rng(0)
    ids = [generator.integers(0, BOS, size).tolist() for size in sizes]
    rows = {"name": [f"d{i}" for i in range(len(sizes))], "text": [""] * len(sizes), "input_ids": ids}
    Dataset.from_dict(rows).save_to_disk(str(folder / "test"))
    return folder


def plain_nll(model: LlamaForCausalLM, input_ids: list[int], length: int) -> float:
    """Mean NLL of the first `length` tokens after BOS: one forward, all the logits."""
    with torch.no_grad():
        logits = model(torch.tensor([[BOS, *input_ids[: length - 1]]])).logits[0].double()
    picked = logits.log_softmax(-1)[torch.arange(length), torch.tensor(input_ids[:length])]
    return -picked.mean().item()


def by_key(rows: list[dict]) -> dict[tuple, float]:
    return {(row["metric"], row["length"], row["document"]): row["value"] for row in rows}


def test_a_uniform_model_has_the_vocabulary_as_perplexity(tmp_path: Path) -> None:
    model = llama()
    torch.nn.init.zeros_(model.get_output_embeddings().weight)
    rows = perplexity.evaluate(
        model, TOKENIZER, {"lengths": [8, 40], "documents": 2, "protocol": PREFIX}, data_folder(tmp_path, [40, 50]), 16
    ).rows
    assert by_key(rows)["perplexity", 8, None] == pytest.approx(VOCABULARY, rel=1e-6)
    assert by_key(rows)["perplexity", 40, None] == pytest.approx(VOCABULARY, rel=1e-6)
    assert [row["n"] for row in rows if row["metric"] == "perplexity"] == [16, 80]


def test_a_ramp_of_nll_gives_half_the_length_and_every_token_counts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # NLL t/1000 at position t, token 0 scored: the mean over L tokens is (L - 1) / 2000.
    def ramp(model: object, input_ids: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        assert (input_ids[:, 0] == BOS).all() and torch.equal(input_ids[:, 1:], targets[:, :-1])
        nll = torch.arange(targets.shape[1], dtype=torch.float64).expand(targets.shape) / 1000
        return nll, torch.zeros(targets.shape, dtype=torch.bool)

    monkeypatch.setattr(perplexity, "token_nll", ramp)
    rows = perplexity.evaluate(
        llama(), TOKENIZER, {"lengths": [10, 101], "documents": 1, "protocol": PREFIX}, data_folder(tmp_path, [101]), 16
    ).rows
    values = by_key(rows)
    assert values["nll", 101, "d0"] == pytest.approx(0.05, abs=1e-15)
    assert values["perplexity", 10, None] == pytest.approx(math.exp(9 / 2000), abs=1e-15)


@pytest.mark.parametrize("rope", [None, DYNAMIC], ids=["default", "dynamic"])
def test_equals_the_plain_full_logits_computation(
    rope: dict | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(forward, "TOKENS_PER_FORWARD", 100)  # two rows a forward, the last batch smaller
    monkeypatch.setattr(forward, "TOKENS_PER_HEAD", 7)  # chunks that end inside a row
    data = data_folder(tmp_path, [48, 60, 30, 48])
    rows = perplexity.evaluate(
        llama(rope), TOKENIZER, {"lengths": [48, 16, 24], "documents": 3, "protocol": PREFIX}, data, 16
    ).rows
    values = by_key(rows)
    documents = {row["name"]: row["input_ids"] for row in Dataset.load_from_disk(str(data / "test"))}
    order = sorted(["d0", "d1", "d3"], key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    assert [row["document"] for row in rows if row["metric"] == "nll" and row["length"] == 16] == order
    for length in (16, 24, 48):
        # A fresh model a length: transformers' dynamic NTK remembers the longest input.
        expected = [plain_nll(llama(rope), documents[name], length) for name in order]
        assert [values["nll", length, name] for name in order] == pytest.approx(expected, abs=2e-6)
        assert values["perplexity", length, None] == pytest.approx(math.exp(np.mean(expected)), rel=2e-6)


def test_dynamic_rope_needs_a_forward_per_length(tmp_path: Path) -> None:
    # The premise of the two ways: with dynamic NTK the first tokens are read otherwise in a longer input ...
    data = data_folder(tmp_path, [64])
    settings = {"lengths": [24, 64], "documents": 1, "protocol": PREFIX}
    model = llama(DYNAMIC)
    assert forward.rope_depends_on_length(model) and not forward.rope_depends_on_length(llama())
    first = perplexity.evaluate(model, TOKENIZER, settings, data, 16).rows
    model.config.rope_parameters["rope_type"] = "default"  # take the fast way with a model that must not
    model.model.rotary_emb.max_seq_len_cached = 16
    fast = perplexity.evaluate(model, TOKENIZER, settings, data, 16).rows
    assert abs(by_key(fast)["nll", 24, "d0"] - by_key(first)["nll", 24, "d0"]) > 1e-3
    # ... and what a model has read before must not change a number.
    model.config.rope_parameters["rope_type"] = "dynamic"
    assert perplexity.evaluate(model, TOKENIZER, settings, data, 16).rows == first


def test_accuracy_is_the_share_of_most_probable_tokens(tmp_path: Path) -> None:
    model = llama()
    greedy = [BOS]
    with torch.no_grad():
        for _ in range(24):
            greedy.append(int(model(torch.tensor([greedy])).logits[0, -1].argmax()))
    # Greedy text is always right; one other token at the end is wrong.
    ids = [*greedy[1:24], (greedy[24] + 1) % BOS]
    Dataset.from_dict({"name": ["a"], "text": [""], "input_ids": [ids]}).save_to_disk(str(tmp_path / "test"))
    rows = perplexity.evaluate(
        model, TOKENIZER, {"lengths": [8, 24], "documents": 1, "protocol": PREFIX}, tmp_path, 16
    ).rows
    assert by_key(rows)["accuracy", 8, None] == 1.0
    assert by_key(rows)["accuracy", 24, None] == 23 / 24


def test_too_few_documents_are_refused_with_the_remedy(tmp_path: Path) -> None:
    data = data_folder(tmp_path, [64, 63, 64])
    with pytest.raises(ValueError, match=r"at least 64 tokens and .* has 2: lower evaluations\.perplexity\.documents"):
        perplexity.evaluate(llama(), TOKENIZER, {"lengths": [8, 64], "documents": 3, "protocol": PREFIX}, data, 16)


@pytest.mark.parametrize("config", [CohereConfig(**SMALL, logit_scale=4.0), GraniteConfig(**SMALL, logits_scaling=0.1)])
def test_what_a_model_does_to_its_logits_after_the_head_counts(config: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    data = data_folder(tmp_path, [24])
    settings = {"lengths": [16], "documents": 1, "protocol": PREFIX}
    values = by_key(perplexity.evaluate(model, TOKENIZER, settings, data, 16).rows)
    ids = Dataset.load_from_disk(str(data / "test"))[0]["input_ids"]
    assert values["nll", 16, "d0"] == pytest.approx(plain_nll(model, ids, 16), abs=2e-6)


def test_protocol_says_what_was_done() -> None:
    assert (
        perplexity.protocol({"lengths": [256, 128], "documents": 32, "protocol": PREFIX})
        == "ppl/prefix-v1?docs=32&lengths=128,256"
    )


@pytest.mark.parametrize("rope", [None, DYNAMIC], ids=["default", "dynamic"])
def test_same_targets_differ_in_context_only(rope: dict | None, tmp_path: Path) -> None:
    data = data_folder(tmp_path, [60, 41])
    settings = {"lengths": [8, 40], "documents": 2, "protocol": {"kind": "same-targets", "targets": 3}}
    model = llama(rope)
    values = by_key(perplexity.evaluate(model, TOKENIZER, settings, data, 16).rows)
    # The document of 41 tokens has one window only: all of it.
    ids = next(row["input_ids"] for row in Dataset.load_from_disk(str(data / "test")) if len(row["input_ids"]) == 41)
    for length in (8, 40):
        with torch.no_grad():
            logits = llama(rope)(torch.tensor([ids[40 - length : 40]])).logits[0, -3:].double()
        expected = -logits.log_softmax(-1)[torch.arange(3), torch.tensor(ids[-3:])].mean().item()
        assert values["nll", length, "d1"] == pytest.approx(expected, abs=2e-6)
    assert perplexity.protocol(settings) == "ppl/same-targets-v1?docs=2&lengths=8,40&targets=3"
