"""Symmetric cross-entropy, the paper's misalignment: -sum p log q - sum q log p (arXiv 2506.11769, section 4).

SCE = H(p) + H(q) + KL(p || q) + KL(q || p): it is not zero at p = q, and its gradient there pushes the entropy down.
"""

from __future__ import annotations

from torch import Tensor


def per_position(log_p: Tensor, log_q: Tensor, constant_targets: bool = False) -> Tensor:
    p, q = log_p.exp(), log_q.exp()
    if constant_targets:
        p, q = p.detach(), q.detach()
    return -(p * log_q).sum(-1) - (q * log_p).sum(-1)
