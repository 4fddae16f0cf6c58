"""The scorer against a second one, written from the definitions alone, on generated predictions."""

from __future__ import annotations

import difflib
import hashlib
import json
import re
import statistics
import string
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge import Rouge

from longshort.evaluation import longbench, prompts

CLASSES = ["Date", "Dates", "Other date", "City", "Other city", "City of", "x"]
QA = {"qasper", "multifieldqa_en", "hotpotqa", "2wikimqa", "triviaqa"}
SUMMARIES = {"gov_report", "multi_news", "samsum"}


def f1(prediction: str, answer: str) -> float:
    def words(text: str) -> list[str]:
        kept = text.lower().translate(str.maketrans("", "", string.punctuation))
        return [word for word in re.sub(r"\b(?:a|an|the)\b", " ", kept).split() if word]

    predicted, expected = words(prediction), words(answer)
    left, same = list(expected), 0
    for word in predicted:
        if word in left:
            left.remove(word)
            same += 1
    return 2 * same / (len(predicted) + len(expected)) if same else 0.0


def rouge(prediction: str, answer: str) -> float:
    try:
        return float(Rouge().get_scores([prediction], [answer])[0]["rouge-l"]["f"])
    except (ValueError, RecursionError):
        return 0.0


def classes(prediction: str, answer: str) -> float:
    found = [name for name in CLASSES if name in prediction]
    for name in found:  # the official loop edits the list that it walks
        if name in answer and name != answer:
            found.remove(name)
    return 1 / len(found) if answer in found else 0.0


def numbers(prediction: str, answer: str) -> float:
    found = re.findall(r"\d+", prediction)
    return sum(number == answer for number in found) / len(found) if found else 0.0


def code(prediction: str, answer: str) -> float:
    chosen = ""
    for line in prediction.lstrip("\n").split("\n"):
        if "`" not in line and "#" not in line and "//" not in line:
            chosen = line
            break
    return round(100 * difflib.SequenceMatcher(None, chosen, answer).ratio()) / 100


def score(task: str, prediction: str, answers: list[str]) -> float:
    if task in ("trec", "triviaqa", "samsum"):
        prediction = prediction.lstrip("\n").partition("\n")[0]
    one = {
        **dict.fromkeys(QA, f1),
        **dict.fromkeys(SUMMARIES, rouge),
        "trec": classes,
        "passage_count": numbers,
        "passage_retrieval_en": lambda said, answer: numbers(said, re.findall(r"Paragraph (\d+)", answer)[0]),
        "lcc": code,
        "repobench-p": code,
    }[task]
    return max(one(prediction, answer) for answer in answers)


def means(rows: list[dict[str, Any]]) -> dict[str, Any]:
    tasks: dict[str, Any] = {}
    for task in {row["dataset"].removesuffix("_e") for row in rows}:
        mine = [row for row in rows if row["dataset"].removesuffix("_e") == task]
        of = {"0-4k": (0, 4000), "4-8k": (4000, 8000), "8k+": (8000, 10**9), "all": (0, 10**9)}
        scores = {
            name: [score(task, row["pred"], row["answers"]) for row in mine if low <= row["length"] < high]
            for name, (low, high) in of.items()
        }
        tasks[task] = {name: 100 * statistics.fmean(some) if some else None for name, some in scores.items()}
        tasks[task]["n"] = {name: len(some) for name, some in scores.items()}
    by_bucket = [[task[name] for name in ("0-4k", "4-8k", "8k+") if task[name] is not None] for task in tasks.values()]
    return {
        "tasks": tasks,
        "overall": statistics.fmean(task["all"] for task in tasks.values()),
        "overall_bucket_mean": statistics.fmean(map(statistics.fmean, by_bucket)),
    }


words = st.lists(
    st.sampled_from(["a", "The", "an", "red", "red.", "Red-car", "5", "12", "05", "#x", "//", "`", "\n", *CLASSES]),
    max_size=9,
).map(" ".join)
texts = words | st.text(alphabet="ab 1#\n.", max_size=12)
answers = {
    "trec": st.sampled_from(CLASSES),
    "passage_count": st.sampled_from(["5", "12"]),
    "passage_retrieval_en": st.sampled_from(["Paragraph 5", "Paragraph 12"]),
}
rows = st.sampled_from(prompts.TASKS).flatmap(
    lambda task: st.fixed_dictionaries(
        {
            "dataset": st.sampled_from([task, f"{task}_e"]),
            "pred": texts,
            "answers": st.lists(answers.get(task, texts), min_size=1, max_size=3),
            "all_classes": st.just(CLASSES if task == "trec" else None),
            "length": st.sampled_from([0, 3999, 4000, 7999, 8000, 20000]),
        }
    )
)


@settings(max_examples=150)
@given(st.lists(rows, min_size=1, max_size=60))
def test_equals_a_second_implementation(tmp_path_factory: pytest.TempPathFactory, predicted: list[dict]) -> None:
    file = tmp_path_factory.mktemp("scores") / "predictions.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in predicted))
    found = longbench.score_file(file, per_prediction=True)
    expected = means(predicted)
    for task, scores in found.pop("per_prediction").items():
        mine = [row for row in predicted if row["dataset"].removesuffix("_e") == task]
        assert scores == pytest.approx([score(task, row["pred"], row["answers"]) for row in mine], abs=1e-12)
    assert found["overall"] == pytest.approx(expected["overall"], abs=1e-9)
    assert found["overall_bucket_mean"] == pytest.approx(expected["overall_bucket_mean"], abs=1e-9)
    assert found["tasks"].keys() == expected["tasks"].keys()
    for task, of_task in expected["tasks"].items():
        assert found["tasks"][task]["n"] == of_task.pop("n")
        for name, value in of_task.items():
            assert found["tasks"][task][name] == (None if value is None else pytest.approx(value, abs=1e-9))


def test_the_protocol_keeps_its_name_only_while_it_does_the_same(tmp_path: Path) -> None:
    """Prompts, truncation and scores of fixed texts."""
    from longshort.data import tokenizers

    tokenizer = tokenizers.load({"kind": "bytes"})
    said: list[Any] = [(task, prompt) for task, prompt in prompts.official_prompts().items()]
    said += [longbench.encode(tokenizer, "a middle that is left out", size) for size in (5, 8, 12, 99)]
    for task in prompts.TASKS:
        for text in ("The red\ncar 5", "\n#5\nred 12 City", "City of x Paragraph 5", ""):
            answer = {"trec": "City", "passage_count": "5", "passage_retrieval_en": "Paragraph 5"}.get(task, "a red 5")
            said.append(f"{longbench.score_prediction(task, text, [answer], CLASSES):.10g}")
    hub = {"kind": "hub", "dataset": "THUDM/LongBench", "revision": "0" * 40}
    name = longbench.protocol({"source": hub, "max_length": 4096, "max_new_tokens": None}, 128)
    assert (name, hashlib.sha256(repr(said).encode()).hexdigest()[:12]) == (
        "longbench-e/official-v1?data=000000000000&max=4096&prompts=2d83260f914a",
        "66a219c18448",
    ), "this protocol now gives other numbers: give it a new version (in longbench.protocol) and its digest here"
