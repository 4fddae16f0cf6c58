"""Tokens of bytes."""

from __future__ import annotations

from longshort.data import tokenizers


def test_bytes_come_back_as_they_were() -> None:
    tokenizer = tokenizers.byte_tokenizer()
    text = "def f():\n\treturn 'naïve — ✓'  \n"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert bytes(ids) == text.encode()
    assert tokenizer.decode(ids) == text
    assert tokenizers.separator(tokenizer) == 256 and len(tokenizer) == 257
