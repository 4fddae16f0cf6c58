"""Every value of a study and of arms.yaml in place of which something else stands: refused with its place, or taken."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from longshort import resolve
from longshort.study import StudyError
from tests.support.project import TINY, write_study

# Each kind of YAML value, numbers at the ends of what a field may hold, names that would be more than names.
VALUES: list[Any] = [None, True, False, -1, 0, 1, 1.5, 1e308, -1e308, math.nan, math.inf, 2**70, -(2**70)]
VALUES += ["", "x", "a/b", "../../x", "$(x)", "{x}", "1:30", "\x1b[2J", "é" * 300]
VALUES += [[], {}, [1], [None], [[1]], [{}], {"a": 1}, {"kind": "x"}]
GONE = object()
STUDY: dict[str, Any] = {
    **TINY,
    "model": {**TINY["model"], "rope": {"kind": "yarn", "factor": 2.0}},
    "arms": ["baseline", "constant", "hidden", "step-linear", "ratio"],
    "overrides": {"hidden": {"alignment": {"alpha": 0.5}, "training": {"batch": 4}}},
    "evaluations": {
        **TINY["evaluations"],
        "longbench_e": {"source": {"kind": "stand-in", "items_per_task": 1}, "max_length": 128, "max_new_tokens": 4},
        "harness": {"tasks": ["hellaswag"], "max_length": 64, "lower_is_better": ["hellaswag"]},
    },
    "tables": {"main": {"title": "T", "arms": ["baseline", "constant"], "compare_with": "baseline"}},
    "primary": "perplexity@32",
    "published": [{"arm": "constant", "step": 6, "column": "perplexity@32", "value": 1.0, "source": "a paper"}],
    "needs": {"device": "cpu", "data_cores": 2},
}
Place = tuple[str | int, ...]


def places(value: Any, before: Place = ()) -> Iterator[Place]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inside in items:
        yield (*before, key)
        yield from places(inside, (*before, key))


def changed(content: dict[str, Any], place: Place, value: Any) -> dict[str, Any]:
    content = copy.deepcopy(content)
    holder: Any = content
    for key in place[:-1]:
        holder = holder[key]
    if value is GONE:
        del holder[place[-1]]
    else:
        holder[place[-1]] = value
    return content


@pytest.mark.parametrize("mutations", [100, pytest.param(1500, marks=pytest.mark.long)])
def test_a_value_that_was_changed_is_refused_by_name_or_taken(
    project: Path, monkeypatch: pytest.MonkeyPatch, mutations: int
) -> None:
    monkeypatch.chdir(project)
    arms_file = project / "config/arms.yaml"
    arms = yaml.safe_load(arms_file.read_text())
    write_study(project, STUDY)
    assert resolve.load("tiny")
    every = [(arms_file, place, value) for place in places(arms) for value in [*VALUES, GONE]]
    every += [(None, place, value) for place in places(STUDY) for value in [*VALUES, GONE]]
    outcomes = {"refused": 0, "taken": 0}
    for file, place, value in random.Random(1).sample(every, mutations):
        write_study(project, STUDY if file else changed(STUDY, place, value))
        arms_file.write_text(yaml.safe_dump(changed(arms, place, value) if file else arms, sort_keys=False))
        try:
            resolve.load_any("tiny")
            outcomes["taken"] += 1
        except StudyError as error:
            outcomes["refused"] += 1
            assert "tiny" in str(error) or "arms.yaml" in str(error), (place, value)
    assert outcomes["refused"] > 5 * outcomes["taken"] > 0, outcomes
