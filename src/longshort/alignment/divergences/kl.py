"""KL(p || q): view B, with the shorter context, is fitted to view A where A puts its mass."""

from __future__ import annotations

from torch import Tensor


def value_and_slopes(log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    p, q = log_p.exp(), log_q.exp()
    slope_p = p * (log_p - log_q)
    return slope_p.sum(-1), slope_p, q - p
