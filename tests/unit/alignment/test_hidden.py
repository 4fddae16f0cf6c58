"""Distances of hidden states by hand."""

from __future__ import annotations

import pytest
import torch

from longshort.alignment.hidden import distance


def test_hidden_distances_by_hand() -> None:
    a, b = torch.tensor([[3.0, 4.0]], dtype=torch.float64), torch.tensor([[4.0, 3.0]], dtype=torch.float64)
    # RMS of (3, 4) is sqrt(12.5): both features differ by 1 / sqrt(12.5).
    assert distance("mse", a, b).item() == pytest.approx(1 / 12.5, rel=1e-6)
    assert distance("cosine", a, b).item() == pytest.approx(1 - 24 / 25)
    assert distance("mse", a, 10 * a).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("kind", ["mse", "cosine"])
def test_states_in_half_precision_have_their_distance_in_single_precision(kind: str) -> None:
    """In bfloat16 one minus the cosine similarity of states that are nearly equal is 0, or 0.004."""
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(1, 64, generator=generator).bfloat16()
    b = a + (torch.randn(1, 64, generator=generator) / 30).bfloat16()
    expected = distance(kind, a.double(), b.double())
    torch.testing.assert_close(distance(kind, a, b), expected.float(), rtol=1e-2, atol=0)
