"""The demo as a user gets it: a quarter of an hour, switched on by .ci/run."""

from __future__ import annotations

import asyncio
import itertools
import shutil
import subprocess
import sys
from pathlib import Path

import pandas
import pytest

from tests.support import browser
from tests.support.latex import assert_compiles
from tests.support.project import TINY, make_project, planned, run_snakemake

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    project = make_project(tmp_path_factory.mktemp("demo") / "project", TINY)
    run_snakemake(project, "all", study="demo")
    return project


def test_the_demo_is_a_measurement(demo: Path) -> None:
    metrics = pandas.read_parquet(demo / "results/demo/metrics.parquet")
    perplexity = metrics[metrics["metric"] == "perplexity"]
    base = perplexity[(perplexity["arm"] == "(base)") & (perplexity["length"] == 128)]
    assert float(base["value"].iloc[0]) < 4.5
    last = perplexity[(perplexity["step"] == 150) & (perplexity["seed"] == 0)]
    curves = {arm: tuple(rows.sort_values("length")["value"]) for arm, rows in last.groupby("arm")}
    same = {pair for pair in itertools.combinations(sorted(curves), 2) if curves[pair[0]] == curves[pair[1]]}
    assert len(curves) == 10 and same == {("constant", "ratio")}
    assert set(metrics["status"]) == {"ok"}


def test_its_main_table_is_printed_and_nothing_runs_twice(demo: Path) -> None:
    command = [sys.executable, "-m", "longshort.cli", "tables", "--study", "demo"]
    shown = subprocess.run(command, cwd=demo, capture_output=True, text=True, check=True).stdout
    assert "hidden+output" in shown and "results/demo/plots" in shown
    assert planned(demo, study="demo") == {}


@pytest.mark.latex
def test_its_tables_compile(demo: Path, tmp_path: Path) -> None:
    assert_compiles(Path(shutil.copytree(demo / "results/demo/tables", tmp_path / "tables")), "tab:demo-main")


@pytest.mark.page
def test_its_report_opens(demo: Path, tmp_path: Path) -> None:
    report = demo / "results/demo/report.html"
    assert asyncio.run(browser.troubles(report, tmp_path / "profile")) == []
    assert report.read_text().count("<img") >= 8
