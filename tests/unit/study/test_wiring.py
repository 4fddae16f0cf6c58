"""What a study asks of the workflow."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from longshort.data import seen
from longshort.errors import StudyError
from longshort.records import layout
from tests.support.project import ROOT
from tests.support.studies import load


def test_plots_are_those_of_the_metrics(config: Path) -> None:
    files = load(config, evaluations__perplexity=None).plot_files()
    assert {Path(file).stem for file in files} == {"misalignment", "misalignment-grid", "training", "schedules", "gain"}
    files = load(config, evaluations__misalignment__grid_sequences=0, primary="perplexity@32").plot_files()
    assert {Path(file).stem for file in files} == {
        "perplexity",
        "misalignment",
        "training",
        "schedules",
        "gain",
        "correlation",
        "effects",
    }


def test_every_plot_has_a_caption_for_the_engines_report(config: Path) -> None:
    grid = {"arms": ["baseline", "constant", "alpha-0.5x", "ratio-2x"], "primary": "perplexity@32"}
    plots = {Path(file).stem for file in load(config, **grid).plot_files()}
    assert {"effects", "alpha-by-length"} <= plots <= {file.stem for file in (ROOT / "workflow/report").glob("*.rst")}


def test_own_harness_tasks_are_inputs_with_names_of_their_own(config: Path) -> None:
    for name in ("own.yaml", "items.jsonl", "__pycache__/utils.pyc"):
        (config.parent / "tasks" / name).parent.mkdir(parents=True, exist_ok=True)
        (config.parent / "tasks" / name).write_text("task: own")
    harness = {"tasks": ["own"], "include_path": "tasks"}
    assert load(config, evaluations__harness=harness).items("harness") == ["tasks/items.jsonl", "tasks/own.yaml"]
    (config.parent / "tasks" / "more").mkdir()
    (config.parent / "tasks" / "more" / "items.jsonl").write_text("")
    with pytest.raises(StudyError, match=r"include_path = 'tasks': two files there are called items.jsonl"):
        load(config, evaluations__harness=harness)


def test_a_job_whose_run_is_of_no_arm_any_more_says_so(config: Path) -> None:
    """The study was edited while it waited in the queue."""
    with pytest.raises(StudyError, match=f"run {'0' * 16} is of no arm of study .* run snakemake again"):
        load(config).base_record("0" * 16)


def test_a_corpus_of_its_own_is_looked_after_like_the_corpus(config: Path) -> None:
    """Touched it asks for nothing, changed it does; prune leaves it alone."""
    (config.parent / "held-out").mkdir()
    file = config.parent / "held-out/a.txt"
    file.write_text("a test document")
    data = {"corpus": {"kind": "text", "path": "corpus"}, "test_corpus": {"kind": "text", "path": "held-out"}}
    study = load(config, data=data)
    assert study.external_paths() == ["corpus", "held-out"]
    seen.write(seen.paths(study.study.data), study.corpus_state(), Path(layout.data_folder(study.data)) / seen.RECORD)
    os.utime(file, (1, 1))
    assert study.corpus_state() == seen.FIRST
    file.write_text("another document")
    assert study.corpus_state() != seen.FIRST


MODEL = {"kind": "pretrained", "name": "owner/model", "revision": "0" * 40}
BOOKS = {"kind": "hub", "dataset": "owner/books", "revision": "0" * 40}
HELD_OUT = {"validation_corpus": {**BOOKS, "split": "validation"}, "test_corpus": {**BOOKS, "dataset": "owner/tests"}}
LONGBENCH = {"source": {"kind": "hub", "revision": "0" * 40}, "max_length": 64}
LONGPPL = {"evaluator": MODEL, "short": 8, "stride": 8, "lengths": [32], "documents": 3}


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({}, []),
        ({"data__tokenizer": MODEL}, ["tokenizer of owner/model"]),
        ({"data": {"corpus": BOOKS, **HELD_OUT}}, ["documents of owner/books", "documents of owner/tests"]),
        ({"model": {**MODEL, "layers": 3, "max_length": 128}}, ["weights of owner/model"]),
        ({"evaluations__longbench_e": {**LONGBENCH, "max_new_tokens": 4}}, ["data.zip of THUDM/LongBench"]),
        ({"evaluations__longbench_likelihood": {**LONGBENCH, "answer_tokens": 16}}, ["data.zip of THUDM/LongBench"]),
        ({"evaluations__longppl": LONGPPL}, ["weights of owner/model", "tokenizer of owner/model"]),
        ({"evaluations__harness": {"tasks": ["arc_easy"]}}, ["data of arc_easy"]),
    ],
)
def test_all_that_jobs_take_from_the_hub_is_fetched(config: Path, changes: dict[str, Any], parts: list[str]) -> None:
    """They use no network: what lacks would be missed on its node, maybe after all trainings."""
    assert [f"{part.what.strip()} of {part.name}" for part in load(config, **changes).hub_parts()] == parts
