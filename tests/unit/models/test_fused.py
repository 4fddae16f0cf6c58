"""The fused losses against the naive float64 reference on full logits, and what they may cost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from longshort.alignment.divergences import with_slopes
from longshort.alignment.views import overlap
from longshort.identity.kinds import DIVERGENCES
from longshort.models.fused import IGNORED, Divergence, Pairs, automatic_chunk_size, losses
from longshort.models.load import LogitChange
from tests.support import reference


class Problem:
    """Random states, weights and targets of two views; some labels are ignored."""

    def __init__(self, draw: Any, extra: list[int], length: int, ignored: int = 0, dtype: Any = torch.float64) -> None:
        vocabulary, features, batch = 7, 3, len(extra)
        self.extra = extra
        self.leaves = [
            torch.randn(shape, generator=draw, dtype=torch.float64).to(dtype).requires_grad_()
            for shape in ((2 * batch * length, features), (vocabulary, features), (vocabulary,))
        ]
        self.targets = torch.randint(0, vocabulary, (2, batch, length), generator=draw)
        self.targets.view(-1)[torch.randperm(self.targets.numel() - 1, generator=draw)[:ignored]] = IGNORED

    def ours(self, kind: str, stop: str, alpha: float, where: str = "all", k: int | None = None, **options: Any) -> Any:
        at = overlap(self.targets, self.extra, where, k)
        pairs = [Pairs(at.in_a, at.in_b, at.weight, alpha, with_slopes(kind, stop))]
        return losses(*self.leaves, self.targets.flatten(), pairs, at.alone, **options)

    def theirs(
        self, kind: str, stop: str, alpha: float, where: str, k: int | None, change: LogitChange
    ) -> tuple[Tensor, Tensor, Tensor]:
        hidden, weight, bias = self.leaves
        logits = (hidden @ weight.T + bias) * change.scale
        logits = logits if change.cap is None else change.cap * (logits / change.cap).tanh()
        logits = logits.view(*self.targets.shape, -1)
        ce = reference.cross_entropy(logits, self.targets)
        aligned = reference.aligned(self.targets, self.extra, where, k)
        term = reference.mean_over_rows(
            [
                [reference.divergence(kind, logits[0, row, a], logits[1, row, b], stop) for a, b in positions]
                for row, positions in enumerate(aligned)
            ]
        )
        return ce + alpha * term, ce, term


@pytest.mark.parametrize(("where", "k"), [("all", None), ("last", None), ("last-k", 2)])
@pytest.mark.parametrize(("kind", "stop"), reference.CASES)
@settings(max_examples=5)
@given(data=st.data())
def test_losses_and_gradients_equal_the_reference(kind: str, stop: str, where: str, k: int | None, data: Any) -> None:
    length = data.draw(st.integers(2, 6), "length")
    extra = data.draw(st.lists(st.integers(1, length - 1), min_size=1, max_size=3), "extra")
    draw = torch.Generator().manual_seed(data.draw(st.integers(0, 10**6), "seed"))
    problem = Problem(draw, extra, length, ignored=data.draw(st.integers(0, 3), "ignored"))
    change = data.draw(st.sampled_from([LogitChange(), LogitChange(0.5), LogitChange(2.0, 3.0)]), "change")
    chunk_size = data.draw(st.integers(1, 40), "chunk size")
    ours = problem.ours(kind, stop, 0.7, where, k, change=change, chunk_size=chunk_size)
    loss, ce, term = problem.theirs(kind, stop, 0.7, where, k, change)
    torch.testing.assert_close((ours.loss, ours.ce, ours.divergences[0]), (loss, ce, term))
    torch.testing.assert_close(
        torch.autograd.grad(3 * ours.loss, problem.leaves), torch.autograd.grad(3 * loss, problem.leaves)
    )


@pytest.mark.parametrize("kind", DIVERGENCES)
def test_gradcheck(kind: str) -> None:
    problem = Problem(torch.Generator().manual_seed(0), [1, 2], 3)

    def loss(*leaves: Tensor) -> Tensor:
        problem.leaves = list(leaves)
        return problem.ours(kind, "none", 0.7, chunk_size=5).loss

    assert torch.autograd.gradcheck(loss, problem.leaves)


@pytest.mark.parametrize(("kind", "stop"), reference.CASES)
def test_bf16_stays_near_float64(kind: str, stop: str) -> None:
    """Tolerance: 1 % of the values, 3 % of the largest gradient; bf16 keeps 8 bits, 0.4 %."""
    half = Problem(torch.Generator().manual_seed(0), [3, 5], 64, dtype=torch.bfloat16)
    whole = Problem(torch.Generator().manual_seed(0), [3, 5], 64)
    whole.leaves = [leaf.detach().double().requires_grad_() for leaf in half.leaves]
    ours, exact = (problem.ours(kind, stop, 0.7, chunk_size=32) for problem in (half, whole))
    assert ours.loss.dtype == torch.float32
    values = [torch.stack([result.loss, result.ce, *result.divergences]).double() for result in (ours, exact)]
    torch.testing.assert_close(*values, rtol=0.01, atol=0.0)
    gradients = (torch.autograd.grad(result.loss, p.leaves) for result, p in ((ours, half), (exact, whole)))
    for gradient, expected in zip(*gradients, strict=True):
        assert gradient.dtype == torch.bfloat16
        assert (gradient.double() - expected).abs().max() < 0.03 * expected.abs().max()


def test_cross_entropy_alone_is_torch_s_to_the_last_bit() -> None:
    draw = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(*shape, generator=draw).requires_grad_() for shape in ((300, 16), (257, 16)))
    targets = torch.randint(0, 257, (300,), generator=draw)
    targets[::7] = IGNORED
    ours = losses(hidden, weight, None, targets).loss
    theirs = torch.nn.functional.cross_entropy(hidden @ weight.T, targets)
    assert torch.equal(ours, theirs)
    for pair in zip(*(torch.autograd.grad(loss, (hidden, weight)) for loss in (ours, theirs)), strict=True):
        assert torch.equal(*pair)


def test_a_second_backward_pass_is_refused_and_no_gradient_is_made_in_vain() -> None:
    problem = Problem(torch.Generator().manual_seed(0), [1], 4)
    loss = problem.ours("sce", "none", 0.7).loss
    (2 * loss).backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        (2 * loss).backward()
    problem.leaves[1].requires_grad_(False)  # a frozen head
    hidden, bias = (problem.leaves[i] for i in (0, 2))
    expected = hidden.grad / 2
    torch.testing.assert_close(torch.autograd.grad(problem.ours("sce", "none", 0.7).loss, (hidden, bias))[0], expected)
    with torch.no_grad(), FlopCounterMode(display=False) as flops:
        problem.ours("sce", "none", 0.7)
    assert flops.get_total_flops() == 2 * 8 * 3 * 7  # the logits, nothing else


class LargestTensor(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, Tensor):
                self.numbers = max(self.numbers, tensor.numel())
        return result


@pytest.mark.parametrize("kind", [None, *DIVERGENCES])
def test_what_a_divergence_costs_is_no_product_and_no_full_logits(kind: str | None) -> None:
    rows, features, vocabulary, chunk_size = 96, 4, 1000, 32
    hidden, weight = torch.randn(rows, features).requires_grad_(), torch.randn(vocabulary, features).requires_grad_()
    targets = torch.randint(0, vocabulary, (2, 1, rows // 2))
    at = overlap(targets, [5])
    pairs, alone = ([Pairs(at.in_a, at.in_b, at.weight, 0.1, with_slopes(kind))], at.alone) if kind else ([], None)
    with FlopCounterMode(display=False) as flops, LargestTensor() as largest:
        losses(hidden, weight, None, targets.flatten(), pairs, alone, chunk_size=chunk_size).loss.backward()
    assert flops.get_total_flops() == 6 * rows * features * vocabulary
    assert largest.numbers <= (chunk_size + 4) * vocabulary


def test_the_chunk_follows_from_the_vocabulary() -> None:
    sizes = [automatic_chunk_size(torch.empty(v, 8, device="meta")) for v in (257, 32_000, 128_256, 10**8)]
    assert sizes == sorted(sizes, reverse=True) and all(size % 64 == 0 for size in sizes) and sizes[-1] == 64
    assert sizes[2] * 128_256 * 4 <= 2**27


def test_no_value_of_a_tensor_is_looked_at() -> None:
    """On the meta device no tensor has values: to look at one, or to count what one holds, is an error. On a GPU it
    would wait for the device; that no copy waits either is asked of the device itself in benchmarks/objective.py."""
    hidden, weight = (torch.empty(n, 8, device="meta", dtype=torch.bfloat16).requires_grad_() for n in (64, 100))
    targets = torch.empty(2, 2, 16, dtype=torch.long, device="meta")
    with pytest.raises(RuntimeError):
        bool(targets.sum() == 0)
    at = overlap(targets, [3, 5])
    for kind in DIVERGENCES:
        pairs = [Pairs(at.in_a, at.in_b, at.weight, 0.1, with_slopes(kind))]
        losses(hidden, weight, None, targets.flatten(), pairs, at.alone, chunk_size=20).loss.backward()
    assert weight.grad.shape == weight.shape


def test_one_tensor_may_be_both_slopes() -> None:
    """And a view of it: the loss works on slopes in place."""

    def summed(second: Callable[[Tensor], Tensor]) -> Divergence:
        def value_and_slopes(log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            ones = torch.ones_like(log_p)
            return (log_p + log_q).sum(-1), ones, second(ones)

        return value_and_slopes

    gradients = []
    for second in (torch.clone, lambda slope: slope, Tensor.detach):
        problem = Problem(torch.Generator().manual_seed(0), [1, 2], 4)
        at = overlap(problem.targets, problem.extra)
        pairs = [Pairs(at.in_a, at.in_b, at.weight, 0.7, summed(second))]
        loss = losses(*problem.leaves, problem.targets.flatten(), pairs, at.alone).loss
        gradients.append(torch.autograd.grad(loss, problem.leaves))
    torch.testing.assert_close(gradients[1:], gradients[:1] * 2, rtol=0, atol=0)


def test_what_cannot_be_computed_is_refused() -> None:
    hidden, weight, targets = torch.randn(8, 3), torch.randn(7, 3), torch.zeros(2, 1, 4, dtype=torch.long)
    at = overlap(targets, [1])
    pairs = [Pairs(at.in_a, at.in_b, at.weight, 0.1, with_slopes("sce"))]
    with pytest.raises(ValueError, match="alone is None"):
        losses(hidden, weight, None, targets.flatten(), pairs)
    with pytest.raises(ValueError, match="of one type"):
        losses(hidden.bfloat16(), weight, None, targets.flatten(), pairs, at.alone)
    hidden.requires_grad_()
    losses(hidden, weight, None, torch.full((8,), IGNORED)).loss.backward()
    assert not hidden.grad.any()  # a batch without a target moves nothing
