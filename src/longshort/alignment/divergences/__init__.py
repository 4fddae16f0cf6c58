"""Divergences between the two views' next-token distributions, one file per kind.

p is the distribution of view A (the longer context on the overlap), q that of view B. Every file has one function:

    value_and_slopes(log_p, log_q) -> D [...], dD / d log p [..., V], dD / d log q [..., V]

The slopes are the partial derivatives, for p = exp(log p) and q = exp(log q). A multiple of p may be added to the first
and a multiple of q to the second: the gradient of the logits is slope - p sum(slope), the same with or without it. Each
file leaves out those multiples that are large and would cancel there, which would cost digits of float32.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from torch.autograd import Function
from torch.autograd.function import once_differentiable

from longshort.identity.kinds import DIVERGENCES

if TYPE_CHECKING:
    from torch import Tensor

    from longshort.models.fused import Divergence

STOP_GRADIENTS = ("none", "first", "second", "targets")


def divergence(kind: str, logits_a: Tensor, logits_b: Tensor, stop_gradient: str = "none") -> Tensor:
    """Divergence per position of softmax(logits_a) and softmax(logits_b).

    Args:
        kind: a key of DIVERGENCES.
        logits_a, logits_b: [..., V] each; computed in float32 at least (float64 stays float64).
        stop_gradient: "first" or "second" treats that distribution as a constant; "targets" (sce only) treats the
            weights of both of its terms as constants: -sg(p) log q - sg(q) log p.

    Returns:
        [...] in nats (for l2: squared distance of probabilities).

    Raises:
        ValueError: unknown kind or stop_gradient, "targets" with another kind than sce, or shapes that differ.
    """
    if logits_a.shape != logits_b.shape:
        raise ValueError(
            f"logits_a has shape {tuple(logits_a.shape)}, logits_b {tuple(logits_b.shape)}; they must agree"
        )
    slopes = with_slopes(kind, stop_gradient)
    logits_a, logits_b = (at_least_single(logits) for logits in (logits_a, logits_b))
    return _Divergence.apply(logits_a.log_softmax(-1), logits_b.log_softmax(-1), slopes)


def with_slopes(kind: str, stop_gradient: str = "none") -> Divergence:
    """The chosen kind's value and slopes; None for the slope of a distribution that is a constant.

    Raises:
        ValueError: unknown kind or stop_gradient, or "targets" with another kind than sce.
    """
    _check(kind, stop_gradient)
    chosen = import_module(DIVERGENCES[kind]).value_and_slopes
    constant_targets = {"constant_targets": True} if stop_gradient == "targets" else {}

    def value_and_slopes(log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        value, slope_p, slope_q = chosen(log_p, log_q, **constant_targets)
        return value, None if stop_gradient == "first" else slope_p, None if stop_gradient == "second" else slope_q

    return value_and_slopes


def _check(kind: str, stop_gradient: str) -> None:
    if kind not in DIVERGENCES:
        raise ValueError(f"divergence kind is {kind!r}; use one of {', '.join(DIVERGENCES)}")
    if stop_gradient not in STOP_GRADIENTS:
        raise ValueError(f"stop_gradient is {stop_gradient!r}; use one of {', '.join(STOP_GRADIENTS)}")
    if stop_gradient == "targets" and kind != "sce":
        raise ValueError(f"stop_gradient 'targets' is defined for sce only, not for {kind}; use first, second or none")


def at_least_single(values: Tensor) -> Tensor:
    """Half precision to float32; float32 and float64 as they are."""
    return values if values.element_size() >= 4 else values.float()


class _Divergence(Function):
    @staticmethod
    def forward(ctx: Any, log_p: Tensor, log_q: Tensor, with_slopes: Divergence) -> Tensor:
        value, slope_p, slope_q = with_slopes(log_p, log_q)
        ctx.save_for_backward(slope_p, slope_q)
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        slopes = (None if slope is None else gradient[..., None] * slope for slope in ctx.saved_tensors)
        return (*slopes, None)
