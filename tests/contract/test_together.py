"""Several metrics measured by one job: the same numbers, and the same that is due, as where each has its own."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from longshort.records.publish import read_record
from tests.support.project import edit, edit_study, longshort, planned, run_snakemake
from tests.support.reruns import AFTER, DRAWN, RESULTS, reverse_ages
from tests.support.waiting import PATIENCE

METRICS = ("perplexity", "misalignment", "longbench_e")
MISALIGNMENT = "src/longshort/evaluation/misalignment.py"


def switch(project: Path, evaluations: str) -> None:
    edit_study(project, needs={"evaluations": evaluations})


def published(project: Path, *metrics: str) -> dict[Path, bytes]:
    files = (path for metric in metrics or METRICS for path in project.glob(f"results/runs/*/{metric}/*/*"))
    return {path: path.read_bytes() for path in files if path.suffix in (".json", ".parquet")}


def due(project: Path) -> dict[str, int]:
    """Metric -> how many runs it is due for, as `longshort plan` says."""
    counts: dict[str, int] = {}
    for jobs in json.loads(longshort(project, "plan", "--study", "tiny", "--json").stdout)["jobs"].values():
        for metric, count in jobs.items():
            counts[metric] = counts.get(metric, 0) + count
    return counts


@pytest.mark.parametrize("ages", ["as they are", pytest.param("reversed", marks=pytest.mark.wide)])
def test_a_switch_reruns_nothing_and_each_metric_keeps_its_own_invalidation(finished_copy: Path, ages: str) -> None:
    before = published(finished_copy)
    switch(finished_copy, "together")
    if ages == "reversed":
        reverse_ages(finished_copy)
    assert planned(finished_copy) == {} and due(finished_copy) == {}
    assert published(finished_copy) == before
    edit(finished_copy, MISALIGNMENT, "import torch\n", "import abc\nimport torch\n")
    assert planned(finished_copy) == {"evaluate": 5, **AFTER}
    assert due(finished_copy) == {"misalignment": 5}
    assert "evaluation/misalignment.py changed" in longshort(finished_copy, "plan", "--study", "tiny").stdout
    switch(finished_copy, "apart")
    assert planned(finished_copy) == {"misalignment": 5, **AFTER}


def test_a_switch_does_not_hide_that_what_is_read_changed(finished_copy: Path) -> None:
    """The engine is told of each job's inputs as they are now, so that it would notice no more."""
    items = next(finished_copy.glob("results/data/*/longbench-e-1/manifest.json"))
    items.write_text(items.read_text() + "\n")
    switch(finished_copy, "together")
    assert planned(finished_copy) == {"evaluate": 5, **AFTER}


@pytest.mark.wide
def test_what_is_not_due_is_not_measured_again_even_where_work_is_gone(finished_copy: Path) -> None:
    before = published(finished_copy)
    switch(finished_copy, "together")
    shutil.rmtree(finished_copy / "work/evaluations")
    edit(finished_copy, MISALIGNMENT, "import torch\n", "import abc\nimport torch\n")
    run_snakemake(finished_copy, "tables")
    after = published(finished_copy)
    changed = {path.parents[1].name for path in before if after[path] != before[path]}
    assert changed == {"misalignment"}
    assert planned(finished_copy) == DRAWN
    switch(finished_copy, "apart")
    assert planned(finished_copy) == DRAWN
    edit(finished_copy, "src/longshort/evaluation/perplexity.py", "import torch\n", "import abc\nimport torch\n")
    assert planned(finished_copy) == {"perplexity": 5, **AFTER}


@pytest.mark.wide
def test_what_an_update_fails_to_measure_stays_due(finished_copy: Path) -> None:
    """The engine gives back the outputs of a job that fails, and remembers them as made by what it was asked."""
    switch(finished_copy, "together")
    item = next(finished_copy.glob("results/data/*/longbench-e-1/*.jsonl"))
    text, times = item.read_text(), (item.stat().st_atime_ns, item.stat().st_mtime_ns)
    for module in ("perplexity", "longbench"):
        edit(finished_copy, f"src/longshort/evaluation/{module}.py", "\nfrom typing", "\nimport abc\nfrom typing")
    item.write_text("{}\n")
    assert run_snakemake(finished_copy, "metrics", "--keep-going", check=False).returncode != 0
    item.write_text(text)
    os.utime(item, ns=times)
    assert published(finished_copy, "misalignment") and not published(finished_copy, "longbench_e")
    assert planned(finished_copy) == {"evaluate": 5, **AFTER}


def test_a_metric_that_joins_or_leaves_concerns_no_other(finished_copy: Path) -> None:
    switch(finished_copy, "together")
    asked = {"perplexity": {"lengths": [16, 32], "documents": 3}}
    misalignment = {"sequences": 4, "lengths_per_sequence": 3, "beyond": [2]}
    edit_study(finished_copy, evaluations=asked)
    assert planned(finished_copy) == RESULTS
    edit_study(finished_copy, evaluations={**asked, "misalignment": {**misalignment, "sequences": 5}})
    assert planned(finished_copy) == {"specification": 1, "evaluate": 5, **RESULTS}
    assert due(finished_copy) == {"misalignment": 5}
    edit(finished_copy, "src/longshort/evaluation/perplexity.py", "import torch\n", "import abc\nimport torch\n")
    assert planned(finished_copy) == {"specification": 1, "evaluate": 5, **RESULTS}
    assert due(finished_copy) == {"misalignment": 5, "perplexity": 5}


@pytest.mark.wide
def test_the_numbers_are_those_of_jobs_apart_and_one_that_fails_loses_no_other(finished_copy: Path) -> None:
    before = {path: content for path, content in published(finished_copy).items() if path.suffix == ".parquet"}
    switch(finished_copy, "together")
    shutil.rmtree(finished_copy / "work/evaluations")
    for metric in METRICS:
        for folder in finished_copy.glob(f"results/runs/*/{metric}"):
            shutil.rmtree(folder)
    standin = next(finished_copy.glob("results/data/*/longbench-e-1"))
    lines = {path: path.read_text() for path in standin.glob("*.jsonl")}
    for path in lines:
        path.write_text("{}\n")
    failed = run_snakemake(finished_copy, "all", "--keep-going", check=False)
    assert failed.returncode != 0
    log = next(finished_copy.glob("results/runs/*/evaluations/2-6.log")).read_text()
    assert "longbench_e failed: " in log and "failed: longbench_e" in log.splitlines()[-1]
    for path, text in lines.items():
        path.write_text(text)
    run_snakemake(finished_copy, "all", "--keep-going")
    assert {path: path.read_bytes() for path in before} == before
    found = [path.read_text() for path in finished_copy.glob("results/runs/*/perplexity/*/*.log")]
    assert len(found) == 5 and all("found finished" in text for text in found)
    records = [read_record(path.with_suffix(".json")) for path in before if not path.name.endswith(".items.parquet")]
    assert all(0 < record["seconds"] < PATIENCE for record in records)
