"""What a prediction of the small model depends on."""

from __future__ import annotations

import math
from typing import Any, get_args

import pytest
import torch
from torch import nn
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from longshort.synthetic.model import Block, Transformer, _bias, _turned, _turns
from longshort.synthetic.study import Encoding
from longshort.synthetic.tasks import BEGIN
from longshort.synthetic.tasks import test_batch as fixed_batch


@pytest.mark.parametrize("encoding", get_args(Encoding))
def test_a_prediction_sees_its_beginning_alone(encoding: str) -> None:
    torch.manual_seed(0)
    model = Transformer(encoding, 8, 2, 2, 10)
    tokens = fixed_batch(3, 9).tokens
    whole = model(tokens)
    for length in range(1, 11):
        torch.testing.assert_close(model(tokens[:, :length]), whole[:, :length])


@pytest.mark.parametrize("encoding", get_args(Encoding))
def test_without_an_encoding_one_block_sees_no_order(encoding: str) -> None:
    torch.manual_seed(0)
    model = Transformer(encoding, 8, 1, 2, 10)
    tokens = torch.tensor([[BEGIN, 0, 1, 1, 0, 1]])
    swapped = tokens[:, [0, 2, 1, 3, 4, 5]]
    assert torch.allclose(model(tokens)[:, 3:], model(swapped)[:, 3:], atol=1e-6) == (encoding == "none")


def test_encodings_are_those_of_their_papers() -> None:
    torch.manual_seed(0)
    states, (cos, sin) = torch.randn(2, 4, 7, 6), _turns(7, 6)
    expected, _ = apply_rotary_pos_emb(states, states, cos[None], sin[None])
    torch.testing.assert_close(_turned(states, (cos, sin)), expected)
    assert cos[3, 1].item() == pytest.approx(math.cos(3 * 10_000 ** (-2 / 6)))
    bias = _bias(3, 4)
    assert bias[:, 2, 0].tolist() == pytest.approx([-2 * 2.0**-2, -2 * 2.0**-4, -2 * 2.0**-6, -2 * 2.0**-8])
    assert bias[0, 0].tolist() == [0, -math.inf, -math.inf] and _bias(3, 0)[0, 2].tolist() == [0, 0, 0]


def test_a_block_is_a_pre_norm_layer_of_causal_attention_and_an_inner_layer_of_four_times_the_width() -> None:
    """As torch's own layer computes it, with the same weights, each unlike any other."""
    torch.manual_seed(0)
    ours = Block(8, 2).double()
    for parameter in ours.parameters():
        nn.init.normal_(parameter)
    how: dict[str, Any] = {"dropout": 0.0, "activation": "gelu", "batch_first": True, "norm_first": True}
    theirs = nn.TransformerEncoderLayer(8, 2, 4 * 8, **how).double()
    layers = {"self_attn.in_proj_": ours.attention_in, "self_attn.out_proj.": ours.attention_out}
    layers |= {"linear1.": ours.wide, "linear2.": ours.narrow, "norm1.": ours.norms[0], "norm2.": ours.norms[1]}
    parts = ("weight", "bias")
    theirs.load_state_dict({f"{name}{part}": getattr(layer, part) for name, layer in layers.items() for part in parts})
    states, causal = torch.randn(3, 5, 8, dtype=torch.float64), _bias(5, 0).double()
    torch.testing.assert_close(ours(states, causal, None), theirs(states, src_mask=causal[0]))
