"""What the numbers of the synthetic study come to."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest

from longshort.synthetic import results

STUDY: dict[str, Any] = {
    **{"name": "s", "tasks": ["length"], "encodings": ["none"], "seeds": [0, 1], "alpha": None, "cap": 90},
    **{"lengths": {"train": 3, "test": 6}, "training": {"steps": 5}, "test_sequences": 2},
}


def test_a_diverged_model_is_said_and_the_others_are_shown() -> None:
    rows = [
        {"arm": arm, "seed": seed, "length": length, "value": math.nan if (arm, seed) == ("log", 1) else length / 2}
        for arm in ("identity", "log")
        for seed in (0, 1)
        for length in range(1, 7)
    ]
    metrics = pd.DataFrame(rows).assign(task="length", encoding="none", protocol="p", commit="c")
    made = results.tables(metrics, STUDY)
    for name, (table, _) in made.items():
        said = {arm: cells[0].number for _, arm, cells in table.panels[0].rows}
        assert said.pop("log" if name == "parameterisations" else "length, log") == "diverged"
        assert all(float(number) for number in said.values())
    assert "none" not in str(results.answers(metrics, STUDY)) and "diverged" in results.answers(metrics, STUDY)[-1]
    lines = results.draw_error(metrics, STUDY).axes[1].lines
    assert any(np.isfinite(np.asarray(line.get_ydata(), float)).all() for line in lines)


def test_growth_and_intervals_by_hand() -> None:
    lengths = np.arange(1, 51)
    errors = pd.DataFrame({seed: 3 + (seed + 1) * (lengths - 10.0) ** 2 for seed in range(3)}, index=lengths)
    errors.loc[:10] = 1e6  # the trained lengths are no part of the fit
    found = results.growth(errors, 10)
    assert found.slope.mean == pytest.approx(2) and found.r2.mean == pytest.approx(1)
    assert found.slope.high - 2 == pytest.approx(4.302653 / math.sqrt(3), rel=1e-5)
    three = results.geometric(np.array([1.0, 10.0, 100.0]))
    assert three.mean == pytest.approx(10)
    assert math.log10(three.high) == pytest.approx(1 + 4.302653 / math.sqrt(3), rel=1e-5)
    assert math.isnan(results.geometric(np.array([2.0])).low)


def test_errors_by_hand_are_those_of_their_lengths_and_the_least_is_the_best() -> None:
    """Of each length as large as the length, times a factor of the arm: 2 on average of 1 to 3, 5 of 4 to 6."""
    factors = {"identity": 1.0, "log": 0.5, "sqrt": 2.0}
    rows = [
        {"arm": arm, "seed": seed, "length": length, "value": factor * length}
        for arm, factor in factors.items()
        for seed in (0, 1)
        for length in range(1, 7)
    ]
    metrics = pd.DataFrame(rows).assign(task="length", encoding="none", protocol="p", commit="c")
    table, found = results.tables(metrics, STUDY)["parameterisations"]
    for arm, factor in factors.items():
        assert found.loc[found["arm"].eq(arm), "mean"].tolist() == pytest.approx([2 * factor, 5 * factor, 6 * factor])
    for panel in table.panels:
        marks = {arm: (cells[0].best, cells[0].second) for _, arm, cells in panel.rows}
        assert marks == {"identity": (False, True), "log": (True, False), "sqrt": (False, False)}
    plain, log, sqrt = results.answers(metrics, STUDY)
    assert plain == "Mean squared error of the length (identity) at 3 and at 6 tokens: no encoding 3 and 6."
    assert log == "log: error beyond 3 tokens over that of identity, paired by seed: no encoding 0.5 [0.5, 0.5]."
    assert sqrt.endswith("no encoding 2 [2, 2].")
