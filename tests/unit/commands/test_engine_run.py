"""Which jobs in the queue are those of a Snakemake that died."""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from longshort.commands import engine_run
from longshort.errors import UserError
from longshort.identity.code import PLANNED
from longshort.jobs import slurm
from longshort.study import resolve
from tests.support.project import edit_study

BASE, ARM, DATA = ("0" * 15 + digit for digit in "123")


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(engine_run, "BETWEEN_LOOKS", 0.0)
    monkeypatch.setenv("PATH", os.environ["PATH"])  # which start() changes
    return SimpleNamespace(name="mine", kind="synthetic", identities=lambda: {BASE, ARM, DATA}, hub_parts=list)


@pytest.mark.parametrize(("device", "seen"), [("cpu", ""), ("gpu", "0,1")])
def test_a_study_that_asks_for_cpus_uses_no_gpu_that_is_there(
    monkeypatch: pytest.MonkeyPatch, device: str, seen: str
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    needs = SimpleNamespace(needs=SimpleNamespace(device=device))
    engine_run.keep_to_its_device(SimpleNamespace(kind="language-models", study=needs))  # type: ignore[arg-type]
    assert os.environ["CUDA_VISIBLE_DEVICES"] == seen


def test_nothing_from_outside_makes_products_less_precise(monkeypatch: pytest.MonkeyPatch) -> None:
    """As containers set it, or a shell that `accelerate launch` started: no record would tell."""
    monkeypatch.setattr(os, "environ", {**os.environ, "ACCELERATE_MIXED_PRECISION": "fp16", "OMP_NUM_THREADS": "3"})
    os.environ.update(dict.fromkeys(engine_run.OTHER_PRECISION, "1"))
    monkeypatch.setattr(engine_run, "begin_in_utf8", lambda: None)
    engine_run.settle()
    assert not {"ACCELERATE_MIXED_PRECISION", *engine_run.OTHER_PRECISION} & set(os.environ)
    assert os.environ["OMP_NUM_THREADS"] == "3" and os.environ["HF_HUB_OFFLINE"] == "1"


def queue(monkeypatch: pytest.MonkeyPatch, *answers: list[slurm.Job] | None) -> list[tuple[str, ...]]:
    """What squeue says, one answer after the other, then the last for ever; what else SLURM was asked."""
    left, asked = list(answers), []
    monkeypatch.setattr(slurm, "jobs_of", lambda folder: left.pop(0) if len(left) > 1 else left[0])
    monkeypatch.setattr(slurm, "ask", lambda *command: asked.append(command))
    return asked


def job(number: str, run: str, state: str = "RUNNING") -> slurm.Job:
    return slurm.Job(number, state, str(Path.cwd()), f"rule_train_wildcards_{run}_6")


def test_a_job_that_another_living_engine_wants_is_no_orphan(study: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    at_exit: list[Callable[[], None]] = []
    monkeypatch.setattr(atexit, "register", at_exit.append)
    queue(monkeypatch, [])
    other: Any = SimpleNamespace(**{**vars(study), "name": "other", "identities": lambda: {BASE, DATA}})
    engine_run.start(other, submits=True)
    asked = queue(monkeypatch, [job("7", BASE), job("8", ARM, "PENDING")], [])
    engine_run.clear_orphans(study, submits=True)
    assert asked == [("scancel", "8")]
    at_exit.pop()()
    asked = queue(monkeypatch, [job("7", BASE)], [])
    assert engine_run.clear_orphans(study, submits=True)  # that one has ended
    assert asked == [("scancel", "--signal=TERM", "7")]


def test_no_answer_does_not_mean_that_there_are_no_orphans(study: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = queue(monkeypatch, None, None, [job("7", ARM)], None, [])
    engine_run.clear_orphans(study, submits=True)
    assert asked == [("scancel", "--signal=TERM", "7")]
    queue(monkeypatch, None)
    engine_run.clear_orphans(study, submits=False)  # here, where SLURM need not be
    monkeypatch.setattr(engine_run, "PATIENCE", 0.0)
    with pytest.raises(UserError, match="squeue has not answered"):
        engine_run.clear_orphans(study, submits=True)


def test_a_job_that_does_not_end_is_waited_for_once(study: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """One on a node that is gone stays in the queue (COMPLETING)."""
    monkeypatch.setattr(engine_run, "PATIENCE", 0.0)
    monkeypatch.setenv(engine_run.GIVEN_UP, "5")
    asked = queue(monkeypatch, [job("5", BASE), job("7", ARM)])
    assert engine_run.clear_orphans(study, submits=True)
    assert asked == [("scancel", "--signal=TERM", "7"), ("scancel", "7")]
    assert not engine_run.clear_orphans(study, submits=True)


def test_a_training_that_takes_longer_to_save_is_waited_for_as_long(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is cancelled meanwhile loses what it was about to save."""
    monkeypatch.chdir(project)
    monkeypatch.setattr(engine_run, "BETWEEN_LOOKS", 0.0)
    monkeypatch.setattr(engine_run, "PATIENCE", 0.0)
    edit_study(project, needs__save_minutes=15)
    of_language_models = resolve.load("tiny")
    saving = job("7", of_language_models.arm_runs["constant"][0])
    asked = queue(monkeypatch, [saving], [saving], [])
    assert engine_run.clear_orphans(of_language_models, submits=True)
    assert asked == [("scancel", "--signal=TERM", "7")]


def test_how_the_orphans_ended_is_planned_for(study: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine of this run saw the results as they were before: it gives way to one that looks again, also at the
    source, and knows all else that this one does."""
    begun: list[tuple[list[str], set[tuple[str, str]]]] = []
    at_exit: list[Callable[[], None]] = []
    monkeypatch.setattr(atexit, "register", at_exit.append)
    monkeypatch.setenv(PLANNED, "of before")

    def begin(program: str, command: list[str], environment: dict[str, str]) -> None:
        begun.append((command, os.environ.items() - environment.items()))

    monkeypatch.setattr(os, "execve", begin)
    monkeypatch.setattr(sys, "argv", ["snakemake", "--profile", "slurm", "all"])
    queue(monkeypatch, [job("7", BASE)], [])
    engine_run.start(study, submits=True)
    command = [sys.executable, "-m", "snakemake", "--profile", "slurm", "all"]
    assert begun == [(command, {(PLANNED, "of before")})]
    queue(monkeypatch, [job("7", BASE)], [])
    with pytest.raises(UserError, match="run again"):
        engine_run.start(study, submits=False)
    queue(monkeypatch, [])
    engine_run.start(study, submits=True)
    assert len(begun) == 1
    for end in at_exit:
        end()
