"""When a training saves, and what makes of a saved checkpoint one that counts."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch.distributed as dist
from transformers import TrainerCallback, TrainerControl, TrainerState

from longshort.jobs.ownership import Lost, Owner, about_me
from longshort.records.publish import write_json
from longshort.training import callbacks, checkpoints, log

NEEDED = ("model.safetensors", "global_step3/states.pt")


def of(work: Path, **changes: Any) -> list[TrainerCallback]:
    job = {"work": str(work), "targets": [9], "keep": [9], "checkpoint_minutes": 30, **changes}
    return callbacks.of(job, Owner(work / "owner.json", "mine"), adapted=None)


def after(step: int, duties: Sequence[TrainerCallback]) -> TrainerControl:
    """What is decided after a step."""
    control = TrainerControl()
    for duty in duties:
        duty.on_step_end(SimpleNamespace(device="cpu"), TrainerState(global_step=step, max_steps=9), control)
    return control


def written(work: Path, owner: str) -> Path:
    """The checkpoint of step 3 as the Trainer leaves it, in a folder that somebody owns."""
    write_json(work / "owner.json", {**about_me(), "token": owner})
    for name in NEEDED:
        path = checkpoints.folder(work, 3) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return checkpoints.folder(work, 3)


def test_a_checkpoint_to_resume_from_is_saved_half_an_hour_after_the_last_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that was wanted, after step 5, counts as one."""
    minutes = [0]
    monkeypatch.setattr(callbacks, "time", SimpleNamespace(perf_counter=lambda: 60.0 * minutes[-1]))
    duties = of(tmp_path, targets=[5, 9])
    saved = []
    for minute in (29, 31, 60, 62, 70, 99, 101):
        minutes.append(minute)
        saved.append(after(len(saved) + 1, duties).should_save)
    assert saved == [False, True, False, True, True, False, True]


def test_all_processes_save_after_the_same_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here the clock of the other one has run out, or it alone was asked to stop. Apart, their collectives would meet
    wrongly."""
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "all_reduce", lambda processes: processes.add_(1))
    assert after(1, [callbacks.SavesByTheClock(3600.0, [])]).should_save
    asked = after(1, [callbacks.StopsWhenAsked(tmp_path, [])])
    assert asked.should_save and asked.should_training_stop


@pytest.mark.parametrize("asked", [False, True])
def test_nothing_is_saved_over_weights_that_are_there_already(tmp_path: Path, asked: bool) -> None:
    """Killed meanwhile it would leave them damaged: neither the clock nor a request to stop saves at step 2."""
    if asked:
        (tmp_path / checkpoints.STOP).touch()
    duties = of(tmp_path, passed=[2], checkpoint_minutes=0)
    assert [after(step, duties).should_save for step in (1, 2, 3)] == [True, False, True]


def test_what_a_resume_needs_is_on_the_disk_before_a_checkpoint_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node that goes down takes along what is not; older checkpoints are deleted for one that counts."""
    checkpoint = written(tmp_path, owner="mine")
    log.append(tmp_path / log.NAME, {"step": 3})
    synced: list[str] = []

    def fsync(handle: int, to_the_disk: Any = os.fsync) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{handle}"))
        to_the_disk(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    for duty in of(tmp_path):
        duty.on_save(None, TrainerState(global_step=3), TrainerControl())
    before = synced[: next(place for place, path in enumerate(synced) if checkpoints.MANIFEST in path)]
    assert {str(path) for path in (tmp_path / log.NAME, *(checkpoint / name for name in NEEDED))} <= set(before)


def test_a_training_whose_folder_is_another_s_seals_and_deletes_nothing(tmp_path: Path) -> None:
    """It was thought dead, its file system having hung, and saves as it wakes."""
    written(tmp_path, owner="another")
    (tmp_path / log.NAME).touch()
    checkpoints.folder(tmp_path, 2).mkdir()
    there = sorted(tmp_path.rglob("*"))
    with pytest.raises(Lost, match="this job writes nothing more"):
        for duty in of(tmp_path):
            duty.on_save(None, TrainerState(global_step=3), TrainerControl())
    assert sorted(tmp_path.rglob("*")) == there


@pytest.mark.parametrize(
    ("logs", "diverged"),
    [
        ({"loss": 2.0, "grad_norm": 1.0}, False),
        ({"loss": 2.0}, False),  # DeepSpeed says no norm for stage 0 in float32
        ({"loss": math.nan, "grad_norm": 1.0}, True),
        ({"loss": 2.0, "grad_norm": math.nan}, True),
        ({"loss": 2.0, "grad_norm": math.inf}, True),
        ({"train_loss": math.nan}, False),  # the summary at the end is of no step
    ],
)
def test_a_step_without_a_finite_loss_and_gradient_ends_a_training(
    tmp_path: Path, logs: dict[str, float], diverged: bool
) -> None:
    """The loss is of the weights before the step: where it is a number, those after it may be none."""
    [duty] = [one for one in of(tmp_path) if isinstance(one, callbacks.EndsWhenDiverged)]
    ends: AbstractContextManager[Any] = nullcontext()
    if diverged:
        ends = pytest.raises(callbacks.Diverged, match="at step 3")
    with ends:
        duty.on_log(None, TrainerState(global_step=3), TrainerControl(), logs=logs)
