"""The questions of LongBench-E: items from wherever they lie, in the official prompts, cut to the model's length.

Truncation as the official code does it (THUDM/LongBench, pred.py): in the middle at the level of text. The two halves
are decoded, joined and encoded again, so that a prompt may come out some tokens off.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary
from zipfile import BadZipFile

import fsspec

from longshort.evaluation.prompts import TASKS, official_prompts, prompts_digest
from longshort.metrics.settings import (
    LONGBENCH_FIELDS,
    LongBenchItems,
    LongBenchSource,
    StandIn,
    TaskFolder,
    TaskHub,
    TaskZip,
)
from longshort.records import hub, layout


class Question(NamedTuple):
    """One item, ready for the model."""

    task: str
    id: str
    input_ids: list[int]
    answer_length: int  # tokens
    truncated: bool
    answers: list[str]
    all_classes: list[str] | None
    length: int  # words, as the data says


# A process evaluates many checkpoints, and tokenising whole contexts takes as long as answering them.
_QUESTIONS: WeakKeyDictionary[Any, dict[str, list[Question]]] = WeakKeyDictionary()


def questions(tokenizer: Any, asked: LongBenchItems, cap: int | None, data: Path) -> list[Question]:
    """The items of all tasks, truncated to their place; made once per tokenizer and settings.

    Args:
        cap: tokens of an answer, at most; None: the official lengths.
        data: a published data folder, with the folder longbench-e-<items> if the source is the stand-in.

    Raises:
        ValueError: a task or a field is missing in the data.
    """
    files = task_files(asked.source, data)
    done = _QUESTIONS.setdefault(tokenizer, {})
    key = json.dumps([files, asked.max_length, cap])
    if key not in done:
        done[key] = list(_read_questions(tokenizer, files, asked.max_length, cap))
        cut = sum(question.truncated for question in done[key])
        print(f"{len(done[key])} questions, {cut} of them without the middle of their prompt", flush=True)
    return done[key]


def _read_questions(tokenizer: Any, files: str, max_length: int, cap: int | None) -> Iterator[Question]:
    for task, prompt in official_prompts().items():
        answer_length = prompt.answer_length if cap is None else min(cap, prompt.answer_length)
        for item in read_items(files, task):
            text = prompt.format.format(context=item["context"], input=item["input"])
            input_ids, truncated = encode(tokenizer, text, max_length - answer_length)
            yield Question(
                task=task,
                id=str(item["_id"]),
                input_ids=input_ids,
                answer_length=answer_length,
                truncated=truncated,
                answers=item["answers"],
                all_classes=item["all_classes"],
                length=item["length"],
            )


def encode(tokenizer: Any, text: str, max_tokens: int) -> tuple[list[int], bool]:
    """Token ids of text, and whether its middle was left out because it had more than max_tokens tokens."""
    input_ids: list[int] = tokenizer(text, truncation=False).input_ids
    if len(input_ids) <= max_tokens:
        return input_ids, False
    half = max_tokens // 2
    head = tokenizer.decode(input_ids[:half], skip_special_tokens=True)
    tail = tokenizer.decode(input_ids[-half:], skip_special_tokens=True)
    return tokenizer(head + tail, truncation=False).input_ids, True


def task_files(source: LongBenchSource, data: Path) -> str:
    """Where the items of a task are, as fsspec names it, with {task} for its name.

    Raises:
        NotFetched: the dataset is not here.
    """
    match source:
        case StandIn():
            return layout.standin(Path(data).resolve(), source.items_per_task) + "/{task}_e.jsonl"
        case TaskHub():
            return "zip://data/{task}_e.jsonl::" + str(hub.folder(hub.longbench(source)) / "data.zip")
    return _local_files(source)


def _local_files(source: TaskFolder | TaskZip) -> str:
    path = Path(source.path).resolve()
    return str(path / "{task}_e.jsonl") if isinstance(source, TaskFolder) else "zip://data/{task}_e.jsonl::" + str(path)


def protocol(asked: LongBenchItems, cap: int | None) -> str:
    """The name of what was done; "official" is official data with official answer lengths and nothing else."""
    source = asked.source
    given = [f"max={asked.max_length}", f"prompts={prompts_digest()}"]
    if cap is not None:
        given.insert(1, f"new={cap}")
    kind = "official" if cap is None else "capped"
    match source:
        case StandIn():
            given.insert(0, f"items={source.items_per_task}")
            kind = "stand-in"
        case TaskHub():
            given.insert(0, f"data={source.revision[:12]}")
        case _:
            given.insert(0, f"data={digest_of(source)}")
    return f"longbench-e/{kind}-v1?{'&'.join(given)}"


def digest_of(source: TaskFolder | TaskZip) -> str:
    """Of the items of a local source, whatever their files are called: the first 12 hex digits."""
    digest = hashlib.sha256()
    for task in TASKS:
        with _opened(_local_files(source), task) as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:12]


def read_items(files: str, task: str) -> list[dict[str, Any]]:
    """The items of a task; the field `question` of some mirrors counts as `input`.

    Args:
        files: as task_files gives it.

    Raises:
        ValueError: no such file, or a field is missing.
    """
    file = files.replace("{task}", task)
    with _opened(files, task) as lines:
        read = list(read_jsonl(lines, file))
    items = []
    for place, item in enumerate(read, start=1):
        if "input" not in item and "question" in item:
            item["input"] = item["question"]
        for field in ("input", *LONGBENCH_FIELDS):
            if field not in item:
                raise ValueError(f"{file}, line {place}: no field {field!r}; take the official files of LongBench-E")
        items.append(item)
    if not items:
        raise ValueError(f"LongBench-E task {task} is missing: {file} is empty; take the official files of LongBench-E")
    return items


@contextmanager
def _opened(files: str, task: str) -> Iterator[Any]:
    """The file of a task's items.

    Raises:
        ValueError: no such file, or it is cut short.
    """
    file = files.replace("{task}", task)
    try:
        with fsspec.open(file, "rb") as opened:
            yield opened
    except (FileNotFoundError, KeyError):
        needed = ", ".join(f"{name}_e.jsonl" for name in TASKS)
        raise ValueError(f"LongBench-E task {task} is missing: no file {file}; needed are {needed}") from None
    except BadZipFile as error:
        raise ValueError(f"{file}: {error}; take a whole copy of the official data.zip") from None


def read_jsonl(lines: Iterable[bytes], file: object) -> Iterator[dict[str, Any]]:
    """The values of JSON lines in UTF-8, without empty lines.

    Args:
        file: what an error names.

    Raises:
        ValueError: a line is no JSON, or no UTF-8.
    """
    for place, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            yield json.loads(line.decode("utf-8-sig"))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{file}, line {place} is no valid JSON ({error}): take a whole copy") from error
