"""The tasks of lm_eval that a study names, with their data; those that cannot be measured here are refused.

An entry of `tasks` is a name of lm_eval: a task, a group or a tag. "name@4096" gives the length to tasks that make
their own data (RULER, tokens), "name@4k" to those whose data has named lengths (BABILong).
"""

from __future__ import annotations

import difflib
import hashlib
import itertools
import json
import random
import tempfile
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from longshort.identity.spec import canonical, dumps
from longshort.metrics.settings import Harness

# lm_eval's own defaults, so that its published numbers come out again.
RANDOM_SEED, OTHER_SEED = 0, 1234
WHERE = "evaluations.harness.tasks"
MADE = "made by lm_eval"
# Documents: a split for training may hold millions.
MOST = 100_000


@dataclass
class Entry:
    """One entry of `tasks`: its tasks by label (with the length), and its groups by label, inner ones first."""

    name: str
    tasks: dict[str, Any]
    groups: dict[str, Any]

    @cached_property
    def documents(self) -> str:
        """A digest of the documents that its tasks load, before lm_eval makes questions of them; of a split that is not
        asked, from which examples may be drawn, the first MOST. MADE where they load none: what a task makes follows
        from lm_eval's version and the tokenizer, but for the essays and questions that some of RULER's put into it.
        """
        found, loaded = hashlib.sha256(), False
        for label, task in sorted(self.tasks.items()):
            asked = task.get_config("test_split") or task.get_config("validation_split")
            for split, rows in sorted(dict(task.dataset or {}).items()):
                if task.get_config("custom_dataset") and not getattr(rows, "cache_files", None):
                    continue
                loaded = True
                found.update(f"{label} {split}\n".encode())
                for row in itertools.islice(rows, None if asked in (None, split) else MOST):
                    # Of what JSON does not know, as a picture, the kind alone: its own words may hold an address.
                    found.update(json.dumps(row, sort_keys=True, default=lambda value: str(type(value))).encode())
        return found.hexdigest()[:12] if loaded else MADE


# A process evaluates many checkpoints; reading the index of lm_eval takes 20 s, and tasks like RULER make their data.
_ENTRIES: WeakKeyDictionary[Any, dict[str, list[Entry]]] = WeakKeyDictionary()


def entries(tokenizer: Any, settings: Harness) -> list[Entry]:
    """The entries of `tasks` with their data, loaded once per tokenizer and settings.

    Raises:
        ValueError: as evaluate says.
    """
    done = _ENTRIES.setdefault(tokenizer, {})
    key = dumps(canonical(settings))
    if key not in done:
        manager = _manager(settings)
        done[key] = [_load(manager, name, tokenizer, settings) for name in settings.tasks]
    return done[key]


def reach_of(settings: Harness) -> int:
    """Longest prompt and answer together, tokens.

    Raises:
        ValueError: the settings leave it to the study's model: see METRICS["harness"].resolved.
    """
    if settings.max_length is None:
        raise ValueError("evaluations.harness.max_length is null, and the specification names no model; give it")
    return settings.max_length


def _manager(settings: Harness) -> Any:
    """lm_eval's index of tasks, which knows every entry.

    Raises:
        ValueError: a name is unknown.
    """
    from lm_eval.tasks import TaskManager

    names = [entry.split("@")[0] for entry in settings.tasks]
    own = settings.include_path
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


def _load(manager: Any, name: str, tokenizer: Any, settings: Harness) -> Entry:
    """The tasks of an entry, with their data.

    Raises:
        ValueError: as evaluate says.
    """
    from lm_eval.tasks._factory import TaskFactory

    base, _, length = name.partition("@")
    known = manager.task_index[base].cfg or {}
    # Before it is loaded, as such tasks ask for a permission then.
    if known.get("unsafe_code"):
        raise ValueError(_runs_code(name))
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
    _refuse_unfit(entry, suffix, settings)
    return entry


def _refuse_unfit(entry: Entry, suffix: str, settings: Harness) -> None:
    """For an entry that is loaded.

    Args:
        suffix: "@" and the length that its name gives, or nothing.

    Raises:
        ValueError: as evaluate says.
    """
    name = entry.name
    own = entry.groups[name].aggregate_metric_list if name in entry.groups else None
    mains = {}
    for label, task in entry.tasks.items():
        if getattr(task, "UNSAFE_CODE", False):
            raise ValueError(f"{_runs_code(name)} (its task {label})")
        if suffix and task.get_config("custom_dataset") is None:
            raise ValueError(
                f"{WHERE} has {name!r}, but {label.removesuffix(suffix)} takes no length; leave {suffix} out"
            )
        _refuse_long_answers(label, task, reach_of(settings))
        mains[own[0].metric if own else next(iter(directions(task)), "")] = task
    if len(mains) > 1:
        raise ValueError(
            f"{WHERE} has {name!r}, whose tasks have different metrics ({', '.join(mains)}) and no mean; "
            "name its tasks instead"
        )
    ((metric, task),) = mains.items()
    higher = directions(task).get(metric) is not False
    if higher == (name in settings.lower_is_better):
        say = "take it out of" if higher else "name it in"
        raise ValueError(
            f"{WHERE} has {name!r}, whose {metric} is better when {'higher' if higher else 'lower'}: {say} "
            "evaluations.harness.lower_is_better, so that the tables mark the best arm"
        )


def _runs_code(name: str) -> str:
    return f"{WHERE} has {name!r}, which runs code that the model writes: longshort does not; take it out"


def _save_without_code(tokenizer: Any, folder: Path) -> None:
    """A copy for RULER and BABILong, which load a tokenizer by name and would run the code that it names."""
    tokenizer.save_pretrained(folder)
    file = folder / "tokenizer_config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    config.pop("auto_map", None)
    file.write_text(json.dumps(config), encoding="utf-8")


def directions(task: Any) -> dict[str, bool | None]:
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
