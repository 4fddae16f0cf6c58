"""One mutation: a project is changed, commands are run there, and what came of it is held against what must come."""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.support import forkserver
from tests.support.project import ROOT
from tests.support.waiting import PATIENCE

# Far above what any of the commands takes on a loaded machine: a hang is one that never ends.
HANG = PATIENCE
OUTCOMES = ("refused", "passed", "traceback", "wrong exit", "hang", "half-written", "wrong")


@dataclass(frozen=True)
class Mutation:
    """What was done, what is run then, and what must come of it."""

    what: str
    because: str
    # A pattern of what is said where it is refused; None: it has to pass.
    refused: str | None = None
    # It may pass as well, as what was typed can be meant.
    may_pass: bool = False
    # Arguments of Python, run one after the other until one fails.
    commands: tuple[tuple[str, ...], ...] = (("-m", "longshort.cli", "check", "--study", "fuzz"),)
    environment: dict[str, str] = field(default_factory=dict)
    # Where all commands passed: what is wrong all the same, None if nothing is.
    wrong: Callable[[Path], str | None] = lambda project: None


Kind = Callable[[random.Random, Path], Mutation]


@dataclass(frozen=True)
class Outcome:
    kind: str
    number: int
    what: str
    outcome: str
    good: bool
    said: str


def run(kind: str, mutate: Kind, number: int, seed: int, template: Path, project: Path) -> Outcome:
    """The mutation number of a kind, in a copy of the template; number and seed alone say which one it is."""
    shutil.rmtree(project, ignore_errors=True)
    shutil.copytree(template, project, symlinks=True)
    mutation = mutate(random.Random(f"{seed} {kind} {number}"), project)
    before = set(written(project))
    outcome, said = "passed", ""
    for command in mutation.commands:
        outcome, said = once(command, project, mutation.environment)
        if outcome != "passed":
            break
    if outcome == "passed" and (trouble := mutation.wrong(project)):
        outcome, said = "wrong", trouble
    if parts := [path for path in written(project) if path not in before]:
        outcome, said = "half-written", ", ".join(map(str, parts))
    if outcome == "refused" and not (mutation.refused and re.search(mutation.refused, said)):
        return Outcome(kind, number, mutation.what, outcome, False, f"wanted {mutation.refused}: {said}")
    good = outcome == "refused" or (outcome == "passed" and (mutation.refused is None or mutation.may_pass))
    return Outcome(kind, number, mutation.what, outcome, good, "" if good else f"{mutation.because}; {said}")


def once(command: tuple[str, ...], project: Path, environment: dict[str, str]) -> tuple[str, str]:
    process = subprocess.Popen(
        [forkserver.python(), *command],
        cwd=project,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src"), "HF_HOME": forkserver.hugging_face(), **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    try:
        said, _ = process.communicate(timeout=HANG)
    except subprocess.TimeoutExpired:
        process.terminate()
        said, _ = process.communicate()
        return "hang", said[-2000:]
    if "Traceback (most recent call last)" in said:
        return "traceback", said[-3000:]
    if process.returncode not in (0, 1):
        return "wrong exit", f"{process.returncode}: {said[-2000:]}"
    return ("refused" if process.returncode else "passed"), said[-4000:]


def written(project: Path) -> Iterator[Path]:
    """Files that somebody was about to write."""
    for folder in ("results", "work", "config"):
        for path in (project / folder).rglob(".*.part"):
            yield path.relative_to(project)
