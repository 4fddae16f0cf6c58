"""Two views of one window and where they overlap.

A window holds length + l_extra + 1 tokens. View A is its first `length` tokens, view B its last `length` before the
final target. On the overlap both views predict the same next token, A with l_extra more tokens of context:

    window    x0 x1 x2 x3 x4 x5 | x6      length 4, l_extra 2
    view A    x0 x1 x2 x3                 position i predicts x[i + 1]
    view B          x2 x3 x4 x5           position j predicts x[l_extra + j + 1]
    overlap         A2 A3 = B0 B1         length - l_extra positions
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

IGNORED = -100


@dataclass(frozen=True)
class Overlap:
    """Aligned positions: row of the batch, position in view A, position in view B; [n] each. batch: number of rows."""

    rows: Tensor
    in_a: Tensor
    in_b: Tensor
    batch: int


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


def overlap(targets: Tensor, extra: Tensor, kind: str = "all", k: int | None = None) -> Overlap:
    """The aligned positions of a batch.

    Args:
        targets: [2, batch, length] next tokens of both views; positions with IGNORED in either view are left out.
        extra: [batch] l_extra of each row.
        kind: "all" positions of the overlap, the "last", or the "last-k".
        k: how many for "last-k"; a shorter overlap is taken whole.
    """
    if kind not in ("all", "last", "last-k"):
        raise ValueError(f"overlap kind is {kind!r}; use all, last or last-k")
    length = targets.shape[-1]
    in_a = torch.arange(length, device=targets.device)
    in_b = in_a - extra[:, None]
    wanted = {"all": length, "last": 1, "last-k": k}[kind]
    assert wanted is not None
    chosen = (in_b >= 0) & (in_a >= length - wanted)
    chosen &= (targets[0] != IGNORED) & (targets[1].gather(1, in_b.clamp(min=0)) != IGNORED)
    rows, columns = chosen.nonzero(as_tuple=True)
    return Overlap(rows, columns, columns - extra[rows], len(extra))


def collate(samples: list[dict[str, Any]], length: int) -> dict[str, Tensor]:
    """Samples of data.windows to `inputs`, `targets` [views, batch, length] and `extra` [batch]."""
    pairs = []
    for sample in samples:
        window = torch.as_tensor(sample["window"])
        pairs.append(two_views(window, length) if sample["extra"] else one_view(window))
    inputs, targets = (torch.stack(part, dim=1) for part in zip(*pairs, strict=True))
    return {"inputs": inputs, "targets": targets, "extra": torch.tensor([sample["extra"] for sample in samples])}
