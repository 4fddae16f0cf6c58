"""The objective as the paper and config/README.md define it: naive, position by position, in float64."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from longshort.identity.kinds import DIVERGENCES

CASES = [(kind, stop) for kind in DIVERGENCES for stop in ("none", "first", "second")] + [("sce", "targets")]
IGNORED = -100


def divergence(kind: str, a: Tensor, b: Tensor, stop: str) -> Tensor:
    """Of the distributions with logits a and b, [V] each."""
    a = a.detach() if stop == "first" else a
    b = b.detach() if stop == "second" else b
    p, q = (x.exp() / x.exp().sum() for x in (a, b))
    p_weight, q_weight = (p.detach(), q.detach()) if stop == "targets" else (p, q)
    m = (p + q) / 2
    return {
        "sce": lambda: -p_weight * q.log() - q_weight * p.log(),
        "kl": lambda: p * (p.log() - q.log()),
        "reverse-kl": lambda: q * (q.log() - p.log()),
        "symmetric-kl": lambda: p * (p / q).log() + q * (q / p).log(),
        "js": lambda: (p * (p / m).log() + q * (q / m).log()) / 2,
        "l2": lambda: (p - q) ** 2,
    }[kind]().sum()


def aligned(targets: Tensor, extra: Sequence[int], overlap: str, k: int | None) -> list[list[tuple[int, int]]]:
    """For each row the positions (in view A, in view B) that predict the same, chosen and counted, token."""
    length = targets.shape[-1]
    first = {"all": 0, "last": length - 1, "last-k": length - (k or 0)}[overlap]
    return [
        [
            (a, a - one)
            for a in range(max(one, first), length)
            if targets[0, row, a] != IGNORED and targets[1, row, a - one] != IGNORED
        ]
        for row, one in enumerate(extra)
    ]


def mean_over_rows(values: list[list[Tensor]]) -> Tensor:
    """Mean over a row's positions (0 where there are none), then over the rows."""
    return torch.stack([torch.stack(row).mean() if row else torch.zeros(()).double() for row in values]).mean()


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean over the positions of all views with a target; logits [views, batch, length, V]."""
    rows = zip(logits.flatten(0, -2), targets.flatten(), strict=True)
    return torch.stack([z.exp().sum().log() - z[target] for z, target in rows if target != IGNORED]).mean()
