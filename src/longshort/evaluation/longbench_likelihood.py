"""LongBench-E by likelihood: how probable the reference answer is, given the prompt. Continuous, and no generation.

The items, prompts and their truncation are those of LongBench-E (longbench_items.py). The number of an item is the mean
loss of its reference answer's tokens, as many as the official length of an answer, in nats; of several references the
one with the lowest. The same answer given the last quarter of the prompt alone, after BOS where the prompt has it, is
`longbench_quarter`; the difference, `longbench_gain`, is what the rest of the context tells. Means are as in
LongBench-E: over a task's items, and over tasks.

An answer follows its prompt after a space, unless the prompt ends with white space. Its tokens are what it adds to
those of the prompt's last words, or its own where it changes these.
"""

from __future__ import annotations

from collections import Counter
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from longshort.data.settings import Tokenizer
from longshort.evaluation import stage
from longshort.evaluation.forward import head_of, rope_depends_on_length, score_tokens, tokens_per_head
from longshort.evaluation.journal import Journal, Measured, Section
from longshort.evaluation.longbench_items import Question, questions
from longshort.evaluation.longbench_items import protocol as protocol_of_items
from longshort.evaluation.scoring import BUCKETS, bucket_of
from longshort.evaluation.share import WHOLE, Share
from longshort.metrics.settings import LongBenchLikelihood

METRICS = ("longbench_likelihood", "longbench_quarter", "longbench_gain")
# Of the prompt, before an answer: where tokens may join.
LAST_TOKENS = 8


class Scored(NamedTuple):
    """An item's mean losses (nats a token): given the prompt, and given its last quarter."""

    task: str
    id: str
    words: int
    losses: tuple[float, float]


def protocol(settings: LongBenchLikelihood, l_train: int, tokenizer: Tokenizer) -> str:
    return protocol_of_items(settings, settings.answer_tokens).replace("longbench-e/", "longbench-e-likelihood/", 1)


def evaluate(
    model: Any, tokenizer: Any, settings: LongBenchLikelihood, data: Path, l_train: int, journal: Section | None = None
) -> Measured:
    """Rows of longbench_likelihood, longbench_quarter and longbench_gain (nats a token) per task, per task and bucket,
    over tasks ("overall"), and of each item (`document` is its id).

    Args:
        data: a published data folder, with the folder longbench-e-<items> if the source is the stand-in.
        l_train: not used; all evaluations have one signature.
        journal: keeps each item; those that it has are not read again.

    Raises:
        ValueError: a task or a field is missing in the data, or no item has an answer.
    """
    journal = journal or Journal().of("longbench_likelihood")
    asked = questions(tokenizer, settings, settings.answer_tokens, data)
    scored = [
        Scored(question.task, question.id, question.length, (losses[0], losses[1]))
        for question, losses in _measured(model, tokenizer, asked, journal, WHOLE)
        if losses
    ]
    if not scored:
        raise ValueError("no item of LongBench-E has an answer; take the official files")
    if len(scored) < len(asked):
        print(f"{len(asked) - len(scored)} items have no answer and are left out", flush=True)
    return Measured(_rows(scored, list(dict.fromkeys(question.task for question in asked))))


def evaluate_share(
    model: Any, tokenizer: Any, settings: LongBenchLikelihood, data: Path, l_train: int, journal: Section, share: Share
) -> None:
    """Measures a share of the items, for evaluate to find in the journal; arguments are its."""
    _measured(model, tokenizer, questions(tokenizer, settings, settings.answer_tokens, data), journal, share)


def _measured(
    model: Any, tokenizer: Any, asked: list[Question], journal: Section, share: Share
) -> list[tuple[Question, list[float]]]:
    """The losses of those of the items that a job has to measure, as losses_of gives them."""
    # The longest first: one too large for the memory fails at once.
    places = share.of_all(sorted(range(len(asked)), key=lambda place: -len(asked[place].input_ids)))
    journal.expect(len(places))
    measured = []
    for _, place in places:
        losses = journal.get(f"item {place}")
        if losses is None:
            losses = losses_of(model, tokenizer, asked[place])
            journal.add(f"item {place}", losses)
        measured.append((asked[place], losses))
    return measured


def losses_of(model: Any, tokenizer: Any, question: Question) -> list[float]:
    """Mean losses of the best reference given the prompt, and given its last quarter; empty for one without answers."""
    answers = answer_tokens(tokenizer, question)
    if not answers:
        return []
    given_prompt = answer_losses(model, question.input_ids, answers)
    best = min(range(len(answers)), key=lambda place: given_prompt[place])
    quarter = last_quarter(question.input_ids, tokenizer.bos_token_id)
    return [given_prompt[best], *answer_losses(model, quarter, [answers[best]])]


def answer_tokens(tokenizer: Any, question: Question) -> list[list[int]]:
    """Tokens of the references that are not empty, at most as many as the task's answer has."""
    end = tokenizer.decode(question.input_ids[-LAST_TOKENS:], skip_special_tokens=True)
    before = tokenizer(end, add_special_tokens=False).input_ids
    found = []
    for answer in dict.fromkeys(question.answers):
        if not answer.strip():
            continue
        text = answer if not end or end[-1].isspace() else f" {answer}"
        together = tokenizer(end + text, add_special_tokens=False).input_ids
        joined = together[: len(before)] != before
        tokens = tokenizer(answer, add_special_tokens=False).input_ids if joined else together[len(before) :]
        found.append(tokens[: question.answer_length])
    return [tokens for tokens in found if tokens]


def last_quarter(prompt: list[int], bos: int | None) -> list[int]:
    """The last quarter of a prompt's tokens, after BOS where the prompt begins with it."""
    rest = prompt[-max(1, len(prompt) // 4) :]
    return [prompt[0], *rest] if prompt[0] == bos else rest


@torch.inference_mode()
def answer_losses(model: Any, prompt: list[int], answers: list[list[int]]) -> list[float]:
    """Mean loss (nats a token) of each answer after a prompt.

    Several answers share one reading of the prompt, unless the rotary frequencies depend on the length.
    """
    if len(answers) == 1 or rope_depends_on_length(model):
        return [_plain(model, prompt, answer) for answer in answers]
    backbone = model.get_decoder()
    read = backbone(input_ids=torch.tensor([prompt], device=model.device), use_cache=True)
    losses = []
    for answer in answers:
        states = read.last_hidden_state[0, -1:]
        if len(answer) > 1:
            more = torch.tensor([answer[:-1]], device=model.device)
            after = backbone(input_ids=more, past_key_values=deepcopy(read.past_key_values), use_cache=True)
            states = torch.cat([states, after.last_hidden_state[0]])
        losses.append(_mean_loss(model, states, torch.tensor(answer, device=model.device)))
    return losses


def _plain(model: Any, prompt: list[int], answer: list[int]) -> float:
    ids = torch.tensor([prompt + answer])
    scored = torch.arange(len(prompt) - 1, ids.shape[1] - 1)
    return float(score_tokens(model, ids[:, :-1], ids[:, 1:], scored).nll.mean())


def _mean_loss(model: Any, states: Tensor, answer: Tensor) -> float:
    head, size = head_of(model), tokens_per_head(model)
    pieces = zip(states.split(size), answer.split(size), strict=True)
    losses = [torch.nn.functional.cross_entropy(head(some), came, reduction="none") for some, came in pieces]
    return float(torch.cat(losses).double().mean())


def _rows(scored: list[Scored], tasks: list[str]) -> list[dict[str, Any]]:
    rows = []
    times = Counter[tuple[str, str]]()
    names = []  # one id may stand for several items of a task
    for item in scored:
        times[key := (item.task, item.id)] += 1
        names.append(item.id if times[key] == 1 else f"{item.id}#{times[key]}")
    for place, metric in enumerate(METRICS):
        value = [(*item.losses, item.losses[1] - item.losses[0])[place] for item in scored]
        means = []
        for task in tasks:
            of_task = [number for number, item in enumerate(scored) if item.task == task]
            for bucket in (None, *BUCKETS):
                inside = [value[number] for number in of_task if bucket in (None, bucket_of(scored[number].words))]
                mean = float(np.mean(inside)) if inside else None
                rows.append(_row(metric, f"{task}:{bucket}" if bucket else task, mean, len(inside)))
            means += [np.mean([value[number] for number in of_task])] if of_task else []
            rows += [_row(metric, task, value[number], 1, document=names[number]) for number in of_task]
        rows.append(_row(metric, "overall", float(np.mean(means)), len(scored)))
    return rows


def _row(metric: str, task: str, value: float | None, n: int, document: str | None = None) -> dict[str, Any]:
    return {"metric": metric, "length": None, "task": task, "document": document, "value": value, "n": n}


MEASUREMENT = stage.Measurement(
    metric="longbench_likelihood",
    module="longshort.evaluation.longbench_likelihood",
    asks=LongBenchLikelihood,
    evaluate=evaluate,
    protocol=protocol,
)


if __name__ == "__main__":
    stage.main(MEASUREMENT)
