"""LongBench's official scores (THUDM/LongBench, metrics.py and eval.py), quirks included.

The official quirks are kept because published numbers contain them; each is named where it stands. Official results are
rounded to two decimals of a per cent, these are not: np.round(value, 2) is the official figure of a bucket.
"""

from __future__ import annotations

import re
import string
import sys
import threading
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from difflib import SequenceMatcher
from typing import Any

import numpy as np
from rouge import Rouge

BUCKETS = ("0-4k", "4-8k", "8k+")
FIRST_LINE_TASKS = {"trec", "triviaqa", "samsum", "lsht"}
CODE_TASKS = {"lcc", "repobench-p"}
# One line of the answer counts.
ONE_LINE_TASKS = FIRST_LINE_TASKS | CODE_TASKS


def score_prediction(
    task: str, prediction: str, answers: Sequence[str], all_classes: Sequence[str] | None = None
) -> float:
    """The official score of one prediction, 0..1: the best over its answers.

    Args:
        task: official name, with or without the suffix `_e`.
        all_classes: the class names; needed by trec and lsht only.

    Raises:
        ValueError: unknown task, classes missing, or an answer of passage_retrieval_en without `Paragraph <number>`.
    """
    task = task_name(task)
    if task in FIRST_LINE_TASKS:
        prediction = prediction.lstrip("\n").split("\n")[0]
    if task in CLASSIFICATION_TASKS:
        if all_classes is None:
            raise ValueError(f"{task} is scored against its class names, but all_classes is null: give the list")
        return max((classification(prediction, answer, all_classes) for answer in answers), default=0.0)
    metric = METRICS[task]
    return max((metric(prediction, answer) for answer in answers), default=0.0)


def is_settled(task: str, prediction: str) -> bool:
    """Whether no text after this beginning of a prediction can change its score: the line that counts is complete."""
    lines = prediction.lstrip("\n").split("\n")[:-1]
    if task in FIRST_LINE_TASKS:
        return bool(lines)
    return task in CODE_TASKS and any(_is_code(line) for line in lines)


def summarise(rows: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Means in per cent over rows of {"task", "length" (words), "score" (0..1)}.

    Returns {"tasks": {task: {"0-4k", "4-8k", "8k+", "all", "n"}}, "overall", "overall_bucket_mean"}. "n" counts the
    items of each bucket and of "all"; overall is the mean over tasks of "all", overall_bucket_mean the mean over tasks
    of the mean of their buckets. A bucket without items is None with n = 0 and takes no part in a mean.
    """
    scores: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        buckets = scores.setdefault(task_name(row["task"]), {name: [] for name in (*BUCKETS, "all")})
        buckets[bucket_of(row["length"])].append(row["score"])
        buckets["all"].append(row["score"])
    tasks: dict[str, dict[str, Any]] = {
        task: {**{name: _per_cent(values) for name, values in buckets.items()}, "n": _counts(buckets)}
        for task, buckets in scores.items()
    }
    bucket_means = [_mean([task[name] for name in BUCKETS if task[name] is not None]) for task in tasks.values()]
    return {
        "tasks": tasks,
        "overall": _mean([task["all"] for task in tasks.values()]),
        "overall_bucket_mean": _mean(bucket_means),
    }


def bucket_of(length: int) -> str:
    """The bucket of an item of `length` words."""
    return "0-4k" if length < 4000 else "4-8k" if length < 8000 else "8k+"


def task_name(name: str) -> str:
    """The official task name without the suffix `_e` of LongBench-E.

    Raises:
        ValueError: no such task.
    """
    task = name.removesuffix("_e")
    if task not in METRICS and task not in CLASSIFICATION_TASKS:
        known = ", ".join(sorted([*METRICS, *CLASSIFICATION_TASKS]))
        raise ValueError(f"LongBench task {name!r} is unknown; known, with or without _e: {known}")
    return task


def normalise_answer(text: str) -> str:
    """Lower case, then without ASCII punctuation, then without articles, then with single spaces: in this order."""
    text = "".join(char for char in text.lower() if char not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def qa_f1(prediction: str, answer: str) -> float:
    """F1 of the bags of normalised words."""
    predicted, expected = normalise_answer(prediction).split(), normalise_answer(answer).split()
    common = sum((Counter(predicted) & Counter(expected)).values())
    if common == 0:
        return 0.0
    precision, recall = common / len(predicted), common / len(expected)
    return 2 * precision * recall / (precision + recall)


def rouge_l(prediction: str, answer: str) -> float:
    """ROUGE-L F of rouge 1.0.1; whatever makes that package fail (empty text, recursion too deep) scores 0.

    Its recursion goes one level deeper per word of a sentence, so that a long one overflows the stack. The official
    loop calls it from three frames deep with Python's limit of 1000. A thread of its own always starts four frames
    deep, and with a limit one higher it has exactly as much room, wherever the caller stands.
    """
    result = [0.0]

    def work() -> None:
        try:
            scores = _ROUGE.get_scores([prediction], [answer], avg=True)
            result[0] = float(scores["rouge-l"]["f"])
        except (RecursionError, ValueError):
            pass

    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(1001)
    try:
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    finally:
        sys.setrecursionlimit(limit)
    return result[0]


_ROUGE = Rouge(metrics=["rouge-l"])


def classification(prediction: str, answer: str, all_classes: Sequence[str]) -> float:
    """1 / (classes named in the prediction), if the right one is among them.

    Classes that are a part of the right one's name are taken back, but while the official loop walks the very list it
    shortens: the class after a removed one is passed over.
    """
    named = [name for name in all_classes if name in prediction]
    place = 0
    while place < len(named):
        name = named[place]
        if name in answer and name != answer:
            named.remove(name)
        place += 1
    return 1.0 / len(named) if answer in named else 0.0


def count(prediction: str, answer: str) -> float:
    """The share of the numbers in the prediction that are the answer: every further number costs."""
    numbers = re.findall(r"\d+", prediction)
    return numbers.count(str(answer)) / len(numbers) if numbers else 0.0


def retrieval(prediction: str, answer: str) -> float:
    """`count` for the number in the answer's `Paragraph <number>`."""
    match = re.search(r"Paragraph (\d+)", answer)
    if match is None:
        raise ValueError(f"answer {answer!r} of passage_retrieval_en has no 'Paragraph <number>': mend the data")
    return count(prediction, match[1])


def code_similarity(prediction: str, answer: str) -> float:
    """Whole per cents of difflib's ratio between the answer and the first line that looks like code and no comment.

    fuzzywuzzy without python-Levenshtein gives the same number; with it, or rapidfuzz, half of the scores differ.
    """
    lines = prediction.lstrip("\n").split("\n")
    line = next(filter(_is_code, lines), "")
    return int(round(100 * SequenceMatcher(None, line, answer).ratio())) / 100


def _is_code(line: str) -> bool:
    return not any(mark in line for mark in ("`", "#", "//"))


METRICS = {
    "qasper": qa_f1,
    "multifieldqa_en": qa_f1,
    "hotpotqa": qa_f1,
    "2wikimqa": qa_f1,
    "gov_report": rouge_l,
    "multi_news": rouge_l,
    "triviaqa": qa_f1,
    "samsum": rouge_l,
    "passage_count": count,
    "passage_retrieval_en": retrieval,
    "lcc": code_similarity,
    "repobench-p": code_similarity,
}
CLASSIFICATION_TASKS = {"trec", "lsht"}


def _per_cent(scores: list[float]) -> float | None:
    return float(100 * np.mean(scores)) if scores else None


def _mean(values: Sequence[float | None]) -> float | None:
    return float(np.mean([value for value in values if value is not None])) if values else None


def _counts(buckets: Mapping[str, list[float]]) -> dict[str, int]:
    return {name: len(scores) for name, scores in buckets.items()}
