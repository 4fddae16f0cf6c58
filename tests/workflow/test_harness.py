"""Tasks of lm_eval in a study, through the real engine: own tasks, no network."""

from __future__ import annotations

import copy
from pathlib import Path

import pandas
import pytest

from longshort.commands import why
from tests.support.harness import write_tasks
from tests.support.project import TINY, make_project, planned, run_snakemake
from tests.support.reruns import DRAWN


@pytest.mark.wide
def test_own_tasks_stand_in_the_main_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "huggingface"))
    study = copy.deepcopy(TINY)
    study["arms"], study["checkpoints"] = ["baseline", "constant"], [6]
    study["evaluations"] = {
        "harness": {
            "tasks": ["own_choose", "own_answer", "own_flow"],
            "lower_is_better": ["own_flow"],
            "limit": 3,
            "include_path": "tasks",
        }
    }
    project = make_project(tmp_path / "project", study)
    write_tasks(project / "tasks")
    run_snakemake(project, "tables")
    metrics = pandas.read_parquet(project / "results/tiny/metrics.parquet")
    rows = metrics[metrics["metric"] == "harness:own_flow"]
    assert sorted(rows["arm"]) == ["(base)", "baseline", "constant"]
    assert (rows["value"] > 1).all() and (rows["n"] == 3).all() and set(rows["status"]) == {"ok"}
    main = pandas.read_parquet(project / "results/tiny/tables/main.parquet")
    assert set(main["column"]) == {"harness:own_choose", "harness:own_answer", "harness:own_flow"}
    assert (
        set(main["status"]) == {"ok"} and not main.loc[main["column"] == "harness:own_flow", "higher_is_better"].any()
    )
    printed = (project / "results/tiny/tables/main.md").read_text()
    assert "own_choose: acc; own_answer: exact_match; own_flow: byte_perplexity." in printed
    assert "Protocol harness/lm_eval-" in printed and "limit=3&fewshot=task&max=128" in printed
    items = pandas.read_parquet(next(project.glob("results/tiny/arms/constant/seed-0/harness/*/6.items.parquet")))
    assert list(items["task"]) == ["own_choose"] * 3 + ["own_answer"] * 3 + ["own_flow"] * 3
    monkeypatch.chdir(project)
    (found,) = why.of_cell("tiny", "main", "baseline", "harness:own_flow")
    assert found["file"] == "as published" and "/harness/" in found["result"]
    assert planned(project) == DRAWN
    (project / "tasks/items.jsonl").write_text((project / "tasks/items.jsonl").read_text().replace("one two", "one"))
    due = {"harness": 3, "metrics": 1, "tables": 1, "plots": 1, "report": 1}
    assert planned(project) == due
    (project / "tasks/notes.txt").write_text("joins them")
    assert planned(project) == due and planned(project) == due  # nor does to look at it make it current
