"""Divergences against the reference, closed forms and finite differences."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longshort.alignment.divergences import divergence
from longshort.identity.kinds import DIVERGENCES
from tests.support import reference


@pytest.mark.parametrize(("kind", "stop"), reference.CASES)
@settings(max_examples=10)
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
