"""A mistake is answered in a line before anything is written."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.project import TINY, longshort, run_snakemake, write_study


def test_a_mistake_stops_the_workflow_before_anything_is_written(project: Path) -> None:
    write_study(project, {**TINY, "seeds": ["one"]})
    done = run_snakemake(project, "all", check=False)
    assert done.returncode != 0
    assert "study tiny: seeds.0 = 'one'" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (project / "results").exists()


@pytest.mark.parametrize("command", [["check"], ["tables", "--partial"]])
def test_the_command_line_answers_a_mistake_without_a_traceback(project: Path, command: list[str]) -> None:
    done = longshort(project, *command, "--study", "tinny", check=False)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "study 'tinny' is unknown: did you mean 'tiny'?" in done.stderr
    assert not (project / "results").exists()
