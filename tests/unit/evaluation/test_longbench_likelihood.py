"""LongBench-E by likelihood: against plain forwards, and what the tables get of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from longshort.data import tokenizers
from longshort.data.settings import BytesTokenizer
from longshort.evaluation import longbench_likelihood
from longshort.evaluation.journal import Journal
from longshort.evaluation.longbench_items import Question
from longshort.evaluation.share import Share
from longshort.metrics.settings import LongBenchLikelihood
from tests.support.longbench import protocol
from tests.support.longppl import DYNAMIC, llama, words


def question(prompt: list[int], answers: list[str], task: str = "qasper", name: str = "a", length: int = 5) -> Question:
    return Question(task, name, prompt, 6, False, answers, None, length)


def plainly(model: Any, prompt: list[int], answer: list[int]) -> float:
    model(torch.tensor([[0]]))  # where frequencies depend on the length, they keep those of longer texts before
    logits = model(torch.tensor([prompt + answer[:-1]])).logits[0, len(prompt) - 1 :]
    return float(torch.nn.functional.cross_entropy(logits, torch.tensor(answer)))


@pytest.mark.parametrize("rope", [None, DYNAMIC], ids=["default", "dynamic"])
def test_the_best_reference_and_the_last_quarter(rope: dict | None) -> None:
    model, tokenizer = llama(1, rope=rope), tokenizers.byte_tokenizer()
    prompt = list(b"What follows is a context of some words, and a question about them all, longer than 64. Answer:")
    asked = question(prompt, ["one", "x", "another one", " ", ""])
    # After a space, and at most 6 tokens.
    answers = [list(b" one"), list(b" x"), list(b" anoth")]
    assert longbench_likelihood.answer_tokens(tokenizer, asked) == answers
    losses = [plainly(model, prompt, answer) for answer in answers]
    best = min(range(3), key=losses.__getitem__)
    expected = [losses[best], plainly(model, prompt[-(len(prompt) // 4) :], answers[best])]
    assert longbench_likelihood.losses_of(model, tokenizer, asked) == pytest.approx(expected, rel=1e-4)
    assert longbench_likelihood.losses_of(model, tokenizer, question(prompt, [""])) == []


def test_an_answer_whose_tokens_join_the_prompt_keeps_its_own() -> None:
    tokenizer = words()
    of = {end: tokenizer(end, add_special_tokens=False).input_ids for end in ("the len", "the ", "the")}
    for end, answer, expected in (("the", "length", " length"), ("the ", "length", "length")):
        found = longbench_likelihood.answer_tokens(tokenizer, question(of[end], [answer]))
        assert [tokenizer.decode(tokens) for tokens in found] == [expected]
    assert longbench_likelihood.last_quarter([0, *range(5, 20)], bos=0) == [0, 16, 17, 18, 19]


def test_shares_of_the_items_are_found_by_one_that_measures_all(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    model, tokenizer = llama(1), tokenizers.byte_tokenizer()
    asked = [question(list(b"a context" * (1 + place)), ["one", "two"], name=str(place)) for place in range(5)]
    monkeypatch.setattr(longbench_likelihood, "questions", lambda *_: asked)
    source = {"kind": "stand-in", "items_per_task": 2}
    settings = LongBenchLikelihood.model_validate({"source": source, "max_length": 528})
    expected = longbench_likelihood.evaluate(model, tokenizer, settings, tmp_path, 8).rows
    journal = Journal()
    for number in range(2):
        section = journal.of("step 1")
        longbench_likelihood.evaluate_share(model, tokenizer, settings, tmp_path, 8, section, Share(number, 2))
    # It has no model to measure with.
    assert longbench_likelihood.evaluate(None, tokenizer, settings, tmp_path, 8, journal.of("step 1")).rows == expected


def test_rows_by_task_bucket_and_item(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = [
        question([1], ["x"], "qasper", "q1", 10), question([1], ["x"], "qasper", "q2", 5000),
        question([1], ["x"], "trec", "t1", 10), question([1], [""], "trec", "t2", 10),
    ]  # fmt: skip
    losses = {"q1": [1.0, 2.0], "q2": [3.0, 3.5], "t1": [4.0, 4.5], "t2": []}
    monkeypatch.setattr(longbench_likelihood, "questions", lambda *_: asked)
    monkeypatch.setattr(longbench_likelihood, "losses_of", lambda model, tokenizer, question: losses[question.id])
    source = {"kind": "stand-in", "items_per_task": 2}
    settings = LongBenchLikelihood.model_validate({"source": source, "max_length": 528})
    journal = Journal().of("x")
    for _ in range(2):  # the second time from the journal
        rows = longbench_likelihood.evaluate(None, None, settings, tmp_path, 8, journal).rows
        said = {(row["metric"], row["task"], row["document"]): (row["value"], row["n"]) for row in rows}
        for metric, qasper, trec in (("longbench_likelihood", 2.0, 4.0), ("longbench_gain", 0.75, 0.5)):
            assert said[metric, "qasper", None] == (qasper, 2) and said[metric, "trec", None] == (trec, 1)
            assert said[metric, "overall", None] == ((qasper + trec) / 2, 3)
        assert said["longbench_quarter", "qasper:4-8k", None] == (3.5, 1)
        assert said["longbench_quarter", "qasper:8k+", None] == (None, 0)
        assert said["longbench_gain", "qasper", "q1"] == (1.0, 1)
        assert ("longbench_likelihood", "trec", "t2") not in said
    # One id twice in a task: both are there, by names of their own.
    asked[1] = asked[1]._replace(id="q1")
    rows = longbench_likelihood.evaluate(None, None, settings, tmp_path, 8, Journal().of("y")).rows
    assert {row["document"] for row in rows if row["task"] == "qasper"} == {None, "q1", "q1#2"}
    named = longbench_likelihood.protocol(settings, 8, BytesTokenizer())
    assert named != protocol({"source": source, "max_length": 528})
    shorter = settings.model_copy(update={"answer_tokens": 4})
    assert named != longbench_likelihood.protocol(shorter, 8, BytesTokenizer())
