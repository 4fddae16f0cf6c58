"""The scorer against a second one, written from the definitions alone, on generated predictions."""

from __future__ import annotations

import difflib
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

from longshort.evaluation import longbench, longbench_items, longbench_score, prompts
from tests.support import golden

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
    found = longbench_score.score_file(file, per_prediction=True)
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


def answering() -> Any:
    """A model whose next token depends on the last one alone, with a wide margin: ":5 red\\ncat(4)#y:", over and over;
    after z comes the end, after d the newline, and where that is not allowed, b."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=257, hidden_size=260, intermediate_size=4, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=1024, bos_token_id=256, eos_token_id=256, pad_token_id=256,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    said = b":5 red\ncat(4)#y:"
    after = {token: said[0] for token in range(257)} | dict(zip(said, said[1:], strict=False))
    after |= {ord("z"): 256, ord("b"): ord("\n")}
    with torch.no_grad():
        block = model.model.layers[0]
        for weight in (block.self_attn.o_proj.weight, block.mlp.down_proj.weight, model.lm_head.weight):
            weight.zero_()
        model.model.embed_tokens.weight.copy_(torch.eye(257, 260))
        model.lm_head.weight[ord("b")] = 0.1
        for token, follower in after.items():
            model.lm_head.weight[follower, token] = 1
    return model


def test_the_protocol_keeps_its_name_only_while_it_does_the_same(tmp_path: Path) -> None:
    """Prompts, truncation and scores of fixed texts; then a fixed model's answers to fixed items, and their means."""
    from longshort.data import tokenizers

    tokenizer = tokenizers.load({"kind": "bytes"})
    values = {f"prompt of {task}": str(prompt) for task, prompt in prompts.official_prompts().items()}
    for size in (5, 8, 12, 99):
        values[f"encoded to {size}"] = str(longbench_items.encode(tokenizer, "a middle that is left out", size))
    answers = {"trec": "City", "passage_count": "5", "passage_retrieval_en": "Paragraph 5"}
    for task in prompts.TASKS:
        for text in ("The red\ncar 5", "\n#5\nred 12 City", "City of x Paragraph 5", ""):
            answer = answers.get(task, "a red 5")
            score = longbench.score_prediction(task, text, [answer], CLASSES)
            values[f"score of {task} for {text!r}"] = f"{score:.10g}"
        items = [
            {"input": asked, "context": context, "length": length, "answers": [answers.get(task, "5 red cat")],
             "all_classes": [*CLASSES, "5 red"] if task == "trec" else None, "_id": f"{task}-{length}"}
            for length, asked, context in [
                (0, "end", "short"), (3999, "quiz", "words " * 200), (4000, "why:", "more"),
                (7999, "so", "that " * 150), (8000, "is", "all\n"),
            ]
        ]  # fmt: skip
        (tmp_path / f"{task}_e.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    chosen = {"source": {"kind": "folder", "path": str(tmp_path)}, "max_length": 800, "max_new_tokens": 40}
    predicted = longbench.predictions(answering(), tokenizer, chosen, tmp_path)
    assert {row["truncated"] for row in predicted} == {True, False}
    assert {"", "b\n", "5 red\n"} <= {row["prediction"] for row in predicted}  # all ways to end before the length
    for row in predicted:
        values |= {f"{field} of {row['id']}": shown(value) for field, value in row.items() if field != "id"}
    means = longbench.summarise(predicted)
    for task, of_task in {**means.pop("tasks"), "all": means}.items():
        values |= {f"mean {bucket} of {task}": shown(value) for bucket, value in of_task.items()}
    hub = {"kind": "hub", "dataset": "THUDM/LongBench", "revision": "0" * 40}
    name = longbench.protocol({"source": hub, "max_length": 4096, "max_new_tokens": None}, 128)
    golden.assert_unchanged("longbench-official", name, values, "longbench.protocol")


def shown(value: Any) -> str:
    return f"{value:.10g}" if isinstance(value, float) else str(value)
