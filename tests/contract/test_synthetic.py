"""`longshort plan`, `status` and `tables` on a synthetic study that is not finished."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from longshort import studies
from longshort.records.publish import write_record
from tests.support.project import SYNTHETIC, longshort, write_study


@pytest.fixture
def groups(project: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Name -> id."""
    monkeypatch.chdir(project)
    write_study(project, SYNTHETIC)
    return {name: group for group, name in studies.load("tiny").names().items()}


def test_plan_says_why_each_group_is_trained(project: Path, groups: dict[str, str]) -> None:
    length = {f"length/{encoding}{aligned}" for encoding in ("none", "rope") for aligned in ("", "/alignment")}
    assert set(groups) == {"mean/none", "mean/rope"} | length
    said = longshort(project, "plan", "--study", "tiny").stdout
    assert "1 synthetic each\n      not trained yet\n\n  then synthetic_" in said and "cost is not counted" in said
    (project / "results/tiny").mkdir(parents=True)
    (project / "results/tiny/study.json").write_text(studies.load("tiny").summary_text())
    write_study(project, {**SYNTHETIC, "alpha": 0.2, "encodings": ["none", "rope", "alibi"]})
    plan = json.loads(longshort(project, "plan", "--study", "tiny", "--json").stdout)
    assert plan["why"] == {
        **dict.fromkeys(groups, ["not finished yet"]),
        **dict.fromkeys([name for name in groups if "alignment" in name], ["alpha 0.1 -> 0.2"]),
        **dict.fromkeys(["mean/alibi", "length/alibi", "length/alibi/alignment"], ["new group"]),
    }
    said = longshort(project, "plan", "--study", "tiny", "--budget", "1h", check=False)
    assert said.returncode and "study tiny is synthetic: its cost is not counted" in said.stderr


def test_status_names_every_group(project: Path, groups: dict[str, str]) -> None:
    record = project / "results/runs" / groups["mean/rope"] / "synthetic/record.json"
    record.parent.mkdir(parents=True)
    write_record(record, {"code": "0" * 16})
    jobs = json.loads(longshort(project, "status", "--study", "tiny", "--json").stdout)
    assert "1 done" in (said := longshort(project, "status", "--study", "tiny").stdout) and "no heartbeat" in said
    assert {job["arms"]: job["state"] for job in jobs} == {**dict.fromkeys(groups, "pending"), "mean/rope": "done"}


def test_tables_are_made_of_all_groups_alone(project: Path, groups: dict[str, str]) -> None:
    for options, answer in {
        (): "results/tiny/tables/growth.md does not exist yet; run `snakemake all",
        ("--show", "main"): "no table 'main'; it has growth, parameterisations",
        ("--partial",): "study tiny is synthetic: its tables compare all groups",
    }.items():
        said = longshort(project, "tables", "--study", "tiny", *options, check=False)
        assert said.returncode and answer in said.stderr
