"""The points that arms are compared by."""

from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt
import pandas as pd

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
