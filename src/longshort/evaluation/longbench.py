"""LongBench-E: greedy answers to its 13 tasks, and their official scores.

As the official code does it (THUDM/LongBench, pred.py): official prompts without a chat template, the tokenizer's usual
special tokens, truncation in the middle at the level of text (the two halves are decoded, joined and encoded again, so
that a prompt may come out some tokens off), greedy decoding, official answer lengths, samsum ended at a newline and
never empty. An answer also ends where no more text could change its score: of tasks of which one line counts, when that
line is complete.

One choice differs. The official max_length holds for the prompt alone and is set by hand some 600 tokens below the
model's length; here max_length is prompt and answer together, and each task's prompt gets max_length less its answer.

    python -m longshort.evaluation.longbench score --predictions FILE.jsonl --out FILE.json
    python -m longshort.evaluation.longbench score --predictions STEPS.items.parquet --step 50 --out FILE.json
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary
from zipfile import BadZipFile

import fsspec

from longshort.evaluation.journal import Journal, Measured, Part
from longshort.evaluation.prompts import TASKS, official_prompts, prompts_digest
from longshort.evaluation.scoring import BUCKETS, ONE_LINE_TASKS, is_settled, score_prediction, summarise, task_name
from longshort.records import hub
from longshort.records.publish import write_json

TOKENS_PER_BATCH = 16384
FIELDS = ("context", "answers", "length", "all_classes", "_id")


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


def protocol(settings: dict[str, Any], l_train: int) -> str:
    """The name of what was done; "official" is official data with official answer lengths and nothing else."""
    source, cap = settings["source"], settings.get("max_new_tokens")
    given = [f"max={settings['max_length']}", f"prompts={prompts_digest()}"]
    if cap is not None:
        given.insert(1, f"new={cap}")
    if source["kind"] == "stand-in":
        given.insert(0, f"items={source['items_per_task']}")
        kind = "stand-in"
    else:
        kind = "official" if cap is None else "capped"
        if source["kind"] == "hub":
            given.insert(0, f"data={source['revision'][:12]}")
        else:
            given.insert(0, f"data={_digest(source)}")
    return f"longbench-e/{kind}-v1?{'&'.join(given)}"


def _digest(source: dict[str, Any]) -> str:
    """Of the items of a local source, whatever their files are called: the first 12 hex digits."""
    digest = hashlib.sha256()
    for task in TASKS:
        with _opened(task_files(source, Path()), task, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:12]


def evaluate(
    model: Any, tokenizer: Any, settings: dict[str, Any], data: Path, l_train: int, journal: Part | None = None
) -> Measured:
    """Scores in per cent per task, per task and bucket, over tasks ("overall", "overall-bucket-mean", and
    "overall:0-4k", the mean over the tasks that have items in a bucket), and of each item (`document` is its id).

    Args:
        settings: `source`, `max_length` of prompt and answer together (tokens), `max_new_tokens` (a cap on the answers,
            or None for the official lengths).
        data: a published data folder, with the folder longbench-e-<items> if the source is the stand-in.
        l_train: not used; all evaluations have one signature.
        journal: keeps each prediction; those that it has are not generated again.

    Raises:
        ValueError: a task or a field is missing in the data, or max_length leaves no room for a prompt.
    """
    predicted = predictions(model, tokenizer, settings, data, journal)
    result = summarise(predicted)
    rows = []
    for task, means in result["tasks"].items():
        rows.append(_row(task, means["all"], means["n"]["all"]))
        rows.extend(_row(f"{task}:{bucket}", means[bucket], means["n"][bucket]) for bucket in BUCKETS)
    rows.append(_row("overall", result["overall"], len(predicted)))
    rows.append(_row("overall-bucket-mean", result["overall_bucket_mean"], len(predicted)))
    for bucket in BUCKETS:
        inside = [means for means in result["tasks"].values() if means[bucket] is not None]
        mean = sum(means[bucket] for means in inside) / len(inside) if inside else None
        rows.append(_row(f"overall:{bucket}", mean, sum(means["n"][bucket] for means in inside)))
    rows += [_row(item["task"], 100 * item["score"], 1, document=item["id"]) for item in predicted]
    return Measured(rows, predicted)


def predictions(
    model: Any, tokenizer: Any, settings: dict[str, Any], data: Path, journal: Part | None = None
) -> list[dict[str, Any]]:
    """One row per item: task, id, prediction, references, all_classes, length (words), score (0..1), truncated, tokens.

    `truncated` says whether the prompt lost its middle; `tokens` counts the prompt as the model read it.
    """
    asked = questions(tokenizer, settings, data)
    rows = []
    for question, prediction in zip(asked, predict(model, tokenizer, asked, journal), strict=True):
        rows.append(
            {
                "task": question.task,
                "id": question.id,
                "prediction": prediction,
                "references": question.answers,
                "all_classes": question.all_classes,
                "length": question.length,
                "score": score_prediction(question.task, prediction, question.answers, question.all_classes),
                "truncated": question.truncated,
                "tokens": len(question.input_ids),
            }
        )
    return rows


# A process evaluates many checkpoints, and tokenising whole contexts takes as long as answering them.
_QUESTIONS: WeakKeyDictionary[Any, dict[str, list[Question]]] = WeakKeyDictionary()


def questions(tokenizer: Any, settings: dict[str, Any], data: Path) -> list[Question]:
    """The items of all tasks, truncated to their place; made once per tokenizer and settings."""
    files = task_files(settings["source"], data)
    done = _QUESTIONS.setdefault(tokenizer, {})
    key = json.dumps([files, settings["max_length"], settings.get("max_new_tokens")])
    if key not in done:
        done[key] = list(_read_questions(tokenizer, files, settings["max_length"], settings.get("max_new_tokens")))
        cut = sum(question.truncated for question in done[key])
        print(f"{len(done[key])} questions, {cut} of them without the middle of their prompt", flush=True)
    return done[key]


def task_files(source: dict[str, Any], data: Path) -> str:
    """Where the items of a task are, as fsspec names it, with {task} for its name.

    Raises:
        NotFetched: the dataset is not here.
    """
    if source["kind"] == "stand-in":
        return str(Path(data).resolve() / f"longbench-e-{source['items_per_task']}" / "{task}_e.jsonl")
    if source["kind"] == "folder":
        return str(Path(source["path"]).resolve() / "{task}_e.jsonl")
    if source["kind"] == "zip":
        return "zip://data/{task}_e.jsonl::" + str(Path(source["path"]).resolve())
    part = hub.longbench(source)
    assert part is not None
    return "zip://data/{task}_e.jsonl::" + str(hub.folder(part) / "data.zip")


def _read_questions(tokenizer: Any, files: str, max_length: int, cap: int | None) -> Iterator[Question]:
    for task, prompt in official_prompts().items():
        answer_length = prompt.answer_length if cap is None else min(cap, prompt.answer_length)
        if max_length - answer_length < 2:
            raise ValueError(
                f"longbench_e.max_length = {max_length} leaves no room for a prompt before the {answer_length} tokens "
                f"of {task}'s answer: raise it, or lower max_new_tokens"
            )
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


def read_items(files: str, task: str) -> list[dict[str, Any]]:
    """The items of a task; the field `question` of some mirrors counts as `input`.

    Args:
        files: as task_files gives it.

    Raises:
        ValueError: no such file, or a field is missing.
    """
    file = files.replace("{task}", task)
    with _opened(files, task, "rt", encoding="utf-8") as lines:
        read = list(_read_jsonl(lines, file))
    items = []
    for place, item in enumerate(read, start=1):
        if "input" not in item and "question" in item:
            item["input"] = item["question"]
        for field in ("input", *FIELDS):
            if field not in item:
                raise ValueError(f"{file}, line {place}: no field {field!r}; take the official files of LongBench-E")
        items.append(item)
    if not items:
        raise ValueError(f"LongBench-E task {task} is missing: {file} is empty; take the official files of LongBench-E")
    return items


@contextmanager
def _opened(files: str, task: str, mode: str, **options: Any) -> Iterator[Any]:
    """The file of a task's items.

    Raises:
        ValueError: no such file, or it is cut short.
    """
    file = files.replace("{task}", task)
    try:
        with fsspec.open(file, mode, **options) as opened:
            yield opened
    except (FileNotFoundError, KeyError):
        needed = ", ".join(f"{name}_e.jsonl" for name in TASKS)
        raise ValueError(f"LongBench-E task {task} is missing: no file {file}; needed are {needed}") from None
    except BadZipFile as error:
        raise ValueError(f"{file}: {error}; take a whole copy of the official data.zip") from None


def encode(tokenizer: Any, text: str, max_tokens: int) -> tuple[list[int], bool]:
    """Token ids of text, and whether its middle was left out because it had more than max_tokens tokens."""
    input_ids: list[int] = tokenizer(text, truncation=False).input_ids
    if len(input_ids) <= max_tokens:
        return input_ids, False
    half = max_tokens // 2
    head = tokenizer.decode(input_ids[:half], skip_special_tokens=True)
    tail = tokenizer.decode(input_ids[-half:], skip_special_tokens=True)
    return tokenizer(head + tail, truncation=False).input_ids, True


def predict(model: Any, tokenizer: Any, asked: Sequence[Question], journal: Part | None = None) -> list[str]:
    """Greedy answers, in the order of the questions.

    Questions whose answers have one length share batches of at most TOKENS_PER_BATCH tokens, padded on the left. Where
    the rotary frequencies depend on the length of the input, only questions of equal length do. The journal keeps
    whole batches, so that a resumed job forms the same ones.
    """
    from longshort.evaluation.forward import rope_depends_on_length

    by_length = rope_depends_on_length(model)
    journal = journal or Journal().of("longbench_e")
    batches = list(_batches(asked, by_length))
    journal.expect(len(batches))
    answers: dict[int, str] = {}
    for number, batch in enumerate(batches):
        texts = journal.get(f"batch {number}")
        if texts is None:
            texts = _generate(model, tokenizer, [asked[place] for place in batch], by_length)
            journal.add(f"batch {number}", texts)
        answers.update(zip(batch, texts, strict=True))
    return [answers[place] for place in range(len(asked))]


def _batches(asked: Sequence[Question], equal_length: bool) -> Iterator[list[int]]:
    """Places in `asked` that share a batch: generation is set alike, and the padded rows keep to the budget."""

    def kind(question: Question) -> tuple[bool, int, int]:
        return question.task == "samsum", question.answer_length, len(question.input_ids) if equal_length else 0

    batch: list[int] = []
    # The longest first: a batch too large for the memory fails at once.
    for place in sorted(range(len(asked)), key=lambda place: (kind(asked[place]), -len(asked[place].input_ids))):
        if batch:
            first = asked[batch[0]]
            tokens = (len(batch) + 1) * (len(first.input_ids) + first.answer_length)
            if kind(first) != kind(asked[place]) or tokens > TOKENS_PER_BATCH:
                yield batch
                batch = []
        batch.append(place)
    if batch:
        yield batch


def _generate(model: Any, tokenizer: Any, batch: Sequence[Question], reset_rope: bool) -> list[str]:
    import torch

    stop = model.generation_config.eos_token_id
    if stop is None:
        stop = tokenizer.eos_token_id
    stops = [] if stop is None else [stop] if isinstance(stop, int) else list(stop)
    at_least = 0
    if batch[0].task == "samsum":  # officially: models repeat "\nDialogue" for ever
        stops = [*stops, tokenizer.encode("\n", add_special_tokens=False)[-1]]
        at_least = 1

    width = max(len(question.input_ids) for question in batch)

    def settled(tokens: torch.Tensor, scores: Any) -> torch.Tensor:
        """Rows that need no more text."""
        answers = zip(batch, tokens[:, width:].tolist(), strict=True)
        return tokens.new_tensor([_ends(tokenizer, question.task, row) for question, row in answers]).bool()

    padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else stops[0] if stops else 0
    padded = [[padding] * (width - len(question.input_ids)) + question.input_ids for question in batch]
    mask = [[0] * (width - len(question.input_ids)) + [1] * len(question.input_ids) for question in batch]
    with torch.inference_mode():
        if reset_rope:
            # transformers' dynamic NTK keeps the frequencies of the longest input seen until a short one resets them.
            model(input_ids=_tensor([[padding]], model), use_cache=False)
        output = model.generate(
            input_ids=_tensor(padded, model),
            attention_mask=_tensor(mask, model),
            max_new_tokens=batch[0].answer_length,
            min_new_tokens=at_least,
            num_beams=1,
            do_sample=False,
            eos_token_id=stops or None,
            pad_token_id=padding,
            stopping_criteria=[settled],
            # The default cache copies all keys and values at each token.
            cache_implementation="static",
            disable_compile=True,
        )
    texts = []
    for question, row in zip(batch, output[:, width:].tolist(), strict=True):
        row = _until_stop(row, stops)
        # A row that is settled is padded, too, where another one goes on.
        if question.task in ONE_LINE_TASKS:
            row = row[: _settled_after(tokenizer, question.task, row) or len(row)]
        texts.append(tokenizer.decode(row, skip_special_tokens=True))
    return texts


def _settled_after(tokenizer: Any, task: str, tokens: list[int]) -> int:
    """After how many of its tokens an answer ended; 0: it did not."""
    return next((count for count in range(1, len(tokens) + 1) if _ends(tokenizer, task, tokens[:count])), 0)


def _ends(tokenizer: Any, task: str, tokens: list[int]) -> bool:
    """Whether the newest token ends a line, and with it the answer: no more text could change its score.

    A run of byte tokens ("<0x0A>" is Llama-2's newline) becomes text as a whole, and none if a character in it is cut:
    so one says nothing before another kind of token has followed. Special tokens do not end a run: they are left out
    before.
    """
    if task not in ONE_LINE_TASKS or _leaves_open(tokenizer, tokens[-1]):
        return False
    after_bytes = len(tokens) > 1 and _leaves_open(tokenizer, tokens[-2])
    # To decode the whole answer at each of its tokens would cost more than the model.
    if not after_bytes and "\n" not in tokenizer.decode(tokens[-1:]):
        return False
    return is_settled(task, tokenizer.decode(tokens, skip_special_tokens=True))


def _leaves_open(tokenizer: Any, token: int) -> bool:
    """Whether what comes after a token can change the text before it."""
    is_byte = re.fullmatch("<0x[0-9A-F]{2}>", str(tokenizer.convert_ids_to_tokens(token)))
    return is_byte is not None or token in tokenizer.all_special_ids


def _until_stop(tokens: list[int], stops: Sequence[int]) -> list[int]:
    """The answer up to and with its stop token; padding follows where another row of the batch went on."""
    end = next((place for place, token in enumerate(tokens) if token in stops), len(tokens))
    return tokens[: end + 1]


def _tensor(rows: list[list[int]], model: Any) -> Any:
    import torch

    return torch.tensor(rows, dtype=torch.long, device=model.device)


def _row(task: str, value: float | None, n: int, document: str | None = None) -> dict[str, Any]:
    return {"metric": "longbench_e", "length": None, "task": task, "document": document, "value": value, "n": n}


def score_file(predictions: Path, per_prediction: bool = False, step: int | None = None) -> dict[str, Any]:
    """Scores rows of {dataset, pred, answers, all_classes, length}; the result is scoring.summarise's.

    With per_prediction also {"per_prediction": {task: [0..1 in the order of the file]}}.

    Args:
        predictions: one JSON a line, or what an evaluation kept (*.items.parquet).
        step: the checkpoint whose predictions are scored, where the file has several.

    Raises:
        ValueError: a row is no JSON, lacks a field, has one of a wrong kind, or cannot be scored (names the row); the
            file has not that step, or several and none was chosen.
    """
    rows = []
    for place, line in enumerate(_read_predictions(predictions, step), start=1):
        try:
            _refuse_wrong_kinds(line)
            task = task_name(line["dataset"])
            score = score_prediction(task, line["pred"], line["answers"], line.get("all_classes"))
            rows.append({"task": task, "length": line["length"], "score": score})
        except ValueError as error:
            raise ValueError(f"{predictions}, row {place}: {error}") from None
    result = summarise(rows)
    if per_prediction:
        tasks: list[str] = list(result["tasks"])
        result["per_prediction"] = {task: [row["score"] for row in rows if row["task"] == task] for task in tasks}
    return result


# The columns of kept predictions, by the official names.
KEPT = {"dataset": "task", "pred": "prediction", "answers": "references", "all_classes": "all_classes"}


def _read_predictions(file: Path, step: int | None) -> list[Any]:
    """The rows with official names; of a kept file, those of one step.

    Raises:
        ValueError: as score_file says.
    """
    if file.suffix != ".parquet":
        if step is not None:
            raise ValueError(f"{file} has no steps, as it is no *.items.parquet of an evaluation: leave --step out")
        with file.open(encoding="utf-8") as lines:
            return list(_read_jsonl(lines, file))
    from pyarrow import parquet

    try:
        rows = parquet.read_table(file).to_pylist()
    except ValueError as error:
        raise ValueError(f"{file} is no whole parquet file ({error}): take a whole copy") from error
    absent = {"step", "length", *KEPT.values()} - set(rows[0] if rows else ())
    if absent:
        raise ValueError(f"{file} has no {', '.join(sorted(absent))}: give an *.items.parquet of longbench_e")
    steps = sorted({row["step"] for row in rows})
    if step is None and len(steps) > 1 or step is not None and step not in steps:
        said = "it has several" if step is None else f"step {step} is not there"
        raise ValueError(f"{file} holds the steps {', '.join(map(str, steps))} and {said}: choose one with --step")
    return [
        {**{name: row[column] for name, column in KEPT.items()}, "length": row["length"]}
        for row in rows
        if step in (None, row["step"])
    ]


def _refuse_wrong_kinds(row: Any) -> None:
    """One row of predictions can be scored only if it is one.

    Raises:
        ValueError: it is no object, or a field is absent or of a wrong kind.
    """
    needed = "give dataset (text), pred (text), answers (list of texts), length (integer), all_classes (list or null)"
    if not isinstance(row, dict):
        raise ValueError(f"{json.dumps(row)[:80]} is no object: {needed}")
    kinds = {
        "dataset": lambda value: isinstance(value, str),
        "pred": lambda value: isinstance(value, str),
        "answers": _are_texts,
        "length": lambda value: isinstance(value, int) and not isinstance(value, bool),
        "all_classes": lambda value: value is None or _are_texts(value),
    }
    for field, fits in kinds.items():
        if field not in row and field != "all_classes":
            raise ValueError(f"no field {field!r}; {needed}")
        if not fits(row.get(field)):
            raise ValueError(f"{field} = {json.dumps(row[field])[:80]} is of a wrong kind: {needed}")


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def _read_jsonl(lines: Iterable[str], file: object) -> Iterator[dict[str, Any]]:
    for place, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            yield json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{file}, line {place} is no valid JSON ({error}): take a whole copy") from error


def _score_main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m longshort.evaluation.longbench score", description="Official LongBench scores of predictions."
    )
    parser.add_argument(
        "--predictions",
        type=Path,
        required=True,
        help="JSON lines {dataset, pred, answers, all_classes, length}, or the *.items.parquet of an evaluation",
    )
    parser.add_argument("--step", type=int, help="checkpoint to score, where an *.items.parquet has several")
    parser.add_argument("--out", type=Path, required=True, help="JSON file of scores in per cent")
    parser.add_argument("--per-prediction", action="store_true", help="add the score of every row, 0..1")
    given = parser.parse_args(arguments)
    try:
        result = score_file(given.predictions, given.per_prediction, given.step)
    except (OSError, ValueError) as error:
        sys.exit(str(error))
    missing = [task for task in TASKS if task not in result["tasks"]]
    if missing:
        print(f"no predictions for {', '.join(missing)}: the means are over the other tasks", file=sys.stderr)
    write_json(given.out, result)


if __name__ == "__main__":
    if sys.argv[1:2] == ["score"]:
        _score_main(sys.argv[2:])
    else:
        from longshort.evaluation import stage

        stage.main("longbench_e", evaluate, protocol, keeps_items=True)
