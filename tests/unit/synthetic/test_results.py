"""What the numbers of the synthetic study come to."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from longshort.synthetic import results


def test_a_diverged_model_is_said_and_the_others_are_shown() -> None:
    study = {"name": "s", "tasks": ["length"], "encodings": ["none"], "seeds": [0, 1], "alpha": None, "cap": 90}
    study |= {"lengths": {"train": 3, "test": 6}, "training": {"steps": 5}, "test_sequences": 2}
    rows = [
        {"arm": arm, "seed": seed, "length": length, "value": math.nan if (arm, seed) == ("log", 1) else length / 2}
        for arm in ("identity", "log")
        for seed in (0, 1)
        for length in range(1, 7)
    ]
    metrics = pd.DataFrame(rows).assign(task="length", encoding="none", protocol="p", commit="c")
    made = results.tables(metrics, study)
    for name, (table, _) in made.items():
        said = {arm: cells[0].number for _, arm, cells in table.panels[0].rows}
        assert said.pop("log" if name == "parameterisations" else "length, log") == "diverged"
        assert all(float(number) for number in said.values())
    assert "none" not in str(results.answers(metrics, study)) and "diverged" in results.answers(metrics, study)[-1]
    lines = results.draw_error(metrics, study).axes[1].lines
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
