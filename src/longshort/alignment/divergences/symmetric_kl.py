"""KL(p || q) + KL(q || p): the sum, not the mean. It is SCE without its entropy floor H(p) + H(q)."""

from __future__ import annotations

import torch
from torch import Tensor


def value_and_slopes(log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    p, q = log_p.exp(), log_q.exp()
    difference, log_ratio = p - q, log_p - log_q
    value = (difference * log_ratio).sum(-1)
    return value, torch.addcmul(difference, p, log_ratio), -torch.addcmul(difference, q, log_ratio)
