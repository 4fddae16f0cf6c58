"""What of a machine a process may use; models and corpora are in tests/contract/test_new.py."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest

from longshort.commands import survey

ROW = '{"text": "%s"}\n'


def test_memory_is_what_the_control_groups_of_a_job_leave(tmp_path: Path) -> None:
    """Of a container and of a job in it, as they lie in each other; 0:: is the second version's line."""
    mine, job = tmp_path / "cgroup", tmp_path / "groups/container/job"
    mine.write_text("1:name=systemd:/elsewhere\n0::/container/job\n")
    job.mkdir(parents=True)
    assert survey._allowed_memory(tmp_path / "groups", mine) == math.inf
    (job / "memory.max").write_text("max\n")
    (job.parent / "memory.max").write_text("16000000000\n")
    assert survey._allowed_memory(tmp_path / "groups", mine) == 16e9
    (job / "memory.max").write_text("4000000000\n")
    assert survey._allowed_memory(tmp_path / "groups", mine) == 4e9
    assert survey._allowed_memory(tmp_path / "groups", tmp_path / "none") == math.inf


def test_cores_are_those_that_a_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3, 5})
    monkeypatch.setattr("psutil.cpu_count", lambda logical: 64)
    assert survey.cores() == 2


@pytest.mark.parametrize("kind", ["texts", "rows"])
def test_of_a_large_corpus_some_is_looked_at_and_the_rest_estimated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """So that not a third of it is held out."""
    monkeypatch.setattr(survey, "MOST_DOCUMENTS", 10)
    for number in range(60 if kind == "texts" else 6):
        text = f"the text {number:02}"
        name, content = (f"{number:02}.txt", text) if kind == "texts" else (f"{number}.jsonl", (ROW % text) * 10)
        (tmp_path / name).write_text(content)
    found = survey.texts("here", str(tmp_path), None, "text", None)
    assert (len(found.tokens or {}), found.whole, found.documents) == (10, False, 60)
