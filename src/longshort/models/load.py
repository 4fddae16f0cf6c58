"""Models: made from a small configuration, or loaded from a folder or the hub (safetensors only)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def from_scratch(
    architecture: dict[str, Any], *, vocabulary: int, separator: int, length: int, seed: int
) -> PreTrainedModel:
    """A Llama-style decoder with random weights drawn from seed, in float32."""
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=architecture["hidden_size"],
        intermediate_size=architecture["intermediate_size"],
        num_hidden_layers=architecture["layers"],
        num_attention_heads=architecture["heads"],
        num_key_value_heads=architecture["heads"],
        max_position_embeddings=length,
        rope_parameters={"rope_type": "default", "rope_theta": architecture["rope_theta"]},
        bos_token_id=separator,
        eos_token_id=separator,
        pad_token_id=separator,
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


def load(
    path: str | Path, *, precision: str = "fp32", revision: str | None = None, trust_remote_code: bool = False
) -> PreTrainedModel:
    """The model at path, on the CPU."""
    return AutoModelForCausalLM.from_pretrained(
        str(path),
        dtype=DTYPES[precision],
        revision=revision,
        trust_remote_code=trust_remote_code,
        use_safetensors=True,
    )


def blocks(model: PreTrainedModel) -> torch.nn.ModuleList:
    """The decoder's blocks in order.

    Raises:
        ValueError: the decoder keeps them elsewhere than in `layers`.
    """
    decoder = model.get_decoder()
    layers = getattr(decoder, "layers", None)
    if not isinstance(layers, torch.nn.ModuleList):
        raise ValueError(f"{type(model).__name__} keeps no list of blocks in `layers`; hidden alignment needs one")
    return layers


def final_norm(model: PreTrainedModel) -> torch.nn.Module:
    """The norm between the last block and the head."""
    norm = getattr(model.get_decoder(), "norm", None)
    if not isinstance(norm, torch.nn.Module):
        raise ValueError(f"{type(model).__name__} has no final `norm`; the logit lens needs one")
    return norm
