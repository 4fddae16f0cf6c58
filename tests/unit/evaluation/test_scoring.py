"""Scores by hand, from the official metrics.py and eval.py."""

from __future__ import annotations

import string
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longshort.evaluation import scoring
from longshort.evaluation.scoring import is_settled, score_prediction, summarise
from tests.support.longbench import QUESTION_KINDS


@pytest.mark.parametrize(
    ("task", "prediction", "answers", "expected"),
    [
        # F1 of bags of words: 2 of 3 predicted, 2 of 2 expected.
        ("qasper", "The Red, red car!", ["red car"], 2 * (2 / 3) * 1 / (2 / 3 + 1)),
        ("hotpotqa", "an apple", ["apple"], 1.0),
        # Punctuation goes before articles, so "a-b" is one word and "the." is an article.
        ("2wikimqa", "a-b the.", ["ab"], 1.0),
        ("multifieldqa_en", "the", ["a"], 0.0),
        ("hotpotqa", "blue", ["red", "blue sky", "blue"], 1.0),
        # Only the first line that follows leading newlines counts, for some tasks.
        ("triviaqa", "\n\nParis\nand more", ["Paris"], 1.0),
        ("triviaqa", " \nParis", ["Paris"], 0.0),
        ("qasper", "Paris\nand more", ["Paris"], 0.5),
        ("samsum", "\nthe cat sat\nDialogue: no", ["the cat sat"], 2 / (2 + 1e-8)),
        # Every number in the output counts against it.
        ("passage_count", "5", ["5"], 1.0),
        ("passage_count", "5 of 12, so 5", ["5"], 2 / 3),
        ("passage_count", "05", ["5"], 0.0),
        ("passage_count", "five", ["5"], 0.0),
        ("passage_retrieval_en", "Paragraph 3", ["Paragraph 3"], 1.0),
        ("passage_retrieval_en", "3 or 30", ["Paragraph 3"], 0.5),
        # "abcd" against "abxd": 2 * 3 / 8; the ratio is a whole number of per cents, rounded half to even.
        ("lcc", "abcd", ["abxd"], 0.75),
        ("lcc", "abc", ["abcdef"], 0.67),
        ("lcc", "a" + "b" * 15, ["a" + "c" * 15], 0.06),
        ("lcc", "\n\n# no\n`no\n// no\nreturn 1\nreturn 2", ["return 1"], 1.0),
        ("lcc", "# only a comment", ["return 1"], 0.0),
        ("lcc", "   \nreturn 1", ["return 1"], 0.18),
        ("repobench-p", "return 1  # why", ["return 1"], 0.0),
        # Rouge fails on an empty text, and on one of nothing but full stops.
        ("gov_report", "", ["words"], 0.0),
        ("multi_news", "...", ["words"], 0.0),
        # Union LCS: "one two" of 4 words each way, as sets.
        ("gov_report", "one two x y", ["one two three four"], 2 * 0.25 / (1 + 1e-8)),
    ],
)
def test_scores_by_hand(task: str, prediction: str, answers: list[str], expected: float) -> None:
    assert score_prediction(task, prediction, answers) == pytest.approx(expected, abs=1e-12)
    assert score_prediction(task + "_e", prediction, answers) == score_prediction(task, prediction, answers)


@pytest.mark.parametrize(
    ("prediction", "answer", "expected"),
    [
        ("city", "city", 1.0),
        ("city other", "city", 1 / 2),
        ("\ncity\nother", "city", 1.0),
        ("it is a city", "art", 0.0),
        # All of art, artist, hart are named in "artist hart". "art" is a part of "artist" and is removed; the loop then
        # stands on the second of [artist, hart] and never looks at "artist" again: 1 of 2.
        ("artist hart", "artist", 1 / 2),
        # [art, hart]: "art" is removed, and "hart" is passed over but stays.
        ("hart", "hart", 1.0),
        ("", "city", 0.0),
    ],
)
def test_classification_by_hand(prediction: str, answer: str, expected: float) -> None:
    assert score_prediction("trec", prediction, [answer], QUESTION_KINDS) == expected


def test_class_after_a_removed_one_is_passed_over() -> None:
    # Both "a" and "ab" are parts of "abc". Removing "a" makes the loop skip "ab", which stays and costs half.
    assert score_prediction("lsht", "abc", ["abc"], ["a", "ab", "abc"]) == 1 / 2
    assert score_prediction("lsht", "abc", ["abc"], ["a", "abc", "ab"]) == 1.0


def test_rouge_overflow_is_zero_wherever_the_caller_stands() -> None:
    # One frame per predicted word. The official loop, three frames deep, scores 0 from 991 words on.
    def score(words: int, frames: int = 0) -> float:
        if frames:
            return score(words, frames - 1)
        return scoring.rouge_l("hit " + " ".join(f"w{place}" for place in range(words - 1)), "hit")

    limit = sys.getrecursionlimit()
    assert score(990) > 0
    assert score(991) == 0
    assert score(990, frames=300) > 0
    assert sys.getrecursionlimit() == limit


words = st.lists(st.sampled_from(["a", "the", "Red", "red.", "car", "x-y", "12", "3"]), max_size=8).map(" ".join)


lines = st.text(alphabet="ab1#`/ \n", max_size=12)


@given(words, words)
def test_qa_f1_against_a_plain_count(prediction: str, answer: str) -> None:
    def plain(text: str) -> list[str]:
        kept = text.lower().translate(str.maketrans("", "", string.punctuation)).split()
        return [word for word in kept if word not in ("a", "an", "the")]

    predicted, expected = plain(prediction), plain(answer)
    common = sum(min(predicted.count(word), expected.count(word)) for word in set(predicted))
    total = len(predicted) + len(expected)
    assert score_prediction("qasper", prediction, [answer]) == pytest.approx(2 * common / total if common else 0.0)


def test_bad_scoring_input_is_named() -> None:
    with pytest.raises(ValueError, match="'narrative' is unknown"):
        score_prediction("narrative", "x", ["x"])
    with pytest.raises(ValueError, match="trec is scored against its class names"):
        score_prediction("trec", "x", ["x"])
    with pytest.raises(ValueError, match="Paragraph <number>"):
        score_prediction("passage_retrieval_en", "3", ["3"])


@given(st.sampled_from(["trec", "triviaqa", "samsum", "lcc", "repobench-p", "qasper", "passage_count"]), lines, lines)
def test_no_text_changes_the_score_of_a_settled_answer(task: str, beginning: str, more: str) -> None:
    if is_settled(task, beginning):
        scores = [
            score_prediction(task, text, ["ab", "b1"], ["a", "ab", "b1"]) for text in (beginning, beginning + more)
        ]
        assert scores[0] == scores[1]
    else:  # it can change: by what is missing, or by anything at all
        assert task not in ("trec", "triviaqa", "samsum") or "\n" not in beginning.lstrip("\n")


def test_summary_by_hand() -> None:
    rows = [
        {"task": "lcc", "length": 3999, "score": 1.0},
        {"task": "lcc", "length": 4000, "score": 0.0},
        {"task": "lcc", "length": 7999, "score": 0.5},
        {"task": "trec_e", "length": 8000, "score": 0.2},
    ]
    result = summarise(rows)
    lcc, trec = result["tasks"]["lcc"], result["tasks"]["trec"]
    assert (lcc["0-4k"], lcc["4-8k"], lcc["8k+"], lcc["all"]) == (100.0, 25.0, None, 50.0)
    assert lcc["n"] == {"0-4k": 1, "4-8k": 2, "8k+": 0, "all": 3}
    assert (trec["0-4k"], trec["8k+"], trec["all"]) == (None, 20.0, 20.0)
    assert result["overall"] == 35.0
    assert result["overall_bucket_mean"] == (62.5 + 20) / 2
    assert summarise([]) == {"tasks": {}, "overall": None, "overall_bucket_mean": None}
