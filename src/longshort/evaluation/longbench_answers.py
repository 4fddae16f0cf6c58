"""Greedy answers to the questions of LongBench-E, in batches.

As the official code does it (THUDM/LongBench, pred.py): greedy decoding, official answer lengths, samsum ended at a
newline and never empty. An answer also ends where no more text could change its score: of tasks of which one line
counts, when that line is complete.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from longshort.evaluation.journal import Journal, Section
from longshort.evaluation.longbench_items import Question
from longshort.evaluation.scoring import ONE_LINE_TASKS, is_settled
from longshort.evaluation.share import WHOLE, Share

TOKENS_PER_BATCH = 16384


def predict(model: Any, tokenizer: Any, asked: Sequence[Question], journal: Section | None = None) -> list[str]:
    """Greedy answers, in the order of the questions."""
    answers = predict_share(model, tokenizer, asked, journal or Journal().of("longbench_e"), WHOLE)
    return [answers[place] for place in range(len(asked))]


def predict_share(
    model: Any, tokenizer: Any, asked: Sequence[Question], journal: Section, share: Share
) -> dict[int, str]:
    """Greedy answers to those of the questions that a job has to answer, by their places.

    Questions whose answers have one length share batches of at most TOKENS_PER_BATCH tokens, padded on the left. Where
    the rotary frequencies depend on the length of the input, only questions of equal length do. The journal keeps
    whole batches, so that a resumed job forms the same ones.
    """
    from longshort.evaluation.forward import rope_depends_on_length

    by_length = rope_depends_on_length(model)
    batches = share.of_all(list(_batches(asked, by_length)))
    journal.expect(len(batches))
    answers: dict[int, str] = {}
    for number, batch in batches:
        texts = journal.get(f"batch {number}")
        if texts is None:
            texts = _generate(model, tokenizer, [asked[place] for place in batch], by_length)
            journal.add(f"batch {number}", texts)
        answers.update(zip(batch, texts, strict=True))
    return answers


def _batches(asked: Sequence[Question], equal_length: bool) -> Iterator[list[int]]:
    """Places in `asked` that share a batch: generation is set alike, and the padded rows keep to the budget."""

    def kind(question: Question) -> tuple[bool, int, int]:
        return question.task == "samsum", question.answer_length, len(question.input_ids) if equal_length else 0

    batch: list[int] = []
    # The longest first: a batch too large for the memory fails at once.
    for place in sorted(range(len(asked)), key=lambda place: (kind(asked[place]), -len(asked[place].input_ids))):
        if batch:
            first = asked[batch[0]]
            tokens = (len(batch) + 1) * (len(first.input_ids) + first.answer_length)
            if kind(first) != kind(asked[place]) or tokens > TOKENS_PER_BATCH:
                yield batch
                batch = []
        batch.append(place)
    if batch:
        yield batch


def _generate(model: Any, tokenizer: Any, batch: Sequence[Question], reset_rope: bool) -> list[str]:
    import torch
    from transformers import StaticCache

    stop = model.generation_config.eos_token_id
    if stop is None:
        stop = tokenizer.eos_token_id
    stops = [] if stop is None else [stop] if isinstance(stop, int) else list(stop)
    at_least = 0
    if batch[0].task == "samsum":  # officially: models repeat "\nDialogue" for ever
        stops = [*stops, tokenizer.encode("\n", add_special_tokens=False)[-1]]
        at_least = 1

    width = max(len(question.input_ids) for question in batch)

    def settled(tokens: torch.Tensor, scores: Any) -> torch.Tensor:
        """Rows that need no more text."""
        answers = zip(batch, tokens[:, width:].tolist(), strict=True)
        return tokens.new_tensor([_ends(tokenizer, question.task, row) for question, row in answers]).bool()

    padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else stops[0] if stops else 0
    padded = [[padding] * (width - len(question.input_ids)) + question.input_ids for question in batch]
    mask = [[0] * (width - len(question.input_ids)) + [1] * len(question.input_ids) for question in batch]
    with torch.inference_mode():
        if reset_rope:
            # transformers' dynamic NTK keeps the frequencies of the longest input seen until a short one resets them.
            model(input_ids=_tensor([[padding]], model), use_cache=False)
        output = model.generate(
            input_ids=_tensor(padded, model),
            attention_mask=_tensor(mask, model),
            max_new_tokens=batch[0].answer_length,
            min_new_tokens=at_least,
            num_beams=1,
            do_sample=False,
            eos_token_id=stops or None,
            pad_token_id=padding,
            stopping_criteria=[settled],
            # The default cache copies all keys and values at each token. A static one that transformers makes has the
            # length of the longest batch before, with which rounding changes, and takes the memory for it.
            past_key_values=StaticCache(
                config=model.config.get_text_config(decoder=True), max_cache_len=width + batch[0].answer_length
            ),
            disable_compile=True,
        )
    texts = []
    for question, row in zip(batch, output[:, width:].tolist(), strict=True):
        row = _until_stop(row, stops)
        # A row that is settled is padded, too, where another one goes on.
        if question.task in ONE_LINE_TASKS:
            row = row[: _settled_after(tokenizer, question.task, row) or len(row)]
        texts.append(tokenizer.decode(row, skip_special_tokens=True))
    return texts


def _settled_after(tokenizer: Any, task: str, tokens: list[int]) -> int:
    """After how many of its tokens an answer ended; 0: it did not."""
    return next((count for count in range(1, len(tokens) + 1) if _ends(tokenizer, task, tokens[:count])), 0)


def _ends(tokenizer: Any, task: str, tokens: list[int]) -> bool:
    """Whether the newest token ends a line, and with it the answer: no more text could change its score.

    A run of byte tokens ("<0x0A>" is Llama-2's newline) becomes text as a whole, and none if a character in it is cut:
    so one says nothing before another kind of token has followed. Special tokens do not end a run: they are left out
    before.
    """
    if task not in ONE_LINE_TASKS or _leaves_open(tokenizer, tokens[-1]):
        return False
    after_bytes = len(tokens) > 1 and _leaves_open(tokenizer, tokens[-2])
    # To decode the whole answer at each of its tokens would cost more than the model.
    if not after_bytes and "\n" not in tokenizer.decode(tokens[-1:]):
        return False
    return is_settled(task, tokenizer.decode(tokens, skip_special_tokens=True))


def _leaves_open(tokenizer: Any, token: int) -> bool:
    """Whether what comes after a token can change the text before it."""
    is_byte = re.fullmatch("<0x[0-9A-F]{2}>", str(tokenizer.convert_ids_to_tokens(token)))
    return is_byte is not None or token in tokenizer.all_special_ids


def _until_stop(tokens: list[int], stops: Sequence[int]) -> list[int]:
    """The answer up to and with its stop token; padding follows where another row of the batch went on."""
    end = next((place for place, token in enumerate(tokens) if token in stops), len(tokens))
    return tokens[: end + 1]


def _tensor(rows: list[list[int]], model: Any) -> Any:
    import torch

    return torch.tensor(rows, dtype=torch.long, device=model.device)
