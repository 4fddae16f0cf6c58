"""KL(q || p): weighted by view B, the shorter context."""

from __future__ import annotations

from torch import Tensor


def per_position(log_p: Tensor, log_q: Tensor) -> Tensor:
    return (log_q.exp() * (log_q - log_p)).sum(-1)
