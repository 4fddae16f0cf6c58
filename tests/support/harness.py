"""Tasks of lm_eval of a few items, and what a plain model says of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from longshort.evaluation import harness
from longshort.metrics.settings import Harness

ITEMS = [
    {"question": "one two", "choices": ["three", "3", "no"], "gold": 0, "answer": "three"},
    {"question": "a b c", "choices": ["d", "xyz", "c"], "gold": 2, "answer": "d"},
    {"question": "do re mi", "choices": ["fa", "so", "la la"], "gold": 1, "answer": "fa"},
    {"question": "red green", "choices": ["blue", "x"], "gold": 0, "answer": "blue"},
]
CHOOSE = """
task: own_choose
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
output_type: multiple_choice
doc_to_text: "Q: {{question}}\\nA:"
doc_to_choice: choices
doc_to_target: gold
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: acc_norm, aggregation: mean, higher_is_better: true}
metadata: {version: 1.0}
"""
ANSWER = """
task: own_answer
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
output_type: generate_until
doc_to_text: "{{question}} "
doc_to_target: answer
generation_kwargs: {max_gen_toks: 6, do_sample: false, until: ["\\n\\n"]}
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true}
metadata: {version: 1.0}
"""
FLOW = """
task: own_flow
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: question
metric_list:
  - {metric: byte_perplexity}
  - {metric: bits_per_byte}
metadata: {version: 1.0}
"""
SAY = """
task: own_say
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
output_type: loglikelihood
doc_to_text: "{{question}}"
doc_to_target: " {{answer}}"
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: perplexity, aggregation: perplexity, higher_is_better: false}
metadata: {version: 1.0}
"""
GROUP = """
group: own_group
task: [own_choose, own_choose_again]
aggregate_metric_list:
  - {metric: acc, weight_by_size: true}
"""


def write_tasks(folder: Path) -> Path:
    folder.mkdir()
    (folder / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in ITEMS))
    again = CHOOSE.replace("own_choose", "own_choose_again").replace("A:", "Answer:")
    for name, text in {"choose": CHOOSE, "again": again, "answer": ANSWER, "flow": FLOW, "group": GROUP}.items():
        (folder / f"{name}.yaml").write_text(text.replace("DATA", str(folder / "items.jsonl")))
    return folder


def tiny_llama(**changes: Any) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=257,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        initializer_range=0.3,
        bos_token_id=256,
        eos_token_id=256,
        pad_token_id=256,
        **{"max_position_embeddings": 128, **changes},
    )
    return LlamaForCausalLM(config).eval()


def asked(own: Path | None, *tasks: str, **settings: Any) -> Harness:
    return Harness(tasks=list(tasks), include_path=own and str(own), **{"max_length": 128, **settings})


def evaluate(model: Any, tokenizer: Any, settings: Harness, journal: Any = None) -> Any:
    return harness.evaluate(model, tokenizer, settings, Path("."), 64, journal)


def by_task(rows: list[dict[str, Any]]) -> dict[str, float]:
    return {row["task"] or row["metric"]: row["value"] for row in rows}


@torch.inference_mode()
def log_likelihood(model: Any, context: list[int], continuation: list[int]) -> float:
    """Nats of the continuation after the context, by the plain model."""
    log_p = model(input_ids=torch.tensor([context + continuation[:-1]])).logits[0].log_softmax(-1)
    places = range(len(context) - 1, len(context) + len(continuation) - 1)
    return sum(float(log_p[place, token]) for place, token in zip(places, continuation, strict=True))


def choices_by_hand(model: Any, items: list[dict[str, Any]]) -> tuple[float, float, list[list[float]]]:
    """acc, acc_norm (by bytes of the choice) and the log-likelihoods."""
    nats = [
        [log_likelihood(model, list(f"Q: {i['question']}\nA:".encode()), list(f" {c}".encode())) for c in i["choices"]]
        for i in items
    ]
    best = [max(range(len(row)), key=row.__getitem__) for row in nats]
    per_byte = [
        [v / len(c) for v, c in zip(row, i["choices"], strict=True)] for row, i in zip(nats, items, strict=True)
    ]
    best_norm = [max(range(len(row)), key=row.__getitem__) for row in per_byte]
    gold = [item["gold"] for item in items]
    return (
        sum(a == b for a, b in zip(best, gold, strict=True)) / len(items),
        sum(a == b for a, b in zip(best_norm, gold, strict=True)) / len(items),
        nats,
    )
