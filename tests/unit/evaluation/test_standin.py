"""The items that stand in for the official ones."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from longshort.evaluation import longbench_items, prompts, standin
from longshort.evaluation.scoring import score_prediction, summarise
from tests.support import golden
from tests.support.longbench import STAND_IN, protocol


@pytest.fixture(scope="module")
def items(documents: list[tuple[str, str]]) -> dict[str, list[dict[str, Any]]]:
    return standin.build(documents, items_per_task=6)


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
    golden.assert_unchanged("longbench-stand-in", protocol(STAND_IN), values, "longbench.protocol")


def test_too_few_documents_are_named() -> None:
    with pytest.raises(ValueError, match="have 2 words together"):
        standin.build([("a.py", "import os")], 1)
    with pytest.raises(ValueError, match="have 0 documented functions"):
        standin.build([("a.py", "x = 1\n" * 5000)], 1)
