"""A model of bytes, questions and settings that the tests of LongBench-E share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from longshort.data.settings import BytesTokenizer
from longshort.identity.spec import restored
from longshort.metrics.settings import LongBench

STAND_IN = {"source": {"kind": "stand-in", "items_per_task": 3}, "max_length": 192, "max_new_tokens": 8}


def questions(tokenizer: Any, settings: dict[str, Any], data: Path) -> list[Any]:
    from longshort.evaluation import longbench_items

    asked = restored(LongBench, settings)
    return longbench_items.questions(tokenizer, asked, asked.max_new_tokens, data)


def protocol(settings: dict[str, Any]) -> str:
    from longshort.evaluation import longbench

    return longbench.protocol(restored(LongBench, settings), 128, BytesTokenizer())


QUESTION_KINDS = ["art", "artist", "hart", "city", "other"]
REVISION = "0" * 40


def tiny_llama(**changes: Any) -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=257, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=64, initializer_range=0.3, bos_token_id=256, eos_token_id=256, pad_token_id=256,
        **changes,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


CLASSES = ["Date", "Dates", "Other date", "City", "Other city", "City of", "x"]
