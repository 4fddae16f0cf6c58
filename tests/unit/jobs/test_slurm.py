"""What is made of SLURM's answers, given by programs of the names of its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from longshort.jobs import slurm

Runs = Callable[[str, str], None]


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Runs:
    """Lets a program of SLURM run a script of the shell, in place of one that is installed."""
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")

    def runs(program: str, script: str) -> None:
        (tmp_path / program).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / program).chmod(0o755)

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
def test_a_job_is_over_when_slurm_says_how_it_ended(runs: Runs, script: str, over: bool | None) -> None:
    """Who waits for its folder takes it over then, and not before."""
    runs("squeue", script)
    assert slurm.is_over("7") is over


def test_slurm_that_is_not_there_or_does_not_answer_says_nothing(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every stage asks it at its start, and the engine before its first job: none of them may hang with it."""
    monkeypatch.setattr(slurm, "PATIENCE", 0.2)
    runs("squeue", "echo COMPLETED; exec sleep 60")
    assert slurm.is_over("7") is None
    monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))
    assert slurm.is_over("7") is None


# Of each job what --format asks for, and jobs of somebody else unless --me is there.
QUEUE = """
for word; do case "$word" in --me) me=yes ;; --format=*) format="${word#--format=}" ;; esac; done
line() { echo "$format" | sed "s,%i,$1,; s,%T,$2,; s,%r,$3,; s,%Z,$4,; s,%k,$5,"; }
line 7 PENDING Priority /here 'with a | of its own'
line 8 RUNNING None /elsewhere ''
test "$me" || line 9 RUNNING None /here 'of somebody else'
"""


def test_jobs_of_a_folder_are_those_of_this_user_there(runs: Runs) -> None:
    """A group may share a checkout: what others have in the queue is no orphan, which would be cancelled."""
    runs("squeue", QUEUE)
    assert slurm.jobs_of("/here") == [slurm.Job("7", "PENDING", "/here", "with a | of its own", "Priority")]


@pytest.mark.parametrize(
    ("nodes", "memory", "of_each"), [(1, "1.50G", 1536), (2, "8000M", 4000), (4, "2T", 2**19), (1, "512K", 0.5)]
)
def test_the_memory_of_a_job_is_told_for_each_of_its_nodes(runs: Runs, nodes: int, memory: str, of_each: float) -> None:
    """SLURM says that of all together; a stage sees what it takes on its own."""
    runs("scontrol", f"echo JobId=7 NumNodes={nodes} NumCPUs=4 TRES=cpu=4,mem={memory},node={nodes},billing=4")
    assert slurm.memory_mb("7") == of_each
