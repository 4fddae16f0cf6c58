"""`longshort tables`: what it prints besides the tables, and of what."""

from __future__ import annotations

from pathlib import Path

import pytest

from longshort import studies
from longshort.commands import tables
from longshort.errors import UserError
from longshort.results import answers, published
from tests.support.project import ROOT

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
