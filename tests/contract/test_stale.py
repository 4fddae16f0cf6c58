"""Results of other code are never taken for up to date, whatever the engine knows of them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from longshort.records.publish import read_record, write_record
from tests.support.project import edit, longshort, planned, run_snakemake
from tests.support.reruns import AFTER

STALE = "results are not of the present code"


def without_records(project: Path) -> None:
    """As after `cp -a results work` to another checkout."""
    shutil.rmtree(project / ".snakemake")


@pytest.mark.wide
@pytest.mark.parametrize(
    ("module", "jobs"),
    [
        ("models/head.py", dict.fromkeys(("train", "perplexity", "misalignment", "longbench_e"), 5)),
        ("evaluation/misalignment.py", {"misalignment": 5}),
    ],
)
def test_in_a_checkout_that_results_were_copied_to(finished_copy: Path, module: str, jobs: dict[str, int]) -> None:
    without_records(finished_copy)
    assert planned(finished_copy) == {}
    edit(finished_copy, f"src/longshort/{module}", "import torch\n", "import abc\nimport torch\n")
    for done in (
        run_snakemake(finished_copy, "all", "--dry-run", check=False),
        longshort(finished_copy, "plan", "--study", "tiny", check=False),
    ):
        assert done.returncode != 0 and STALE in done.stdout + done.stderr
    # What is named is deleted, alone; a name that is none of them, or another choice, deletes nothing.
    listed = longshort(finished_copy, "prune", "--stale", "--dry-run").stdout.splitlines()
    one, *others = [line.partition(": code")[0] for line in listed if ": code" in line]
    for named in (["nosuch"], [one, "nosuch"], ["--all"], ["--states"]):
        done = longshort(finished_copy, "prune", "--stale", "--yes", *named, check=False)
        assert done.returncode == 1 and "Traceback" not in done.stderr and (finished_copy / one).exists()
    assert "1 results that other code" in longshort(finished_copy, "prune", "--stale", one, "--yes").stdout
    assert not (finished_copy / one).exists() and all((finished_copy / other).exists() for other in others)
    said = longshort(finished_copy, "prune", "--stale", "--yes").stdout
    assert "4 results that other code" in said
    assert planned(finished_copy) == {**jobs, **AFTER}


@pytest.mark.wide
def test_results_are_kept_in_order_longer_than_what_they_were_made_from(finished_copy: Path) -> None:
    (finished_copy / "corpus").rename(finished_copy / "elsewhere")
    assert longshort(finished_copy, "prune", "--stale", "--dry-run").stdout.startswith("\n0 results")
    assert "study tiny needs" in longshort(finished_copy, "prune").stdout


@pytest.mark.wide
def test_where_the_engine_was_told_that_they_are_up_to_date(finished_copy: Path) -> None:
    edit(finished_copy, "src/longshort/evaluation/misalignment.py", "import torch\n", "import abc\nimport torch\n")
    run_snakemake(finished_copy, "all", "--touch")
    done = run_snakemake(finished_copy, "all", "--dry-run", check=False)
    assert done.returncode != 0 and f"5 {STALE}" in done.stdout and "or says otherwise" in done.stdout
    longshort(finished_copy, "prune", "--stale", "--yes")
    assert planned(finished_copy) == {"misalignment": 5, **AFTER}


def test_a_measurement_of_another_training(finished_copy: Path) -> None:
    """Its training is the present one, as when only some of the results were copied."""
    run = (finished_copy / "results/tiny/arms/constant/seed-0").resolve()
    record = next(run.glob("perplexity/*/2-6.json"))
    write_record(record, {**read_record(record), "run_id": "0" * 16})
    without_records(finished_copy)
    done = run_snakemake(finished_copy, "all", "--dry-run", check=False)
    assert done.returncode != 0
    assert f"{record.relative_to(finished_copy)}: it measured the training {'0' * 16}" in done.stdout + done.stderr


@pytest.mark.wide
def test_a_corpus_that_is_another_one_now(finished_copy: Path) -> None:
    """Or that other code would prepare otherwise, in a checkout that results were copied to."""
    without_records(finished_copy)
    document = next((finished_copy / "modules").glob("*.txt"))
    text = document.read_text()

    def refused() -> str:
        done = run_snakemake(finished_copy, "all", "--dry-run", check=False)
        assert done.returncode != 0 and STALE in done.stdout + done.stderr
        return done.stdout + done.stderr

    document.write_text(f"{text} and more")
    assert "manifest.json: the corpus' own files hold something else now" in refused()
    document.write_text(text)
    assert planned(finished_copy) == {}
    edit(finished_copy, "src/longshort/data/shards.py", "import hashlib\n", "import abc\nimport hashlib\n")
    assert "manifest.json: code" in refused()
    longshort(finished_copy, "prune", "--stale", "--yes")
    assert planned(finished_copy)["data"] == 1
