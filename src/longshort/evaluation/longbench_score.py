"""Official LongBench scores of predictions that lie in a file, from wherever they come.

python -m longshort.evaluation.longbench score --predictions FILE.jsonl --out FILE.json
python -m longshort.evaluation.longbench score --predictions STEPS.items.parquet --step 50 --out FILE.json
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from longshort.evaluation.longbench_items import read_jsonl
from longshort.evaluation.prompts import TASKS
from longshort.evaluation.scoring import score_prediction, summarise, task_name
from longshort.records.publish import write_json

# The columns of kept predictions, by the official names.
KEPT = {"dataset": "task", "pred": "prediction", "answers": "references", "all_classes": "all_classes"}


def score_file(predictions: Path, per_prediction: bool = False, step: int | None = None) -> dict[str, Any]:
    """Scores rows of {dataset, pred, answers, all_classes, length}; the result is scoring.summarise's.

    With per_prediction also {"per_prediction": {task: [0..1 in the order of the file]}}.

    Args:
        predictions: one JSON a line, or what an evaluation kept (*.items.parquet).
        step: the checkpoint whose predictions are scored, where the file has several.

    Raises:
        ValueError: there is no row; one is no JSON, lacks a field, has one of a wrong kind, or cannot be scored (names
            the row); the file has not that step, or several and none was chosen.
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


def _read_predictions(file: Path, step: int | None) -> list[Any]:
    """The rows with official names; of a kept file, those of one step.

    Raises:
        ValueError: as score_file says.
    """
    if file.suffix != ".parquet":
        if step is not None:
            raise ValueError(f"{file} has no steps, as it is no *.items.parquet of an evaluation: leave --step out")
        with file.open("rb") as lines:
            rows = list(read_jsonl(lines, file))
        if not rows:
            raise ValueError(f"{file} holds no prediction: take a whole copy")
        return rows
    from pyarrow import parquet

    if not file.is_file():
        raise ValueError(f"{file} {'is no file' if file.exists() else 'does not exist'}: give an *.items.parquet")
    try:
        rows = parquet.read_table(file).to_pylist()
    except ValueError as error:
        raise ValueError(f"{file} is no whole parquet file ({error}): take a whole copy") from error
    if not rows:
        raise ValueError(f"{file} holds no prediction: take a whole copy")
    absent = {"step", "length", *KEPT.values()} - set(rows[0])
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


def main(arguments: list[str]) -> None:
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
