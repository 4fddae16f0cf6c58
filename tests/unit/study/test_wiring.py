"""What a study asks of the workflow."""

from __future__ import annotations

from pathlib import Path

import pytest

from longshort.errors import StudyError
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
