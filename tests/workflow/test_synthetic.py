"""The synthetic study through the engine: what it makes, what a change reruns, what else knows of it."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
from pathlib import Path

import pandas
import pytest

from tests.support import browser
from tests.support.latex import assert_compiles
from tests.support.project import SYNTHETIC as STUDY
from tests.support.project import edit, longshort, make_project, planned, run_snakemake


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    project = make_project(tmp_path_factory.mktemp("synthetic") / "project", STUDY)
    run_snakemake(project, "all")
    return project


def test_every_number_is_there_and_every_format(project: Path) -> None:
    numbers = pandas.read_parquet(project / "results/tiny/metrics.parquet")
    keys = ["task", "encoding", "arm", "seed", "length"]
    assert not numbers.duplicated(keys).any() and set(numbers["status"]) == {"ok"}
    arms = {("mean", "identity"), ("length", "identity"), ("length", "log"), ("length", "identity + alignment")}
    assert set(zip(numbers["task"], numbers["arm"], strict=True)) == arms
    assert len(numbers) == len(arms) * 2 * 2 * 8
    for name in ("parameterisations", "growth"):
        for kind in ("parquet", "csv", "md", "tex", "html"):
            assert (project / f"results/tiny/tables/{name}.{kind}").stat().st_size > 200
    page = (project / "results/tiny/report.html").read_text()
    assert "http" not in page.replace("http-equiv", "") and "identity + alignment" in page


@pytest.mark.latex
def test_its_tables_compile(project: Path, tmp_path: Path) -> None:
    tables = Path(shutil.copytree(project / "results/tiny/tables", tmp_path / "tables"))
    assert_compiles(tables, "tab:tiny-growth")


@pytest.mark.page
def test_its_report_opens(project: Path, tmp_path: Path) -> None:
    assert asyncio.run(browser.troubles(project / "results/tiny/report.html", tmp_path / "profile")) == []


def test_another_encoding_trains_its_own_models_only(project: Path) -> None:
    assert planned(project) == {}
    path = project / "config/studies/tiny.yaml"
    before = path.read_text()
    edit(project, "config/studies/tiny.yaml", "- rope\n", "- rope\n- alibi\n")
    assert planned(project) == {"specification": 3, "synthetic": 3, "synthetic_study": 1, "synthetic_results": 1}
    path.write_text(before)
    assert planned(project) == {}


@pytest.mark.parametrize(
    ("module", "old", "new", "jobs"),
    [
        ("model", "10_000.0", "20_000.0", {"synthetic": 6, "synthetic_results": 1}),
        ("results", "import argparse", "import abc\nimport argparse", {"synthetic_results": 1}),
    ],
)
def test_other_code_computes_anew_and_none_of_it_in_secret(
    project: Path, module: str, old: str, new: str, jobs: dict[str, int]
) -> None:
    source = project / f"src/longshort/synthetic/{module}.py"
    before = source.read_text()
    source.write_text(before.replace(old, new))
    assert planned(project) == jobs
    source.write_text(before)


def test_altered_numbers_are_refused_by_name(project: Path) -> None:
    numbers = next(project.glob("results/runs/*/synthetic/numbers.parquet"))
    before = numbers.read_bytes()
    numbers.write_bytes(before[:-1] + b"x")
    done = run_snakemake(project, "all", check=False)
    numbers.write_bytes(before)
    log = (project / "results/tiny/logs/results.log").read_text()
    assert done.returncode and "is not the file that was published; delete it and run snakemake again" in log
    run_snakemake(project, "all")


def test_prune_knows_its_runs_and_other_commands_say_what_it_is(project: Path) -> None:
    for other in (project / "config/studies").glob("*.yaml"):
        if other.stem != "tiny":
            other.unlink()
    said = longshort(project, "prune", check=False)
    assert said.returncode == 0 and "tiny" in said.stdout, said.stdout + said.stderr
    assert "in 0 folders" in said.stdout
    assert (
        longshort(project, "check", "--study", "tiny", check=False).stdout
        == "study tiny: synthetic, 16 models, trained in 6 groups\n"
    )
    said = longshort(project, "accept", "mean", "--because", "it is", "--study", "tiny", check=False)
    assert said.returncode and "study tiny is synthetic: it is run by `snakemake all" in said.stderr


def test_plan_status_tables_and_why_know_it_as_any_other(project: Path) -> None:
    assert longshort(project, "plan", "--study", "tiny").stdout == (
        "study tiny: nothing to do, every result is up to date\n"
    )
    assert {job["state"] for job in json.loads(longshort(project, "status", "--study", "tiny", "--json").stdout)} == {
        "done"
    }
    assert "Lengths 5 to 8" in longshort(project, "tables", "--study", "tiny", "--show", "parameterisations").stdout
    numbers = next(project.glob("results/runs/*/synthetic/numbers.parquet"))
    assert re.search("file +as published", longshort(project, "why", str(numbers.relative_to(project))).stdout)
    said = longshort(project, "why", "growth", "mean", "rope", "--study", "tiny", check=False)
    assert said.returncode and "study tiny is synthetic: give a file" in said.stderr


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("alpha: 0.1", "alpa: 0.1", "alpa"),
        ("- log\n", "- cube\n", "'cube'"),
        ("test: 8", "test: 3", "lengths.test 3 must be above lengths.train 4"),
        ("heads: 2", "heads: 3", "features 8 is no even multiple of heads 3"),
    ],
)
def test_a_mistake_is_named_and_nothing_runs(project: Path, old: str, new: str, said: str) -> None:
    path = project / "config/studies/tiny.yaml"
    before = path.read_text()
    edit(project, "config/studies/tiny.yaml", old, new)
    done = run_snakemake(project, "all", check=False)
    path.write_text(before)
    assert done.returncode and said in done.stderr and "Execute" not in done.stderr
