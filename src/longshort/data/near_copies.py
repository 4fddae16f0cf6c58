"""Near copies: documents that share long passages with one that is held out.

A passage is 13 words in a row (as GPT-3's authors looked for, arXiv 2005.14165, appendix C), whatever their case and
what stands between them. What two documents have in common is counted exactly and against the shorter one of them, so
that a collection with a held-out story in it is found, too. MinHash would estimate it, and against both together.
"""

from __future__ import annotations

import hashlib
import re
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

WORDS = 13
WORD = re.compile(r"\w+")
FACTOR = np.uint64(6364136223846793005)  # Knuth's, of MMIX


class Closest(NamedTuple):
    """share: of the passages of the shorter document that both have. name: of the held-out one."""

    share: float
    name: str


class HeldOut:
    """The passages of held-out documents, 12 bytes for each word that these have."""

    def __init__(self) -> None:
        self._names: list[str] = []
        self._passages: list[NDArray[np.uint64]] = []

    def add(self, name: str, text: str) -> None:
        self._names.append(name)
        self._passages.append(passages(text))

    def closest(self, asked: NDArray[np.uint64]) -> Closest | None:
        """The held-out document that has most of the passages of a text, as its share; None if none has any."""
        hashes, documents, counts = self._index
        first = np.searchsorted(hashes, asked)
        there = hashes[np.minimum(first, len(hashes) - 1)] == asked if len(hashes) else np.zeros(len(asked), bool)
        if not there.any():
            return None
        last = np.searchsorted(hashes, asked[there], "right")
        found = [documents[start:end] for start, end in zip(first[there], last, strict=True)]
        shared = np.bincount(np.concatenate(found), minlength=len(counts))
        shares = shared / np.clip(counts, 1, len(asked))
        best = int(shares.argmax())
        return Closest(float(shares[best]), self._names[best])

    @cached_property
    def _index(self) -> tuple[NDArray[np.uint64], NDArray[np.int32], NDArray[np.int64]]:
        """All passages in their order, which document each is of, and how many each document has."""
        counts = np.array([len(each) for each in self._passages], np.int64)
        hashes = np.concatenate([np.empty(0, np.uint64), *self._passages])
        self._passages.clear()
        order = np.argsort(hashes, kind="stable")
        return hashes[order], np.repeat(np.arange(len(counts), dtype=np.int32), counts)[order], counts


def passages(text: str) -> NDArray[np.uint64]:
    """A hash of each different passage of a text, in order; none for fewer words than a passage has."""
    words = np.fromiter(map(_hash, WORD.findall(text.lower())), np.uint64)
    count = len(words) - WORDS + 1
    if count < 1:
        return np.empty(0, np.uint64)
    hashes = np.zeros(count, np.uint64)
    for place in range(WORDS):
        hashes = hashes * FACTOR + words[place : place + count]
    return np.unique(hashes)


@lru_cache(maxsize=2**18)
def _hash(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little")
