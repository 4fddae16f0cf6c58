"""Adapters are what a study says; those that do not fit the model, or are not whole, are refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from longshort.models import adapters, load, rope
from longshort.models.settings import EABF, Adapter


def test_an_adapter_is_what_a_study_says_and_begins_with_the_weights_of_its_seed(folder: Path) -> None:
    settings = Adapter(kind="lora", rank=3, alpha=5.0, dropout=0.3, targets=["q_proj"])
    made = [adapters.attach(load.load(folder), settings, seed) for seed in (1, 1, 0)]
    told = made[0].peft_config["default"]
    assert (told.r, told.lora_alpha, told.lora_dropout, told.target_modules) == (3, 5.0, 0.3, ["q_proj"])
    first, again, other = (
        next(weight for name, weight in model.named_parameters() if "lora_A" in name) for model in made
    )
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_an_adapter_is_evaluated_with_the_attention_that_it_was_trained_with(folder: Path, tmp_path: Path) -> None:
    """EABF scales queries, which no rope_parameters say."""
    base = load.load(folder)
    for layer in load.blocks(base):
        layer.self_attn.q_proj.weight.data *= 100  # else all that is read weighs alike, however queries are scaled
        layer.self_attn.k_proj.weight.data *= 100
    base.save_pretrained(tmp_path / "base")
    rope.extend(base, EABF(kind="eabf", plain_layers=1))
    adapted = adapters.attach(base, Adapter(kind="lora", rank=2, alpha=4.0, targets=["q_proj"]), seed=0).eval()
    adapted.save_pretrained(tmp_path / "adapter")
    adapters.save_config(adapted, tmp_path / "adapter")
    again = load.load(tmp_path / "adapter", adapts=tmp_path / "base").eval()
    ids = torch.randint(257, (1, 2 * 128), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(again(ids).logits, adapted(ids).logits)


def test_an_adapter_of_a_layer_that_is_not_there_is_refused(folder: Path) -> None:
    settings = Adapter(kind="lora", rank=2, alpha=4.0, targets=["q_proj", "v_porj"])
    with pytest.raises(ValueError, match=r"no linear layer called v_porj; it has down_proj, gate_proj"):
        adapters.attach(load.load(folder), settings, seed=0)


def test_an_adapter_that_lacks_a_weight_is_refused(folder: Path, tmp_path: Path) -> None:
    settings = Adapter(kind="lora", rank=2, alpha=4.0, targets=["q_proj", "v_proj"])
    adapter = tmp_path / "adapter"
    adapted = adapters.attach(load.load(folder), settings, seed=0)
    adapted.save_pretrained(adapter)
    adapters.save_config(adapted, adapter)
    assert load.load(adapter, adapts=folder)
    weights = load_file(adapter / "adapter_model.safetensors")
    name = next(key for key in weights if "v_proj.lora_B" in key)
    del weights[name]
    save_file(weights, adapter / "adapter_model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"differ in {name}; delete the folder"):
        load.load(adapter, adapts=folder)
