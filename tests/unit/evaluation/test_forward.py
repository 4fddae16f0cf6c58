"""Forwards of several contexts at once."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from longshort.evaluation import forward
from tests.support.perplexity import VOCABULARY, llama


def test_right_padding_equals_one_by_one() -> None:
    model = llama()
    generator = np.random.default_rng(3)
    contexts = [generator.integers(0, VOCABULARY, length) for length in (9, 40, 16, 16, 1, 12)]
    together = forward.last_log_probs(model, contexts)
    alone = torch.cat([forward.last_log_probs(model, [context]) for context in contexts])
    assert torch.allclose(together, alone, atol=1e-5)
    assert not torch.allclose(together[2], together[3], atol=1e-2)  # the order of the contexts is kept


def test_rows_of_different_lengths_share_a_batch_only_when_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forward, "TOKENS_PER_FORWARD", 20)
    assert forward.batches([5, 30, 7, 5, 5, 5], equal=False) == [[0, 3, 4, 5], [2], [1]]
    assert forward.batches([9, 5, 9, 5], equal=True) == [[1, 3], [0, 2]]
    assert forward.batches([9, 5, 5], equal=False) == [[1, 2], [0]]
