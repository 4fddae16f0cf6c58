"""Where the two views of a window overlap (data/windows.py cuts them): there both predict the same next token, view A
with l_extra more tokens of context.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from longshort.models.fused import IGNORED


class Overlap(NamedTuple):
    """Aligned positions as indices into the flattened [2, batch, length] positions, and those that are in no pair.

    weight: of each pair in the mean over a row's pairs, then over the rows; 0 where a label is ignored.
    """

    in_a: Tensor  # [pairs]
    in_b: Tensor  # [pairs]
    weight: Tensor  # [pairs], float64
    alone: Tensor  # [2 * batch * length - 2 * pairs]


def overlap(targets: Tensor, extra: Sequence[int], kind: str = "all", k: int | None = None) -> Overlap:
    """The aligned positions of a batch. No value of a tensor is looked at, so a GPU is not waited for.

    Args:
        targets: [2, batch, length] next tokens of both views; a pair with IGNORED in either view weighs nothing.
        extra: l_extra of each row.
        kind: "all" positions of the overlap, the "last", or the "last-k".
        k: how many for "last-k"; a shorter overlap is taken whole.

    Raises:
        ValueError: unknown kind, no k for last-k, or an l_extra that leaves no overlap.
    """
    if kind not in ("all", "last", "last-k") or (kind == "last-k" and not k):
        raise ValueError(f"overlap is {kind!r} with k = {k}; use all, last, or last-k with k of at least 1")
    _, batch, length = targets.shape
    if len(extra) != batch or not all(1 <= one < length for one in extra):
        raise ValueError(f"l_extra is {list(extra)}; it must be in 1..{length - 1} for each of {batch} rows")
    wanted = {"all": length, "last": 1, "last-k": k or 0}[kind]
    position = torch.arange(length, device=targets.device)
    in_a, in_b, rows, alone = [], [], [], []
    for row, one in enumerate(extra):
        start = max(one, length - wanted)
        view_a, view_b = position + row * length, position + (batch + row) * length
        in_a.append(view_a[start:])
        in_b.append(view_b[start - one : length - one])
        rows.append(torch.full_like(position[start:], row))
        alone += [view_a[:start], view_b[: start - one], view_b[length - one :]]
    pairs_a, pairs_b = torch.cat(in_a), torch.cat(in_b)
    labels = targets.flatten()
    counted = ((labels[pairs_a] != IGNORED) & (labels[pairs_b] != IGNORED)).double()
    row_of = torch.cat(rows)
    in_row = counted.new_zeros(batch).index_add(0, row_of, counted).clamp(min=1)
    return Overlap(pairs_a, pairs_b, counted / in_row[row_of] / batch, torch.cat(alone))
