"""Cross-entropies and divergences from hidden states and the head's weight, without ever holding the full logits.

Logits exist for a chunk of positions at a time. While they do, their share of the loss and its gradient are computed,
the gradient in the place of the logits, and carried on to the hidden states and to the weight by the two matrix
products that any backward pass needs: 6 N d V operations in all, as in plain cross-entropy. A chunk holds both of the
positions that are compared with each other, so a divergence costs elementwise work and no product.

That elementwise work is done in blocks of a few rows, whose arrays stay in a CPU's cache.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn.functional import nll_loss

from longshort.models.load import LogitChange

# The label of a position that has no next token, as torch's own losses take it.
IGNORED = -100
# log p, log q [..., V] -> D [...], dD / d log p and dD / d log q [..., V], None for that of a constant.
Divergence = Callable[[Tensor, Tensor], tuple[Tensor, Tensor | None, Tensor | None]]
# Bytes of the logits of one chunk: larger ones gain little, smaller ones add to the weight's gradient too often.
CHUNK_BYTES = {"cpu": 128 * 2**20, "cuda": 2**30}
# Logits of one block, of which half a dozen float32 arrays exist; a GPU is to have few kernels to start.
BLOCK_LOGITS = {"cpu": 2**17, "cuda": 2**25}
ROWS_MULTIPLE = 64


class Pairs(NamedTuple):
    """Rows of the hidden states that are compared: alpha * sum of weight * D(row in_a, row in_b) joins the loss."""

    in_a: Tensor  # [P]
    in_b: Tensor  # [P]
    weight: Tensor  # [P]; 1 / P everywhere is the plain mean
    alpha: float
    divergence: Divergence


class Losses(NamedTuple):
    """loss = ce + sum of alpha * divergence, 0-d; ce and divergences are for the log and have no gradient."""

    loss: Tensor
    ce: Tensor
    divergences: tuple[Tensor, ...]


def losses(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    pairs: Sequence[Pairs] = (),
    alone: Tensor | None = None,
    change: LogitChange | None = None,
    chunk_size: int | None = None,
) -> Losses:
    """Mean cross-entropy (nats) over the rows that have a target, and the weighted divergences of the pairs.

    Args:
        hidden: [R, d] final hidden states, all views.
        weight, bias: [V, d], and [V] or None, of the head.
        targets: [R] next tokens; rows with IGNORED have no cross-entropy.
        pairs: each row of `hidden` is in one pair at most.
        alone: the rows that are in no pair; needed with pairs, all rows without.
        change: what the model does to its logits after the head.
        chunk_size: about so many rows of logits exist at a time; None: chosen from V and a memory budget.

    The gradient is made here and only scaled by the backward pass, in place: once it was scaled, autograd refuses a
    second backward pass over a retained graph.

    Raises:
        ValueError: pairs without `alone`, or states and weight of two types.
    """
    if hidden.dtype != weight.dtype:
        raise ValueError(f"the states are {hidden.dtype}, the head's weight {weight.dtype}; they must be of one type")
    if alone is None:
        if pairs:
            raise ValueError("alone is None: with pairs, name the rows that are in no pair")
        alone = torch.arange(len(hidden), device=hidden.device)
    lists = [*((some.in_a, some.in_b) for some in pairs), (alone,)]
    chunks = list(_chunks(lists, chunk_size or automatic_chunk_size(weight), _block_rows(weight)))
    loss, parts = _FusedLosses.apply(
        hidden, weight, bias, targets, tuple(pairs), chunks, change or LogitChange(), torch.is_grad_enabled()
    )
    return Losses(loss, parts[0], parts[1:].unbind())


def automatic_chunk_size(weight: Tensor) -> int:
    """Rows of logits that exist at a time for the weight [V, d] of a head: a multiple of 64 within the budget."""
    row = weight.shape[0] * weight.element_size()
    return max(1, CHUNK_BYTES["cuda" if weight.is_cuda else "cpu"] // row // ROWS_MULTIPLE) * ROWS_MULTIPLE


def _block_rows(weight: Tensor) -> int:
    return max(1, BLOCK_LOGITS["cuda" if weight.is_cuda else "cpu"] // len(weight))


class _Block(NamedTuple):
    """A few positions: `taken` of the list of a term (or of `alone`), and their places in the chunk, one a view."""

    term: int
    taken: slice
    places: tuple[slice, ...]


def _chunks(lists: Sequence[tuple[Tensor, ...]], size: int, block_rows: int) -> Iterator[tuple[Tensor, list[_Block]]]:
    """Rows and blocks of every chunk: each list is spread evenly over the chunks, so that these are of one size."""
    count = max(1, math.ceil(sum(len(view) for views in lists for view in views) / size))
    for number in range(count):
        rows: list[Tensor] = []
        blocks: list[_Block] = []
        first = 0
        for term, views in enumerate(lists):
            low, high = (len(views[0]) * (number + end) // count for end in (0, 1))
            begins = [first + view * (high - low) - low for view in range(len(views))]
            for start in range(low, high, block_rows):
                taken = slice(start, min(start + block_rows, high))
                places = tuple(slice(begin + taken.start, begin + taken.stop) for begin in begins)
                blocks.append(_Block(term, taken, places))
            rows += [view[low:high] for view in views]
            first += len(views) * (high - low)
        yield torch.cat(rows), blocks


class _FusedLosses(Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        pairs: tuple[Pairs, ...],
        chunks: list[tuple[Tensor, list[_Block]]],
        change: LogitChange,
        with_gradient: bool,
    ) -> tuple[Tensor, Tensor]:
        for_hidden, for_weight, for_bias = (with_gradient and needed for needed in ctx.needs_input_grad[:3])
        with_gradient = for_hidden or for_weight or for_bias
        single = torch.promote_types(hidden.dtype, torch.float32)
        counted = targets != IGNORED
        columns = targets.clamp(min=0)[:, None]
        ce_slopes = -(counted.to(single) / counted.sum().clamp(min=1))[:, None]
        shares = [(some.alpha * some.weight).to(single)[:, None] for some in pairs]
        target_log_probs = hidden.new_empty(len(hidden), 1, dtype=single)
        divergences = [hidden.new_empty(len(some.in_a), dtype=single) for some in pairs]
        grad_hidden = torch.zeros_like(hidden) if for_hidden else None
        grad_weight = grad_bias = None
        buffer = hidden.new_empty(max(len(rows) for rows, _ in chunks), len(weight))

        for rows, blocks in chunks:
            states = hidden[rows]
            logits = torch.mm(states, weight.t(), out=buffer[: len(rows)])
            if bias is not None:
                logits += bias
            for term, taken, places in blocks:
                views = [logits[place] for place in places]
                at = [rows[place] for place in places]
                compared = (pairs[term], shares[term][taken]) if term < len(pairs) else None
                slopes = [ce_slopes[some] for some in at] if with_gradient else None
                log_probs, divergence = _block(views, [columns[some] for some in at], slopes, compared, change)
                for some, values in zip(at, log_probs, strict=True):
                    target_log_probs[some] = values
                if divergence is not None:
                    divergences[term][taken] = divergence
            if grad_hidden is not None:
                grad_hidden[rows] = torch.mm(logits, weight)
            if for_weight:
                grad_weight = _plus_product(grad_weight, logits.t(), states)
            if for_bias:
                grad_bias = logits.sum(0, dtype=single) + (0 if grad_bias is None else grad_bias)

        # The kernel that plain cross-entropy ends with, so that the mean is rounded as there.
        loss = ce = nll_loss(target_log_probs, torch.where(counted, 0, IGNORED))
        terms = []
        for how, values in zip(pairs, divergences, strict=True):
            terms.append((how.weight.to(single) * values).sum())
            loss = loss + how.alpha * terms[-1]
        parts = torch.stack([ce, *terms])
        ctx.mark_non_differentiable(parts)
        gradients = (grad_hidden, grad_weight, grad_bias)
        ctx.save_for_backward(*(None if some is None else some.to(weight.dtype) for some in gradients))
        return loss, parts

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        gradients = ctx.saved_tensors
        # To look at the scale is free on a CPU; on a GPU it would wait for the device.
        if not (scale.is_cpu and scale == 1):
            for gradient in gradients:
                if gradient is not None:
                    gradient.mul_(scale)
        return (*gradients, None, None, None, None, None)


def _block(
    logits: list[Tensor],
    columns: list[Tensor],
    ce_slopes: list[Tensor] | None,
    compared: tuple[Pairs, Tensor] | None,
    change: LogitChange,
) -> tuple[list[Tensor], Tensor | None]:
    """Overwrites the logits [n, V] of each view by the loss's gradient with respect to them, where slopes are given.

    Returns:
        Log-probabilities of the targets in `columns`, [n, 1] for each view, and the divergence [n] of the two views.
    """
    leaves = [some.detach().requires_grad_() for some in logits]
    with torch.enable_grad():
        outputs = [change(leaf).log_softmax(-1) for leaf in leaves]
    log_probs = [output.detach() for output in outputs]
    divergence: Tensor | None = None
    slopes: list[Tensor | None] = [None] * len(log_probs)
    if compared is not None:
        how, share = compared
        divergence, slope_a, slope_b = how.divergence(*log_probs)
        if slope_a is not None and slope_b is not None and _share_memory(slope_a, slope_b):
            slope_b = slope_b.clone()  # one tensor for both would be scaled twice, and hold both targets
        slopes = [None if slope is None else slope.mul_(share) for slope in (slope_a, slope_b)]
    if ce_slopes is not None:
        full = [torch.zeros_like(log_probs[0]) if slope is None else slope for slope in slopes]
        for slope, column, ce_slope in zip(full, columns, ce_slopes, strict=True):
            slope.scatter_add_(1, column, ce_slope)
        # What is left of the way to the logits is log-softmax's own backward, as in plain cross-entropy.
        for some, gradient in zip(logits, torch.autograd.grad(outputs, leaves, full), strict=True):
            some.copy_(gradient)
    return [some.gather(1, column) for some, column in zip(log_probs, columns, strict=True)], divergence


def _share_memory(a: Tensor, b: Tensor) -> bool:
    return a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()


def _plus_product(total: Tensor | None, a: Tensor, b: Tensor) -> Tensor:
    """total + a b; sums of several half-precision products are kept in float32."""
    if total is None:
        return torch.mm(a, b)
    if a.element_size() >= 4:
        return torch.addmm(total, a, b, out=total)
    return total.float().add_(torch.mm(a, b))
