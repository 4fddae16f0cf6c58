"""What goes with long-context results."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd
import pytest

from longshort.results import predictors


def test_points_of_the_correlation_are_runs_once(metrics: pd.DataFrame, study: dict[str, Any]) -> None:
    points = predictors.points(metrics, study)
    # Four different runs x two seeds x two checkpoints; a diverged run has no number at its last one.
    assert len(points) == 16 and points["symkl"].notna().sum() == 15 and "twin" not in set(points["arm"])
    row = points[points["arm"].eq("constant") & points["seed"].eq(0) & points["step"].eq(4)].iloc[0]
    assert row["loss"] == pytest.approx(3 - 0.1 * 3.5 - 0.09)  # steps 3 and 4
    longest = max(study["evaluations"]["perplexity"]["lengths"])
    assert (row[f"log perplexity at {longest}"], row["LongBench-E (%)"]) == (math.log(9.0), 18.0)


def test_points_of_a_run_stand_under_the_arm_that_is_drawn(metrics: pd.DataFrame, study: dict[str, Any]) -> None:
    """The first of its arms in the study, wherever their names stand in the alphabet."""
    arms = [{**arm, "name": "a" if arm["name"] == "twin" else arm["name"]} for arm in study["arms"]]
    renamed = metrics.assign(arm=metrics["arm"].replace("twin", "a"))
    known = predictors.points(metrics, study)
    pd.testing.assert_frame_equal(predictors.points(renamed, {**study, "arms": arms}), known)
    assert known["arm"].eq("constant").sum() == 4


def test_what_goes_with_long_context_results_best(metrics: pd.DataFrame, study: dict[str, Any]) -> None:
    """In this study the scores are symKL and SCE, which are one thing; the training loss goes with them as a line."""
    [said] = predictors.answer(metrics, study)
    assert "over 15 checkpoints of 8 runs: symKL at 8 (nats) goes with it best: symKL at 8 (nats) 1.00" in said
    altered = metrics.assign(value=metrics["value"].where(~metrics["metric"].isin(["symkl", "sce"]), 1.0))
    altered.loc[altered["metric"].eq("symkl"), "value"] += altered.index[altered["metric"].eq("symkl")] % 7
    altered.loc[altered["metric"].eq("sce"), "value"] += altered.index[altered["metric"].eq("sce")] % 5
    [said] = predictors.answer(altered, study)
    assert "which goes with it best is undecided" in said
