"""Tokenizers: bytes (nothing to fetch), or a pretrained one."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from longshort.data.settings import BytesTokenizer, Tokenizer
from longshort.records import hub

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SEPARATOR = "<|document|>"


def load(settings: Tokenizer) -> PreTrainedTokenizerBase:
    """
    Raises:
        NotFetched: it is the hub's, and not here.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    return byte_tokenizer() if isinstance(settings, BytesTokenizer) else pretrained(settings)


def pretrained(model: hub.HubModel) -> PreTrainedTokenizerBase:
    """The tokenizer of a model, or one alone, of the hub or of a local folder.

    Raises:
        NotFetched: it is the hub's, and not here.
    """
    from transformers import AutoTokenizer

    part = hub.tokenizer(model)
    return AutoTokenizer.from_pretrained(hub.folder(part) if part else model.name, trust_remote_code=False)


def byte_tokenizer() -> PreTrainedTokenizerBase:
    """Ids 0..255 are the bytes of the UTF-8 text, 256 separates documents."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    vocabulary = {character: byte for byte, character in bytes_to_unicode().items()}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=SEPARATOR,
        eos_token=SEPARATOR,
        pad_token=SEPARATOR,
        clean_up_tokenization_spaces=False,
    )


def separator(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token between packed documents."""
    token = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.bos_token_id
    if token is None:
        raise ValueError("the tokenizer has neither an EOS nor a BOS token to separate documents with; use another one")
    return int(token)
