"""Divergences, views and distances of hidden states, against definitions and closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longshort.alignment.divergences import divergence
from longshort.alignment.hidden import distance
from longshort.alignment.views import overlap
from longshort.data.windows import two_views
from longshort.identity.kinds import DIVERGENCES
from longshort.models.fused import IGNORED
from tests.support import reference


@pytest.mark.parametrize(("kind", "stop"), reference.CASES)
@settings(max_examples=10, deadline=None)
@given(vocabulary=st.integers(2, 6), positions=st.integers(1, 3), seed=st.integers(0, 10**6))
def test_divergence_and_gradient_equal_the_reference(
    kind: str, stop: str, vocabulary: int, positions: int, seed: int
) -> None:
    draw = torch.Generator().manual_seed(seed)
    a, b = (torch.randn(positions, vocabulary, generator=draw, dtype=torch.float64).requires_grad_() for _ in range(2))
    ours = divergence(kind, a, b, stop)
    theirs = torch.stack([reference.divergence(kind, x, y, stop) for x, y in zip(a, b, strict=True)])
    assert ours.shape == (positions,)
    torch.testing.assert_close(ours, theirs)
    weights = torch.arange(1.0, positions + 1, dtype=torch.float64)
    gradients = [torch.autograd.grad((x * weights).sum(), (a, b), allow_unused=True) for x in (ours, theirs)]
    for our, their in zip(*gradients, strict=True):
        torch.testing.assert_close(*(torch.zeros_like(a) if x is None else x for x in (our, their)))


@pytest.mark.parametrize("kind", DIVERGENCES)
def test_gradcheck(kind: str) -> None:
    torch.manual_seed(0)
    a, b = (torch.randn(3, 5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(lambda x, y: divergence(kind, x, y), (a, b))


def test_identities() -> None:
    torch.manual_seed(0)
    a, b = torch.randn(2, 5, 7, dtype=torch.float64)
    p, q = a.softmax(-1), b.softmax(-1)
    entropy = -(p * p.log()).sum(-1) - (q * q.log()).sum(-1)
    torch.testing.assert_close(divergence("sce", a, b), entropy + divergence("symmetric-kl", a, b))
    torch.testing.assert_close(
        divergence("symmetric-kl", a, b), divergence("kl", a, b) + divergence("reverse-kl", a, b)
    )
    assert divergence("symmetric-kl", a, a).abs().max() < 1e-15
    assert (divergence("js", 50 * a, 50 * b) <= math.log(2) + 1e-12).all()
    for kind, stop, zero in [
        ("symmetric-kl", "none", True),
        ("js", "none", True),
        ("sce", "targets", True),
        ("sce", "none", False),
    ]:
        x, y = a.clone().requires_grad_(), a.clone().requires_grad_()
        divergence(kind, x, y, stop).sum().backward()
        assert (x.grad.abs().max() < 1e-12) == zero, (kind, stop)


def test_half_precision_is_computed_in_single() -> None:
    a, b = torch.randn(2, 5, 300).bfloat16()
    assert divergence("sce", a, b).dtype == torch.float32
    torch.testing.assert_close(
        divergence("sce", a, b).double(), divergence("sce", a.double(), b.double()), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize(("kind", "stop"), [("sc", "none"), ("sce", "both"), ("kl", "targets")])
def test_unknown_choices_are_refused(kind: str, stop: str) -> None:
    with pytest.raises(ValueError, match="use|defined for sce only"):
        divergence(kind, torch.zeros(1, 2), torch.zeros(1, 2), stop)


@pytest.mark.parametrize("extra", [1, 3, 7])
def test_views_predict_the_same_token_on_the_overlap(extra: int) -> None:
    length = 8
    window = torch.arange(length + extra + 1)
    inputs, targets = (part.flatten() for part in two_views(window, length))
    at = overlap(targets.view(2, 1, length), [extra])
    assert len(at.in_a) == length - extra
    assert torch.equal(inputs[at.in_a], inputs[at.in_b]) and torch.equal(targets[at.in_a], targets[at.in_b])
    assert torch.equal(targets[at.in_a], inputs[at.in_a] + 1)
    assert (at.in_a - (at.in_b - length) == extra).all()  # so much more context in view A


@pytest.mark.parametrize(("kind", "k"), [("all", None), ("last", None), ("last-k", 2), ("last-k", 99)])
def test_overlap_of_rows_with_their_own_extra_and_ignored_labels(kind: str, k: int | None) -> None:
    batch, length, extra = 3, 5, [1, 3, 4]
    targets = torch.arange(length).repeat(2, batch, 1)
    targets[0, 1, 4] = targets[1, 2, 0] = IGNORED
    at = overlap(targets, extra, kind, k)
    expected = reference.aligned(targets, extra, kind, k)
    counted = at.weight > 0
    rows, in_a, in_b = at.in_a // length, at.in_a % length, at.in_b % length
    assert torch.equal(rows, at.in_b // length - batch)
    for row in range(batch):
        here = counted & (rows == row)
        assert list(zip(in_a[here].tolist(), in_b[here].tolist(), strict=True)) == expected[row]
        assert at.weight[here].tolist() == pytest.approx([1 / batch / max(1, len(expected[row]))] * len(expected[row]))
    assert sorted(torch.cat([at.in_a, at.in_b, at.alone]).tolist()) == list(range(2 * batch * length))


@pytest.mark.parametrize(("extra", "kind", "k"), [([5], "all", None), ([0], "all", None), ([1], "last-k", None)])
def test_impossible_overlaps_are_refused(extra: list[int], kind: str, k: int | None) -> None:
    with pytest.raises(ValueError, match="l_extra|last-k"):
        overlap(torch.zeros(2, 1, 5, dtype=torch.long), extra, kind, k)


@pytest.mark.parametrize("tokens", [9, 17])
def test_windows_without_extra_or_overlap_are_refused(tokens: int) -> None:
    with pytest.raises(ValueError, match="l_extra"):
        two_views(torch.arange(tokens), 8)


def test_hidden_distances_by_hand() -> None:
    a, b = torch.tensor([[3.0, 4.0]], dtype=torch.float64), torch.tensor([[4.0, 3.0]], dtype=torch.float64)
    # RMS of (3, 4) is sqrt(12.5): both features differ by 1 / sqrt(12.5).
    assert distance("mse", a, b).item() == pytest.approx(1 / 12.5, rel=1e-6)
    assert distance("cosine", a, b).item() == pytest.approx(1 - 24 / 25)
    assert distance("mse", a, 10 * a).item() == pytest.approx(0, abs=1e-6)
