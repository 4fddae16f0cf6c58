"""KL(p || q) + KL(q || p): the sum, not the mean. It is SCE without its entropy floor H(p) + H(q)."""

from __future__ import annotations

from torch import Tensor


def per_position(log_p: Tensor, log_q: Tensor) -> Tensor:
    return ((log_p.exp() - log_q.exp()) * (log_p - log_q)).sum(-1)
