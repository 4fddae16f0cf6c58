"""What the engine's jobs refuse: results that are not what was published, and source that is not what was planned."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from longshort.records.publish import read_record, write_record
from tests.support.project import edit, longshort, run_python, run_snakemake

CODE = "from longshort.identity import code; print(code.source_as_planned())"
METRICS_LOG = "results/tiny/logs/metrics.log"
# As rule metrics runs it.
COLLECT = ["-m", "longshort.collecting", "--study", "results/tiny/study.json", "--results", "results"]
COLLECT += ["--out", "results/tiny/metrics.parquet"]


def refused(project: Path, command: list[str]) -> str:
    done = run_python(project, *command, check=False)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    return done.stderr


@pytest.mark.parametrize(
    ("pattern", "old", "new"),
    [
        ("perplexity/*/2-6.parquet", b"PAR1", b""),  # cut at both ends
        ("perplexity/*/2-6.json", b'"sha256"', b'"SHA256"'),
        ("training/2-6.parquet", b"PAR1", b"par1"),
        ("training/2-6.json", b'"status": "ok"', b'"status": "OK"'),
        ("training/2-6.json", b"}\n", b"\n"),
    ],
    ids=["numbers-cut", "record-edited", "log-edited", "training-edited", "training-cut"],
)
def test_results_cut_or_edited_by_hand_are_refused_by_name(
    finished_copy: Path, pattern: str, old: bytes, new: bytes
) -> None:
    path = next((finished_copy / "results/tiny/arms/constant/seed-0").resolve().glob(pattern))
    content = path.read_bytes()
    path.write_bytes(content.replace(old, new))
    assert path.read_bytes() != content
    assert re.search(
        rf"{path.relative_to(finished_copy)} is (not the|no valid JSON).* delete it", refused(finished_copy, COLLECT)
    )


@pytest.mark.wide
def test_what_was_deleted_as_advised_is_made_again(finished_copy: Path) -> None:
    path = next((finished_copy / "results/tiny/arms/constant/seed-0").resolve().glob("perplexity/*/2-6.json"))
    path.write_text(path.read_text().replace("sha256", "SHA256"))
    # Forced, as the engine looks at one file of each job only; the others count when they are next read.
    assert run_snakemake(finished_copy, "metrics", "--force", check=False).returncode != 0
    assert f"{path.relative_to(finished_copy)} is not the record" in (finished_copy / METRICS_LOG).read_text()
    path.unlink()
    run_snakemake(finished_copy, "metrics")


@pytest.mark.parametrize("stage", ["training", "perplexity", "misalignment", "longbench_e"])
def test_whole_results_that_were_exchanged_are_refused_by_name(finished_copy: Path, stage: str) -> None:
    """Each pair of numbers and record is as it was published, but lies in the other run."""
    ours, theirs = (
        (finished_copy / f"results/tiny/arms/{arm}/seed-0").resolve() / stage for arm in ("baseline", "hidden+output")
    )
    aside = finished_copy / "aside"
    for old, new in ((ours, aside), (theirs, ours), (aside, theirs)):
        old.rename(new)
    said = refused(finished_copy, COLLECT)
    assert re.search(rf"{stage}/\S*2-6.json was published for another place: its run is \w+, not \w+; delete it", said)


@pytest.mark.wide
def test_a_study_whose_runs_were_exchanged_is_refused(finished_copy: Path) -> None:
    path = finished_copy / "results/tiny/study.json"
    arms = [json.loads(path.read_text())["arms"][place]["runs"]["0"] for place in (0, 1)]
    path.write_text(path.read_text().replace(arms[0], "x").replace(arms[1], arms[0]).replace("x", arms[1]))
    for command in (["plan"], ["why", "main", "constant", "PPL 32"]):
        done = longshort(finished_copy, *command, "--study", "tiny", check=False)
        assert done.returncode != 0 and "study.json is not the record" in done.stderr and "Traceback" not in done.stderr
    assert run_snakemake(finished_copy, "all", check=False).returncode != 0
    said = (finished_copy / METRICS_LOG).read_text()
    assert "study.json is not the record that was published; delete it" in said
    path.unlink()
    run_snakemake(finished_copy, "tables")


@pytest.mark.wide
def test_a_study_that_was_edited_and_sealed_anew_is_refused(finished_copy: Path) -> None:
    path = finished_copy / "results/tiny/study.json"
    study = read_record(path)
    ours, theirs = (arm["runs"] for arm in study["arms"][:2])
    study["arms"][0]["runs"], study["arms"][1]["runs"] = theirs, ours
    write_record(path, study)
    assert run_snakemake(finished_copy, "all", check=False).returncode != 0
    assert "study.json is not the record" in (finished_copy / METRICS_LOG).read_text()


def test_an_edited_specification_is_refused_by_name(finished_copy: Path) -> None:
    run = (finished_copy / "results/tiny/arms/constant/seed-0").resolve().relative_to(finished_copy)
    edit(finished_copy, f"{run}/spec.json", '"learning_rate": 0.01', '"learning_rate": 0.02')
    record = f"{run}/training/2-6.json"
    assert run_snakemake(finished_copy, record, "--force", check=False).returncode != 0
    log = (finished_copy / record).with_suffix(".log").read_text()
    assert f"{run}/spec.json is not the specification {run.name} that its folder is named by" in log
    (finished_copy / run / "spec.json").unlink()
    run_snakemake(finished_copy, record)


@pytest.mark.wide
def test_an_altered_corpus_is_refused_by_name(finished_copy: Path) -> None:
    shard = next(finished_copy.glob("results/data/*/test/*.arrow"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    shutil.rmtree(finished_copy / "work/evaluations")  # what is finished is found, and reads no corpus
    run = (finished_copy / "results/tiny/arms/constant/seed-0").resolve()
    numbers = next(run.glob("perplexity/*/2-6.parquet")).relative_to(finished_copy)
    assert run_snakemake(finished_copy, str(numbers), "--force", check=False).returncode != 0
    log = (finished_copy / numbers).with_suffix(".log").read_text()
    assert f"test/{shard.name} is not the file that was written; delete " in log and "manifest.json" in log


def test_source_edited_after_the_plan_is_refused_by_name(finished_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a cluster's job does: it starts later, parses the workflow anew, and inherits what was planned."""
    environment = {**os.environ, "PYTHONPATH": str(finished_copy / "src")}
    plan = subprocess.run([sys.executable, "-c", CODE], env=environment, capture_output=True, text=True, check=True)
    edit(finished_copy, "src/longshort/evaluation/perplexity.py", "import torch", "import abc\nimport torch")
    monkeypatch.setenv("LONGSHORT_PLANNED", plan.stdout.strip())
    run = (finished_copy / "results/tiny/arms/constant/seed-0").resolve()
    numbers = next(run.glob("perplexity/*/2-6.parquet")).relative_to(finished_copy)
    done = run_snakemake(finished_copy, str(numbers), check=False)
    assert done.returncode != 0
    log = (finished_copy / numbers).with_suffix(".log").read_text()
    assert "evaluation/perplexity.py changed after this job was planned" in log
