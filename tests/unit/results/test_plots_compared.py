"""The points that arms are compared by."""

from __future__ import annotations

import math
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from longshort.results import long_table, plots_compared, predictors
from tests.support.results import make_runs


def test_points_of_the_correlation_are_runs_once(metrics: pd.DataFrame, study: dict[str, Any]) -> None:
    points = predictors.points(metrics, study)
    # Four different runs x two seeds x two checkpoints; a diverged run has no number at its last one.
    assert len(points) == 16 and points["symkl"].notna().sum() == 15 and "twin" not in set(points["arm"])
    row = points[points["arm"].eq("constant") & points["seed"].eq(0) & points["step"].eq(4)].iloc[0]
    assert row["loss"] == pytest.approx(3 - 0.1 * 3.5 - 0.09)  # steps 3 and 4
    longest = max(study["evaluations"]["perplexity"]["lengths"])
    assert (row[f"log perplexity at {longest}"], row["LongBench-E (%)"]) == (math.log(9.0), 18.0)


def test_costs_that_hardly_differ_have_ticks_that_do(metrics: pd.DataFrame, study: dict[str, Any]) -> None:
    runs = make_runs()
    runs.loc[runs["arm"].eq("constant") & runs["stage"].eq("training"), "device_seconds"] *= 1.03
    figure = plots_compared.draw_gain(long_table.with_costs(metrics, runs, 4), study)
    figure.canvas.draw()
    said = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    plt.close(figure)
    assert len(said) > 2 and len(set(said)) == len(said)
