"""The points that arms are compared by."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest

from longshort.results import plots_compared


def test_points_of_the_correlation_are_runs_once(metrics: pd.DataFrame, study: dict[str, Any]) -> None:
    points = plots_compared.points(metrics, study)
    # Four different runs x two seeds x two checkpoints; a diverged run has no number at its last one.
    assert len(points) == 16 and points["symkl"].notna().sum() == 15 and "twin" not in set(points["arm"])
    row = points[points["arm"].eq("constant") & points["seed"].eq(0) & points["step"].eq(4)].iloc[0]
    assert row["loss"] == pytest.approx(3 - 0.1 * 3.5 - 0.09)  # steps 3 and 4
    longest = max(study["evaluations"]["perplexity"]["lengths"])
    assert (row[f"log perplexity at {longest}"], row["LongBench-E (%)"]) == (9.0, 18.0)
