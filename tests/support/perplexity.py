"""Models, texts and plain sums that the tests of perplexity, its protocols and temperatures share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import LlamaConfig, LlamaForCausalLM

from longshort.data.settings import BytesTokenizer, Tokenizer
from longshort.evaluation import perplexity
from longshort.identity.spec import restored
from longshort.metrics.settings import Perplexity
from longshort.models import rope
from longshort.models.settings import CLEX

VOCABULARY, BOS = 61, 60
PREFIX = {"kind": "prefix"}
TOKENIZER = SimpleNamespace(bos_token_id=BOS)
DYNAMIC = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}
LONGROPE = {
    **{"rope_type": "longrope", "factor": 4.0, "rope_theta": 10000.0, "original_max_position_embeddings": 16},
    **{"short_factor": [1.0] * 4, "long_factor": [2.0] * 4},
}


SMALL = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "max_position_embeddings": 16, "initializer_range": 0.3,
    "pad_token_id": 0, "bos_token_id": BOS, "eos_token_id": BOS,
}  # fmt: skip


def llama(rope: dict | None = None) -> LlamaForCausalLM:
    torch.manual_seed(1)
    return LlamaForCausalLM(LlamaConfig(**SMALL, rope_parameters=rope)).eval()


def data_folder(folder: Path, sizes: list[int], split: str = "test") -> Path:
    generator = np.random.default_rng(0)
    ids = [generator.integers(0, BOS, size).tolist() for size in sizes]
    rows = {"name": [f"d{i}" for i in range(len(sizes))], "text": [""] * len(sizes), "input_ids": ids}
    Dataset.from_dict(rows).save_to_disk(str(folder / split))
    return folder


def plain_nll(model: LlamaForCausalLM, input_ids: list[int], length: int) -> float:
    """Mean NLL of the first `length` tokens after BOS: one forward, all the logits."""
    with torch.no_grad():
        logits = model(torch.tensor([[BOS, *input_ids[: length - 1]]])).logits[0].double()
    picked = logits.log_softmax(-1)[torch.arange(length), torch.tensor(input_ids[:length])]
    return -picked.mean().item()


def evaluate(model: Any, tokenizer: Any, settings: dict[str, Any], data: Path, journal: Any = None) -> Any:
    return perplexity.evaluate(model, tokenizer, restored(Perplexity, settings), data, 16, journal)


def protocol(settings: dict[str, Any], tokenizer: Tokenizer | None = None) -> str:
    return perplexity.protocol(restored(Perplexity, settings), 16, tokenizer or BytesTokenizer())


def by_key(rows: list[dict]) -> dict[tuple, float]:
    return {(row["metric"], row["length"], row["document"]): row["value"] for row in rows}


class FromStates(torch.nn.Module):
    """A model whose logits are a function of the position and the token read; only its interface is transformers'."""

    device = torch.device("cpu")

    def __init__(self, logits: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.config = LlamaConfig(**SMALL)
        self.logits = logits

    def get_decoder(self) -> Callable[..., Any]:
        def decode(input_ids: torch.Tensor, use_cache: bool) -> Any:
            position = torch.arange(input_ids.shape[1]).expand(input_ids.shape)
            return SimpleNamespace(last_hidden_state=torch.stack([position, input_ids], dim=-1))

        return decode

    def get_output_embeddings(self) -> Callable[[torch.Tensor], torch.Tensor]:
        return lambda states: self.logits(states[..., 0], states[..., 1])


def extended(kind: str) -> LlamaForCausalLM:
    """Beyond 16 tokens its frequencies depend on the length; CLEX with something learned."""
    if kind == "dynamic":
        return llama(DYNAMIC)
    model = llama()
    rope.extend(model, CLEX(kind="clex", max_factor=3, time_step=0.1, draws_per="step"))
    torch.nn.init.normal_(model.get_decoder().rotary_emb.inv_freq_down, std=0.1)
    return model


def described(row: dict[str, Any]) -> str:
    return " ".join(str(row[key]) for key in ("metric", "length", "task", "document") if row.get(key) is not None)
