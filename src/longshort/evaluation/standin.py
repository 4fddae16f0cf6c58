"""An offline stand-in for LongBench-E: 13 tasks of the official shape, made from the test documents of a data folder.

    python -m longshort.evaluation.standin --data results/data/ID --items 3 --out FOLDER

The documents are Python sources. Each task asks the like of what its official model asks, in the same prompt, of the
same length in words, with the same kind of answer; the numbers compare the arms of a study and are no LongBench scores.
Item k of a task is drawn from a generator of its own, (seed, task, k), and belongs to bucket k modulo 3.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from longshort.data import integrity, splits
from longshort.errors import in_a_line
from longshort.evaluation.prompts import TASKS
from longshort.evaluation.scoring import bucket_of, score_prediction
from longshort.evaluation.standin_material import Material, count_words, extract
from longshort.evaluation.standin_tasks import BUILDERS, RETRIEVAL_PARAGRAPHS, Item
from longshort.identity.code import refuse_changed_code
from longshort.jobs import interruption
from longshort.jobs.ownership import Owner, sole_owner
from longshort.records.publish import HASHES, file_digest, read_record, wait_for_files, write_atomic, write_json

# Words of an item that is to fall into 0-4k, 4-8k, 8k+; the margins leave room for questions and whole last passages.
WORDS = ((800, 3000), (4400, 7000), (8200, 9000))
DRAWS = 50


def build(documents: Iterable[tuple[str, str]], items_per_task: int, seed: int = 0) -> dict[str, list[Item]]:
    """The items of the 13 tasks in the official format, from (name, text) of Python sources.

    Raises:
        ValueError: the documents have too few words or documented functions.
    """
    material = extract(documents)
    _refuse_too_little(material)
    items: dict[str, list[Item]] = {}
    for place, task in enumerate(TASKS):
        numbers = np.random.Generator(np.random.Philox([seed, place])).permutation(RETRIEVAL_PARAGRAPHS - 1).tolist()
        items[task] = [
            _build_item(task, material, np.random.Generator(np.random.Philox([seed, place, k])), k, numbers)
            for k in range(items_per_task)
        ]
    return items


def _refuse_too_little(material: Material) -> None:
    words = sum(count_words(module.text) for module in material.modules)
    if words < WORDS[-1][-1]:
        raise ValueError(
            f"the test documents have {words} words together, and the stand-in needs {WORDS[-1][-1]}: "
            "give the test split more documents"
        )
    heads = len({function.summary for function in material.functions})
    if heads < RETRIEVAL_PARAGRAPHS:
        raise ValueError(
            f"the test documents have {heads} documented functions, and the stand-in needs {RETRIEVAL_PARAGRAPHS}: "
            "give the test split more Python sources"
        )


def _build_item(task: str, material: Material, rng: np.random.Generator, k: int, numbers: Sequence[int]) -> Item:
    """Draws until the item falls into its bucket, its own answer scores 1 and none scores 0."""
    low, high = WORDS[k % len(WORDS)]
    for _ in range(DRAWS):
        words = int(rng.integers(low, high))
        fields = BUILDERS[task](material, rng, words, numbers[k % len(numbers)])
        item = {"all_classes": None, "language": "en", **fields, "dataset": task, "_id": f"{task}-{k}"}
        item["length"] = sum(count_words(text) for text in (item["input"], item["context"], *item["answers"]))
        gold, empty = (
            score_prediction(task, prediction, item["answers"], item["all_classes"])
            for prediction in (item["answers"][0], "")
        )
        if bucket_of(item["length"]) == bucket_of(low) and gold > 0.9999 and empty == 0:
            return item
    raise ValueError(
        f"no item {k} of {task} with {low} to {high} words came of {DRAWS} draws: "
        "give the test split more Python sources"
    )


def write(items: dict[str, list[Item]], out: Path, owner: Owner | None = None) -> None:
    """The 13 files `<task>_e.jsonl`, each whole or not at all, and last manifest.json with the sha256 of each."""
    for task, rows in items.items():
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        write_atomic(out / f"{task}_e.jsonl", lines)
    if owner is not None:
        owner.refuse_if_lost()
    write_json(out / "manifest.json", {f"{task}_e.jsonl": file_digest(out / f"{task}_e.jsonl") for task in items})


@in_a_line()
def main() -> None:
    parser = argparse.ArgumentParser(description="Make the offline stand-in of LongBench-E.")
    parser.add_argument("--data", type=Path, required=True, help="a published data folder; its test split is read")
    parser.add_argument("--items", type=int, required=True, help="items per task, spread over the length buckets")
    parser.add_argument("--out", type=Path, required=True, help="folder of the 13 files and manifest.json")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--code", help="refuse to run if the code's hash is another one")
    arguments = parser.parse_args()
    if arguments.code:
        refuse_changed_code(arguments.code, "longshort.evaluation.standin")
    interruption.end_at_once()
    make(arguments.data, arguments.items, arguments.seed, arguments.out)


def make(data: Path, items_per_task: int, seed: int, out: Path) -> None:
    manifest = read_record(data / "manifest.json", like={"content": str, "files": HASHES})
    wait_for_files(data, manifest["files"])
    with sole_owner(out) as owner:
        integrity.refuse_altered(data / "manifest.json", "test", content=manifest["content"])
        test = splits.load(data / "test")
        documents = list(zip(test.column("name").to_pylist(), test.column("text").to_pylist(), strict=True))
        write(build(documents, items_per_task, seed), out, owner)


if __name__ == "__main__":
    main()
