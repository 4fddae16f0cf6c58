"""The tokens that an evaluator finds."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from longshort.evaluation import key_tokens
from tests.support.longppl import BY, llama, words


def test_a_tokenizer_without_offsets_is_followed_by_decoding() -> None:
    fast = words()
    slow = SimpleNamespace(is_fast=False, decode=fast.decode)
    text = "the length of the context and the model"
    ids = fast(text, add_special_tokens=False).input_ids
    assert key_tokens.offsets_of(slow, text, ids)[-1][1] == len(text)
    with pytest.raises(ValueError, match="has no offsets"):
        key_tokens.find(llama(1), slow, text, BY)
