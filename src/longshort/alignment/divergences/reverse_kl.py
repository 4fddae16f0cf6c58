"""KL(q || p): weighted by view B, the shorter context."""

from __future__ import annotations

from torch import Tensor


def value_and_slopes(log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    p, q = log_p.exp(), log_q.exp()
    slope_q = q * (log_q - log_p)
    return slope_q.sum(-1), p - q, slope_q
