"""KL(p || q): view B, with the shorter context, is fitted to view A where A puts its mass."""

from __future__ import annotations

from torch import Tensor


def per_position(log_p: Tensor, log_q: Tensor) -> Tensor:
    return (log_p.exp() * (log_p - log_q)).sum(-1)
