"""What happens to an evaluation's process and to its disk, and what the next attempt makes of it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pandas
import pytest

from tests.support.longppl import llama, words
from tests.support.project import edit_study, on_a_small_disk, planned, run_python, run_snakemake
from tests.support.waiting import PATIENCE, wait_until


def perplexity(finished: Path, folder: Path, documents: int, work: str) -> list[str]:
    """The arguments of a perplexity stage on an arm of the finished study, with so many documents."""
    published = next((finished / "results/tiny/arms/constant/seed-0/perplexity").glob("*/2-6.parquet"))
    spec = json.loads((finished / "results/evaluations" / published.parent.name / "spec.json").read_text())
    spec["settings"]["documents"] = documents
    (folder / "spec.json").write_text(json.dumps(spec))
    command = ["-m", "longshort.evaluation.perplexity", "--spec", folder / "spec.json"]
    command += ["--run", finished / "results/tiny/arms/constant/seed-0/training/2-6.json", "--steps", "2-6"]
    command += ["--data", next(finished.glob("results/data/*/manifest.json"))]
    return [str(part) for part in [*command, "--out", folder / f"{work}.parquet", "--work", folder / work]]


def start(finished: Path, *command: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(finished / "src")}
    pipe, out = subprocess.PIPE, subprocess.STDOUT
    return subprocess.Popen(command, cwd=finished, env=environment, stdout=pipe, stderr=out, text=True)


def undisturbed(finished: Path, folder: Path, documents: int) -> pandas.DataFrame:
    run_python(finished, *perplexity(finished, folder, documents, "undisturbed"))
    return pandas.read_parquet(folder / "undisturbed.parquet")


@pytest.mark.wide
def test_a_full_disk_is_named_and_the_next_attempt_goes_on(finished: Path, tmp_path: Path) -> None:
    """One page is the lock's, one is for the journal of what was measured. A result that does not fit as a whole:
    tests/unit/records/test_publish.py."""
    documents = 30
    expected = undisturbed(finished, tmp_path, documents)
    command = perplexity(finished, tmp_path, documents, "work")
    work = tmp_path / "work"
    process = start(finished, *on_a_small_disk(work, 4096 * 2, [sys.executable, *command]))
    said, _ = process.communicate()
    assert process.returncode == 0 and "exit code 1" in said, said
    assert re.search(rf"no space for {work}/evaluations/\w+/journal: it needs .* file system {work}", said)
    assert int(re.search(r"going on after (\d+) finished items", said)[1]) > 0  # type: ignore[index]
    pandas.testing.assert_frame_equal(pandas.read_parquet(tmp_path / "work.parquet"), expected, check_exact=True)


@pytest.mark.wide
def test_one_that_is_asked_to_stop_ends_and_the_next_attempt_goes_on(finished: Path, tmp_path: Path) -> None:
    expected = undisturbed(finished, tmp_path, 30)
    command = perplexity(finished, tmp_path, 30, "work")
    process = start(finished, sys.executable, *command)

    def measured() -> int:
        return sum(path.read_bytes().count(b"\n") for path in (tmp_path / "work").glob("evaluations/*/journal"))

    wait_until(lambda: measured() >= 3, lambda: f"exit code {process.poll()}")
    process.terminate()
    said, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 143 and "asked to stop (SIGTERM)" in said
    assert json.loads((tmp_path / "work.heartbeat").read_text())["state"] == "interrupted"
    assert not list((tmp_path / "work").glob("evaluations/*/owner.json"))
    before = measured()

    said = run_python(finished, *command).stdout
    assert f"going on after {before} finished items" in said, said
    pandas.testing.assert_frame_equal(pandas.read_parquet(tmp_path / "work.parquet"), expected, check_exact=True)


@pytest.mark.wide
def test_key_tokens_are_found_once_and_shared(finished_copy: Path) -> None:
    """LongPPL with an evaluator of another tokenizer, and LongBench-E by likelihood on the items that are there."""
    for part in (llama(2), words()):
        part.save_pretrained(finished_copy / "evaluator")
    longppl = {
        **{"evaluator": {"kind": "pretrained", "name": "evaluator"}, "lengths": [64, 128], "documents": 3},
        **{"short": 16, "stride": 8, "gain": 0.1, "below": 8.0},
    }
    source = {"kind": "stand-in", "items_per_task": 1}
    edit_study(finished_copy, evaluations__longppl=longppl)
    edit_study(
        finished_copy, evaluations__longbench_likelihood={"source": source, "max_length": 128, "answer_tokens": 4}
    )
    runs = len(list((finished_copy / "results/runs").glob("*/training")))
    jobs = planned(finished_copy)
    assert jobs["key_tokens"] == 1 and jobs["longppl"] == jobs["longbench_likelihood"] == runs
    assert "longbench_stand_in" not in jobs
    run_snakemake(finished_copy, "all")
    table = pandas.read_csv(finished_copy / "results/tiny/tables/main.csv")
    shown = table[table["arm"].isin(["baseline", "constant"])].groupby("column")["mean"].agg(["min", "max"])
    assert shown.loc["longppl@128", "min"] > 1 and shown.loc["longbench_likelihood", "min"] > 0
    assert shown.loc["key_tokens@128", "min"] == shown.loc["key_tokens@128", "max"] > 0
    # Other weights under its name are refused; put back, they are the same.
    weights = finished_copy / "evaluator/model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    done = run_snakemake(finished_copy, "all", "--dry-run", check=False)
    assert done.returncode != 0 and re.search(r"evaluator: results/data/\w+/key-tokens-\w+/", done.stdout + done.stderr)
    weights.write_bytes(content)
    assert planned(finished_copy) == {}
    # Another evaluator: its key tokens and the numbers on them, and no more.
    edit_study(finished_copy, evaluations__longppl={**longppl, "gain": 0.2})
    jobs = planned(finished_copy)
    assert jobs["key_tokens"] == 1 and jobs["longppl"] == runs and "longbench_likelihood" not in jobs
