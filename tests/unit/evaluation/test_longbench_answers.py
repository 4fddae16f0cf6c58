"""Answers are those of plain greedy decoding, however they are batched, cut short or interrupted."""

from __future__ import annotations

import functools
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from longshort.evaluation import longbench_answers, longbench_items
from longshort.evaluation.journal import Journal
from longshort.evaluation.scoring import score_prediction
from longshort.evaluation.share import Share
from tests.support.longbench import tiny_llama


def test_a_newline_of_bytes_ends_an_answer_only_when_it_is_text() -> None:
    """Llama-2's newline is a byte token. A run of bytes becomes text as a whole, and where a character in it is cut, no
    newline: read to its end, the second answer is one line."""
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    words = ["<unk>", "<0x0A>", "<0xE2>", "<0x82>", "<0xAC>", "▁Paris", "▁more"]
    made = Tokenizer(models.BPE(vocab={word: place for place, word in enumerate(words)}, merges=[], byte_fallback=True))
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>")
    paris, newline, first, second, third, more = 5, 1, 2, 3, 4, 6
    after = functools.partial(longbench_answers._settled_after, tokenizer, "triviaqa")
    assert tokenizer.decode([paris, newline]) == "Paris\n" and "\n" not in tokenizer.decode([paris, newline, first])
    assert after([paris, newline]) == 0
    assert after([paris, newline, first, second]) == 0
    assert after([paris, newline, more, more]) == 3
    assert after([paris, newline, first, second, third, more]) == 6
    assert after([paris, newline, first, more, more]) == 0
    # Of all short answers, special tokens among them: what is left out of one changes neither its text nor its score.
    ended = 0
    for answer in product([0, newline, first, second, third, paris, more], repeat=5):
        count = after(list(answer))
        early, whole = (tokenizer.decode(some, skip_special_tokens=True) for some in (answer[: count or 5], answer))
        assert whole.startswith(early)
        assert score_prediction("triviaqa", early, ["Paris"]) == score_prediction("triviaqa", whole, ["Paris"])
        ended += 0 < count < 5
    assert ended > 400


def question(task: str, text: bytes, answer_length: int) -> longbench_items.Question:
    return longbench_items.Question(task, "", list(text), answer_length, False, [], None, 0)


ASKED = [
    question(task, bytes((7 * place + 31 * at) % 256 for at in range(8 + 13 * place)), length)
    for place, (task, length) in enumerate(
        [("lcc", 24), ("trec", 24), ("samsum", 24), ("lcc", 9), ("samsum", 24), ("trec", 24)]
    )
]


@pytest.mark.parametrize("rope", [{"rope_type": "default"}, {"rope_type": "dynamic", "factor": 4.0}])
def test_batched_answers_equal_single_ones(tokenizer: Any, rope: dict[str, Any]) -> None:
    model = tiny_llama(rope_parameters={"rope_theta": 10000.0, **rope})
    together = longbench_answers.predict(model, tokenizer, ASKED)
    apart = [longbench_answers.predict(model, tokenizer, [asked])[0] for asked in ASKED]
    assert together == apart
    assert len(set(together)) == len(ASKED)


def test_a_batch_has_a_cache_of_its_own_length(tokenizer: Any) -> None:
    """Whatever was asked before: rounding changes with the cache's length, and the memory is a batch's."""
    model, lengths = tiny_llama(), []

    def note(module: Any, args: Any, given: dict[str, Any]) -> None:
        lengths.append(given["past_key_values"].layers[0].max_cache_len)

    model.register_forward_pre_hook(note, with_kwargs=True)
    for asked in (ASKED[3], ASKED[0], ASKED[5]):
        lengths.clear()
        longbench_answers.predict(model, tokenizer, [asked])
        assert set(lengths) == {len(asked.input_ids) + asked.answer_length}


def test_shares_of_the_batches_give_the_answers_of_one_job(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(longbench_answers, "TOKENS_PER_BATCH", 150)
    model = tiny_llama()
    answers: dict[int, str] = {}
    for number in range(3):
        journal = Journal().of("longbench_e")
        some = longbench_answers.predict_share(model, tokenizer, ASKED, journal, Share(number, 3))
        assert some and not set(some) & set(answers)
        answers |= some
    assert [answers[place] for place in range(len(ASKED))] == longbench_answers.predict(model, tokenizer, ASKED)


def test_batches_keep_to_kind_and_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(longbench_answers, "TOKENS_PER_BATCH", 200)
    batches = list(longbench_answers._batches(ASKED, equal_length=False))
    assert sorted(place for batch in batches for place in batch) == list(range(6))
    assert [3] in batches and [4, 2] in batches  # the one of another answer length; samsum, the longest first
    for batch in batches:
        assert len(batch) * (max(len(ASKED[place].input_ids) for place in batch) + 24) <= 200
    assert all(len(batch) == 1 for batch in longbench_answers._batches(ASKED, equal_length=True))


def test_answer_equals_plain_greedy_decoding(model: Any, tokenizer: Any) -> None:
    import torch

    tokens = list(ASKED[0].input_ids)
    for _ in range(24):
        tokens.append(int(model(input_ids=torch.tensor([tokens])).logits[0, -1].argmax()))
        if tokens[-1] == 256:
            break
    expected = tokenizer.decode(tokens[8:], skip_special_tokens=True)
    assert longbench_answers.predict(model, tokenizer, ASKED[:1]) == [expected]


def preferring(*tokens: int) -> Any:
    """A model that says the first of them whatever it reads, and where it may not the next one."""
    import torch

    model = tiny_llama()
    model.lm_head.bias = torch.nn.Parameter(torch.zeros(257))
    with torch.no_grad():
        model.lm_head.weight.zero_()
        for place, token in enumerate(tokens):
            model.lm_head.bias[token] = len(tokens) - place
    return model


def test_samsum_ends_at_a_newline_and_is_not_empty(tokenizer: Any) -> None:
    model = preferring(10, ord("b"))
    assert longbench_answers.predict(model, tokenizer, [question("samsum", b"text", 5)]) == ["b\n"]
    assert longbench_answers.predict(model, tokenizer, [question("trec", b"text", 5)]) == ["\n" * 5]


@pytest.mark.parametrize("stop", ["a", "b"])
def test_each_of_a_models_stop_tokens_ends_an_answer(tokenizer: Any, stop: str) -> None:
    """Llama-3 has two: one ends a text, the other a turn."""
    model = preferring(ord(stop))
    model.generation_config.eos_token_id = [ord("a"), ord("b")]
    assert longbench_answers.predict(model, tokenizer, [question("qasper", b"text", 5)]) == [stop]


@pytest.mark.parametrize("seed", range(4))
def test_an_early_end_leaves_every_score(tokenizer: Any, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """A model that often says a newline or a comment, on questions of one line and others, in one batch."""
    import torch

    model = tiny_llama()
    torch.manual_seed(seed)
    model.lm_head.bias = torch.nn.Parameter(torch.zeros(257))
    with torch.no_grad():
        model.lm_head.bias[torch.tensor([10, 35, *b"ab 1"])] += 4 + torch.rand(6)
    tasks = ["lcc", "trec", "triviaqa", "repobench-p", "qasper", "samsum"]
    asked = [question(task, bytes([seed, place, *b"what"]) * (1 + place), 24) for place, task in enumerate(2 * tasks)]
    short = longbench_answers.predict(model, tokenizer, asked)
    monkeypatch.setattr(longbench_answers, "is_settled", lambda task, text: False)
    long = longbench_answers.predict(model, tokenizer, asked)
    assert any(len(one) < len(other) for one, other in zip(short, long, strict=True))
    for one, early, whole in zip(asked, short, long, strict=True):
        assert whole.startswith(early) and (early == whole or one.task in ("lcc", "repobench-p", "trec", "triviaqa"))
        for answer in ("a", "ab 1", "b#", "1"):
            classes = ["a", "ab", "1", answer]
            assert score_prediction(one.task, early, [answer], classes) == score_prediction(
                one.task, whole, [answer], classes
            )


def test_a_killed_evaluation_goes_on_after_the_last_batch(
    model: Any, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = longbench_answers.predict(model, tokenizer, ASKED, Journal(tmp_path / "whole").of("step 1"))
    lines = (tmp_path / "whole").read_bytes().splitlines(keepends=True)
    (tmp_path / "cut").write_bytes(b"".join(lines[:1]) + lines[1][:70])
    assert longbench_answers.predict(model, tokenizer, ASKED, Journal(tmp_path / "cut").of("step 1")) == whole
    assert (tmp_path / "cut").read_bytes() == (tmp_path / "whole").read_bytes()
    monkeypatch.setattr(model, "generate", None)  # with all batches there, nothing is generated
    assert longbench_answers.predict(model, tokenizer, ASKED, Journal(tmp_path / "cut").of("step 1")) == whole
