"""Curves of trainings."""

from __future__ import annotations

import pandas as pd

from longshort.results import plots_training


def test_curves_far_above_the_rest_get_their_own_axis() -> None:
    curves = {name: pd.Series(values) for name, values in {"a": [1.0, 2.0], "b": [9.0, 8.5], "c": [2.0, 1.0]}.items()}
    assert plots_training.far_above(curves) == ["b"]
    assert plots_training.far_above({"a": curves["a"], "c": curves["c"]}) == [] == plots_training.far_above({})
