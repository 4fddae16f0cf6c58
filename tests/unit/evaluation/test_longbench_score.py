"""The scorer by itself, and against a second one, written from the definitions alone, on generated predictions."""

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

from longshort.evaluation import longbench, longbench_score, prompts, scoring
from longshort.identity.spec import restored
from longshort.metrics.settings import LongBench
from tests.support.longbench import CLASSES, QUESTION_KINDS, STAND_IN


def test_score_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {"dataset": "passage_count_e", "pred": "5 6", "answers": ["5"], "all_classes": None, "length": 100},
        {"dataset": "trec", "pred": "city", "answers": ["city"], "all_classes": QUESTION_KINDS, "length": 9000},
        {"dataset": "passage_count", "pred": "5", "answers": ["5"], "all_classes": None, "length": 5000},
    ]
    file, out = tmp_path / "predictions.jsonl", tmp_path / "scores.json"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    longbench_score.main(["--predictions", str(file), "--out", str(out), "--per-prediction"])
    result = json.loads(out.read_text())
    assert result["per_prediction"] == {"passage_count": [0.5, 1.0], "trec": [1.0]}
    assert result["tasks"]["passage_count"]["all"] == 75.0
    assert result["overall"] == 87.5
    assert "no predictions for qasper" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("second", "said"),
    [
        ({"pred": ...}, "row 2: no field 'pred'; give dataset"),
        ({"pred": None}, r"row 2: pred = null is of a wrong kind: give .* pred \(text\)"),
        ({"answers": None}, "row 2: answers = null is of a wrong kind"),
        ({"answers": "5"}, 'row 2: answers = "5" is of a wrong kind'),
        ({"answers": [5]}, r"row 2: answers = \[5\] is of a wrong kind"),
        ({"length": None}, "row 2: length = null is of a wrong kind"),
        ({"length": "100"}, 'row 2: length = "100" is of a wrong kind'),
        ({"dataset": 1}, "row 2: dataset = 1 is of a wrong kind"),
        ({"dataset": ...}, "row 2: no field 'dataset'; give dataset"),
        ({"dataset": "narrativeqa"}, "row 2: LongBench task 'narrativeqa' is unknown; known, .* qasper"),
        ({"dataset": "trec"}, "row 2: trec is scored against its class names, but all_classes is null: give the list"),
        ({"all_classes": "city"}, 'row 2: all_classes = "city" is of a wrong kind'),
        ("a text", 'row 2: "a text" is no object: give dataset'),
        ([1], r"row 2: \[1\] is no object"),
    ],
)
def test_rows_that_cannot_be_scored_are_named(second: Any, said: str, tmp_path: Path) -> None:
    right = {"dataset": "passage_count", "pred": "5", "answers": ["5"], "length": 100}
    wrong = second
    if isinstance(second, dict):
        wrong = {field: value for field, value in {**right, **second}.items() if value is not ...}
    file = tmp_path / "predictions.jsonl"
    file.write_text(f"{json.dumps(right)}\n{json.dumps(wrong)}\n")
    with pytest.raises(SystemExit, match=rf"predictions\.jsonl, {said}"):
        longbench_score.main(["--predictions", str(file), "--out", str(tmp_path / "scores.json")])
    assert not (tmp_path / "scores.json").exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "holds no prediction: take a whole copy"),
        (b"\n \n", "holds no prediction: take a whole copy"),
        (b'{"dataset": "qasper"', r"line 1 is no valid JSON \(Expecting .*: take a whole copy"),
        (b'\n{"pred": "caf\xe9"}', r"line 2 is no valid JSON \('utf-8' codec can't decode byte 0xe9"),
    ],
)
def test_a_file_without_predictions_is_an_error(content: bytes, said: str, tmp_path: Path) -> None:
    file, out = tmp_path / "predictions.jsonl", tmp_path / "scores.json"
    file.write_bytes(content)
    with pytest.raises(SystemExit, match=rf"predictions\.jsonl,? {said}") as told:
        longbench_score.main(["--predictions", str(file), "--out", str(out)])
    assert told.value.code != 0 and not out.exists()


def test_scores_of_kept_predictions_are_those_published(
    model: Any, tokenizer: Any, folder: Path, tmp_path: Path
) -> None:
    import pandas

    rows, kept = longbench.evaluate(model, tokenizer, restored(LongBench, STAND_IN), folder, 128)
    file, out = tmp_path / "2-4.items.parquet", tmp_path / "scores.json"
    others = [{**row, "step": 4, "prediction": "no"} for row in kept]
    pandas.DataFrame([*({"step": 2, **row} for row in kept), *others]).to_parquet(file, index=False)
    command = ["--predictions", str(file), "--out", str(out)]
    longbench_score.main([*command, "--step", "2"])
    scored = json.loads(out.read_text())
    found = {"overall": scored["overall"], "overall-bucket-mean": scored["overall_bucket_mean"]}
    for task, means in scored["tasks"].items():
        found |= {task: means["all"], **{f"{task}:{bucket}": means[bucket] for bucket in scoring.BUCKETS}}
    published = {row["task"]: row["value"] for row in rows if row["document"] is None}
    assert found == {task: published[task] for task in found} and len(found) == 13 * 4 + 2
    assert found["overall"] > 0
    for step, said in {(): "several", ("--step", "3"): "step 3 is not there"}.items():
        with pytest.raises(SystemExit, match=rf"holds the steps 2, 4 and .*{said}.*: choose one with --step"):
            longbench_score.main([*command, *step])
    pandas.DataFrame([{"step": 2, "response": "a"}]).to_parquet(file)
    with pytest.raises(SystemExit, match=r"has no all_classes, length, .*: give an \*\.items\.parquet of longbench_e"):
        longbench_score.main(command)
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(SystemExit, match=r"2-4\.items\.parquet is no whole parquet file"):
        longbench_score.main(command)
    (tmp_path / "rows.jsonl").write_text("")
    with pytest.raises(SystemExit, match=r"rows\.jsonl has no steps.*: leave --step out"):
        longbench_score.main(["--predictions", str(tmp_path / "rows.jsonl"), "--out", str(out), "--step", "2"])


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
