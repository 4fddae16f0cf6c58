"""Reading a text in chunks, each with the keys and values of those before it cached, as CLEX's evaluation does
(github DAMO-NLP-SG/CLEX, train/utils.py and CLEX/llama/modeling_llama_clex.py).

Where rotary frequencies depend on the length, all keys are rotated anew by the frequencies of the length so far. What a
block made of a chunk is kept as it was made: so this is not the same as reading everything again from the beginning.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb, rotate_half


def hidden_states(decoder: Any, input_ids: Tensor, chunk: int, turns: bool) -> Tensor:
    """Final hidden states [batch, length, features] of input_ids [batch, length].

    Args:
        decoder: a model without its head, in evaluation mode.
        chunk: tokens of a chunk; the last one may be shorter.
        turns: whether its rotary frequencies depend on the length.

    Raises:
        ValueError: they do, and the decoder's rotary positions are not those of Llama.
    """
    if turns:
        _refuse_other_rotations(decoder)
    cache = UnrotatedKeys(decoder.rotary_emb) if turns else DynamicCache(config=decoder.config)
    states, length = [], 0
    for ids in input_ids.split(chunk, dim=1):
        length += ids.shape[1]
        if isinstance(cache, UnrotatedKeys):
            cache.turn(decoder.get_input_embeddings().weight, length)
        states.append(decoder(input_ids=ids, past_key_values=cache, use_cache=True).last_hidden_state)
    return torch.cat(states, dim=1)


def _refuse_other_rotations(decoder: Any) -> None:
    """Whatever the angles look like: some families pair neighbouring features in their attention alone."""
    like = decoder.get_input_embeddings().weight
    cos, sin = decoder.rotary_emb(like, torch.arange(8, device=like.device)[None])
    key = torch.linspace(-1, 1, 8 * cos.shape[-1], device=like.device).view(1, 1, 8, -1).to(like.dtype)
    rotate = getattr(import_module(type(decoder).__module__), "apply_rotary_pos_emb", None)
    heads = (
        getattr(decoder.config, "head_dim", None) or decoder.config.hidden_size // decoder.config.num_attention_heads
    )
    as_llama = apply_rotary_pos_emb(key, key, cos, sin)[1].float()
    # Some round otherwise, in bf16 by a hundredth; another pair of features is off by as much as the keys are large.
    is_close = rotate is not None and torch.allclose(rotate(key, key, cos, sin)[1].float(), as_llama, rtol=0, atol=0.05)
    if heads != cos.shape[-1] or not is_close:
        raise ValueError(
            "perplexity: protocol.chunk rotates keys as Llama does, and this model's attention does otherwise; leave "
            "chunk out"
        )


class UnrotatedKeys(DynamicCache):
    """Keys as they are before their rotation; a block gets them rotated by the frequencies of the length so far."""

    def __init__(self, rotary: Any) -> None:
        super().__init__()
        self._rotary = rotary
        self._cos = self._sin = torch.empty(0)

    def turn(self, like: Tensor, length: int) -> None:
        """Takes the angles of a text of so many tokens, in the type and on the device of `like`."""
        cos, sin = self._rotary(like, torch.arange(length, device=like.device)[None])
        self._cos, self._sin = cos[:, None], sin[:, None]

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Caches new keys [batch, heads, new, features], rotated as the model does it, and values; returns all."""
        new = slice(-key_states.shape[2], None)
        cos, sin = self._cos[:, :, new].float(), self._sin[:, :, new].float()
        key = key_states.float()
        plain = (key * cos - rotate_half(key) * sin) / (cos.square() + sin.square())
        keys, values = super().update(plain.to(key_states.dtype), value_states, layer_idx, *args, **kwargs)
        return keys * self._cos + rotate_half(keys) * self._sin, values
