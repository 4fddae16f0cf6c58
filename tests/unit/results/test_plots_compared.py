"""The points that arms are compared by."""

from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from matplotlib.text import Text

from longshort.results import long_table, plots_compared
from tests.support.results import make_runs


def test_costs_that_hardly_differ_have_ticks_that_do(metrics: pd.DataFrame, study: dict[str, Any]) -> None:
    runs = make_runs()
    runs.loc[runs["arm"].eq("constant") & runs["stage"].eq("training"), "device_seconds"] *= 1.03
    figure = plots_compared.draw_gain(long_table.with_costs(metrics, runs, 4), study)
    figure.canvas.draw()
    said = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    plt.close(figure)
    assert len(said) > 2 and len(set(said)) == len(said)
    # An arm that costs more lies to the right of the reference, at 1.
    places = [float(line.get_xdata()[0]) for line in figure.axes[0].lines if len(line.get_xdata()) == 1]
    assert (min(places), max(places)) == (1, pytest.approx(1.03))


def test_tasks_lie_where_the_arm_differs_from_the_reference(metrics: pd.DataFrame, study: dict[str, Any]) -> None:
    """Of all 13 tasks and their mean: 2 x 9.5 points for constant and 2 x 11 for baseline, a loss to the left of 0; the
    interval lies around its point."""
    figure = plots_compared.draw_tasks(metrics, study)
    axes = next(axes for axes in figure.axes if axes.get_title(loc="left").startswith("constant"))
    plt.close(figure)
    lines = [line.get_xdata() for line in axes.lines if line.get_transform() == axes.transData]
    points, bars = ([list(x) for x in lines if len(x) == count] for count in (1, 2))
    assert points == [[pytest.approx(-3)]] * 14
    assert len(bars) == 14 and all(low < -3 < high for low, high in bars)


def test_an_arm_that_lost_a_seed_says_so_and_costs_what_the_others_did(
    metrics: pd.DataFrame, study: dict[str, Any]
) -> None:
    runs = make_runs()
    lost = runs["arm"].eq("broken") & runs["stage"].eq("training") & runs["status"].eq("diverged")
    runs.loc[lost, "device_seconds"] *= 0.01
    with_costs = long_table.with_costs(metrics, runs, 4)
    for draw in (plots_compared.draw_gain, plots_compared.draw_tasks):
        figure = draw(with_costs, study)
        said = [text.get_text() for text in figure.findobj(Text)]
        assert sum("broken" in one and "diverged (1 of 2)" in one for one in said) == 1
        plt.close(figure)
    [axes] = plots_compared.draw_gain(with_costs, study).axes
    at = [float(line.get_xdata()[0]) for line in axes.lines if len(line.get_xdata()) == 1]
    assert at and all(place == 1 for place in at)
