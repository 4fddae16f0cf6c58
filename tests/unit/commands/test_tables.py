"""`longshort tables`: what it prints besides the tables, and of what."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from longshort import studies
from longshort.commands import reproduce, tables
from longshort.errors import UserError
from longshort.records import layout
from longshort.results import answers, published
from tests.support.project import ROOT, edit_study

LAPTOP = ROOT / "docs/findings/laptop.parquet"


def test_published_numbers_answer_without_results(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    study, there = studies.load("laptop"), published.read(LAPTOP)
    printed = tables.printed(study, "answers", False, None, LAPTOP)
    assert max(map(len, printed.splitlines())) <= tables.WIDTH
    assert " ".join(printed.split()).endswith(" ".join(answers.answers(there.metrics, there.study)))
    assert "step-linear" in tables.printed(study, "components", False, "2%", LAPTOP)


@pytest.mark.parametrize(
    ("study", "show", "margin", "file", "message"),
    [
        ("laptop", "main", "2%", None, "--margin goes with --show components"),
        ("laptop", "main", None, LAPTOP, "--published goes with --show answers"),
        ("demo", "answers", None, LAPTOP, "is of study laptop; give --study laptop"),
        ("synthetic", "answers", None, None, "is synthetic"),
        ("laptop", "nothing", None, None, "has no table 'nothing'"),
    ],
)
def test_what_cannot_be_shown_is_said(
    study: str, show: str, margin: str | None, file: Path | None, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises(UserError, match=message):
        tables.printed(studies.load(study), show, False, margin, file)


def test_numbers_of_the_study_as_it_was_are_not_shown_as_those_of_what_it_is(
    finished_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """study.json is written first, and the numbers last, or never if a job fails."""
    monkeypatch.chdir(finished_copy)
    edit_study(finished_copy, seeds=[0, 1])
    study = studies.load("tiny")
    for show in (None, "answers"):
        assert "The configuration has changed" in tables.printed(study, show, False, None, None)
    Path(layout.study_json("tiny")).write_text(study.summary_text())
    assert "The configuration has changed" in tables.printed(study, None, False, None, None)
    with pytest.raises(UserError, match="is of the study as it was"):
        tables.printed(study, "answers", False, None, None)
    with pytest.raises(UserError, match="is of the study as it was"):
        reproduce.write(study, finished_copy / "tiny.parquet")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "100")
    Path(layout.study_json("tiny")).unlink()  # of what is asked for now, whatever was finished before
    assert "missing" in tables.printed(study, None, True, None, None)
