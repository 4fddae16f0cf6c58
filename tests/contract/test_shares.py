"""An evaluation whose items several jobs share out: the same numbers, and nothing that is finished is made again."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pandas
import pytest

from longshort.records import layout, shares
from longshort.records.publish import read_record
from tests.support.project import edit_study, longshort, planned, run_snakemake
from tests.support.reruns import AFTER, DRAWN

JOBS = 3


def share_out(project: Path, jobs: int) -> None:
    edit_study(project, evaluations__longbench_e__jobs=jobs)


def numbers(project: Path) -> pandas.DataFrame:
    metrics = pandas.read_parquet(project / "results/tiny/metrics.parquet")
    return metrics[metrics["metric"] == "longbench_e"].reset_index(drop=True)


@pytest.mark.wide
def test_another_number_of_jobs_reruns_nothing_that_is_finished(finished_copy: Path) -> None:
    for jobs in (JOBS, 2, 1):
        share_out(finished_copy, jobs)
        assert planned(finished_copy) == {}
        assert longshort(finished_copy, "plan", "--study", "tiny").stdout.endswith("every result is up to date\n")


@pytest.mark.wide
def test_shared_out_items_give_the_same_numbers(finished_copy: Path) -> None:
    """Those of one arm are measured anew, by three jobs and one that puts them together."""
    before = numbers(finished_copy)
    run = (finished_copy / "results/tiny/arms/constant/seed-0").resolve()
    shutil.rmtree(run / "longbench_e")
    shutil.rmtree(finished_copy / "work/evaluations")  # else they are found finished
    share_out(finished_copy, JOBS)
    jobs = json.loads(longshort(finished_copy, "plan", "--study", "tiny", "--json").stdout)["jobs"]
    assert jobs == {"constant": {"longbench_e": 1}, "alpha-1x": {}}  # the same run
    assert planned(finished_copy) == {"longbench_e_share": JOBS, "longbench_e": 1, **AFTER}
    run_snakemake(finished_copy, "tables")
    pandas.testing.assert_frame_equal(numbers(finished_copy), before)
    record = next((run / "longbench_e").glob("*/2-6.json"))
    made = read_record(record)
    parts = list(shares.of(record, made))
    assert sorted(part["share"] for part in parts) == [[number, JOBS] for number in range(JOBS)]
    log = Path(layout.stage_of(record).log).read_text()
    assert re.search(r"going on after [1-9]\d* finished items", log)
    # What they took counts as the evaluation's.
    runs = pandas.read_parquet(finished_copy / "results/tiny/runs.parquet").set_index(["arm", "stage"])
    took = runs.loc[("constant", "longbench_e"), "device_seconds"]
    assert took == pytest.approx(made["seconds"] + sum(part["seconds"] for part in parts))
    assert shares.seconds_of(record, made) == pytest.approx(took)
    assert planned(finished_copy) == DRAWN


def test_a_share_goes_on_with_what_jobs_of_another_number_measured(finished_copy: Path) -> None:
    run = (finished_copy / "results/tiny/arms/constant/seed-0").resolve()
    evaluation = next((run / "longbench_e").iterdir()).relative_to(finished_copy)
    shutil.rmtree(run / "longbench_e")
    shutil.rmtree(finished_copy / "work/evaluations")
    share_out(finished_copy, 1 + JOBS)
    run_snakemake(finished_copy, *(f"{evaluation}/2-6.jobs/{number}-of-4.json" for number in range(4)))
    share_out(finished_copy, 2)
    run_snakemake(finished_copy, f"{evaluation}/2-6.jobs/0-of-2.json", f"{evaluation}/2-6.jobs/1-of-2.json")
    for number in range(2):
        log = (finished_copy / evaluation / f"2-6.jobs/{number}-of-2.log").read_text()
        assert re.search(r"going on after [1-9]\d* finished items", log)
