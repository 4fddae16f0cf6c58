"""Studies by their names."""

from __future__ import annotations

from pathlib import Path

import pytest

from longshort import studies
from longshort.errors import StudyError
from longshort.study import resolve
from tests.support.project import ROOT
from tests.support.studies import FROM_THE_HUB, check, pretrained


def test_shipped_studies_load_and_the_demo_keeps_its_floors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert studies.every().keys() > {"demo", "synthetic", *FROM_THE_HUB}
    for name in ("demo", "demo-short", "synthetic", *FROM_THE_HUB):
        studies.load(name)
    demo = resolve.load("demo").study
    assert demo.lengths.train >= 128 and demo.model.training.steps >= 500 and demo.training.steps >= 150
    assert demo.checkpoints == [demo.training.steps] and demo.model.seed == "per-run" and len(demo.seeds) == 3
    assert max(demo.evaluations.perplexity.lengths) == 8 * demo.lengths.train


def test_all_studies_are_read_where_a_model_is_not_here(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `longshort prune` must know what each of them needs."""
    monkeypatch.chdir(project)
    with pytest.raises(StudyError, match="model.name = './nowhere': no folder there"):
        check(project, **pretrained(name="./nowhere"))
    assert "tiny" in studies.every()


def test_the_engine_is_given_a_study_and_nothing_else(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)
    assert studies.of_config({"study": "tiny"}).name == "tiny"
    for config in ({"studdy": "tiny"}, {"study": "tiny", "seeds": 3}):
        with pytest.raises(StudyError, match="unknown key; only study=NAME and budget=HOURS are known here"):
            studies.of_config(config)


def test_a_budget_is_a_number_of_hours(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the engine hands it on, which makes numbers of what it can."""
    monkeypatch.chdir(project)
    study = studies.of_config({"study": "tiny", "budget": "500h"})
    assert studies.budget_of({"study": "tiny"}, study) is None
    assert [studies.budget_of({"budget": given}, study) for given in ("500h", 500, 0.5)] == [500, 500, 0.5]
    for wrong in ("much", -1, "nan", True, ""):
        with pytest.raises(StudyError, match=f"--config budget={wrong!r}: give device-hours"):
            studies.of_config({"study": "tiny", "budget": wrong})
