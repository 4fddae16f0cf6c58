"""Studies by their names."""

from __future__ import annotations

from pathlib import Path

import pytest

from longshort import studies
from longshort.commands import prune
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
    assert prune.more_while_running("tiny") is None


def test_the_engine_is_given_a_study_and_nothing_else(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)
    assert studies.of_config({"study": "tiny"}).name == "tiny"
    for config in ({"studdy": "tiny"}, {"study": "tiny", "seeds": 3}):
        with pytest.raises(StudyError, match="unknown key; only study=NAME, budget=HOURS and, for that, throughput"):
            studies.of_config(config)
    with pytest.raises(StudyError, match="--config budget=500: of which study"):  # not the profile's, nor the demo
        studies.of_config({"budget": 500})


def test_a_budget_is_a_number_of_hours(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the engine hands it on, which makes numbers of what it can."""
    monkeypatch.chdir(project)
    study = studies.of_config({"study": "tiny", "budget": "500h"})
    assert studies.budget_of({"study": "tiny"}, study) is None
    budgets = [studies.budget_of({"budget": given}, study) for given in ("500h", 500, 0.5)]
    assert budgets == [(500, None), (500, None), (0.5, None)]
    for wrong in ("much", -1, "nan", True, ""):
        with pytest.raises(StudyError, match=f"--config budget={wrong!r}: give device-hours"):
            studies.of_config({"study": "tiny", "budget": wrong})


def test_a_budget_may_be_counted_with_the_speed_of_ones_own_devices(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project)
    given = {"study": "tiny", "budget": 500}
    study = studies.of_config({**given, "throughput": "4e14"})
    assert studies.budget_of({**given, "throughput": "4e14"}, study) == (500, 4e14)
    for wrong in ("fast", 0, "nan", True):
        with pytest.raises(StudyError, match=f"--config throughput={wrong!r}: give operations a second"):
            studies.of_config({**given, "throughput": wrong})
    with pytest.raises(StudyError, match="throughput=1000000.0 is for a budget"):
        studies.of_config({"study": "tiny", "throughput": 1e6})
