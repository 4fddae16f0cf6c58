"""Which models of checkpoints are kept beside the next one."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from longshort.evaluation import loaded


@pytest.mark.parametrize(("held", "loads"), [(1000, "ab"), (10, "abab")])
def test_small_models_are_loaded_once_and_large_ones_hold_no_other(
    monkeypatch: pytest.MonkeyPatch, held: int, loads: str
) -> None:
    asked: list[str] = []

    def load(checkpoint: dict[str, Any], precision: str) -> torch.nn.Module:
        asked.append(checkpoint["path"])
        return torch.nn.Linear(5, 5, bias=False)  # 100 bytes

    monkeypatch.setattr(loaded, "load", load)
    monkeypatch.setattr(loaded, "HELD", held)
    models = loaded.Models()
    for path in "aabb" * 2:
        models.of({"path": path}, "fp32")
    assert "".join(asked) == loads
    models.of({"path": "b"}, "bf16")
    assert len(asked) == len(loads) + 1
