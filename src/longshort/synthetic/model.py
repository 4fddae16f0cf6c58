"""A small decoder-only transformer that predicts one number at every token."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention

ROPE_THETA = 10_000.0


class Transformer(nn.Module):
    """Pre-norm blocks of causal attention and a GELU layer of four times the width.

    Args:
        encoding: of positions. none; learned: a vector each; rope (arXiv 2104.09864); alibi (arXiv 2108.12409).
        longest: positions that there are vectors for.
    """

    def __init__(self, encoding: str, features: int, layers: int, heads: int, longest: int) -> None:
        super().__init__()
        self.encoding, self.heads = encoding, heads
        self.tokens = nn.Embedding(3, features)
        self.positions = nn.Embedding(longest, features) if encoding == "learned" else None
        self.blocks = nn.ModuleList(Block(features, heads) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(features), nn.Linear(features, 1)

    def forward(self, tokens: Tensor) -> Tensor:
        """A prediction at every token: [rows, length] of tokens [rows, length]."""
        length = tokens.shape[1]
        states = self.tokens(tokens)
        if self.positions is not None:
            states = states + self.positions.weight[:length]
        bias = _bias(length, self.heads if self.encoding == "alibi" else 0)
        turns = _turns(length, states.shape[2] // self.heads) if self.encoding == "rope" else None
        for block in self.blocks:
            states = block(states, bias, turns)
        predictions: Tensor = self.head(self.norm(states))[..., 0]
        return predictions


class Block(nn.Module):
    def __init__(self, features: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList(nn.LayerNorm(features) for _ in range(2))
        self.attention_in, self.attention_out = nn.Linear(features, 3 * features), nn.Linear(features, features)
        self.wide, self.narrow = nn.Linear(features, 4 * features), nn.Linear(4 * features, features)

    def forward(self, states: Tensor, bias: Tensor, turns: tuple[Tensor, Tensor] | None) -> Tensor:
        split = self.attention_in(self.norms[0](states)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        query, key, value = split.unbind(0)
        if turns:
            query, key = _turned(query, turns), _turned(key, turns)
        attended = scaled_dot_product_attention(query, key, value, attn_mask=bias)
        states = states + self.attention_out(attended.transpose(1, 2).flatten(2))
        return states + self.narrow(gelu(self.wide(self.norms[1](states))))


def _bias(length: int, alibi_heads: int) -> Tensor:
    """What is added to the scores: [heads or 1, length, length]."""
    places = torch.arange(length)
    distance = places[:, None] - places
    bias = torch.zeros(1, length, length)
    if alibi_heads:
        slopes = 2.0 ** (-8.0 * torch.arange(1, alibi_heads + 1) / alibi_heads)
        bias = -slopes[:, None, None] * distance
    return bias.masked_fill(distance < 0, -math.inf)


def _turns(length: int, features: int) -> tuple[Tensor, Tensor]:
    frequencies = ROPE_THETA ** (-torch.arange(0, features, 2) / features)
    angles = torch.arange(length)[:, None] * torch.cat([frequencies, frequencies])
    return angles.cos(), angles.sin()


def _turned(states: Tensor, turns: tuple[Tensor, Tensor]) -> Tensor:
    first, second = states.chunk(2, dim=-1)
    return states * turns[0] + torch.cat([-second, first], -1) * turns[1]
