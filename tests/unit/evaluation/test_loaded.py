"""Which models of checkpoints are kept beside the next one, and what a base is whose context is extended."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from longshort.errors import UserError
from longshort.evaluation import loaded
from longshort.models import rope
from longshort.models.settings import CLEX, Rope, YaRN
from longshort.records.publish import folder_digests
from tests.support.perplexity import SMALL, llama

NATIVE = SMALL["max_position_embeddings"]


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


@pytest.mark.parametrize(
    "settings", [YaRN(kind="yarn", factor=4), CLEX(kind="clex", max_factor=4, draws_per="window")], ids=["yarn", "clex"]
)
def test_an_extended_base_is_its_base_extended_as_before_a_training(tmp_path: Path, settings: Rope) -> None:
    llama().save_pretrained(tmp_path)
    checkpoint: dict[str, Any] = {"path": str(tmp_path), "files": folder_digests(tmp_path)}
    extension = {"rope": settings.model_dump(), "seed": 3}
    models = loaded.Models()
    plain, extended = models.of(checkpoint, "fp32"), models.of({**checkpoint, "extended": extension}, "fp32")
    by_hand = llama()
    rope.extend(by_hand, settings, 3)
    ids = torch.arange(3 * NATIVE)[None] % 50
    asked = {"plain": plain, "extended": extended, "by hand": by_hand}
    with torch.no_grad():
        long = {name: model(ids).logits for name, model in asked.items()}
    assert torch.equal(long["extended"], long["by hand"])
    assert (long["extended"][:, -1] - long["plain"][:, -1]).abs().max() > 0.1
    assert plain is models.of(checkpoint, "fp32") and not hasattr(plain.config, rope.KEY)


@pytest.mark.parametrize("changed", ["adapter", "base"])
def test_an_adapter_whose_weights_or_base_were_exchanged_is_refused(tmp_path: Path, changed: str) -> None:
    parts = {}
    for name in ("adapter", "base"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_text(name)
        parts[name] = {"path": str(tmp_path / name), "files": folder_digests(tmp_path / name)}
    (tmp_path / changed / "model.safetensors").write_text("others")
    with pytest.raises(UserError, match=f"not those that were trained.*/{changed}: model.safetensors is not the file"):
        loaded.load({**parts["adapter"], "adapts": parts["base"]}, "fp32")
