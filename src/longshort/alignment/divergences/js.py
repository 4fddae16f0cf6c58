"""Jensen-Shannon divergence in nats: (KL(p || m) + KL(q || m)) / 2 with m = (p + q) / 2; at most ln 2."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def value_and_slopes(log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    log_m = torch.logaddexp(log_p, log_q) - math.log(2.0)
    slope_p = 0.5 * log_p.exp() * (log_p - log_m)
    slope_q = 0.5 * log_q.exp() * (log_q - log_m)
    return (slope_p + slope_q).sum(-1), slope_p, slope_q
