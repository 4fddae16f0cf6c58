"""What an evaluation publishes, and the names that it is published under."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from longshort.evaluation import longbench, longbench_items, prompts
from longshort.evaluation.scoring import score_prediction, summarise
from longshort.identity.spec import restored
from longshort.metrics.settings import LongBench
from tests.support import golden
from tests.support.longbench import CLASSES, STAND_IN, protocol


def test_scoring_needs_no_model_stack() -> None:
    code = (
        "import sys, longshort.evaluation.longbench; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_protocol_names_what_was_done(folder: Path, official_zip: Path) -> None:
    local = {"kind": "folder", "path": str(folder / "longbench-e-3")}
    full = {"source": local, "max_length": 4096, "max_new_tokens": None}
    digest = prompts.prompts_digest()
    found = re.fullmatch(rf"longbench-e/official-v1\?data=([0-9a-f]{{12}})&max=4096&prompts={digest}", protocol(full))
    assert found
    # The same items in a zip are the same data; another item is not.
    zipped = {**full, "source": {"kind": "zip", "path": str(official_zip)}, "max_new_tokens": 64}
    said = protocol(zipped)
    assert said == f"longbench-e/capped-v1?data={found[1]}&max=4096&new=64&prompts={digest}"
    file = folder / "longbench-e-3/lcc_e.jsonl"
    whole = file.read_bytes()
    file.write_bytes(whole.replace(b" ", b"  ", 1))
    assert protocol(full) != found[0]
    file.write_bytes(whole)
    assert protocol(STAND_IN) == f"longbench-e/stand-in-v1?items=3&max=192&new=8&prompts={digest}"


def test_evaluate_gives_all_rows_and_keeps_predictions(model: Any, tokenizer: Any, folder: Path) -> None:
    rows, kept = longbench.evaluate(model, tokenizer, restored(LongBench, STAND_IN), folder, 128)
    values = {row["task"]: row for row in rows if row["document"] is None}
    assert len(values) == 13 * 4 + 2 + 3
    buckets = [values["overall:8k+"]["value"], np.mean([values[f"{task}:8k+"]["value"] for task in prompts.TASKS])]
    assert values["overall:8k+"]["n"] == 13 and buckets[0] == pytest.approx(buckets[1])
    items = [(row["task"], row["document"], row["value"]) for row in rows if row["document"] is not None]
    assert items == [(row["task"], row["id"], 100 * row["score"]) for row in kept]
    assert all(set(row) == {"metric", "length", "task", "document", "value", "n"} for row in rows)
    assert values["trec"]["n"] == 3 and values["trec:8k+"]["n"] == 1 and values["overall"]["n"] == 39
    assert len(kept) == 39
    again = [
        {**row, "score": score_prediction(row["task"], row["prediction"], row["references"], row["all_classes"])}
        for row in kept
    ]
    assert summarise(again)["overall"] == values["overall"]["value"]


def answering() -> Any:
    """A model whose next token depends on the last one alone, with a wide margin: ":5 red\\ncat(4)#y:", over and over;
    after z comes the end, after d the newline, and where that is not allowed, b."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=257, hidden_size=260, intermediate_size=4, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=1024, bos_token_id=256, eos_token_id=256, pad_token_id=256,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    said = b":5 red\ncat(4)#y:"
    after = {token: said[0] for token in range(257)} | dict(zip(said, said[1:], strict=False))
    after |= {ord("z"): 256, ord("b"): ord("\n")}
    with torch.no_grad():
        block = model.model.layers[0]
        for weight in (block.self_attn.o_proj.weight, block.mlp.down_proj.weight, model.lm_head.weight):
            weight.zero_()
        model.model.embed_tokens.weight.copy_(torch.eye(257, 260))
        model.lm_head.weight[ord("b")] = 0.1
        for token, follower in after.items():
            model.lm_head.weight[follower, token] = 1
    return model


def test_the_protocol_keeps_its_name_only_while_it_does_the_same(tmp_path: Path) -> None:
    """Prompts, truncation and scores of fixed texts; then a fixed model's answers to fixed items, and their means."""
    from longshort.data import tokenizers

    tokenizer = tokenizers.byte_tokenizer()
    values = {f"prompt of {task}": str(prompt) for task, prompt in prompts.official_prompts().items()}
    for size in (5, 8, 12, 99):
        values[f"encoded to {size}"] = str(longbench_items.encode(tokenizer, "a middle that is left out", size))
    answers = {"trec": "City", "passage_count": "5", "passage_retrieval_en": "Paragraph 5"}
    for task in prompts.TASKS:
        for text in ("The red\ncar 5", "\n#5\nred 12 City", "City of x Paragraph 5", ""):
            answer = answers.get(task, "a red 5")
            score = longbench.score_prediction(task, text, [answer], CLASSES)
            values[f"score of {task} for {text!r}"] = f"{score:.10g}"
        items = [
            {"input": asked, "context": context, "length": length, "answers": [answers.get(task, "5 red cat")],
             "all_classes": [*CLASSES, "5 red"] if task == "trec" else None, "_id": f"{task}-{length}"}
            for length, asked, context in [
                (0, "end", "short"), (3999, "quiz", "words " * 200), (4000, "why:", "more"),
                (7999, "so", "that " * 150), (8000, "is", "all\n"),
            ]
        ]  # fmt: skip
        (tmp_path / f"{task}_e.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    chosen = {"source": {"kind": "folder", "path": str(tmp_path)}, "max_length": 800, "max_new_tokens": 40}
    predicted = longbench.predictions(answering(), tokenizer, restored(LongBench, chosen), tmp_path)
    assert {row["truncated"] for row in predicted} == {True, False}
    assert {"", "b\n", "5 red\n"} <= {row["prediction"] for row in predicted}  # all ways to end before the length
    for row in predicted:
        values |= {f"{field} of {row['id']}": shown(value) for field, value in row.items() if field != "id"}
    means = longbench.summarise(predicted)
    for task, of_task in {**means.pop("tasks"), "all": means}.items():
        values |= {f"mean {bucket} of {task}": shown(value) for bucket, value in of_task.items()}
    hub = {"kind": "hub", "dataset": "THUDM/LongBench", "revision": "0" * 40}
    name = protocol({"source": hub, "max_length": 4096, "max_new_tokens": None})
    golden.assert_unchanged("longbench-official", name, values, "longbench.protocol")


def shown(value: Any) -> str:
    return f"{value:.10g}" if isinstance(value, float) else str(value)
