"""Small models with the loss inside their head, and batches for them."""

from __future__ import annotations

from typing import Any

import torch
from transformers import LlamaConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from longshort.alignment.objective import AlignmentObjective
from longshort.alignment.settings import TwoViews
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


def aligned(
    output: str | None = None,
    *,
    overlap: dict[str, Any] | None = None,
    layers: list[int] | None = None,
    distance: str = "mse",
    lens: str | None = None,
    stop_gradient: str = "none",
    hidden_stop_gradient: str = "none",
) -> TwoViews:
    """What is aligned, by its words; the weights come with each batch."""
    terms: dict[str, Any] = {"overlap": overlap or {"kind": "all"}, "max_extra": 1}
    if output:
        terms["output"] = {"alpha": 1.0, "divergence": output, "stop_gradient": stop_gradient}
    if layers:
        hidden = {"alpha": 1.0, "layers": layers, "distance": distance, "divergence": lens}
        terms["hidden"] = {**hidden, "stop_gradient": hidden_stop_gradient}
    return TwoViews.model_validate(terms)


def install(model: PreTrainedModel, asked: TwoViews) -> LossHead:
    return heads.install(model, AlignmentObjective(model, asked) if asked.output or asked.hidden else NextToken())


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
