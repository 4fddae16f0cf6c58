"""Plots are drawn, repeatable, and fit for print."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import matplotlib.image
import matplotlib.style
import numpy as np
import pandas as pd
import pytest

from longshort.results import drawing, long_table, plots, plots_training
from tests.support.results import STYLE, make_runs

COMPARED = ["effects", "correlation", "tasks", "gain"]


def test_plots_are_drawn_repeatable_and_embed_fonts(
    metrics: pd.DataFrame, study: dict[str, Any], tmp_path: Path
) -> None:
    metrics = long_table.with_costs(metrics, make_runs(), 4)
    paths = plots.write_plots(metrics, study, tmp_path, STYLE)
    assert {path.name for path in paths} == {
        f"{name}.{suffix}"
        for name in [*("perplexity", "misalignment", "misalignment-grid", "training", "schedules"), *COMPARED]
        for suffix in ("pdf", "png")
    }
    for path in paths:
        content = path.read_bytes()
        if path.suffix == ".png":
            picture = matplotlib.image.imread(io.BytesIO(content), format="png")
            colours = np.unique((picture[..., :3] * 255).astype("int64") @ [65536, 256, 1])
            assert len(colours) > 50 and picture.shape[1] == 2100
        else:
            assert b"/FontFile2" in content and b"/Type3" not in content and b"CreationDate" not in content
    with matplotlib.style.context(STYLE, after_reset=True):
        again = drawing.figure_bytes(plots_training.draw_schedules(metrics, study))
    assert again == {suffix: (tmp_path / f"schedules.{suffix}").read_bytes() for suffix in ("pdf", "png")}


def reduced(
    metrics: pd.DataFrame, study: dict[str, Any], seeds: int, lengths: int, arms: int
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The numbers and the study with the first few of each."""
    chosen = [arm for arm in study["arms"]][:arms]
    names = [arm["name"] for arm in chosen]
    kept = study["evaluations"]["perplexity"]["lengths"][:lengths]
    small = study | {
        "arms": [arm | {"runs": {seed: arm["runs"][seed] for seed in list(arm["runs"])[:seeds]}} for arm in chosen],
        "seeds": study["seeds"][:seeds],
        "bases": dict(list(study["bases"].items())[:seeds]),
        "primary": f"perplexity@{kept[-1]}",
        "evaluations": {
            **study["evaluations"],
            "perplexity": {"lengths": kept, "temperature_documents": 0},
            "misalignment": {"beyond": [2, 4][: lengths - 1], "grid_sequences": 3},
        },
        "tables": [{**table, "arms": names, "compare_with": "baseline"} for table in study["tables"][:1]],
    }
    rows = metrics["arm"].isin([long_table.BASE, *names]) & metrics["seed"].isin([-1, *small["seeds"]])
    rows &= metrics["length"].isna() | metrics["length"].isin(kept)
    return metrics[rows], small


@pytest.mark.parametrize(
    ("seeds", "lengths", "arms"),
    [*(pytest.param(*few, marks=pytest.mark.wide) for few in [(1, 3, 5), (2, 1, 5), (2, 3, 1)]), (1, 1, 1)],
)
def test_one_seed_one_length_and_one_arm_are_drawn(
    metrics: pd.DataFrame, study: dict[str, Any], tmp_path: Path, seeds: int, lengths: int, arms: int
) -> None:
    few, small = reduced(long_table.with_costs(metrics, make_runs(), 4), study, seeds, lengths, arms)
    for path in plots.write_plots(few, small, tmp_path, STYLE):
        if path.suffix == ".png":
            picture = matplotlib.image.imread(path)
            assert picture[..., :3].std() > 0.02, f"{path.name} is empty"
