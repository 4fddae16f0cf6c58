"""Divergences between the two views' next-token distributions, one file per kind.

p is the distribution of view A (the longer context on the overlap), q that of view B.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from longshort.alignment.divergences.kinds import MODULES, STOP_GRADIENTS

if TYPE_CHECKING:
    from torch import Tensor


def divergence(kind: str, logits_a: Tensor, logits_b: Tensor, stop_gradient: str = "none") -> Tensor:
    """Divergence per position of softmax(logits_a) and softmax(logits_b).

    Args:
        kind: a key of kinds.MODULES.
        logits_a, logits_b: [..., V] each; computed in float32 at least (float64 stays float64).
        stop_gradient: "first" or "second" treats that distribution as a constant; "targets" (sce only) treats the
            weights of both of its terms as constants: -sg(p) log q - sg(q) log p.

    Returns:
        [...] in nats (for l2: squared distance of probabilities).

    Raises:
        ValueError: unknown kind or stop_gradient, or "targets" with another kind than sce.
    """
    if kind not in MODULES:
        raise ValueError(f"divergence kind is {kind!r}; use one of {', '.join(MODULES)}")
    if stop_gradient not in STOP_GRADIENTS:
        raise ValueError(f"stop_gradient is {stop_gradient!r}; use one of {', '.join(STOP_GRADIENTS)}")
    if stop_gradient == "targets" and kind != "sce":
        raise ValueError(f"stop_gradient 'targets' is defined for sce only, not for {kind}; use first, second or none")
    if logits_a.shape != logits_b.shape:
        raise ValueError(
            f"logits_a has shape {tuple(logits_a.shape)}, logits_b {tuple(logits_b.shape)}; they must agree"
        )
    logits_a, logits_b = (x if x.element_size() >= 4 else x.float() for x in (logits_a, logits_b))
    if stop_gradient == "first":
        logits_a = logits_a.detach()
    if stop_gradient == "second":
        logits_b = logits_b.detach()
    log_p, log_q = logits_a.log_softmax(-1), logits_b.log_softmax(-1)
    module = import_module(MODULES[kind])
    if stop_gradient == "targets":
        return module.per_position(log_p, log_q, constant_targets=True)
    return module.per_position(log_p, log_q)
