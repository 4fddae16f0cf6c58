"""Squared Euclidean distance of the two probability vectors."""

from __future__ import annotations

from torch import Tensor


def value_and_slopes(log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    p, q = log_p.exp(), log_q.exp()
    difference = p - q
    return difference.square().sum(-1), 2.0 * p * difference, -2.0 * q * difference
