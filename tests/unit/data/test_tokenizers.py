"""Tokens of bytes."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from longshort.data import tokenizers


def test_bytes_come_back_as_they_were() -> None:
    tokenizer = tokenizers.byte_tokenizer()
    text = "def f():\n\treturn 'naïve — ✓'  \n"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert bytes(ids) == text.encode()
    assert tokenizer.decode(ids) == text
    assert tokenizers.separator(tokenizer) == 256 and len(tokenizer) == 257


@pytest.mark.parametrize(
    ("special", "between"),
    [({"bos_token": "a", "eos_token": "b"}, "b"), ({"eos_token": "b"}, "b"), ({"bos_token": "a"}, "a")],
)
def test_what_ends_a_text_separates_documents_and_else_what_begins_one(special: dict[str, Any], between: str) -> None:
    backend = tokenizers.byte_tokenizer().backend_tokenizer
    made = PreTrainedTokenizerFast(tokenizer_object=backend, **special)
    assert tokenizers.separator(made) == ord(between)


def test_a_tokenizer_that_can_separate_nothing_is_refused() -> None:
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizers.byte_tokenizer().backend_tokenizer)
    with pytest.raises(ValueError, match="neither an EOS nor a BOS token"):
        tokenizers.separator(made)
