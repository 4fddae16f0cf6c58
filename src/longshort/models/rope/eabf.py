"""Entropy-aware ABF: ABF's larger theta, and queries at position m (from 0) times max(1, ln(m + 1) / ln(l0)), l0 the
original length, in all blocks but the first ones (Zhang et al., arXiv 2401.07004; github GAIR-NLP/Entropy-ABF,
patch/EABF.py: theta 500,000).

The paper leaves the queries of the first two blocks as they are, which is our default. The released code scales those
of all blocks: it gives the first two a function of their own that nothing reads. That is `plain_layers: 0`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from longshort.errors import UserError
from longshort.models.rope import KEY, set_parameters
from longshort.models.settings import EABF

NAME = "longshort_eabf"


def extend(model: PreTrainedModel, settings: EABF, seed: int) -> None:
    """As the module says.

    Raises:
        UserError: the model's attention cannot be replaced, or was asked for otherwise.
    """
    set_parameters(model, {"rope_type": "default", "rope_theta": settings.theta})
    kept = {**settings.model_dump(), "original_length": model.config.max_position_embeddings}
    setattr(model.config, KEY, kept)
    restore(model, kept, Path())


def restore(model: PreTrainedModel, kept: dict[str, Any], folder: Path) -> None:
    AttentionInterface.register(NAME, scaled_attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model.set_attn_implementation(NAME)
    if model.config._attn_implementation != NAME:
        raise UserError(f"model.rope = eabf: the attention of {type(model).__name__} cannot be replaced; use abf")


def scaled_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """PyTorch's scaled dot-product attention of scaled queries [batch, heads, length, features]."""
    kept = getattr(module.config, KEY)
    if module.layer_idx >= kept["plain_layers"]:
        query = query * query_scale(kwargs["position_ids"], kept["original_length"]).to(query.dtype)
    attended: tuple[Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    return attended


def query_scale(position_ids: Tensor, original_length: int) -> Tensor:
    """max(1, ln(m + 1) / ln(l0)) of positions [batch, length]: [batch, 1, length, 1]."""
    return ((position_ids + 1).float().log() / math.log(original_length)).clamp(min=1.0)[:, None, :, None]
