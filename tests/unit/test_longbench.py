from __future__ import annotations

import functools
import hashlib
import json
import re
import string
import subprocess
import sys
import sysconfig
import zipfile
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from longshort.evaluation import (
    longbench,
    longbench_answers,
    longbench_items,
    longbench_score,
    prompts,
    scoring,
    standin,
)
from longshort.evaluation.journal import Journal
from longshort.evaluation.scoring import is_settled, score_prediction, summarise
from longshort.records import hub
from longshort.records.publish import folder_digests, write_json
from tests.support import golden

STAND_IN = {"source": {"kind": "stand-in", "items_per_task": 3}, "max_length": 192, "max_new_tokens": 8}


# Scores. Expected values are worked out by hand from the official metrics.py and eval.py.

QUESTION_KINDS = ["art", "artist", "hart", "city", "other"]


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


def test_scoring_needs_no_model_stack() -> None:
    code = (
        "import sys, longshort.evaluation.longbench; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# Prompts.


def test_prompts_are_the_official_ones() -> None:
    official = prompts.official_prompts()
    assert list(official) == list(prompts.TASKS) and len(official) == 13
    assert official["trec"].format.endswith("questions.\n\n{context}\n{input}")
    assert official["samsum"].format.endswith("examples.\n\n{context}\n\n{input}")
    assert official["passage_count"].format.endswith("answer is: ")
    assert official["lcc"] == ("Please complete the code given below. \n{context}Next line of code:\n", 64)


def test_changed_prompt_is_refused(tmp_path: Path) -> None:
    theirs = prompts._lm_eval_tasks() / "lcc_e.yaml"
    changed = tmp_path / "lcc_e.yaml"
    changed.write_text(theirs.read_text().replace("complete the code", "finish the code"))
    with pytest.raises(ValueError, match="prompt of lcc .* not the official one: digest"):
        prompts._official("lcc", changed)
    changed.write_text(theirs.read_text().replace("max_gen_toks: 64", "max_gen_toks: 65"))
    with pytest.raises(ValueError, match="answer length 65 instead of"):
        prompts._official("lcc", changed)
    with pytest.raises(ValueError, match="no task file"):
        prompts._official("lcc", tmp_path / "absent.yaml")


# Truncation.


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from longshort.data.tokenizers import byte_tokenizer

    return byte_tokenizer()


def test_the_middle_is_left_out(tokenizer: Any) -> None:
    assert longbench_items.encode(tokenizer, "0123456789", 10) == (list(b"0123456789"), False)
    assert longbench_items.encode(tokenizer, "0123456789", 4) == (list(b"0189"), True)
    # Officially int(5 / 2) from each end.
    assert longbench_items.encode(tokenizer, "0123456789", 5) == (list(b"0189"), True)
    # Half a character decodes to U+FFFD, and the text that is encoded again is longer than asked for.
    assert longbench_items.encode(tokenizer, "\u00e9" * 4, 6) == (list("\u00e9\ufffd\ufffd\u00e9".encode()), True)


def test_prompt_and_answer_fit_into_max_length(tokenizer: Any, folder: Path) -> None:
    asked = longbench_items.questions(tokenizer, STAND_IN, folder)
    assert len(asked) == 39
    assert all(question.truncated and question.answer_length == 8 for question in asked)
    assert {len(question.input_ids) for question in asked} == {192 - 8}
    assert longbench_items.questions(tokenizer, STAND_IN, folder) is asked
    official = longbench_items.questions(tokenizer, {**STAND_IN, "max_length": 1024, "max_new_tokens": None}, folder)
    assert {q.task: q.answer_length for q in official} == {t: length for t, (length, _) in prompts.OFFICIAL.items()}
    with pytest.raises(ValueError, match="max_length = 512 leaves no room .* 512 tokens of gov_report's answer"):
        longbench_items.questions(tokenizer, {**STAND_IN, "max_length": 512, "max_new_tokens": None}, folder)


def test_missing_task_or_field_is_named(tokenizer: Any, folder: Path, tmp_path: Path) -> None:
    settings = {"source": {"kind": "folder", "path": str(tmp_path)}, "max_length": 192, "max_new_tokens": 8}
    for file in (folder / "longbench-e-3").glob("*.jsonl"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "trec_e.jsonl").unlink()
    with pytest.raises(ValueError, match="task trec is missing"):
        longbench_items.questions(tokenizer, settings, folder)
    item = json.loads((folder / "longbench-e-3" / "trec_e.jsonl").read_text().split("\n")[0])
    item["question"] = item.pop("input")
    (tmp_path / "trec_e.jsonl").write_text(json.dumps(item) + "\n")
    assert len(longbench_items.questions(tokenizer, settings, folder)) == 37
    del item["answers"]
    (tmp_path / "trec_e.jsonl").write_text(json.dumps(item) + "\n")
    with pytest.raises(ValueError, match="trec_e.jsonl, line 1: no field 'answers'"):
        longbench_items.read_items(str(tmp_path / "{task}_e.jsonl"), "trec")


REVISION = "0" * 40


@pytest.fixture
def official_zip(folder: Path, tmp_path: Path) -> Path:
    """A data.zip as the dataset repository has it, inside the cache that the hub's client keeps."""
    snapshot = tmp_path / "datasets--THUDM--LongBench" / "snapshots" / REVISION
    snapshot.mkdir(parents=True)
    with zipfile.ZipFile(snapshot / "data.zip", "w") as file:
        for task in prompts.TASKS:
            file.write(folder / "longbench-e-3" / f"{task}_e.jsonl", f"data/{task}_e.jsonl")
            file.writestr(f"data/{task}.jsonl", "{}")  # LongBench itself, which is not read
    return snapshot / "data.zip"


def test_items_come_from_the_official_zip(
    tokenizer: Any, folder: Path, official_zip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    expected = longbench_items.questions(tokenizer, STAND_IN, folder)
    settings = {**STAND_IN, "source": {"kind": "zip", "path": str(official_zip)}}
    assert longbench_items.questions(tokenizer, settings, folder) == expected
    source = {"kind": "hub", "dataset": "THUDM/LongBench", "revision": REVISION}
    cache = official_zip.parents[3]
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HOME", str(cache))
    part = hub.longbench(source)
    assert part is not None
    fetched = {"snapshot": str(official_zip.parent.relative_to(cache)), "files": folder_digests(official_zip.parent)}
    write_json(hub.record(part), fetched)
    assert longbench_items.questions(tokenizer, {**STAND_IN, "source": source}, folder) == expected
    full = {"source": source, "max_length": 4096, "max_new_tokens": None}
    assert longbench.protocol(full, 128).startswith("longbench-e/official-v1?data=000000000000&max=4096&prompts=")
    with pytest.raises(ValueError, match=r"not here: data\.zip of dataset THUDM/LongBench at revision 1{40}"):
        longbench_items.questions(tokenizer, {**STAND_IN, "source": {**source, "revision": "1" * 40}}, folder)


def test_a_zip_that_lacks_a_task_or_its_end_is_refused(tokenizer: Any, official_zip: Path, tmp_path: Path) -> None:
    settings = {**STAND_IN, "source": {"kind": "zip", "path": str(tmp_path / "data.zip")}}
    with zipfile.ZipFile(official_zip) as whole, zipfile.ZipFile(tmp_path / "data.zip", "w") as some:
        for name in whole.namelist():
            if name != "data/lcc_e.jsonl":
                some.writestr(name, whole.read(name))
    with pytest.raises(ValueError, match="task lcc is missing"):
        longbench_items.questions(tokenizer, settings, tmp_path)
    (tmp_path / "data.zip").write_bytes(official_zip.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"take a whole copy of the official data\.zip"):
        longbench_items.questions(tokenizer, settings, tmp_path)
    (tmp_path / "data.zip").unlink()
    with pytest.raises(ValueError, match=r"task qasper is missing: no file zip://data/qasper_e\.jsonl::.*data\.zip"):
        longbench_items.questions(tokenizer, settings, tmp_path)


def test_protocol_names_what_was_done(folder: Path, official_zip: Path) -> None:
    local = {"kind": "folder", "path": str(folder / "longbench-e-3")}
    full = {"source": local, "max_length": 4096, "max_new_tokens": None}
    digest = prompts.prompts_digest()
    found = re.fullmatch(
        rf"longbench-e/official-v1\?data=([0-9a-f]{{12}})&max=4096&prompts={digest}", longbench.protocol(full, 128)
    )
    assert found
    # The same items in a zip are the same data; another item is not.
    zipped = {**full, "source": {"kind": "zip", "path": str(official_zip)}, "max_new_tokens": 64}
    said = longbench.protocol(zipped, 128)
    assert said == f"longbench-e/capped-v1?data={found[1]}&max=4096&new=64&prompts={digest}"
    file = folder / "longbench-e-3/lcc_e.jsonl"
    whole = file.read_bytes()
    file.write_bytes(whole.replace(b" ", b"  ", 1))
    assert longbench.protocol(full, 128) != found[0]
    file.write_bytes(whole)
    assert longbench.protocol(STAND_IN, 128) == f"longbench-e/stand-in-v1?items=3&max=192&new=8&prompts={digest}"


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


# Stand-in.


@pytest.fixture(scope="module")
def documents() -> list[tuple[str, str]]:
    root = Path(sysconfig.get_paths()["stdlib"])
    # The tables among them end in lines that the code tasks cannot ask for.
    files = [*sorted(root.glob("*.py"))[::5], *sorted(root.glob("encodings/cp*.py"))]
    return [(path.name, path.read_text(encoding="utf-8")) for path in files]


@pytest.fixture(scope="module")
def items(documents: list[tuple[str, str]]) -> dict[str, list[dict[str, Any]]]:
    return standin.build(documents, items_per_task=6)


@pytest.fixture(scope="module")
def folder(documents: list[tuple[str, str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = tmp_path_factory.mktemp("data")
    standin.write(standin.build(documents, items_per_task=3), data / "longbench-e-3")
    return data


def overall(items: dict[str, list[dict[str, Any]]], answer: Any) -> dict[str, Any]:
    rows = [
        {
            "task": task,
            "length": i["length"],
            "score": score_prediction(task, answer(i), i["answers"], i["all_classes"]),
        }
        for task in items
        for i in items[task]
    ]
    return summarise(rows)


def test_stand_in_scores(items: dict[str, list[dict[str, Any]]]) -> None:
    gold = overall(items, lambda item: item["answers"][0])
    assert gold["overall"] == pytest.approx(100, abs=1e-4)
    assert all(means["n"] == {"0-4k": 2, "4-8k": 2, "8k+": 2, "all": 6} for means in gold["tasks"].values())
    assert overall(items, lambda item: "")["overall"] == 0
    copied = overall(items, lambda item: item["context"].split("\n")[0])
    assert copied["overall"] < 10
    assert max(means["all"] for means in copied["tasks"].values()) < 25
    for constant in range(40):
        for task in ("passage_count", "passage_retrieval_en"):
            assert overall({task: items[task]}, lambda item, n=constant: str(n))["overall"] < 25


def test_stand_in_has_the_official_fields(items: dict[str, list[dict[str, Any]]]) -> None:
    fields = {"input", "context", "answers", "length", "dataset", "language", "all_classes", "_id"}
    assert list(items) == list(prompts.TASKS)
    for task, rows in items.items():
        assert len({row["_id"] for row in rows}) == 6
        for row in rows:
            assert set(row) == fields and row["dataset"] == task
            assert (row["all_classes"] is None) == (task != "trec")


def test_counted_paragraphs_are_the_different_ones(items: dict[str, list[dict[str, Any]]]) -> None:
    for item in items["passage_count"]:
        numbered = item["context"].split("\n\nParagraph ")
        paragraphs = {part.removeprefix("Paragraph ").split(": ", 1)[1].strip() for part in numbered}
        assert len(paragraphs) == int(item["answers"][0]) < len(numbered)


def test_stand_in_is_deterministic(documents: list[tuple[str, str]], items: dict[str, Any], folder: Path) -> None:
    fewer = standin.build(documents[::-1], items_per_task=3)
    assert fewer == {task: rows[:3] for task, rows in items.items()}
    assert standin.build(documents, items_per_task=1, seed=1)["qasper"] != fewer["qasper"][:1]
    manifest = json.loads((folder / "longbench-e-3" / "manifest.json").read_text())
    assert set(manifest) == {f"{task}_e.jsonl" for task in prompts.TASKS}
    assert longbench_items.read_items(str(folder / "longbench-e-3" / "{task}_e.jsonl"), "trec") == fewer["trec"]


def made_source(module: int) -> str:
    """A Python source of 8 documented functions in some 400 words, with a line of each kind."""
    functions = "\n\n".join(
        f"def find_{module}_{place}(table, limit):\n"
        f'    """Finds row {place} of part {module} in a table of rows."""\n'
        f"    # The limit of part {module} holds for row {place}\n"
        f"    for row in table[{place} : limit + {module}]:\n"
        f"        if row.number == {7 * module + place}:\n"
        f"            return row.value + {module * place}\n"
        f"    raise KeyError('no row', {module}, {place})"
        for place in range(8)
    )
    head = f'"""Part {module} of the made sources."""\n\nimport part_{module}\n\n\nclass Row{module}:\n    value = 0\n'
    return f"{head}\n\n{functions}\n"


def test_the_stand_in_keeps_its_name_only_while_it_is_the_same() -> None:
    built = standin.build([(f"part_{module}.py", made_source(module)) for module in range(40)], items_per_task=3)
    values = {}
    for task, items in built.items():
        for place, item in enumerate(items):
            for field, value in item.items():
                # Long texts by their ends and a hash: enough to find the place.
                text = json.dumps(value, sort_keys=True)
                short = f"{text[:60]} ... {text[-60:]} ({hashlib.sha256(text.encode()).hexdigest()[:12]})"
                values[f"{task} {place} {field}"] = text if len(text) < len(short) else short
    golden.assert_unchanged("longbench-stand-in", longbench.protocol(STAND_IN, 128), values, "longbench.protocol")


def test_too_few_documents_are_named() -> None:
    with pytest.raises(ValueError, match="have 2 words together"):
        standin.build([("a.py", "import os")], 1)
    with pytest.raises(ValueError, match="have 0 documented functions"):
        standin.build([("a.py", "x = 1\n" * 5000)], 1)


# Generation.


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_llama()


def tiny_llama(**changes: Any) -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=257, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=64, initializer_range=0.3, bos_token_id=256, eos_token_id=256, pad_token_id=256,
        **changes,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


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


def test_samsum_ends_at_a_newline_and_is_not_empty(tokenizer: Any) -> None:
    import torch

    model = tiny_llama()
    with torch.no_grad():  # every hidden state now prefers the newline, and then "b"
        model.lm_head.weight.zero_()
        model.model.norm.weight.zero_()
    model.lm_head.bias = torch.nn.Parameter(torch.zeros(257))
    with torch.no_grad():
        model.lm_head.bias[10], model.lm_head.bias[ord("b")] = 2.0, 1.0
    assert longbench_answers.predict(model, tokenizer, [question("samsum", b"text", 5)]) == ["b\n"]
    assert longbench_answers.predict(model, tokenizer, [question("trec", b"text", 5)]) == ["\n" * 5]


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


def test_evaluate_gives_all_rows_and_keeps_predictions(model: Any, tokenizer: Any, folder: Path) -> None:
    rows, kept = longbench.evaluate(model, tokenizer, STAND_IN, folder, 128)
    values = {row["task"]: row for row in rows if row["document"] is None}
    assert len(values) == 13 * 4 + 2 + 3
    buckets = [values["overall:8k+"]["value"], np.mean([values[f"{task}:8k+"]["value"] for task in prompts.TASKS])]
    assert values["overall:8k+"]["n"] == 13 and buckets[0] == pytest.approx(buckets[1])
    items = [(row["task"], row["document"], row["value"]) for row in rows if row["document"] is not None]
    assert items == [(row["task"], row["id"], 100 * row["score"]) for row in kept]
    assert all(set(row) == {"metric", "length", "task", "document", "value", "n"} for row in rows)
    assert values["trec"]["n"] == 3 and values["trec:8k+"]["n"] == 1 and values["overall"]["n"] == 39
    assert len(kept) == 39
    again = [
        {**row, "score": score_prediction(row["task"], row["prediction"], row["references"], row["all_classes"])}
        for row in kept
    ]
    assert summarise(again)["overall"] == values["overall"]["value"]


def test_scores_of_kept_predictions_are_those_published(
    model: Any, tokenizer: Any, folder: Path, tmp_path: Path
) -> None:
    import pandas

    rows, kept = longbench.evaluate(model, tokenizer, STAND_IN, folder, 128)
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
