"""Shifted sparse attention, for training only: attention inside groups of a quarter of the tokens, which are shifted by
half a group for half of the heads (Chen et al., LongLoRA, arXiv 2309.12307, section 3.2).

The shifted groups wrap around: the last one holds the end of the text and its beginning. Each attends to itself alone
here, exactly as in the flash-attention path of LongLoRA's code (llama_attn_replace.py). Its plain path lets the
beginning attend to the end, that is, to the future.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from longshort.errors import UserError

NAME = "longshort_shifted_sparse"
GROUPS = 4


def use(model: PreTrainedModel, length: int) -> None:
    """Lets a model train by shifted sparse attention; what is saved of it attends fully.

    Raises:
        UserError: length (tokens) does not divide, or the model's attention cannot be replaced.
    """
    if length % (2 * GROUPS):
        raise UserError(
            f"training.attention = shifted-sparse: lengths.train {length} is no multiple of {2 * GROUPS} "
            f"({GROUPS} groups, shifted by half of one); change one of the two"
        )
    if model.config.num_attention_heads % 2:
        raise UserError("training.attention = shifted-sparse needs an even number of heads; use full")
    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    plain = model.config._attn_implementation
    model.set_attn_implementation(NAME)
    if plain not in ("sdpa", "eager") or model.config._attn_implementation != NAME:
        raise UserError(
            f"training.attention = shifted-sparse: the attention of {type(model).__name__} ({plain}) cannot be "
            "replaced by it; use full"
        )


def attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """[batch, length, heads, features] of queries [batch, heads, length, features]; keys may have fewer heads.

    The windows of a training have no padding, hence no mask but the causal one.
    """
    if not module.training:
        whole: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
        return whole
    repeats = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    half = query.shape[1] // 2
    size = query.shape[2] // GROUPS
    plain = [tensor[:, :half] for tensor in (query, key, value)]
    shifted = [tensor[:, half:].roll(-size // 2, dims=2) for tensor in (query, key, value)]
    mask = _shifted_mask(size, query.device)
    attended = torch.cat(
        [
            _in_groups(plain, size, None, dropout, scaling),
            _in_groups(shifted, size, mask, dropout, scaling).roll(size // 2, dims=2),
        ],
        dim=1,
    )
    return attended.transpose(1, 2).contiguous(), None


def _in_groups(tensors: list[Tensor], size: int, mask: Tensor | None, dropout: float, scaling: float | None) -> Tensor:
    query, key, value = (tensor.unflatten(2, (GROUPS, size)).transpose(1, 2) for tensor in tensors)
    attended = scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=mask is None, dropout_p=dropout, scale=scaling
    )
    return attended.transpose(1, 2).flatten(2, 3)


def _shifted_mask(size: int, device: torch.device) -> Tensor:
    """Who attends to whom inside the groups [GROUPS, 1, size, size]: causal; in the last one each end by itself."""
    mask = torch.ones(GROUPS, 1, size, size, dtype=torch.bool, device=device).tril()
    mask[-1, 0, size // 2 :, : size // 2] = False
    return mask
