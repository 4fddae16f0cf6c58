"""Plots are drawn, repeatable, and fit for print."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import matplotlib.image
import matplotlib.style
import numpy as np
import pandas as pd

from longshort.results import drawing, long_table, plots, plots_training
from tests.support.results import STYLE, make_runs

COMPARED = ["correlation", "tasks", "gain"]


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
