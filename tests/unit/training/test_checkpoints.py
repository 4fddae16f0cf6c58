"""Which checkpoints are trusted, and what becomes of the others."""

from __future__ import annotations

import json
import shutil
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from longshort.errors import JobFailed
from longshort.jobs.ownership import Owner
from longshort.study.schema import Training
from longshort.training import checkpoints, launch
from tests.support import corpora

TRAINING = Training(steps=9, batch=1, learning_rate=0.1)


WEIGHTS, STATES = ("config.json", "model.safetensors"), ("rng.pth", "global_step/a.pt", "global_step/b.pt")


def save(work: Path, *steps: int) -> None:
    for step in steps:
        for name in (*WEIGHTS, *STATES):
            path = checkpoints.folder(work, step) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{name} of step {step}")
        checkpoints.seal(checkpoints.folder(work, step))


def files(work: Path, step: int) -> list[str]:
    """The files of a checkpoint, less its manifest."""
    found = (path for path in checkpoints.folder(work, step).rglob("*") if path.is_file())
    names = {path.relative_to(checkpoints.folder(work, step)).as_posix() for path in found}
    return sorted(names - {checkpoints.MANIFEST})


def prepared(folder: Path, end: int | None = None) -> dict[str, Any]:
    return {
        "threads": 1,
        "data": str(corpora.published(folder / "data").parent),
        "end": end,
        "content": None,
        "made": {},
    }


def trained(monkeypatch: pytest.MonkeyPatch, work: Path, every: int = 1) -> list[dict[str, Any]]:
    """Puts a training in place of the processes, which saves after so many steps, and at the wanted ones, as the
    callbacks do; the jobs that it is given."""
    jobs = []

    def run(job_file: Path, *_: Any) -> tuple[bool, str]:
        job = json.loads(job_file.read_text())
        jobs.append(job)
        for step in range(job["resume"] + 1, max(job["targets"]) + 1):
            if step in job["targets"] or (step % every == 0 and step not in job["passed"]):
                save(work, step)
                checkpoints.thin(work, job["keep"], step)
        return False, ""

    monkeypatch.setattr(launch, "_run_processes", run)
    return jobs


def test_what_is_saved_over_a_damaged_checkpoint_verifies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice a training of 9 steps, with a checkpoint after each, is killed after the fourth."""

    def killed(job_file: Path, *_: Any) -> None:
        for step in range(json.loads(job_file.read_text())["resume"] + 1, 5):
            save(tmp_path, step)
        raise SystemExit(137)

    monkeypatch.setattr(launch, "_run_processes", killed)
    owner = Owner(tmp_path / "owner.json", "mine")
    for attempt in range(2):
        with pytest.raises(SystemExit):
            launch.complete(prepared(tmp_path), tmp_path, [9], TRAINING, owner)
        assert checkpoints.sound_steps(tmp_path) == ([1, 2, 3, 4], [1, 2, 3, 4])
        if attempt == 0:
            (tmp_path / "checkpoint-3/model.safetensors").write_text("another")
            (tmp_path / "checkpoint-4/model.safetensors").unlink()
            (tmp_path / "checkpoint-4/model.bin").touch()
    assert not (tmp_path / "checkpoint-4/model.bin").exists()


@pytest.mark.parametrize("host", [socket.gethostname(), "elsewhere"])
def test_a_checkpoint_of_another_node_is_waited_for_and_one_of_this_node_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    """Its manifest is shown late."""
    monkeypatch.setattr(launch, "_run_processes", lambda *_: (False, ""))
    save(tmp_path, 2)
    (tmp_path / "job.json").write_text(json.dumps({"host": host}))
    manifest = tmp_path / "checkpoint-2" / checkpoints.MANIFEST
    hidden = manifest.rename(tmp_path / "hidden")
    late = threading.Timer(0.5, hidden.rename, (manifest,))
    job: tuple[Any, ...] = (prepared(tmp_path), tmp_path, [2], TRAINING, Owner(tmp_path / "owner.json", "mine"))
    if host == "elsewhere":
        late.start()
        assert launch.complete(*job)[:2] == ([2], 0)
    else:
        with pytest.raises(JobFailed, match="without the checkpoints"):
            launch.complete(*job)


def test_of_kept_checkpoints_only_the_newest_keeps_its_states_and_only_as_long_as_a_step_can_be_added(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A training of 9 steps is asked for more and more of them, and at last for one between."""
    jobs = trained(monkeypatch, tmp_path)
    owner = Owner(tmp_path / "owner.json", "mine")
    job = prepared(tmp_path, end=9)
    assert launch.complete(job, tmp_path, [3, 5], TRAINING, owner)[:2] == ([3, 5], 5)
    assert checkpoints.steps_there(tmp_path) == [3, 5]
    assert files(tmp_path, 3) == sorted(WEIGHTS) and files(tmp_path, 5) == sorted((*WEIGHTS, *STATES))
    assert launch.complete(job, tmp_path, [3, 5, 9], TRAINING, owner)[:2] == ([3, 5, 9], 4)
    assert jobs[-1]["resume"] == 5 and files(tmp_path, 5) == files(tmp_path, 9) == sorted(WEIGHTS)
    assert checkpoints.sound_steps(tmp_path) == ([3, 5, 9], [])

    before = {step: (checkpoints.folder(tmp_path, step) / WEIGHTS[1]).stat().st_mtime_ns for step in (3, 5, 9)}
    assert launch.complete(job, tmp_path, [7], TRAINING, owner)[:2] == ([7], 7)
    assert jobs[-1]["resume"] == 0 and jobs[-1]["passed"] == [3, 5]  # nothing was saved over them
    assert before == {step: (checkpoints.folder(tmp_path, step) / WEIGHTS[1]).stat().st_mtime_ns for step in before}
    assert checkpoints.steps_there(tmp_path) == [3, 5, 7, 9] and len(jobs) == 3


def test_where_no_schedule_knows_the_last_step_it_keeps_its_states(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = trained(monkeypatch, tmp_path)
    owner = Owner(tmp_path / "owner.json", "mine")
    for steps in ([5, 9], [5, 9, 12]):
        launch.complete(prepared(tmp_path), tmp_path, steps, TRAINING, owner)
    assert jobs[-1]["resume"] == 9
    assert files(tmp_path, 9) == sorted(WEIGHTS) and files(tmp_path, 12) == sorted((*WEIGHTS, *STATES))


def test_a_training_that_runs_can_always_be_resumed_from_two(tmp_path: Path) -> None:
    for step in (2, 3, 4, 6):
        save(tmp_path, step)
        checkpoints.thin(tmp_path, kept=[2, 4, 9], last=step)
        assert checkpoints.sound_steps(tmp_path)[1] == [earlier for earlier in (2, 3, 4, 6) if earlier <= step][-2:]
    assert checkpoints.steps_there(tmp_path) == [2, 4, 6] and files(tmp_path, 2) == sorted(WEIGHTS)
    # Those after the step that a training is at, which it passes once more, are not looked at.
    save(tmp_path, 1)
    checkpoints.thin(tmp_path, kept=[1, 2, 4], last=1)
    assert checkpoints.sound_steps(tmp_path) == ([1, 2, 4, 6], [1, 4, 6])


def killed(*_: Any, **__: Any) -> None:
    raise SystemExit(137)


def full(*_: Any, **__: Any) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("end", [killed, full])
@pytest.mark.parametrize("at", range(len(STATES) + 2))
def test_weights_are_sound_whenever_taking_their_states_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int, end: Callable[..., None]
) -> None:
    """Before each file and the folder that it would delete, and before the manifest of what is left: by a kill, or by
    a full disk. The newest is resumed from, and the next attempt ends the work."""
    trained(monkeypatch, tmp_path)
    save(tmp_path, 3, 6)
    before = files(tmp_path, 6)
    left = iter([*([None] * at), end])

    def counted(real: Callable[..., None]) -> Callable[..., None]:
        return lambda *given, **more: (next(left, None) or real)(*given, **more)

    with monkeypatch.context() as patched, pytest.raises((SystemExit, OSError)):
        patched.setattr(Path, "unlink", counted(Path.unlink))
        patched.setattr(shutil, "rmtree", counted(shutil.rmtree))
        patched.setattr(checkpoints, "write_json", counted(checkpoints.write_json))
        checkpoints.strip(checkpoints.folder(tmp_path, 3))
    sound, resumable = checkpoints.sound_steps(tmp_path)
    assert sound == [3, 6] and resumable == ([3, 6] if at == 0 else [6])
    (tmp_path / "job.json").write_text(json.dumps({"host": socket.gethostname()}))  # nothing can come late
    done = launch.complete(prepared(tmp_path, end=9), tmp_path, [3, 6], TRAINING, Owner(tmp_path / "o", "mine"))
    assert done[:2] == ([3, 6], 0)
    assert files(tmp_path, 3) == sorted(WEIGHTS) and files(tmp_path, 6) == before
    assert set(json.loads((checkpoints.folder(tmp_path, 3) / checkpoints.MANIFEST).read_text())) == set(WEIGHTS)


def test_states_that_are_damaged_cost_no_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path, 3, 6)
    (checkpoints.folder(tmp_path, 6) / STATES[1]).write_text("another")
    (checkpoints.folder(tmp_path, 3) / WEIGHTS[1]).write_text("another")
    assert checkpoints.sound_steps(tmp_path) == ([6], [])
    said = capsys.readouterr().out
    assert f"checkpoint of step 6 is not resumed from: {STATES[1]} is not the file that was written" in said
    assert f"checkpoint of step 3 is not used: {WEIGHTS[1]} is not the file that was written" in said


def test_what_was_finished_with_all_states_is_found_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As trainings were before states were taken from what is kept. A step between goes on from one before it."""
    jobs = trained(monkeypatch, tmp_path)
    owner = Owner(tmp_path / "owner.json", "mine")
    save(tmp_path, 3, 6, 9)
    weights = {step: checkpoints.weights(checkpoints.folder(tmp_path, step)) for step in (3, 6, 9)}
    assert launch.complete(prepared(tmp_path, end=9), tmp_path, [3, 7, 9], TRAINING, owner)[:2] == ([3, 7, 9], 1)
    assert jobs[-1]["resume"] == 6
    assert launch.complete(prepared(tmp_path, end=9), tmp_path, [3, 9], TRAINING, owner)[:2] == ([3, 9], 0)
    assert all(weights[step] == checkpoints.weights(checkpoints.folder(tmp_path, step)) for step in (3, 9))
    assert checkpoints.sound_steps(tmp_path) == ([3, 7, 9], [])


def test_a_training_is_named_by_all_that_its_weights_come_from() -> None:
    """Where one of them is another, under the same name, its checkpoints are those of another training."""
    spec = {"training": {"steps": 9, "learning_rate_schedule": "cosine"}}
    splits = {"train": {"sha256": "a"}, "test": {"sha256": "b"}}
    asked: dict[str, Any] = {"spec": spec, "code": "c", "manifest": {"splits": splits}, "base": {"model": "d"}}
    others: list[dict[str, Any]] = [
        {"spec": {"training": {**spec["training"], "steps": 10}}},
        {"code": "another"},
        {"manifest": {"splits": {**splits, "train": {"sha256": "another"}}}},
        {"manifest": {"splits": splits, "tokenizer": "another"}},
        {"base": {"model": "another"}},
        {"base": None},
    ]
    names = {checkpoints.identity_of(**{**asked, **other}) for other in ({}, *others)}
    assert len(names) == 1 + len(others)
    untrained = {"splits": {**splits, "test": {"sha256": "another"}}}
    assert checkpoints.identity_of(**{**asked, "manifest": untrained}) in names


def test_the_end_is_the_last_step_where_a_schedule_knows_it() -> None:
    spec: dict[str, Any] = {"training": {"steps": 9, "learning_rate_schedule": "constant"}}
    assert checkpoints.end_of(spec) is None
    spec["alignment"] = {"output": {"alpha": [0.1] * 9}}
    assert checkpoints.end_of(spec) == 9
    assert checkpoints.end_of({"training": {"steps": 9, "learning_rate_schedule": "cosine"}}) == 9


def test_weights_in_several_files_stay_all_of_them(tmp_path: Path) -> None:
    """As of a model that is too large for one: an evaluation needs each, and the index that says what is where."""
    shards = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    weights = sorted([*shards, "model.safetensors.index.json", "config.json", "generation_config.json"])
    checkpoint = checkpoints.folder(tmp_path, 3)
    checkpoint.mkdir()
    for name in (*weights, "rng.pth"):
        (checkpoint / name).write_text(name)
    checkpoints.seal(checkpoint)
    checkpoints.strip(checkpoint)
    assert files(tmp_path, 3) == weights == sorted(checkpoints.weights(checkpoint))
