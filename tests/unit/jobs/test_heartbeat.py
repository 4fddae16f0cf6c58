"""What a stage says of itself while it runs."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from longshort.jobs import heartbeat
from tests.support.waiting import wait_until


def test_a_heartbeat_says_how_a_stage_ended_and_counts_its_attempts(tmp_path: Path) -> None:
    out = tmp_path / "6.json"
    out.with_suffix(".log").write_text("of attempt 1")

    def read() -> dict[str, Any]:
        found: dict[str, Any] = json.loads(heartbeat.path_of(out).read_text())
        return found

    with pytest.raises(OSError), heartbeat.beating(out, "training") as beat:
        assert read()["state"] == "waiting"
        beat.watch(lambda: {"done": 1, "total": 4})
        assert read()["state"] == "running" and read()["done"] == 1
        beat.note(run_id="0123")
        raise OSError("no space left")
    assert read()["state"] == "failed" and read()["message"] == "OSError: no space left"
    out.with_suffix(".log").unlink()  # as the engine does
    out.with_suffix(".log").write_text("of attempt 2")
    with pytest.raises(SystemExit), heartbeat.beating(out, "training"):
        assert read()["run_id"] == "0123"  # what attempt 1 has saved is still gone on from, and not pruned
        raise SystemExit(143)
    assert (read()["state"], read()["attempt"]) == ("interrupted", 2)
    with heartbeat.beating(out, "training"):
        pass
    assert (read()["state"], read()["attempt"]) == ("finished", 3)
    assert read()["earlier"] == ["failed", "interrupted"] and read()["peak_memory_mb"] > 1
    assert [(tmp_path / f"6.attempt-{attempt}.log").read_text()[-1] for attempt in (1, 2)] == ["1", "2"]
    assert not (tmp_path / "6.attempt-3.log").exists() and out.with_suffix(".log").exists()
    with heartbeat.beating(out, "training"):
        pass
    assert read()["attempt"] == 1


def broken_disk(*_: Any) -> None:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def test_a_heart_beats_whatever_its_stage_does_and_outlives_a_broken_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another node, and `longshort prune`, take a stage that is silent for dead."""
    monkeypatch.setattr(heartbeat, "BEAT", 0.05)
    monkeypatch.setattr(heartbeat, "SILENT", 1e6)
    out = tmp_path / "training/6.json"
    file = heartbeat.path_of(out)
    with heartbeat.beating(out, "training"):
        first = heartbeat.read(file)["beat"]
        wait_until(lambda: heartbeat.read(file)["beat"] > first, lambda: "no beat")
        with monkeypatch.context() as broken:
            broken.setattr(heartbeat, "write_json", broken_disk)
            wait_until(lambda: "no heartbeat in" in capsys.readouterr().out, lambda: "no beat failed")
        file.unlink()
        wait_until(file.exists, lambda: "no beat after one that failed")


TOOK = {"seconds_before": 12.0, "cpu_seconds_before": 7.0}


@pytest.mark.parametrize(
    ("before", "seconds", "cpu_seconds"),
    [
        ({"state": "failed", "cpu_seconds": 5.0}, 30.0, 5.0),
        ({"state": "failed", "cpu_seconds": 5.0, **TOOK}, 42.0, 12.0),
        ({"state": "running", "cpu_seconds": 5.0, **TOOK}, 42.0, 12.0),  # it was killed
        ({"state": "failed", "cpu_seconds": 5.0, "seconds_before": 12.0}, 42.0, None),  # of a version that did not say
        ({"state": "failed", **TOOK}, 42.0, None),
        ({"state": "finished", "cpu_seconds": 5.0, **TOOK}, 0.0, 0.0),
    ],
)
def test_what_all_attempts_before_took_is_added_up(
    tmp_path: Path, before: dict[str, Any], seconds: float, cpu_seconds: float | None
) -> None:
    """A job that was preempted often cost all of it."""
    file = heartbeat.path_of(tmp_path / "6.json")
    file.write_text(json.dumps({"host": "h", "pid": 1, "began": 100.0, "beat": 130.0, **before}))
    with heartbeat.beating(tmp_path / "6.json", "training"):
        beat = heartbeat.read(file)
    assert (beat["seconds_before"], beat["cpu_seconds_before"]) == (seconds, cpu_seconds)
