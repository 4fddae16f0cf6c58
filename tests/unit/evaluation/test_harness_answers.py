"""Answers to requests are those of the plain model, also after a kill."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from longshort.evaluation.journal import Journal
from tests.support.harness import (
    ANSWER,
    CHOOSE,
    ITEMS,
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


@torch.inference_mode()
def greedy(model: Any, prompt: str, tokens: int) -> str:
    """The most probable next byte, again and again, until the separator."""
    ids = list(prompt.encode())
    answer: list[int] = []
    while len(answer) < tokens:
        token = int(model(input_ids=torch.tensor([ids + answer])).logits[0, -1].argmax())
        if token == 256:
            break
        answer.append(token)
    return bytes(answer).decode(errors="replace")


def test_choices_are_scored_as_by_hand(model: Any, tokenizer: Any, own: Path) -> None:
    measured = evaluate(model, tokenizer, asked(own, "own_choose"))
    acc, acc_norm, nats = choices_by_hand(model, ITEMS)
    rows = by_task(measured.rows)
    assert rows["harness:own_choose"] == rows["own_choose:acc"] == pytest.approx(acc)
    assert rows["own_choose:acc_norm"] == pytest.approx(acc_norm)
    spread = math.sqrt(sum(((k < acc * 4) - acc) ** 2 for k in range(4)) / 3 / 4)
    assert rows["own_choose:acc_stderr"] == pytest.approx(spread)
    assert [row["n"] for row in measured.rows] == [4] * 5
    assert measured.rows[0]["metric"] == "harness:own_choose" and measured.rows[0]["task"] is None
    assert {row["metric"] for row in measured.rows[1:]} == {"harness"}
    for item, expected in zip(measured.items, nats, strict=True):
        assert [value for value, _ in json.loads(item["response"])] == pytest.approx(expected, abs=1e-4)
    assert [item["target"] for item in measured.items] == ["0", "2", "1", "0"]
    assert [item["id"] for item in measured.items] == ["0", "1", "2", "3"]
    assert json.loads(measured.items[0]["metrics"]).keys() == {"acc", "acc_norm"}


def test_the_length_of_an_answer_is_the_tasks(tokenizer: Any, own: Path) -> None:
    """And not that which a checkpoint's generation_config.json asks for."""
    rambling = tiny_llama()
    rambling.generation_config.max_new_tokens = 40
    said, expected = (evaluate(model, tokenizer, asked(own, "own_answer")).items for model in (rambling, tiny_llama()))
    assert [item["response"] for item in said] == [item["response"] for item in expected]


def test_answers_are_greedy_and_matched(model: Any, tokenizer: Any, own: Path) -> None:
    measured = evaluate(model, tokenizer, asked(own, "own_answer"))
    expected = [greedy(model, f"{item['question']} ", 6).split("\n\n")[0] for item in ITEMS]
    assert [item["response"] for item in measured.items] == expected
    assert len(set(expected)) > 1
    right = sum(answer == item["answer"] for answer, item in zip(expected, ITEMS, strict=True)) / 4
    assert by_task(measured.rows)["harness:own_answer"] == right
    # One of the answers made the expected one: the score follows.
    lines = [{**item, "answer": answer} for item, answer in zip(ITEMS, expected, strict=True)]
    lines[3]["answer"] = "another"
    (own / "items.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    from longshort.data.tokenizers import byte_tokenizer

    again = evaluate(model, byte_tokenizer(), asked(own, "own_answer"))
    assert by_task(again.rows)["harness:own_answer"] == 0.75


class Killed(Exception):
    pass


@contextmanager
def forwards(model: Any, most: float = math.inf) -> Iterator[list[int]]:
    """Counts the forwards; the job is killed in that after `most`."""
    done: list[int] = []

    def count(*_: Any) -> None:
        if len(done) == most:
            raise Killed
        done.append(1)

    hook = model.register_forward_pre_hook(count)
    try:
        yield done
    finally:
        hook.remove()


LETTER = CHOOSE.replace("own_choose", "own_letter").replace("doc_to_choice: choices", "doc_to_choice: [a, b, c]")
DRAW = ANSWER.replace("own_answer", "own_draw").replace("do_sample: false", "do_sample: true, temperature: 1.0")


@pytest.mark.parametrize(
    ("task", "killed_after", "spared", "said"),
    [
        ("own_choose", 7, 7, "own_choose: 7 of 11"),
        # The three answers of an item need one forward; of the second item's, the kill below takes one.
        ("own_letter", 2, 1, "own_letter: 6 of 12"),
        ("own_flow", 3, 3, "own_flow: 3 of 4"),
        # Six tokens an answer.
        ("own_answer", 15, 12, "own_answer: 2 of 4"),
        ("own_draw", 15, 0, "own_draw: 2 of 4"),
    ],
)
def test_a_killed_job_goes_on_after_the_last_answer(
    task: str, killed_after: int, spared: int, said: str, model: Any, tokenizer: Any, own: Path,
    tmp_path: Path, capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    for name, text in {"letter": LETTER + 'target_delimiter: ""\n', "draw": DRAW}.items():
        (own / f"{name}.yaml").write_text(text.replace("DATA", str(own / "items.jsonl")))
    settings = asked(own, task, lower_is_better=[task] if task == "own_flow" else [])
    with forwards(model) as needed:
        whole = evaluate(model, tokenizer, settings)
    file = tmp_path / "journal"
    part = Journal(file).of("step 2")
    with forwards(model, killed_after), pytest.raises(Killed):
        evaluate(model, tokenizer, settings, part)
    assert part.progress() == {"done": 0, "total": 1, "unit": f"items of step 2, {said}"}
    if task == "own_letter":
        file.write_bytes(file.read_bytes()[:-1])
    with forwards(model) as again:
        assert evaluate(model, tokenizer, settings, Journal(file).of("step 2")) == whole
    assert len(again) == len(needed) - spared
    with forwards(model, 0):
        assert evaluate(model, tokenizer, settings, Journal(file).of("step 2")) == whole
    assert "requests" not in capfd.readouterr().err  # lm_eval's bars


def test_rotary_frequencies_that_follow_the_length_are_reset(tokenizer: Any, own: Path) -> None:
    """lm_eval takes the longest row first, whose frequencies transformers would keep for the shorter ones."""
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
    model = tiny_llama(rope_parameters=rope, max_position_embeddings=8)
    fresh = copy.deepcopy(model)
    measured = evaluate(model, tokenizer, asked(own, "own_choose", "own_answer"))
    for item, asked_for in zip(measured.items, ITEMS, strict=False):
        prompt = list(f"Q: {asked_for['question']}\nA:".encode())
        expected = [
            log_likelihood(copy.deepcopy(fresh), prompt, list(f" {choice}".encode())) for choice in asked_for["choices"]
        ]
        assert [value for value, _ in json.loads(item["response"])] == pytest.approx(expected, abs=1e-4)
    # The first answer follows a longer prompt, and is that of a model which saw no other.
    alone = evaluate(copy.deepcopy(fresh), tokenizer, asked(own, "own_answer", limit=1))
    assert measured.items[4]["response"] == alone.items[0]["response"]
