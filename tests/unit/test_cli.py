"""A mistake is answered in a line before anything is written, with an exit code that says so."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.project import ROOT, TINY, longshort, run_snakemake, write_study


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


def cut(project: Path) -> None:
    (project / "cut").mkdir()
    (project / "cut/metrics.parquet").write_bytes((ROOT / "docs/demo.parquet").read_bytes()[:1000])
    (project / "cut/study.json").write_text((project / "results/tiny/study.json").read_text())


def edited(project: Path) -> None:
    cut(project)
    (project / "cut/study.json").write_text('{"arms": [], "seeds": ["a"]}')


def a_folder(project: Path) -> None:
    (project / "results/tiny/tables/main.md").unlink()
    (project / "results/tiny/tables/main.md").mkdir()


def nothing(project: Path) -> None:
    pass


@pytest.mark.parametrize(
    ("before", "command", "said"),
    [
        (nothing, "tables --show answers --published nosuch.parquet", "nosuch.parquet does not exist; give the file"),
        (nothing, "tables --show answers --published results", "results is no file; give the file"),
        (nothing, "tables --show answers --partial", "leave it out with --show answers"),
        (nothing, "reproduce --published nosuch.parquet", "nosuch.parquet does not exist"),
        (nothing, f"reproduce --published {ROOT}/docs/demo.parquet", "is of study demo, which shares no run with tiny"),
        (nothing, "reproduce --write --published config/studies/tiny.yaml", "is no tiny.parquet"),
        (nothing, "reproduce --write --published config/arms.yaml/tiny.parquet", "config/arms.yaml: File exists"),
        (nothing, "plan --jobs 2000000000", "less than or equal to 100000"),
        (nothing, "status --watch --seconds inf", "less than or equal to 86400"),
        (nothing, "fetch --to Snakefile", "--to Snakefile: it is no folder"),
        (nothing, 'why .', ". is no file; give a file of results/"),
        (cut, "compare cut results/tiny", "cut/metrics.parquet is no whole metrics.parquet"),
        (edited, "compare cut results/tiny", "cut/study.json"),
        (nothing, "compare Snakefile results/tiny", "Snakefile: study.json does not exist"),
        (nothing, "compare results/tiny/runs.parquet results/tiny", "runs.parquet has no column"),
        (a_folder, "tables", "main.md"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_said_in_a_line(
    finished_copy: Path, before: Callable[[Path], None], command: str, said: str
) -> None:
    before(finished_copy)
    there = (finished_copy / "config/studies/tiny.yaml").read_bytes()
    words = command.split()
    chosen = [] if words[0] == "compare" else ["--study", "tiny"]
    done = longshort(finished_copy, *words, *chosen, check=False)
    assert done.returncode in (1, 2) and "Traceback" not in done.stderr
    assert said in " ".join(done.stderr.replace("│", " ").split())
    assert (finished_copy / "config/studies/tiny.yaml").read_bytes() == there


@pytest.mark.parametrize("command", [["prune", "--all", "--yes"], ["prune", "--stale", "--yes"], ["plan"]])
def test_without_studies_nothing_is_called_unneeded(finished_copy: Path, command: list[str]) -> None:
    for study in (finished_copy / "config/studies").iterdir():
        study.unlink()
    done = longshort(finished_copy, *command, check=False)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert f"config/studies holds no study in {finished_copy}; go to the folder" in done.stderr
    assert (finished_copy / "results/tiny/metrics.parquet").exists()


def test_an_arm_may_be_called_study_and_a_table_not_answers(project: Path) -> None:
    arms = project / "config/arms.yaml"
    arms.write_text(
        arms.read_text().replace("\narms:\n", "\narms:\n  study: {description: x, alignment: {alpha: 0.3}}\n")
    )
    write_study(project, {**TINY, "arms": [*TINY["arms"], "study"]})
    made = longshort(project, "tables", "--study", "tiny", "--partial").stdout
    assert "| study" in made.replace("      | ", "| ")
    write_study(project, {**TINY, "tables": {"answers": {"title": "x", "arms": ["baseline", "constant"]}}})
    done = longshort(project, "check", "--study", "tiny", check=False)
    assert (
        done.returncode == 1
        and "tables.answers: `longshort tables --show answers` prints something else" in done.stderr
    )
