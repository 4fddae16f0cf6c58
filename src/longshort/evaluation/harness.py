"""Tasks of lm_eval (the LM Evaluation Harness) on the model that the other evaluations load.

As lm_eval does it, with its own prompts, metrics and seeds: no chat template, prompts that are too long lose their
beginning. The tasks come from harness_tasks.py, the answers from harness_answers.py. Groups are put together from their
tasks.
"""

from __future__ import annotations

import hashlib
import json
import math
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from longshort.data.settings import Tokenizer
from longshort.evaluation import stage
from longshort.evaluation.harness_answers import is_number, measure, wrapped
from longshort.evaluation.harness_tasks import MADE, WHERE, Entry, entries, reach_of
from longshort.evaluation.journal import Journal, Measured, Section
from longshort.identity.spec import digest, dumps
from longshort.metrics.catalog import task_files
from longshort.metrics.settings import Harness
from longshort.records import hub
from longshort.records.publish import file_digest


class Number(NamedTuple):
    """metric: lm_eval's name, with that of the filter where the answer was filtered."""

    metric: str
    value: float
    error: float | None  # standard error


def protocol(settings: Harness, l_train: int, tokenizer: Tokenizer) -> str:
    fewshot = "task" if settings.num_fewshot is None else settings.num_fewshot
    given = [
        f"tasks={','.join(settings.tasks)}",
        f"limit={settings.limit or 'none'}",
        f"fewshot={fewshot}",
        f"max={settings.max_length}",
    ]
    if settings.include_path:
        given.append(f"own={_digest(Path(settings.include_path))}")
    else:
        fetched = [hub.documents(hub.task(name)) for name in settings.tasks]
        given += [f"data={digest(dumps(fetched), 12)}"] if {*fetched} - {None, MADE} else []
    return f"harness/lm_eval-{version('lm_eval')}-v3?{'&'.join(given)}"


def _digest(folder: Path) -> str:
    """Of one's own task files and what lies beside them, the first 12 hex digits."""
    files = {path.relative_to(folder).as_posix(): file_digest(path) for path in task_files(str(folder))}
    return hashlib.sha256(json.dumps(files).encode()).hexdigest()[:12]


def _refuse_others(asked: list[Entry]) -> None:
    """lm_eval names no revision of most data, and its cache gives what was loaded last."""
    for entry in asked:
        task = hub.task(entry.name)
        if (known := hub.documents(task)) is None:
            raise hub.NotFetched(f"not here: {hub.missing_in_words([task])}")
        if entry.documents != known:
            raise ValueError(
                f"{WHERE} has {entry.name!r}, whose documents are not those that were fetched (by "
                f"{hub.record(task)}): run `longshort fetch` again, and measure all arms on them"
            )


def evaluate(
    model: Any, tokenizer: Any, settings: Harness, data: Path, l_train: int, journal: Section | None = None
) -> Measured:
    """One row "harness:<entry>" for the main metric of each entry of `tasks`, and rows "harness" for all metrics.

    The main metric is the first that lm_eval lists. That of a group or tag without one is the mean over its tasks. Rows
    "harness" have the task "<task>:<metric>" or, for its standard error, "<task>:<metric>_stderr"; a task's main metric
    is its first row. Values are as lm_eval gives them, most of them 0 to 1.

    Args:
        settings: with the `max_length` that the study's model has, where it asks for none.
        data: not used; all evaluations have one signature.
        l_train: not used.
        journal: keeps each task's result and each answer of the model; those that it has are not measured again.

    Raises:
        ValueError: a task is unknown, cannot be loaded, runs code that its model wrote, leaves no room for a prompt, or
            its direction is not the one stated, or its documents are not those that were fetched.
    """
    asked = entries(tokenizer, settings)
    if not settings.include_path:
        _refuse_others(asked)
    tasks = {label: task for entry in asked for label, task in entry.tasks.items()}
    journal = journal or Journal().of("harness")
    journal.expect(len(tasks))
    lm = wrapped(model, tokenizer, reach_of(settings), journal)
    done: dict[str, Any] = {}
    for label, task in tasks.items():
        done[label] = journal.get(label)
        if done[label] is None:
            done[label] = measure(lm, label, task, settings)
            journal.add(label, done[label])
    mains, rows = [], {}
    for entry in asked:
        numbers = {label: (_numbers(done[label]["result"]), done[label]["n"]) for label in entry.tasks}
        for label, group in entry.groups.items():
            results = {task.task_name: done[name]["result"] for name, task in entry.tasks.items()}
            count = sum(done[name]["n"] for name, task in entry.tasks.items() if task in group.get_all_tasks())
            numbers[label] = (_numbers(group.aggregate(results)), count)
        mains.append(_main_row(entry, numbers))
        rows.update({row["task"]: row for label in numbers for row in _rows(label, *numbers[label])})
    return Measured([*mains, *rows.values()], [item for label in done for item in done[label]["items"]])


def _numbers(result: dict[str, Any]) -> list[Number]:
    """The metrics of lm_eval's result {"acc,none": value, "acc_stderr,none": error, ...}, in its order."""
    found = []
    for key, value in result.items():
        metric, comma, kept = key.partition(",")
        if not comma or metric.endswith("_stderr") or not is_number(value):
            continue
        if metric.isdigit() and value == -1:  # RULER's word for a length without items
            continue
        error = result.get(f"{metric}_stderr,{kept}")
        stated = is_number(error) and math.isfinite(error)
        found.append(Number(metric if kept == "none" else key, float(value), error if stated else None))
    return found


def _main_row(entry: Entry, numbers: dict[str, tuple[list[Number], int]]) -> dict[str, Any]:
    own, count = numbers.get(entry.name, ([], 0))
    value = own[0].value if own else float("nan")
    if not own:
        firsts = [some[0].value for label in entry.tasks for some in [numbers[label][0]] if some]
        if not firsts:
            raise ValueError(f"{WHERE} has {entry.name!r}, for which lm_eval gave no number; take it out")
        value, count = sum(firsts) / len(firsts), sum(numbers[label][1] for label in entry.tasks)
    return _row(f"harness:{entry.name}", None, value, count)


def _rows(label: str, numbers: list[Number], count: int) -> list[dict[str, Any]]:
    rows = []
    for number in numbers:
        rows.append(_row("harness", f"{label}:{number.metric}", number.value, count))
        if number.error is not None:
            rows.append(_row("harness", f"{label}:{number.metric}_stderr", number.error, count))
    return rows


def _row(metric: str, task: str | None, value: float, count: int) -> dict[str, Any]:
    return {"metric": metric, "length": None, "task": task, "document": None, "value": value, "n": count}


MEASUREMENT = stage.Measurement(
    metric="harness",
    module="longshort.evaluation.harness",
    asks=Harness,
    evaluate=evaluate,
    protocol=protocol,
    keeps_items=True,
    uses_network=True,
)


if __name__ == "__main__":
    stage.main(MEASUREMENT)
