"""What a stage says of itself while it runs."""

from __future__ import annotations

import json
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
        out.parent.rename(tmp_path / "away")
        out.parent.touch()  # no folder
        wait_until(lambda: "no heartbeat in" in capsys.readouterr().out, lambda: "no beat failed")
        out.parent.unlink()
        wait_until(file.exists, lambda: "no beat after one that failed")
