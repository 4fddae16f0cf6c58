"""The tokens that an evaluator finds."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from longshort.evaluation import key_tokens
from longshort.metrics.settings import LongEvaluator
from longshort.records import layout
from longshort.records.publish import file_digest, write_record
from tests.support.longppl import BY, llama, words


def test_a_tokenizer_without_offsets_is_followed_by_decoding() -> None:
    fast = words()
    slow = SimpleNamespace(is_fast=False, decode=fast.decode)
    text = "the length of the context and the model"
    ids = fast(text, add_special_tokens=False).input_ids
    assert key_tokens.offsets_of(slow, text, ids)[-1][1] == len(text)
    with pytest.raises(ValueError, match="has no offsets"):
        key_tokens.find(llama(1), slow, text, BY)


def test_a_model_of_the_same_tokens_needs_no_text() -> None:
    """Found among the tokens as they are: the same as in the text, less the BOS that a tokenizer adds there."""
    tokenizer, text = words(), " ".join(["the length of the context"] * 12)
    encoded = tokenizer(text, return_offsets_mapping=True)
    found = key_tokens.find(llama(1), tokenizer, text, BY)
    assert found.positions and found == key_tokens.find_among(
        llama(1), torch.tensor(encoded["input_ids"]), encoded["offset_mapping"], BY
    )


def record_of(folder: Path, weights: bytes, **changed: Any) -> LongEvaluator:
    """The evaluator `long` whose training was published with these weights."""
    evaluator = LongEvaluator(kind="long", run="0" * 16, steps="4")
    checkpoint = folder / "checkpoint"
    checkpoint.mkdir(exist_ok=True)
    (checkpoint / "model.safetensors").write_bytes(weights)
    files = {"model.safetensors": file_digest(checkpoint / "model.safetensors")}
    path = Path(layout.training(str(evaluator.run), str(evaluator.steps)).record)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_record(path, {"checkpoints": {"4": {"path": str(checkpoint), "files": files}}, "run_id": "1", **changed})
    return evaluator


def test_a_trained_evaluator_is_known_by_its_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other weights are another evaluator; changed weights, a training that diverged or is absent are told."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="the evaluator is not trained yet"):
        key_tokens.content_of(LongEvaluator(kind="long", run="0" * 16, steps="4"))
    first = key_tokens.content_of(record_of(tmp_path, b"one"))
    evaluator = record_of(tmp_path, b"two")
    assert len(first) == 12 and key_tokens.content_of(evaluator) != first
    assert key_tokens.folder_of(evaluator) == tmp_path / "checkpoint"
    (tmp_path / "checkpoint/model.safetensors").write_bytes(b"one")
    with pytest.raises(ValueError, match=r"model.safetensors is not the file that was written; delete the record"):
        key_tokens.folder_of(evaluator)
    with pytest.raises(ValueError, match="the evaluator's training diverged"):
        key_tokens.content_of(record_of(tmp_path, b"one", checkpoints={}))
