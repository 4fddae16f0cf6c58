"""What a prediction of the small model depends on."""

from __future__ import annotations

import math
from typing import get_args

import pytest
import torch
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from longshort.synthetic.model import Transformer, _bias, _turned, _turns
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
