"""What is made of SLURM's answers, given by a program of the name of its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from longshort.jobs import slurm


@pytest.fixture
def squeue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Lets squeue run a script of the shell; there is no other one."""
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")

    def runs(script: str) -> None:
        (tmp_path / "squeue").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "squeue").chmod(0o755)

    return runs


@pytest.mark.parametrize(
    ("script", "over"),
    [
        *((f"echo {state}", False) for state in ("PENDING", "RUNNING", "SUSPENDED", "REQUEUED", "COMPLETING")),
        *((f"echo {state}", True) for state in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")),
        *((f"echo {state}", True) for state in ("OUT_OF_MEMORY", "PREEMPTED", "DEADLINE", "BOOT_FAIL")),
        ("true", None),
        ("echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1", None),
    ],
)
def test_a_job_is_over_when_slurm_says_how_it_ended(
    squeue: Callable[[str], None], script: str, over: bool | None
) -> None:
    """Who waits for its folder takes it over then, and not before."""
    squeue(script)
    assert slurm.is_over("7") is over


def test_slurm_that_is_not_there_or_does_not_answer_says_nothing(
    squeue: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every stage asks it at its start, and the engine before its first job: none of them may hang with it."""
    monkeypatch.setattr(slurm, "PATIENCE", 0.2)
    squeue("echo COMPLETED; exec sleep 60")
    assert slurm.is_over("7") is None
    monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))
    assert slurm.is_over("7") is None
