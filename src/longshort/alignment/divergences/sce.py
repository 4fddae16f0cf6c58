"""Symmetric cross-entropy, the paper's misalignment: -sum p log q - sum q log p (arXiv 2506.11769, section 4).

SCE = H(p) + H(q) + KL(p || q) + KL(q || p): it is not zero at p = q, and its gradient there pushes the entropy down.
"""

from __future__ import annotations

import torch
from torch import Tensor


def value_and_slopes(log_p: Tensor, log_q: Tensor, constant_targets: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    p, q = log_p.exp(), log_q.exp()
    value = -torch.linalg.vecdot(p, log_q) - torch.linalg.vecdot(q, log_p)
    if constant_targets:
        return value, p - q, q - p
    return value, -torch.addcmul(q, p, log_q), -torch.addcmul(p, q, log_p)
