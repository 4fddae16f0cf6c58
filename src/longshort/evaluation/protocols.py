"""Which tokens of a document a perplexity scores, and with which context: its protocol.

The documents are the first `documents` of the test split, in the order of the sha256 of their names, that are long
enough.

prefix-v2, the field's usual one: the model reads BOS + the first L - 1 tokens, and all of the first L tokens are
scored, so it never sees more than L positions. Its numbers mix positions with little and with much context. (YaRN's
script with --truncate counts BOS among its L tokens and scores one less, as prefix at L - 1.) `bos=none`: where the
tokenizer has no BOS, the first L tokens are read and all but the first are scored; of texts that begin with BOS that is
prefix at L - 1.

same-targets-v2: one window of L_max + 1 tokens from each document, at a fixed place; the last `targets` tokens of the
window are scored with a context that begins L tokens before the window's end, and no BOS. So every length is measured
on the same tokens, and only the context differs: what a longer context does to a prediction.

block-v2, as scripts built on run_clm do it: the first `tokens` tokens of each document are cut into blocks of exactly
L, the rest is dropped, and each block is read by itself, without BOS; its first token is not scored. (Its last token is
read, as there: rotary frequencies may depend on how many are.) With `chunk` it is CLEX's own evaluation (train/utils.py
there), `chunk` being the original length: a block is read in chunks (chunks.py), and the first token of each is not
scored. Of a block of one chunk the two are the same.

sliding-v2: windows of L tokens that begin `stride` apart in the first `tokens` tokens of each document, each read after
BOS; of the first all tokens are scored, of every other one those that no window before it scored. Each token has equal
weight; YaRN's script takes the mean over windows of their means, where the first window's tokens weigh less.
`bos=none`, as above: the first token of the text is not scored, nor that of a window whose tokens are all new.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from longshort.data.streams import generator
from longshort.evaluation.forward import held_out_documents, rope_depends_on_length
from longshort.metrics.settings import Blocks, Perplexity, Prefix, SameTargets, Sliding

Tokens = NDArray[np.int64]
Protocol = Prefix | SameTargets | Blocks | Sliding


class Reading(NamedTuple):
    """What the model reads, and what comes next, both [rows, length] (block: it reads a token more).

    last: so many tokens at each row's end are scored, but for the first ones of chunks.
    before: how many tokens of the text a row has before its first target.
    chunk: so many tokens are read at a time; None: all of them.
    """

    input_ids: Tensor
    targets: Tensor
    last: int
    before: int
    chunk: int | None = None

    @property
    def scored(self) -> Tensor:
        """Columns of targets, ascending: [scored]."""
        columns = torch.arange(self.targets.shape[1] - self.last, self.targets.shape[1])
        return columns if self.chunk is None else columns[(columns + self.before) % self.chunk != 0]


def readings(
    chosen: Protocol, token_ids: Tokens, length: int, longest: int, start: int, bos: int | None
) -> list[Reading]:
    """What is read of one document at one length.

    Args:
        token_ids: [tokens], those that the protocol reads.
        longest: the longest of all lengths, tokens.
        start: where the window of same-targets begins.
        bos: the token that prefix and sliding read first; None: there is none, and the first token is not scored.
    """
    tokens = torch.from_numpy(np.asarray(token_ids, dtype=np.int64))
    if isinstance(chosen, Prefix):
        return [_after_bos(tokens[None, :length], bos, length)]
    if isinstance(chosen, SameTargets):
        window = tokens[None, start : start + longest + 1]
        return [Reading(window[:, -length - 1 : -1], window[:, -length:], chosen.targets, before=1)]
    if isinstance(chosen, Blocks):
        blocks = tokens[: len(tokens) // length * length].view(-1, length)
        return [Reading(blocks, blocks[:, 1:], length - 1, before=1, chunk=chosen.chunk)]
    stride = min(chosen.stride, length)
    others = (
        tokens[stride:].unfold(0, length, stride) if len(tokens) >= length + stride else tokens.new_empty(0, length)
    )
    found = [_after_bos(tokens[None, :length], bos, length)]
    if len(others):
        found.append(_after_bos(others, bos, stride))
    # The end, where less than a stride is left.
    if rest := (len(tokens) - length) % stride:
        found.append(_after_bos(tokens[None, -length:], bos, rest))
    return found


def _after_bos(tokens: Tensor, bos: int | None, last: int) -> Reading:
    if bos is None:
        return Reading(tokens, tokens[:, 1:], min(last, tokens.shape[1] - 1), before=1)
    before = torch.full((len(tokens), 1), bos)
    return Reading(torch.cat([before, tokens[:, :-1]], dim=1), tokens, last, before=0)


def by_length(
    model: Any, settings: Perplexity, token_ids: Tokens, start: int, bos: int | None
) -> Iterator[tuple[list[int], Reading]]:
    """Every reading of a document, and the lengths that it serves: all of them where a prefix of it is one."""
    lengths, chosen = lengths_of(settings), settings.protocol
    if isinstance(chosen, Prefix) and not rope_depends_on_length(model):
        yield lengths, readings(chosen, token_ids, lengths[-1], lengths[-1], start, bos)[0]
        return
    for length in lengths:
        for reading in readings(chosen, token_ids, length, lengths[-1], start, bos):
            yield [length], reading


def scored_for(served: list[int], reading: Reading, length: int) -> int:
    """How many tokens a reading scores for a length that it serves: the first of them, where it serves several."""
    return length - reading.before if len(served) > 1 else len(reading.scored) * len(reading.targets)


def documents_of(data: Path, count: int, at_least: int, split: str, key: str) -> list[tuple[str, Tokens]]:
    """Names and tokens of the first `count` documents of a split that are long enough."""
    documents = list(islice(held_out_documents(data, at_least, split), count))
    # Of the validation split, fewer will do.
    if not documents or (split == "test" and len(documents) < count):
        raise ValueError(
            f"perplexity needs {count} {split} documents of at least {at_least} tokens and {data} has "
            f"{len(documents)}: lower evaluations.perplexity.{key}, or the longest of "
            f"evaluations.perplexity.lengths, or give the {split} split longer documents"
        )
    return documents


def start_of(settings: Perplexity, token_ids: Tokens, index: int, split: str) -> int:
    """Where the window of same-targets begins in a document."""
    if not isinstance(settings.protocol, SameTargets):
        return 0
    stream = "perplexity/same-targets-v1" if split == "test" else "perplexity/same-targets-v1/validation"
    return int(generator(stream, 0, index).integers(0, len(token_ids) - lengths_of(settings)[-1]))


def lengths_of(settings: Perplexity) -> list[int]:
    return sorted(settings.lengths)


def tokens_read(settings: Perplexity) -> int:
    """How many tokens a document must have; of all but same-targets, how many are read."""
    longest = lengths_of(settings)[-1]
    if isinstance(settings.protocol, SameTargets):
        return longest + 1
    return longest if isinstance(settings.protocol, Prefix) else settings.protocol.tokens or longest
