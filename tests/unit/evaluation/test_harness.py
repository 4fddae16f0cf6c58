"""lm_eval's tasks give lm_eval's numbers."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from longshort.data.settings import BytesTokenizer
from longshort.evaluation import harness, harness_answers
from longshort.records import hub
from tests.support.harness import (
    CHOOSE,
    ITEMS,
    SAY,
    asked,
    by_task,
    choices_by_hand,
    evaluate,
    log_likelihood,
    tiny_llama,
)


@pytest.fixture
def model() -> Any:
    return tiny_llama()


def test_numbers_are_those_of_simple_evaluate(model: Any, tokenizer: Any, own: Path) -> None:
    """And of a second checkpoint in the same process, which takes the tasks as they are loaded already.

    A task's own number of examples gives way to the one that is asked for, unless it is 0."""
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    (own / "say.yaml").write_text(SAY.replace("DATA", str(own / "items.jsonl")))
    for name, own_shots in (("own_two", 2), ("own_none", 0)):
        text = CHOOSE.replace("own_choose", name).replace("DATA", str(own / "items.jsonl"))
        (own / f"{name}.yaml").write_text(f"{text}num_fewshot: {own_shots}\n")
    tasks = ["own_choose", "own_answer", "own_say", "own_two", "own_none"]
    settings = asked(own, *tasks, num_fewshot=1, limit=3)
    first = evaluate(model, tokenizer, settings)
    assert evaluate(model, tokenizer, settings) == first
    theirs = lm_eval.simple_evaluate(
        HFLM(pretrained=model, tokenizer=tokenizer, max_length=128, batch_size=1),
        tasks=tasks,
        num_fewshot=1,
        limit=3,
        task_manager=TaskManager(include_path=str(own), include_defaults=False),
    )
    rows = by_task(first.rows)
    assert rows["own_choose:acc"] == theirs["results"]["own_choose"]["acc,none"]
    assert rows["own_choose:acc_norm"] == theirs["results"]["own_choose"]["acc_norm,none"]
    assert rows["own_answer:exact_match"] == theirs["results"]["own_answer"]["exact_match,none"]
    # By bootstrap, where that of a mean has a formula.
    assert rows["own_say:perplexity_stderr"] == theirs["results"]["own_say"]["perplexity_stderr,none"] > 0
    samples = [sample for task in settings.tasks for sample in theirs["samples"][task]]
    assert [item["response"] for item in first.items] == [
        harness_answers._text(sample["filtered_resps"]) for sample in samples
    ]


def test_limit_takes_the_first_items(model: Any, tokenizer: Any, own: Path) -> None:
    measured = evaluate(model, tokenizer, asked(own, "own_choose", limit=2))
    assert by_task(measured.rows)["own_choose:acc"] == choices_by_hand(model, ITEMS[:2])[0]
    assert len(measured.items) == 2 and {row["n"] for row in measured.rows} == {2}


def test_only_what_overflows_for_a_diverged_model_is_infinite(tokenizer: Any, own: Path) -> None:
    (own / "say.yaml").write_text(SAY.replace("DATA", str(own / "items.jsonl")))
    settings = asked(own, "own_flow", "own_say", lower_is_better=["own_flow"])
    fine = evaluate(tiny_llama(), tokenizer, settings)
    model = tiny_llama()
    with torch.no_grad():
        model.lm_head.weight.mul_(1e6)
    measured = evaluate(model, tokenizer, settings)
    rows = by_task(measured.rows)
    nats = [log_likelihood(model, [256], list(item["question"].encode())) for item in ITEMS]
    bits = -sum(nats) / sum(len(item["question"]) for item in ITEMS) / math.log(2)
    assert rows["own_flow:bits_per_byte"] == pytest.approx(bits, rel=1e-4)
    assert rows["harness:own_say"] == rows["own_say:acc"] == 0
    infinite = {task for task, value in rows.items() if value == math.inf}
    assert infinite == {"harness:own_flow", "own_flow:byte_perplexity", "own_say:perplexity"}
    assert len(measured.items) == 8 and {row["n"] for row in measured.rows} == {4}
    # The tasks are kept in the process; a checkpoint that comes after has its numbers as before.
    assert evaluate(tiny_llama(), tokenizer, settings) == fine


def test_the_protocol_says_what_was_done(own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "home", lambda: tmp_path / "nothing is fetched")
    assert (
        harness.protocol(asked(None, "ruler@4096", "hellaswag", limit=10), 128, BytesTokenizer())
        == "harness/lm_eval-0.4.13-v3?tasks=ruler@4096,hellaswag&limit=10&fewshot=task&max=128"
    )
    before = harness.protocol(asked(own, "hellaswag", num_fewshot=0), 128, BytesTokenizer())
    assert "limit=none&fewshot=0" in before
    # Own tasks are what their files say, and no file that an editor left there.
    (own / ".choose.yaml.swp").touch()
    for file in (".git/HEAD", "__pycache__/own.cpython-311.pyc.140"):
        (own / file).parent.mkdir()
        (own / file).touch()
    assert harness.protocol(asked(own, "hellaswag", num_fewshot=0), 128, BytesTokenizer()) == before
    (own / ".kept.yaml").touch()  # lm_eval reads it
    with_it = harness.protocol(asked(own, "hellaswag", num_fewshot=0), 128, BytesTokenizer())
    assert with_it != before
    (own / ".kept.yaml").unlink()
    task = next(own.rglob("*.yaml"))
    task.write_text(task.read_text() + "# \n")
    assert harness.protocol(asked(own, "hellaswag", num_fewshot=0), 128, BytesTokenizer()) != before
