"""The forest plot of what a study claims."""

from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from longshort.results import compare, plots_compared, plots_effects


def test_every_claim_is_a_row_with_its_intervals(metrics: pd.DataFrame, study: dict[str, Any]) -> None:
    study = {**study, "margin": 2.0, "claims": ["step_linear", "constant", "broken"]}
    figure = plots_effects.draw_effects(metrics, study)
    (axes,) = figure.axes
    plt.close(figure)
    named = ["step_linear to constant", "constant to baseline", "broken to baseline"]
    assert [label.get_text() for label in axes.get_yticklabels()] == named
    said = [text.get_text() for text in axes.texts]
    numbers = compare.Numbers(metrics, study)
    for place, (name, shown) in enumerate(zip(named, said, strict=True)):
        found = numbers.compared(plots_compared.gained(study), *name.split(" to "), 4, study["seeds"], comparisons=3)
        assert shown.startswith(f"{found.mean:+.1f}")
        spans = [tuple(line.get_xdata()) for line in axes.lines if set(line.get_ydata()) == {-place}]
        assert ((found.mean,) in spans) and len(spans) == (3 if found.n > 1 else 1)
    (band,) = axes.patches
    assert band.get_extents().transformed(axes.transData.inverted()).x1 == pytest.approx(2.0)
