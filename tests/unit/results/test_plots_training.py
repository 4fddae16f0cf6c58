"""Curves of trainings."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from longshort.results import drawing, plots_training


def test_curves_far_above_the_rest_get_their_own_axis() -> None:
    curves = {name: pd.Series(values) for name, values in {"a": [1.0, 2.0], "b": [9.0, 8.5], "c": [2.0, 1.0]}.items()}
    assert plots_training.far_above(curves) == ["b"]
    assert plots_training.far_above({"a": curves["a"], "c": curves["c"]}) == [] == plots_training.far_above({})


def test_weights_that_every_seed_draws_are_shown_of_one(metrics: pd.DataFrame, study: dict[str, Any]) -> None:
    """No run used their mean. Of a diverged seed there is the beginning alone."""
    of_arm = metrics["metric"].eq("train/alpha_output") & metrics["arm"].eq("constant")
    drawn = metrics[~(of_arm & metrics["seed"].eq(0) & metrics["step"].gt(2))].copy()
    second = of_arm & drawn["seed"].eq(1)
    drawn.loc[second, "value"] = [0.5, 1.5, 0.75, 1.25]
    figure = plots_training.draw_schedules(drawn, study)
    shown = [np.asarray(line.get_ydata()).tolist() for axes in figure.axes for line in axes.get_lines()]
    assert [0.5, 1.5, 0.75, 1.25] in shown
    [footer] = [text.get_text() for text in figure.texts if text.get_text().startswith("As used in training")]
    assert "Drawn anew with every seed, shown of one: constant" in footer
    plain = plots_training.draw_schedules(metrics, study)
    assert not any("Drawn anew" in text.get_text() for text in plain.texts)


def test_a_loss_above_that_of_the_reference_is_drawn_above_0(metrics: pd.DataFrame, study: dict[str, Any]) -> None:
    """At every step 0.01 more for each point of perplexity that constant lacks of baseline's: 1 and 2, by seed."""
    figure = plots_training.draw_training(metrics, study)
    [axes] = [axes for axes in figure.axes if "difference to baseline" in axes.get_ylabel()]
    lines = [line for line in axes.get_lines() if line.get_transform() == axes.transData]  # no samples of the labels
    [drawn] = [line for line in lines if line.get_color() == drawing.looks_of(study)["constant"].colour]
    assert list(drawn.get_ydata()) == pytest.approx([0.015] * 4)
