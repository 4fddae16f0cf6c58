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
