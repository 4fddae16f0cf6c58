"""Which checkpoints are trusted, and what becomes of the others."""

from __future__ import annotations

import json
import socket
import threading
from pathlib import Path
from typing import Any

import pytest

from longshort.errors import JobFailed
from longshort.jobs.ownership import Owner
from longshort.study.schema import Training
from longshort.training import checkpoints, launch
from tests.support import corpora

TRAINING = Training(steps=9, batch=1, learning_rate=0.1)


def save(work: Path, step: int) -> None:
    checkpoints.folder(work, step).mkdir(exist_ok=True)
    (checkpoints.folder(work, step) / "model.safetensors").write_text(f"step {step}")
    checkpoints.seal(checkpoints.folder(work, step))


def prepared(folder: Path) -> dict[str, Any]:
    return {"threads": 1, "data": str(corpora.published(folder / "data").parent)}


def test_what_is_saved_over_a_damaged_checkpoint_verifies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice a training of 9 steps, with a checkpoint after each, is killed after the fourth."""

    def killed(job_file: Path, *_: Any) -> bool:
        for step in range(json.loads(job_file.read_text())["resume"] + 1, 5):
            save(tmp_path, step)
        raise SystemExit(137)

    monkeypatch.setattr(launch, "_run_processes", killed)
    owner = Owner(tmp_path / "owner.json", "mine")
    for attempt in range(2):
        with pytest.raises(SystemExit):
            launch.complete(prepared(tmp_path), tmp_path, [9], TRAINING, owner)
        assert checkpoints.sound_steps(tmp_path) == [1, 2, 3, 4]
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
    monkeypatch.setattr(launch, "_run_processes", lambda *_: False)
    save(tmp_path, 2)
    (tmp_path / "job.json").write_text(json.dumps({"host": host}))
    manifest = tmp_path / "checkpoint-2" / checkpoints.MANIFEST
    hidden = manifest.rename(tmp_path / "hidden")
    late = threading.Timer(0.5, hidden.rename, (manifest,))
    late.start()
    job: tuple[Any, ...] = (prepared(tmp_path), tmp_path, [2], TRAINING, Owner(tmp_path / "owner.json", "mine"))
    if host == "elsewhere":
        assert launch.complete(*job)[:2] == ([2], 0)
    else:
        with pytest.raises(JobFailed, match="without the checkpoints"):
            launch.complete(*job)
    late.cancel()
