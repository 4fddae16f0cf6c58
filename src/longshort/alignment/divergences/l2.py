"""Squared Euclidean distance of the two probability vectors."""

from __future__ import annotations

from torch import Tensor


def per_position(log_p: Tensor, log_q: Tensor) -> Tensor:
    return (log_p.exp() - log_q.exp()).square().sum(-1)
