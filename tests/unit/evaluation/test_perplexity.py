"""Perplexity against hand values and the plain full-logits computation of transformers."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch.nn.functional import cross_entropy
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    GraniteConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from longshort.data import tokenizers
from longshort.data.settings import PretrainedTokenizer
from longshort.data.tokenizers import SEPARATOR, byte_tokenizer
from longshort.evaluation import forward, perplexity, stage
from longshort.evaluation.journal import Journal
from longshort.models import load
from tests.support.perplexity import (
    BOS,
    DYNAMIC,
    LONGROPE,
    PREFIX,
    SMALL,
    TOKENIZER,
    VOCABULARY,
    FromStates,
    by_key,
    data_folder,
    evaluate,
    extended,
    llama,
    plain_nll,
    protocol,
)


def test_a_uniform_model_has_the_vocabulary_as_perplexity(tmp_path: Path) -> None:
    model = llama()
    torch.nn.init.zeros_(model.get_output_embeddings().weight)
    rows = evaluate(
        model,
        TOKENIZER,
        {"lengths": [8, 40], "documents": 2, "protocol": PREFIX, "temperature_documents": 0},
        data_folder(tmp_path, [40, 50]),
    ).rows
    assert by_key(rows)["perplexity", 8, None] == pytest.approx(VOCABULARY, rel=1e-6)
    assert by_key(rows)["perplexity", 40, None] == pytest.approx(VOCABULARY, rel=1e-6)
    assert [row["n"] for row in rows if row["metric"] == "perplexity"] == [16, 80]
    # Where all are equally probable it chooses the first token, and is right where that comes, not everywhere.
    texts = Dataset.load_from_disk(str(tmp_path / "test"))["input_ids"]
    assert by_key(rows)["accuracy", 40, None] == sum(text[:40].count(0) for text in texts) / 80


def test_a_model_whose_tokenizer_has_no_bos_leaves_the_first_token_unscored(tmp_path: Path) -> None:
    """As Qwen2: tied embeddings, a tokenizer that only ends texts; both as they lie in a folder of the hub's kind."""
    torch.manual_seed(0)
    shape = {key: SMALL[key] for key in ("hidden_size", "intermediate_size", "num_hidden_layers", "initializer_range")}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
    made = Qwen2ForCausalLM(Qwen2Config(vocab_size=300, tie_word_embeddings=True, **shape, **heads))
    made.save_pretrained(tmp_path / "no-bos")
    backend = byte_tokenizer().backend_tokenizer
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=SEPARATOR).save_pretrained(tmp_path / "no-bos")
    chosen = PretrainedTokenizer(kind="pretrained", name=str(tmp_path / "no-bos"))
    model, tokenizer = load.load(tmp_path / "no-bos"), tokenizers.load(chosen)
    assert tokenizer.bos_token_id is None and model.get_output_embeddings().weight is model.model.embed_tokens.weight

    settings = {"lengths": [8, 40], "documents": 2, "protocol": PREFIX, "temperature_documents": 0}
    rows = evaluate(model.eval(), tokenizer, settings, data_folder(tmp_path, [40, 50])).rows
    assert [row["n"] for row in rows if row["metric"] == "perplexity"] == [2 * 7, 2 * 39]
    texts = Dataset.load_from_disk(str(tmp_path / "test"))["input_ids"]
    with torch.no_grad():
        for length in (8, 40):
            ids = torch.tensor([text[:length] for text in texts])
            nll = cross_entropy(model(ids).logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
            assert by_key(rows)["perplexity", length, None] == pytest.approx(nll.exp().item(), rel=1e-5)
    assert protocol(settings, chosen) == "ppl/prefix-v2?docs=2&lengths=8,40&bos=none&temperature-docs=0"
    assert "bos=none" not in protocol(settings)


def test_a_second_protocol_stands_beside_the_first(tmp_path: Path) -> None:
    data = data_folder(tmp_path, [40, 64])  # one of them has no block of 64 tokens
    settings = {"lengths": [16, 64], "documents": 1, "protocol": PREFIX, "temperature_documents": 0}
    block = {"kind": "block", "tokens": 64, "chunk": 16}
    one, other = (
        by_key(evaluate(extended("clex"), TOKENIZER, {**settings, "protocol": chosen}, data).rows)
        for chosen in (PREFIX, block)
    )
    both = by_key(evaluate(extended("clex"), TOKENIZER, {**settings, "beside": block}, data).rows)
    for metric in ("perplexity", "nll"):
        for key in [key for key in one if key[0] == metric]:
            assert both[key] == one[key] != other[key] == both[f"{metric}_block", *key[1:]]
    assert set(both) - set(one) == {(f"{key[0]}_block", *key[1:]) for key in one if key[0] in ("perplexity", "nll")}
    said = protocol({**settings, "beside": block})
    assert said == ("ppl/prefix-v2?docs=1&lengths=16,64&temperature-docs=0&beside=block-v2,tokens=64,chunk=16")


def test_a_model_of_nan_is_right_about_nothing(tmp_path: Path) -> None:
    model = llama()
    with torch.no_grad():
        model.model.norm.weight[0] = math.nan
    forward.refuse_unknown_logits(model)
    settings = {"lengths": [8], "documents": 1, "protocol": PREFIX, "temperature_documents": 0}
    values = by_key(evaluate(model, TOKENIZER, settings, data_folder(tmp_path, [40])).rows)
    assert math.isnan(values["accuracy", 8, None]) and math.isnan(values["perplexity", 8, None])
    # A stage asks before it measures: other metrics would have scores for what such a model chooses.
    assert not stage._answers(model, tmp_path, 8) and stage._answers(llama(), tmp_path, 8)


def test_calibration_error_by_hand(tmp_path: Path) -> None:
    """Four tokens said with 0.8, of which three come, and four with 0.6, of which one comes: |.8 - .75|, |.6 - .25|."""
    confidence = torch.tensor([0.8, 0.8, 0.8, 0.8, 0.6, 0.6, 0.6, 0.6])

    def said(position: torch.Tensor, token: torch.Tensor) -> torch.Tensor:
        p = confidence[position]
        return torch.stack([p, 1 - p], dim=-1).log()

    ids = [0, 0, 0, 1, 0, 1, 1, 1]
    Dataset.from_dict({"name": ["a"], "text": [""], "input_ids": [ids]}).save_to_disk(str(tmp_path / "test"))
    settings = {"lengths": [8], "documents": 1, "protocol": PREFIX, "temperature_documents": 0}
    values = by_key(evaluate(FromStates(said), TOKENIZER, settings, tmp_path).rows)
    assert values["ece", 8, None] == pytest.approx((0.05 + 0.35) / 2, abs=1e-6)
    assert values["accuracy", 8, None] == 0.5


def test_the_calibration_error_has_fifteen_bins(tmp_path: Path) -> None:
    """Of no other number of bins does it have this value."""
    random = np.random.default_rng(0)
    confidence = random.uniform(0.3, 1, 300)
    ids = random.integers(0, 3, 300)

    def said(position: torch.Tensor, token: torch.Tensor) -> torch.Tensor:
        p = torch.from_numpy(confidence)[position]
        return torch.stack([p, *[(1 - p) / 3] * 3], dim=-1).log()

    def by_hand(bins: int) -> float:
        gaps = confidence - (ids == 0)
        return sum(abs(gaps[(confidence * bins).astype(int) == place].sum()) for place in range(bins)) / 300

    Dataset.from_dict({"name": ["a"], "text": [""], "input_ids": [ids]}).save_to_disk(str(tmp_path / "test"))
    settings = {"lengths": [300], "documents": 1, "protocol": PREFIX, "temperature_documents": 0}
    found = by_key(evaluate(FromStates(said), TOKENIZER, settings, tmp_path).rows)["ece", 300, None]
    assert [bins for bins in range(1, 100) if found == pytest.approx(by_hand(bins), abs=1e-4)] == [15]


def test_a_killed_evaluation_goes_on_after_the_last_document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = data_folder(tmp_path, [40, 50, 60], split="validation")
    data_folder(tmp_path, [40, 50, 60])
    settings = {"lengths": [8, 40], "documents": 3, "protocol": PREFIX, "temperature_documents": 2}
    whole = evaluate(llama(), TOKENIZER, settings, data, Journal(tmp_path / "whole").of("step 1")).rows
    lines = (tmp_path / "whole").read_bytes().splitlines(keepends=True)
    assert len(lines) == 1 + 3
    (tmp_path / "cut").write_bytes(b"".join(lines[:2]) + lines[2][:50])
    read = []
    original = perplexity.score_tokens
    monkeypatch.setattr(perplexity, "score_tokens", lambda *given: (read.append(1), original(*given))[1])
    rows = evaluate(llama(), TOKENIZER, settings, data, Journal(tmp_path / "cut").of("step 1")).rows
    assert rows == whole and len(read) == 2
    assert (tmp_path / "cut").read_bytes() == (tmp_path / "whole").read_bytes()


def test_a_standard_error_over_documents(tmp_path: Path) -> None:
    data = data_folder(tmp_path, [40, 50, 60])
    settings = {"lengths": [40], "documents": 3, "protocol": PREFIX, "temperature_documents": 0}
    values = by_key(evaluate(llama(), TOKENIZER, settings, data).rows)
    of_documents = [values["nll", 40, f"d{i}"] for i in range(3)]
    assert values["nll_se", 40, None] == pytest.approx(np.std(of_documents, ddof=1) / math.sqrt(3))
    assert values["perplexity", 40, None] == pytest.approx(math.exp(np.mean(of_documents)))


@pytest.mark.parametrize("rope", [None, DYNAMIC, LONGROPE], ids=["default", "dynamic", "longrope"])
def test_equals_the_plain_full_logits_computation(
    rope: dict | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(forward, "TOKENS_PER_FORWARD", 100)  # two rows a forward, the last batch smaller
    monkeypatch.setattr(forward, "tokens_per_head", lambda model: 7)  # chunks that end inside a row
    data = data_folder(tmp_path, [48, 60, 30, 48])
    rows = evaluate(
        llama(rope),
        TOKENIZER,
        {"lengths": [48, 16, 24], "documents": 3, "protocol": PREFIX, "temperature_documents": 0},
        data,
    ).rows
    values = by_key(rows)
    documents = {row["name"]: row["input_ids"] for row in Dataset.load_from_disk(str(data / "test"))}
    order = sorted(["d0", "d1", "d3"], key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    assert [row["document"] for row in rows if row["metric"] == "nll" and row["length"] == 16] == order
    for length in (16, 24, 48):
        # A fresh model a length: transformers' dynamic NTK and longrope remember the longest input.
        expected = [plain_nll(llama(rope), documents[name], length) for name in order]
        assert [values["nll", length, name] for name in order] == pytest.approx(expected, abs=2e-6)
        assert values["perplexity", length, None] == pytest.approx(math.exp(np.mean(expected)), rel=2e-6)


def test_dynamic_rope_needs_a_forward_per_length(tmp_path: Path) -> None:
    # The premise of the two ways: with dynamic NTK the first tokens are read otherwise in a longer input ...
    data = data_folder(tmp_path, [64])
    settings = {"lengths": [24, 64], "documents": 1, "protocol": PREFIX, "temperature_documents": 0}
    model = llama(DYNAMIC)
    assert forward.rope_depends_on_length(model) and not forward.rope_depends_on_length(llama())
    first = evaluate(model, TOKENIZER, settings, data).rows
    model.config.rope_parameters["rope_type"] = "default"  # take the fast way with a model that must not
    model.model.rotary_emb.max_seq_len_cached = 16
    fast = evaluate(model, TOKENIZER, settings, data).rows
    assert abs(by_key(fast)["nll", 24, "d0"] - by_key(first)["nll", 24, "d0"]) > 1e-3
    # ... and what a model has read before must not change a number.
    model.config.rope_parameters["rope_type"] = "dynamic"
    assert evaluate(model, TOKENIZER, settings, data).rows == first


def test_accuracy_is_the_share_of_most_probable_tokens(tmp_path: Path) -> None:
    model = llama()
    greedy = [BOS]
    with torch.no_grad():
        for _ in range(24):
            greedy.append(int(model(torch.tensor([greedy])).logits[0, -1].argmax()))
    # Greedy text is always right; one other token at the end is wrong.
    ids = [*greedy[1:24], (greedy[24] + 1) % BOS]
    Dataset.from_dict({"name": ["a"], "text": [""], "input_ids": [ids]}).save_to_disk(str(tmp_path / "test"))
    rows = evaluate(
        model,
        TOKENIZER,
        {"lengths": [8, 24], "documents": 1, "protocol": PREFIX, "temperature_documents": 0},
        tmp_path,
    ).rows
    assert by_key(rows)["accuracy", 8, None] == 1.0
    assert by_key(rows)["accuracy", 24, None] == 23 / 24


def test_too_few_documents_are_refused_with_the_remedy(tmp_path: Path) -> None:
    data = data_folder(tmp_path, [64, 63, 64])
    with pytest.raises(ValueError, match=r"at least 64 tokens and .* has 2: lower evaluations\.perplexity\.documents"):
        evaluate(
            llama(),
            TOKENIZER,
            {"lengths": [8, 64], "documents": 3, "protocol": PREFIX, "temperature_documents": 0},
            data,
        )


@pytest.mark.parametrize("config", [CohereConfig(**SMALL, logit_scale=4.0), GraniteConfig(**SMALL, logits_scaling=0.1)])
def test_what_a_model_does_to_its_logits_after_the_head_counts(config: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    data = data_folder(tmp_path, [24])
    settings = {"lengths": [16], "documents": 1, "protocol": PREFIX, "temperature_documents": 0}
    values = by_key(evaluate(model, TOKENIZER, settings, data).rows)
    ids = Dataset.load_from_disk(str(data / "test"))[0]["input_ids"]
    assert values["nll", 16, "d0"] == pytest.approx(plain_nll(model, ids, 16), abs=2e-6)
