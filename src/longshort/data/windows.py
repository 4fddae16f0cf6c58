"""Training windows from the token stream of a split.

Documents are packed: one stream with a separator after each document, windows may cross separators, and attention is
not masked at them (the usual way of pre-training). So no document is too short, and none is dropped.

A window of two views holds length + l_extra + 1 tokens. View A is its first `length` tokens, view B its last `length`
before the final target. On the overlap both views predict the same next token, A with l_extra more tokens of context:

    window    x0 x1 x2 x3 x4 x5 | x6      length 4, l_extra 2
    view A    x0 x1 x2 x3                 position i predicts x[i + 1]
    view B          x2 x3 x4 x5           position j predicts x[l_extra + j + 1]
    overlap         A2 A3 = B0 B1         length - l_extra positions
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from longshort.data import splits
from longshort.data.streams import extra_length, generator


class TokenStream:
    """All documents of a split, each followed by the separator; reads from the memory-mapped Arrow file."""

    def __init__(self, folder: Path, separator: int) -> None:
        self.separator = separator
        self._chunks, starts, lengths, chunk_of = [], [], [], []
        for number, chunk in enumerate(splits.load(folder).column("input_ids").chunks):
            self._chunks.append(chunk.flatten().to_numpy(zero_copy_only=True))
            bounds = np.asarray(chunk.offsets) - chunk.offsets[0].as_py()
            starts.append(bounds[:-1])
            lengths.append(np.diff(bounds))
            chunk_of.append(np.full(len(chunk), number))
        # Of each document: which chunk holds it, where it begins there, its tokens, and where it ends in the stream.
        self._chunk_of, self._starts, self.document_lengths = map(np.concatenate, (chunk_of, starts, lengths))
        self._ends = np.cumsum(self.document_lengths + 1, dtype=np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def read(self, start: int, count: int) -> NDArray[np.int64]:
        """Tokens start..start + count - 1 of the stream: [count]."""
        out = np.full(count, self.separator, dtype=np.int64)
        document = int(np.searchsorted(self._ends, start, side="right"))
        position = start
        while position < start + count:
            first, length = int(self._starts[document]), int(self.document_lengths[document])
            offset = position - (int(self._ends[document]) - length - 1)
            tokens = self._chunks[self._chunk_of[document]][first + offset : first + length]
            piece = tokens[: start + count - position]
            out[position - start : position - start + len(piece)] = piece
            position = int(self._ends[document])
            document += 1
        return out


class Windows:
    """The samples of a run by their global number: sample k belongs to optimiser step k // batch.

    Each epoch cuts the stream into slots at another offset and visits them in another order, both drawn from
    (seed, epoch). A slot has room for the longest l_extra, so arms of one seed read the same windows.

    max_extra: l_extra ~ U{1..max_extra}, one for each step or for all; None: no second view.
    halves: without a second view, windows are the two halves of those slots, so that twice as many read the same text;
        else slots are as long as a window.

    Items are dicts: `window`, tokens [length + l_extra + 1], `extra`, l_extra (0 without a second view), and `sample`,
    the global number.
    """

    def __init__(
        self,
        stream: TokenStream,
        *,
        length: int,
        seed: int,
        batch: int,
        steps: int,
        max_extra: int | list[int] | None,
        extra_per_row: bool = False,
        halves: bool = False,
    ) -> None:
        self.stream, self.length, self.seed, self.batch, self.steps = stream, length, seed, batch, steps
        self.max_extra, self.extra_per_row = max_extra, extra_per_row
        self.slot = length + 1 if max_extra is None and not halves else 2 * length
        self.per_slot = 2 if halves else 1
        # One slot less than fits: the offset moves the last one past the end.
        self.slots = len(stream) // self.slot - 1
        if self.slots < 1:
            raise ValueError(
                f"the training split has {len(stream)} tokens, fewer than two windows of {self.slot}; "
                "use a larger corpus or a smaller lengths.train"
            )
        self._order: tuple[int, NDArray[np.int64], int] | None = None

    def __len__(self) -> int:
        return self.steps * self.batch

    def __getitem__(self, sample: int) -> dict[str, Any]:
        epoch, place = divmod(sample, self.slots * self.per_slot)
        slot, half = divmod(place, self.per_slot)
        order, offset = self._epoch(epoch)
        start = offset + int(order[slot]) * self.slot + half * self.length
        if self.max_extra is None:
            return {"window": self.stream.read(start, self.length + 1), "extra": 0, "sample": sample}
        step = sample // self.batch
        max_extra = self.max_extra[step] if isinstance(self.max_extra, list) else self.max_extra
        extra = extra_length(self.seed, sample if self.extra_per_row else step, max_extra)
        return {"window": self.stream.read(start, self.length + extra + 1), "extra": extra, "sample": sample}

    def _epoch(self, epoch: int) -> tuple[NDArray[np.int64], int]:
        if self._order is None or self._order[0] != epoch:
            draws = generator("order", self.seed, epoch)
            offset = int(draws.integers(0, self.slot))
            self._order = (epoch, draws.permutation(self.slots), offset)
        return self._order[1], self._order[2]


def one_view(window: Tensor) -> tuple[Tensor, Tensor]:
    """Plain next-token prediction: inputs [1, length] and targets [1, length] of a window [length + 1]."""
    return window[None, :-1], window[None, 1:]


def two_views(window: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Splits a window [length + l_extra + 1] into inputs [2, length] and targets [2, length], view A first.

    Raises:
        ValueError: the window is too short for l_extra >= 1, or so long that the views do not overlap.
    """
    extra = len(window) - length - 1
    if not 1 <= extra < length:
        raise ValueError(f"a window of {len(window)} tokens gives l_extra {extra}; it must be in 1..{length - 1}")
    views = torch.stack([window[: length + 1], window[extra:]])
    return views[:, :-1], views[:, 1:]


def collate(samples: list[dict[str, Any]], length: int) -> dict[str, Any]:
    """Samples of Windows to `inputs`, `targets` [views, batch, length], `extra` and `samples`, ints for each row."""
    pairs = []
    for sample in samples:
        window = torch.as_tensor(sample["window"])
        pairs.append(two_views(window, length) if sample["extra"] else one_view(window))
    inputs, targets = (torch.stack(part, dim=1) for part in zip(*pairs, strict=True))
    extra, numbers = ([int(sample[key]) for sample in samples] for key in ("extra", "sample"))
    return {"inputs": inputs, "targets": targets, "extra": extra, "samples": numbers}
