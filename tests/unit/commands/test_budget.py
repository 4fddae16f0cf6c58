"""What fits a budget, by hours that are written down for each run."""

from __future__ import annotations

from pathlib import Path

import pytest

from longshort.commands import budget, cost
from longshort.commands.cost import Work
from longshort.errors import UserError
from longshort.study.resolve import ResolvedStudy
from tests.support.studies import load

ARMS = ["baseline", "step-linear", "constant", "alpha-1x", "hidden"]


@pytest.fixture
def config(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(project)
    return project / "config"


@pytest.fixture
def study(config: Path) -> ResolvedStudy:
    """step-linear has the control constant, and alpha-1x is the same run as it."""
    return load(config, arms=ARMS, seeds=[0, 1])


def fitting(study: ResolvedStudy, monkeypatch: pytest.MonkeyPatch, hours: float, *finished: str) -> budget.Fitting:
    """The base takes an hour, a run of an arm 2; those of `finished` are done."""
    taken = {run: 1.0 if study.is_base(run) else 2.0 for run in study.runs}
    for arm in finished:
        for run in study.arm_runs[arm].values():
            taken.pop(run, None)
    work = {Work("train", run, "6"): (each * 3600, "by hand") for run, each in taken.items()}
    monkeypatch.setattr(cost, "seconds_of", lambda *_: work)
    return budget.fitting(study, list(work), hours)


def test_arms_fit_whole_in_the_order_of_the_file_each_with_its_control(
    study: ResolvedStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = fitting(study, monkeypatch, 12)
    assert (found.shared, found.needed) == (1, 17)
    assert found.arms == {"baseline": 4, "step-linear": 4, "constant": 4, "alpha-1x": 0, "hidden": 4}
    # 1 + 4, and 8 more for step-linear with its control, of which the next two arms are a part.
    assert found.fitting == ["baseline"] and found.seeds == [0]
    assert fitting(study, monkeypatch, 13).fitting == ["baseline", "step-linear", "constant", "alpha-1x"]
    assert fitting(study, monkeypatch, 4.9).fitting == [] and fitting(study, monkeypatch, 8.9).seeds == []
    assert fitting(study, monkeypatch, 17).whole


def test_what_is_finished_costs_nothing(study: ResolvedStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    found = fitting(study, monkeypatch, 5, "baseline", "constant")
    assert found.needed == 9 and found.fitting == ["baseline", "step-linear", "constant", "alpha-1x"]


def test_a_seed_that_is_left_out_takes_its_bases_along(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rope = {"kind": "yarn", "factor": 4}
    study = load(config, arms=["baseline"], seeds=[0, 1], model__seed="per-run", model__rope=rope)
    assert len(study.runs) == 6
    needed = fitting(study, monkeypatch, 0).needed
    assert fitting(study, monkeypatch, needed / 2).seeds == [0]


def test_processes_count_each(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = load(config, arms=["baseline"], training__processes=4)
    assert fitting(study, monkeypatch, 1).arms == {"baseline": 8}


def test_a_refusal_says_what_to_write(study: ResolvedStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError) as refused:
        budget.refuse_beyond(fitting(study, monkeypatch, 13), study)
    said = str(refused.value)
    assert "what is not finished needs 17 device-hours, more than the budget of 13" in said
    assert "`arms: [baseline, step-linear, constant, alpha-1x]`" in said and "arms that do not: hidden 4" in said
    assert "all arms with fewer seeds: `seeds: [0]`" in said and "config/studies/tiny.yaml" in said
    budget.refuse_beyond(fitting(study, monkeypatch, 17), study)
