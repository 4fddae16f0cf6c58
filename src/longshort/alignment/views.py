"""Two views of one window and where they overlap.

A window holds length + l_extra + 1 tokens. View A is its first `length` tokens, view B its last `length` before the
final target. On the overlap both views predict the same next token, A with l_extra more tokens of context:

    window    x0 x1 x2 x3 x4 x5 | x6      length 4, l_extra 2
    view A    x0 x1 x2 x3                 position i predicts x[i + 1]
    view B          x2 x3 x4 x5           position j predicts x[l_extra + j + 1]
    overlap         A2 A3 = B0 B1         length - l_extra positions
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

IGNORED = -100


class Overlap(NamedTuple):
    """Aligned positions as indices into the flattened [2, batch, length] positions, and those that are in no pair.

    weight: of each pair in the mean over a row's pairs, then over the rows; 0 where a label is ignored.
    """

    in_a: Tensor  # [pairs]
    in_b: Tensor  # [pairs]
    weight: Tensor  # [pairs], float64
    alone: Tensor  # [2 * batch * length - 2 * pairs]


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


def collate(samples: list[dict[str, Any]], length: int) -> dict[str, Any]:
    """Samples of data.windows to `inputs`, `targets` [views, batch, length] and `extra`, an int for each row."""
    pairs = []
    for sample in samples:
        window = torch.as_tensor(sample["window"])
        pairs.append(two_views(window, length) if sample["extra"] else one_view(window))
    inputs, targets = (torch.stack(part, dim=1) for part in zip(*pairs, strict=True))
    return {"inputs": inputs, "targets": targets, "extra": [int(sample["extra"]) for sample in samples]}
