"""Where items come from, and what of them fits."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
from tokenizers.processors import TemplateProcessing

from longshort.data.tokenizers import SEPARATOR
from longshort.evaluation import longbench_items, prompts
from longshort.metrics.settings import TaskHub
from longshort.records import hub
from longshort.records.publish import folder_digests, write_json
from tests.support.longbench import REVISION, STAND_IN, protocol, questions


def test_the_middle_is_left_out(tokenizer: Any) -> None:
    assert longbench_items.encode(tokenizer, "0123456789", 10) == (list(b"0123456789"), False)
    assert longbench_items.encode(tokenizer, "0123456789", 4) == (list(b"0189"), True)
    # Officially int(5 / 2) from each end.
    assert longbench_items.encode(tokenizer, "0123456789", 5) == (list(b"0189"), True)
    # Half a character decodes to U+FFFD, and the text that is encoded again is longer than asked for.
    assert longbench_items.encode(tokenizer, "\u00e9" * 4, 6) == (list("\u00e9\ufffd\ufffd\u00e9".encode()), True)


def test_what_a_tokenizer_adds_around_a_text_it_adds_once(tokenizer: Any) -> None:
    """As Llama does it with BOS: the halves of a prompt that is cut have it already."""
    around = TemplateProcessing(single=f"{SEPARATOR} $A {SEPARATOR}", special_tokens=[(SEPARATOR, 256)])
    tokenizer.backend_tokenizer.post_processor = around
    assert longbench_items.encode(tokenizer, "0123456789", 6) == ([256, *b"0189", 256], True)


def test_prompt_and_answer_fit_into_max_length(tokenizer: Any, folder: Path) -> None:
    asked = questions(tokenizer, STAND_IN, folder)
    assert len(asked) == 39
    assert all(question.truncated and question.answer_length == 8 for question in asked)
    assert {len(question.input_ids) for question in asked} == {192 - 8}
    assert questions(tokenizer, STAND_IN, folder) is asked
    official = questions(tokenizer, {**STAND_IN, "max_length": 1024, "max_new_tokens": None}, folder)
    assert {q.task: q.answer_length for q in official} == {t: length for t, (length, _) in prompts.OFFICIAL.items()}


def test_missing_task_or_field_is_named(tokenizer: Any, folder: Path, tmp_path: Path) -> None:
    settings = {"source": {"kind": "folder", "path": str(tmp_path)}, "max_length": 192, "max_new_tokens": 8}
    for file in (folder / "longbench-e-3").glob("*.jsonl"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "trec_e.jsonl").unlink()
    with pytest.raises(ValueError, match="task trec is missing"):
        questions(tokenizer, settings, folder)
    item = json.loads((folder / "longbench-e-3" / "trec_e.jsonl").read_text().split("\n")[0])
    item["question"] = item.pop("input")
    (tmp_path / "trec_e.jsonl").write_text(json.dumps(item) + "\n")
    assert len(questions(tokenizer, settings, folder)) == 37
    del item["answers"]
    (tmp_path / "trec_e.jsonl").write_text(json.dumps(item) + "\n")
    with pytest.raises(ValueError, match="trec_e.jsonl, line 1: no field 'answers'"):
        longbench_items.read_items(str(tmp_path / "{task}_e.jsonl"), "trec")


def test_items_come_from_the_official_zip(
    tokenizer: Any, folder: Path, official_zip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    expected = questions(tokenizer, STAND_IN, folder)
    settings = {**STAND_IN, "source": {"kind": "zip", "path": str(official_zip)}}
    assert questions(tokenizer, settings, folder) == expected
    source = {"kind": "hub", "dataset": "THUDM/LongBench", "revision": REVISION}
    cache = official_zip.parents[3]
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HOME", str(cache))
    part = hub.longbench(TaskHub.model_validate(source))
    fetched = {"snapshot": str(official_zip.parent.relative_to(cache)), "files": folder_digests(official_zip.parent)}
    write_json(hub.record(part), fetched)
    assert questions(tokenizer, {**STAND_IN, "source": source}, folder) == expected
    full = {"source": source, "max_length": 4096, "max_new_tokens": None}
    assert protocol(full).startswith("longbench-e/official-v1?data=000000000000&max=4096&prompts=")
    with pytest.raises(ValueError, match=r"not here: data\.zip of dataset THUDM/LongBench at revision 1{40}"):
        questions(tokenizer, {**STAND_IN, "source": {**source, "revision": "1" * 40}}, folder)


def test_a_zip_that_lacks_a_task_or_its_end_is_refused(tokenizer: Any, official_zip: Path, tmp_path: Path) -> None:
    settings = {**STAND_IN, "source": {"kind": "zip", "path": str(tmp_path / "data.zip")}}
    with zipfile.ZipFile(official_zip) as whole, zipfile.ZipFile(tmp_path / "data.zip", "w") as some:
        for name in whole.namelist():
            if name != "data/lcc_e.jsonl":
                some.writestr(name, whole.read(name))
    with pytest.raises(ValueError, match="task lcc is missing"):
        questions(tokenizer, settings, tmp_path)
    (tmp_path / "data.zip").write_bytes(official_zip.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"take a whole copy of the official data\.zip"):
        questions(tokenizer, settings, tmp_path)
    (tmp_path / "data.zip").unlink()
    with pytest.raises(ValueError, match=r"task qasper is missing: no file zip://data/qasper_e\.jsonl::.*data\.zip"):
        questions(tokenizer, settings, tmp_path)
