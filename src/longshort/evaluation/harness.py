"""Tasks of lm_eval (the LM Evaluation Harness) on the model that the other evaluations load.

As lm_eval does it, with its own prompts, metrics and seeds: no chat template, prompts that are too long lose their
beginning. Rows go through the model one by one, so no number depends on what shares a batch with it, and the answer to
each is kept as it comes: a killed job goes on after the last one. Groups are put together from their tasks.

An entry of `tasks` is a name of lm_eval: a task, a group or a tag. "name@4096" gives the length to tasks that make
their own data (RULER, tokens), "name@4k" to those whose data has named lengths (BABILong).
"""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import os
import random
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard
from weakref import WeakKeyDictionary

import numpy as np

from longshort.evaluation.journal import Journal, Measured, Part
from longshort.records.publish import folder_digests

# lm_eval's own defaults, so that its published numbers come out again.
RANDOM_SEED, OTHER_SEED = 0, 1234
WHERE = "evaluations.harness.tasks"


@dataclass
class Entry:
    """One entry of `tasks`: its tasks by label (with the length), and its groups by label, inner ones first."""

    name: str
    tasks: dict[str, Any]
    groups: dict[str, Any]


class Number(NamedTuple):
    """metric: lm_eval's name, with that of the filter where the answer was filtered."""

    metric: str
    value: float
    error: float | None  # standard error


def protocol(settings: dict[str, Any], l_train: int) -> str:
    fewshot = "task" if settings["num_fewshot"] is None else settings["num_fewshot"]
    given = [
        f"tasks={','.join(settings['tasks'])}",
        f"limit={settings['limit'] or 'none'}",
        f"fewshot={fewshot}",
        f"max={settings['max_length']}",
    ]
    if settings["include_path"]:
        given.append(f"own={_digest(Path(settings['include_path']))}")
    return f"harness/lm_eval-{version('lm_eval')}-v2?{'&'.join(given)}"


def _digest(folder: Path) -> str:
    """Of one's own task files and what lies beside them, the first 12 hex digits; not of what Python makes of them."""
    files = {name: digest for name, digest in folder_digests(folder).items() if "__pycache__" not in name}
    return hashlib.sha256(json.dumps(files).encode()).hexdigest()[:12]


def evaluate(
    model: Any, tokenizer: Any, settings: dict[str, Any], data: Path, l_train: int, journal: Part | None = None
) -> Measured:
    """One row "harness:<entry>" for the main metric of each entry of `tasks`, and rows "harness" for all metrics.

    The main metric is the first that lm_eval lists. That of a group or tag without one is the mean over its tasks. Rows
    "harness" have the task "<task>:<metric>" or, for its standard error, "<task>:<metric>_stderr"; a task's main metric
    is its first row. Values are as lm_eval gives them, most of them 0 to 1.

    Args:
        settings: `tasks`; `max_length` of prompt and answer together, tokens; `limit`, first items of each task or
            None; `num_fewshot`, or None for each task's own; `include_path`, folder of one's own task files, or None;
            `lower_is_better`, entries whose main metric is better when lower.
        data: not used; all evaluations have one signature.
        l_train: not used.
        journal: keeps each task's result and each answer of the model; those that it has are not measured again.

    Raises:
        ValueError: a task is unknown, cannot be loaded, runs code that its model wrote, leaves no room for a prompt, or
            its direction is not the one stated.
    """
    asked = entries(tokenizer, settings)
    tasks = {label: task for entry in asked for label, task in entry.tasks.items()}
    journal = journal or Journal().of("harness")
    journal.expect(len(tasks))
    lm = _wrapped(model, tokenizer, settings["max_length"], journal)
    done: dict[str, Any] = {}
    for label, task in tasks.items():
        done[label] = journal.get(label)
        if done[label] is None:
            done[label] = _measure(lm, label, task, settings)
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


# ---- tasks -----------------------------------------------------------------------------------------------------------

# A process evaluates many checkpoints; reading the index of lm_eval takes 20 s, and tasks like RULER make their data.
_ENTRIES: WeakKeyDictionary[Any, dict[str, list[Entry]]] = WeakKeyDictionary()


def entries(tokenizer: Any, settings: dict[str, Any]) -> list[Entry]:
    """The entries of `tasks` with their data, loaded once per tokenizer and settings.

    Raises:
        ValueError: as evaluate says.
    """
    done = _ENTRIES.setdefault(tokenizer, {})
    key = json.dumps(settings, sort_keys=True)
    if key not in done:
        manager = _manager(settings)
        done[key] = [_load(manager, name, tokenizer, settings) for name in settings["tasks"]]
    return done[key]


def _manager(settings: dict[str, Any]) -> Any:
    """lm_eval's index of tasks, which knows every entry.

    Raises:
        ValueError: a name is unknown.
    """
    from lm_eval.tasks import TaskManager

    names = [entry.split("@")[0] for entry in settings["tasks"]]
    own = settings["include_path"]
    if own is not None:
        manager = TaskManager(include_path=own, include_defaults=False)
        # A group may name tasks of lm_eval.
        if set(names) <= set(manager.all_subtasks):
            return manager
    manager = TaskManager(include_path=own)
    for name in names:
        if name not in manager.task_index:
            close = difflib.get_close_matches(name, manager.all_tasks, n=3)
            hint = f"did you mean {' or '.join(repr(other) for other in close)}? " if close else ""
            raise ValueError(
                f"{WHERE} has {name!r}, which lm_eval {version('lm_eval')} does not know; {hint}"
                "`lm-eval ls tasks` prints all names; the folder of your own tasks is include_path"
            )
    return manager


def _load(manager: Any, name: str, tokenizer: Any, settings: dict[str, Any]) -> Entry:
    """The tasks of an entry, with their data.

    Raises:
        ValueError: as evaluate says.
    """
    from lm_eval.tasks._factory import TaskFactory

    base, _, length = name.partition("@")
    known = manager.task_index[base].cfg or {}
    refused = f"{WHERE} has {name!r}, which runs code that the model writes: longshort does not; take it out"
    # Before it is loaded, as such tasks ask for a permission then.
    if known.get("unsafe_code"):
        raise ValueError(refused)
    with tempfile.TemporaryDirectory() as folder:
        _save_without_code(tokenizer, Path(folder))
        metadata: dict[str, Any] = {"tokenizer": folder}
        if length:
            metadata["max_seq_lengths"] = [int(length)] if length.isdigit() else length
        # TaskManager takes metadata at its start only, and that start takes 20 s.
        manager._factory = TaskFactory(meta=metadata)
        random.seed(RANDOM_SEED)
        np.random.seed(OTHER_SEED)
        try:
            loaded = manager.load([base])
        except Exception as error:
            raise ValueError(
                f"{WHERE}: lm_eval could not load {name!r} ({type(error).__name__}: {error}); what it needs must be "
                "there when the job starts: install the package that is named; `longshort fetch` brings the data where "
                "there is a network"
            ) from error
    suffix = f"@{length}" if length else ""
    entry = Entry(
        name,
        {f"{task_name}{suffix}": task for task_name, task in loaded["tasks"].items()},
        {f"{group}{suffix}": loaded["groups"][group] for group in reversed(list(loaded.get("groups", {})))},
    )
    own = entry.groups[name].aggregate_metric_list if name in entry.groups else None
    mains = {}
    for label, task in entry.tasks.items():
        if getattr(task, "UNSAFE_CODE", False):
            raise ValueError(f"{refused} (its task {label})")
        if length and task.get_config("custom_dataset") is None:
            raise ValueError(
                f"{WHERE} has {name!r}, but {label.removesuffix(suffix)} takes no length; leave @{length} out"
            )
        _refuse_long_answers(label, task, settings["max_length"])
        mains[own[0].metric if own else next(iter(_directions(task)), "")] = task
    if len(mains) > 1:
        raise ValueError(
            f"{WHERE} has {name!r}, whose tasks have different metrics ({', '.join(mains)}) and no mean; "
            "name its tasks instead"
        )
    ((metric, task),) = mains.items()
    higher = _directions(task).get(metric) is not False
    if higher == (name in settings["lower_is_better"]):
        say = "take it out of" if higher else "name it in"
        raise ValueError(
            f"{WHERE} has {name!r}, whose {metric} is better when {'higher' if higher else 'lower'}: {say} "
            "evaluations.harness.lower_is_better, so that the tables mark the best arm"
        )
    return entry


def _save_without_code(tokenizer: Any, folder: Path) -> None:
    """A copy for RULER and BABILong, which load a tokenizer by name and would run the code that it names."""
    tokenizer.save_pretrained(folder)
    file = folder / "tokenizer_config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    config.pop("auto_map", None)
    file.write_text(json.dumps(config), encoding="utf-8")


def _directions(task: Any) -> dict[str, bool | None]:
    """The metrics that lm_eval lists for a task, in its order, and whether higher is better."""
    return task.higher_is_better() or {}


def _refuse_long_answers(label: str, task: Any, max_length: int) -> None:
    from lm_eval.models.utils import normalize_gen_kwargs

    if task.get_config("output_type") != "generate_until":
        return
    answer = normalize_gen_kwargs(dict(task.get_config("generation_kwargs") or {}), 256)["max_gen_toks"]
    if answer >= max_length:
        raise ValueError(
            f"evaluations.harness.max_length = {max_length} leaves no room for a prompt before the {answer} tokens of "
            f"an answer of {label}: raise it, or take the task out"
        )


# ---- one task --------------------------------------------------------------------------------------------------------


class Answers:
    """The model's answers, each in the journal from the moment that lm_eval has it and calls its cache hook."""

    def __init__(self, journal: Part) -> None:
        self._journal = journal
        self._task, self._done, self._total = "", 0, 0

    def to(self, kind: str, requests: list[Any], ask: Callable[[list[Any]], list[Any]]) -> list[Any]:
        """The answers in the order of the requests (lm_eval's instances).

        Args:
            kind: lm_eval's name for what is asked, that of the model's method.
            ask: answers those requests that the journal has no answer to.
        """
        keys = [_answer_key(kind, request.args) for request in requests]
        answers = [self._journal.peek(key) for key in keys]
        absent = [place for place, answer in enumerate(answers) if answer is None]
        self._done, self._total = len(requests) - len(absent), len(requests)
        if absent:
            self._task = requests[0].task_name
            for place, answer in zip(absent, ask([requests[place] for place in absent]), strict=True):
                answers[place] = answer
        # JSON has no tuples.
        return [tuple(answer) if isinstance(answer, list) else answer for answer in answers]

    def add_partial(self, kind: str, arguments: tuple[Any, ...], answer: Any) -> None:
        """What lm_eval calls with each answer."""
        # Drawn answers depend on those drawn before them: a resumed job draws them all again.
        if kind != "generate_until" or not _is_drawn(arguments[1]):
            self._journal.keep(_answer_key(kind, arguments), answer)
        self._done += 1
        self._journal.within(self._task, self._done, self._total)


def _answer_key(kind: str, arguments: tuple[Any, ...]) -> str:
    from lm_eval.api.model import hash_args

    return f"answer/{hash_args(kind, arguments)}"


def _is_drawn(generation: dict[str, Any]) -> bool:
    """Whether an answer is a random sample, so that the same request can have another one."""
    from lm_eval.models.utils import normalize_gen_kwargs

    return bool(normalize_gen_kwargs(generation)["do_sample"])


def _wrapped(model: Any, tokenizer: Any, max_length: int, journal: Part) -> Any:
    """The model as lm_eval calls it; its bars, one a call, would hide that of the journal."""
    from lm_eval.models.huggingface import HFLM

    from longshort.evaluation.forward import rope_depends_on_length

    answers = Answers(journal)

    class Journalled(HFLM):
        def loglikelihood(self, requests: list[Any], disable_tqdm: bool = True) -> list[Any]:
            return answers.to("loglikelihood", requests, partial(super().loglikelihood, disable_tqdm=True))

        def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = True) -> list[Any]:
            ask = partial(super().loglikelihood_rolling, disable_tqdm=True)

            # lm_eval would hand over no answer before it has all of them.
            def one_by_one(absent: list[Any]) -> list[Any]:
                return [answer for request in absent for answer in ask([request])]

            return answers.to("loglikelihood_rolling", requests, one_by_one)

        def generate_until(self, requests: list[Any], disable_tqdm: bool = True) -> list[Any]:
            return answers.to("generate_until", requests, partial(super().generate_until, disable_tqdm=True))

        def _loglikelihood_tokens(self, requests: Any, disable_tqdm: bool = True, **others: Any) -> list[Any]:
            found: list[Any] = super()._loglikelihood_tokens(requests, disable_tqdm=True, **others)
            return found

    class Resetting(Journalled):
        """transformers' dynamic NTK keeps the frequencies of the longest input seen until a short one resets them."""

        def _model_call(self, inps: Any, **kwargs: Any) -> Any:
            self.model(inps[:1, :1], use_cache=False)
            return super()._model_call(inps, **kwargs)

        def _model_generate(self, context: Any, **kwargs: Any) -> Any:
            import torch

            with torch.inference_mode():
                self.model(context[:1, :1], use_cache=False)
            return super()._model_generate(context, **kwargs)

    kind = Resetting if rope_depends_on_length(model) else Journalled
    lm = kind(pretrained=model, tokenizer=tokenizer, max_length=max_length, batch_size=1)
    lm.set_cache_hook(answers)
    return lm


def _measure(lm: Any, label: str, task: Any, settings: dict[str, Any]) -> dict[str, Any]:
    """What lm_eval makes of one task: {"result": by metric, "n": items, "items": one row an item and filter}.

    lm_eval.evaluate and not simple_evaluate, which asks the machine for its programs each time (5 s).
    """
    import lm_eval
    import torch

    # As simple_evaluate: a task that says 0 keeps it.
    own = task.get_config("num_fewshot")
    if own is None or (own != 0 and settings["num_fewshot"] is not None):
        task.set_config(key="num_fewshot", value=settings["num_fewshot"] or 0)
    name = task.task_name
    # A pool of all processors would fork the process that holds the model.
    os.environ["DISABLE_MULTIPROC"] = "1"

    def evaluated() -> Any:
        random.seed(RANDOM_SEED)
        np.random.seed(OTHER_SEED)
        torch.manual_seed(OTHER_SEED)
        task.set_fewshot_seed(seed=OTHER_SEED)
        # A standard error without a formula is that of lm_eval's 100000 resamples, with its seeds.
        return lm_eval.evaluate(lm=lm, task_dict={"tasks": {name: task}, "groups": {}}, limit=settings["limit"])

    try:
        done = evaluated()
    except OverflowError:  # math.exp of the nats of a diverged model; lm_eval then gives no metric at all
        with _infinite_where_too_large(task):
            done = evaluated()
    result = done["results"][name]
    items = [
        {
            "task": label,
            "id": str(sample["doc_id"]),
            "filter": sample["filter"],
            "response": _text(sample["filtered_resps"]),
            "target": _text(sample["target"]),
            "metrics": _text({metric: sample[metric] for metric in sample["metrics"]}),
        }
        for sample in done["samples"][name]
    ]
    listed = list(_directions(task))

    def place(key: str) -> int:
        metric = key.split(",")[0].removesuffix("_stderr")
        return listed.index(metric) if metric in listed else len(listed)

    numbers = {key: float(result[key]) for key in sorted(result, key=place) if _is_number(result[key])}
    return {"result": numbers, "n": int(result["sample_len"]), "items": items}


@contextmanager
def _infinite_where_too_large(task: Any) -> Iterator[None]:
    """The means over items that can overflow are infinite then (and have no standard error, which lm_eval has for its
    own functions only)."""
    from lm_eval.api.metrics import mean

    def safe(total: Any) -> Any:
        def or_infinite(values: Any) -> Any:
            try:
                return total(values)
            except OverflowError:
                return math.inf

        return total if total is mean else or_infinite

    totals = {metric: safe(total) for metric, total in task.aggregation().items()}
    task.aggregation = lambda: totals
    try:
        yield
    finally:
        del task.aggregation  # the class's again: the task is kept for other checkpoints


def _text(value: Any) -> str:
    """A text as it is, and the only one of a list; all else as JSON, as its type is one in no two tasks."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)


# ---- numbers ---------------------------------------------------------------------------------------------------------


def _numbers(result: dict[str, Any]) -> list[Number]:
    """The metrics of lm_eval's result {"acc,none": value, "acc_stderr,none": error, ...}, in its order."""
    found = []
    for key, value in result.items():
        metric, comma, kept = key.partition(",")
        if not comma or metric.endswith("_stderr") or not _is_number(value):
            continue
        if metric.isdigit() and value == -1:  # RULER's word for a length without items
            continue
        error = result.get(f"{metric}_stderr,{kept}")
        stated = _is_number(error) and math.isfinite(error)
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


if __name__ == "__main__":
    from longshort.evaluation import stage

    stage.main("harness", evaluate, protocol, keeps_items=True)
