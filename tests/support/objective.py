"""Small models with the loss inside their head, and batches for them."""

from __future__ import annotations

from typing import Any

import torch
from transformers import LlamaConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from longshort.alignment.objective import Alignment, Terms
from longshort.data.windows import collate
from longshort.models import head as heads
from longshort.models.head import LossHead, NextToken

VOCABULARY = 11
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def install(model: PreTrainedModel, terms: Terms) -> LossHead:
    return heads.install(model, NextToken() if terms == Terms() else Alignment(model, terms))


def small_model(config: Any = None, **changed: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config or LlamaConfig(**{**SHAPE, **changed})).double()
    with torch.no_grad():  # larger weights than at the start of a training, so that distributions differ
        model.get_output_embeddings().weight *= 20
    return model


def batch_of(length: int, extras: list[int]) -> dict[str, Any]:
    samples = []
    for row, extra in enumerate(extras):
        samples.append(
            {"window": (torch.arange(length + extra + 1) * (row + 3)) % VOCABULARY, "extra": extra, "sample": row}
        )
    return collate(samples, length)
