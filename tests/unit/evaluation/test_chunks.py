"""CLEX's own evaluation: a text is read in chunks, each with the frequencies of its end."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import CohereModel, Ernie4_5Model, GPTNeoXModel, LlamaForCausalLM

from longshort.evaluation import chunks, forward
from tests.support.perplexity import TOKENIZER, by_key, data_folder, evaluate, extended, llama, protocol


def frequencies(model: LlamaForCausalLM, kind: str, length: int) -> torch.Tensor:
    """Of a text of so many tokens: t = ceil(length / 16), at most 3; or dynamic NTK's formula."""
    if kind == "clex":
        return model.get_decoder().rotary_emb.frequencies(min(3, math.ceil(length / 16))).double()
    theta = 10000.0 * max(1.0, 4 * length / 16 - 3) ** (8 / 6)
    return theta ** (-torch.arange(0, 8, 2, dtype=torch.float64) / 8)


@torch.no_grad()
def nll_of_chunks(model: LlamaForCausalLM, kind: str, ids: list[int], chunk: int) -> torch.Tensor:
    """CLEX's evaluation without a cache: block by block of the model over the whole text, in which the tokens of a
    chunk attend to all keys up to its end, rotated by the frequencies of the text up to there; rotations as products of
    complex numbers. The NLL of all tokens but the first ones of chunks."""
    model = model.double()
    decoder, length = model.get_decoder(), len(ids)
    x = decoder.embed_tokens(torch.tensor([ids]))
    for layer in decoder.layers:
        attention, normed = layer.self_attn, layer.input_layernorm(x)
        q, k, v = (
            project(normed).view(length, 4, 8).transpose(0, 1)
            for project in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        parts = []
        for begin in range(0, length, chunk):
            end = min(length, begin + chunk)
            turn = torch.polar(torch.ones(()).double(), torch.outer(torch.arange(end), frequencies(model, kind, end)))
            turned_q = torch.complex(q[:, begin:end, :4], q[:, begin:end, 4:]) * turn[begin:]
            turned_k = torch.complex(k[:, :end, :4], k[:, :end, 4:]) * turn
            scores = (turned_q @ turned_k.transpose(1, 2).conj()).real / math.sqrt(8)
            later = torch.arange(end)[None] > torch.arange(begin, end)[:, None]
            parts.append(scores.masked_fill(later, -math.inf).softmax(-1) @ v[:, :end])
        x = x + attention.o_proj(torch.cat(parts, dim=1).transpose(0, 1).reshape(1, length, 32))
        x = x + layer.mlp(layer.post_attention_layernorm(x))
    log_probs = model.lm_head(decoder.norm(x))[0].log_softmax(-1)
    return -torch.stack([log_probs[place - 1, ids[place]] for place in range(length) if place % chunk])


@pytest.mark.parametrize("kind", ["clex", "dynamic"])
def test_chunks_are_clexs_own_evaluation(kind: str, tmp_path: Path) -> None:
    data = data_folder(tmp_path, [2 * 64 + 3])
    settings = {"lengths": [8, 16, 32, 64], "documents": 1, "temperature_documents": 0}
    chosen = {"kind": "block", "tokens": 128, "chunk": 16}
    rows = evaluate(extended(kind), TOKENIZER, {**settings, "protocol": chosen}, data).rows
    ids = Dataset.load_from_disk(str(data / "test"))[0]["input_ids"]
    values = by_key(rows)
    for length in settings["lengths"]:
        blocks = [ids[begin : begin + length] for begin in range(0, 128, length)]
        expected = torch.cat([nll_of_chunks(extended(kind), kind, block, 16) for block in blocks])
        assert values["nll", length, "d0"] == pytest.approx(expected.mean().item(), abs=1e-5)
        assert {row["n"] for row in rows if row["metric"] == "nll" and row["length"] == length} == {len(expected)}
    # Token 17 of a block is read with 16 before it, token 16, the first of a chunk, is not scored.
    long = {row["task"]: row["n"] for row in rows if row["metric"] == "nll_by_position" and row["length"] == 64}
    assert long == {"1": 2, "2-3": 4, "4-7": 8, "8-15": 16, "16-31": 30, "32-63": 60}
    whole = evaluate(extended(kind), TOKENIZER, {**settings, "protocol": {**chosen, "chunk": None}}, data).rows
    assert [by_key(whole)["nll", length, "d0"] for length in (8, 16)] == [values["nll", n, "d0"] for n in (8, 16)]
    assert abs(by_key(whole)["nll", 64, "d0"] - values["nll", 64, "d0"]) > 1e-2
    said = protocol({**settings, "protocol": chosen})
    assert said == "ppl/block-v2?docs=1&lengths=8,16,32,64&chunk=16&tokens=128&temperature-docs=0"


def test_where_frequencies_stay_chunks_are_one_reading_that_scores_less(tmp_path: Path) -> None:
    ids = torch.tensor([list(range(40))])
    whole, parts = (forward.hidden_states(llama(), ids, chunk) for chunk in (None, 16))
    torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", [CohereModel, Ernie4_5Model, GPTNeoXModel])
def test_keys_that_are_turned_otherwise_are_refused(family: Any) -> None:
    """Neighbouring features as pairs, in the angles or in the attention alone; a part of each head."""
    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 32}
    torch.manual_seed(0)
    decoder = family(family.config_class(vocab_size=50, pad_token_id=0, bos_token_id=1, eos_token_id=1, **shape)).eval()
    with pytest.raises(ValueError, match="protocol.chunk rotates keys as Llama does"):
        chunks.hidden_states(decoder, torch.arange(32)[None], 16, turns=True)
