"""Models are loaded whole or not at all."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from longshort.data import tokenizers
from longshort.data.settings import PretrainedTokenizer
from longshort.models import load
from longshort.models.settings import Architecture
from tests.support.models import ARCHITECTURE

Weights = dict[str, Tensor]
Q_PROJ = "model.layers.1.self_attn.q_proj.weight"


def change_weights(folder: Path, change: Callable[[Weights], Weights]) -> None:
    weights = load_file(folder / "model.safetensors")
    save_file(change(dict(weights)), folder / "model.safetensors", metadata={"format": "pt"})


def change_config(folder: Path, **changed: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changed}))


def without(name: str) -> Callable[[Weights], Weights]:
    return lambda weights: {key: value for key, value in weights.items() if key != name}


@pytest.mark.parametrize(
    ("change", "config", "said"),
    [
        (None, {"num_hidden_layers": 4}, "lacks model.layers.3.*and 3 more"),
        (None, {"num_hidden_layers": 2}, "no place for model.layers.2"),
        (None, {"intermediate_size": 64}, "other shapes"),
        (without(Q_PROJ), {}, f"lacks {Q_PROJ};"),
        (without("lm_head.weight"), {}, "lacks lm_head.weight;"),
        (lambda weights: {f"module.{key}": value for key, value in weights.items()}, {}, "lacks lm_head.weight, model"),
        (lambda weights: {**weights, "model.layers.0.bias": torch.zeros(3)}, {}, "no place for model.layers.0.bias;"),
    ],
)
def test_a_model_that_lacks_a_weight_or_has_another_is_refused_by_name(
    folder: Path, change: Callable[[Weights], Weights] | None, config: dict[str, object], said: str
) -> None:
    if change:
        change_weights(folder, change)
    change_config(folder, **config)
    with pytest.raises(ValueError, match=said) as refused:
        load.load(folder)
    assert str(folder) in str(refused.value) and "take a whole copy" in str(refused.value)


def test_a_model_from_scratch_has_the_shape_that_a_study_says() -> None:
    """With a value for each setting that is nobody's default."""
    odd = Architecture(hidden_size=24, intermediate_size=40, layers=2, heads=3, rope_theta=5000.0)
    assert all(getattr(odd, name) != field.default for name, field in Architecture.model_fields.items())
    config = load.from_scratch(odd, vocabulary=31, separator=7, length=48, seed=0).config
    expected = {
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "num_key_value_heads": 3,
        "vocab_size": 31,
        "eos_token_id": 7,
        "max_position_embeddings": 48,
    }
    assert {name: getattr(config, name) for name in expected} == expected
    assert config.rope_parameters["rope_theta"] == 5000.0


def test_a_model_from_scratch_has_the_weights_of_its_seed() -> None:
    def weights(seed: int) -> Tensor:
        return load.from_scratch(ARCHITECTURE, vocabulary=31, separator=7, length=48, seed=seed).lm_head.weight

    assert torch.equal(weights(1), weights(1)) and not torch.equal(weights(1), weights(0))


@pytest.mark.parametrize("tied", [False, True])
def test_what_is_harmless_is_taken(folder: Path, tied: bool) -> None:
    """Old checkpoints hold rotary frequencies; a tied head is in no file."""
    change_weights(folder, lambda weights: {**weights, "model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(4)})
    if tied:
        change_weights(folder, without("lm_head.weight"))
        change_config(folder, tie_word_embeddings=True)
    assert load.load(folder).lm_head.weight.shape == (257, 16)


@pytest.mark.parametrize("kind", ["model", "tokenizer"])
def test_code_that_comes_with_a_model_never_runs(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is it asked whether it may: that would wait for an answer, or take one from what stands in a script."""
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 9))
    said = f"import pathlib; pathlib.Path({str(tmp_path / 'ran')!r}).touch()\nclass Own: pass\nclass OwnConfig: pass\n"
    (tmp_path / "own.py").write_text(said)
    own = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.Own", "AutoTokenizer": ["own.Own", None]}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "own", "auto_map": own}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "Own", "auto_map": own}))
    with pytest.raises(ValueError, match="trust_remote_code"):
        if kind == "model":
            load.load(tmp_path)
        else:
            tokenizers.load(PretrainedTokenizer(kind="pretrained", name=str(tmp_path), revision=None))
    assert not (tmp_path / "ran").exists()
