"""How far an arm goes towards a model that has seen long texts."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from longshort.results import compare, share, statistics
from tests.support.results import make_metrics, make_study

# Log perplexity at 32 tokens of three seeds: the way is 1.0, 1.2 and 0.8 nats long.
LOGS = {"baseline": (3.0, 3.2, 2.9), "constant": (2.7, 2.8, 2.7), "long": (2.0, 2.0, 2.1)}


def study_of(arms: dict[str, tuple[float, ...]], **more: Any) -> tuple[dict[str, Any], pd.DataFrame]:
    """A study of these arms, seeds and perplexities at the last checkpoint, and of a long base."""
    made, known = make_study(), make_metrics().query("metric == 'perplexity' and length == 32 and step == 4")
    entry, row = made["arms"][0], known.iloc[0]
    study = {**made, "seeds": [0, 1, 2], "bases": {str(seed): f"base-{seed}" for seed in range(3)}, **more}
    study["arms"] = [
        {**entry, "name": name, "runs": {str(seed): f"{name}-{seed}" for seed in range(3)}} for name in arms
    ]
    for arm in study["arms"]:
        if arm["name"] == "long":
            arm.update(reference=True, settings={**arm["settings"], "lengths": {"train": 32}})
    numbers = [(arm, seed, 4, math.exp(log)) for arm, logs in arms.items() for seed, log in enumerate(logs)]
    numbers.append(("(long base)", -1, 0, math.exp(1.9)))
    rows = [{**row, "arm": arm, "seed": seed, "step": step, "value": value} for arm, seed, step, value in numbers]
    return study, pd.DataFrame(rows).astype(known.dtypes.to_dict())


def test_the_share_by_hand() -> None:
    """Gains of 0.3, 0.4 and 0.2 nats: 0.3 of 1.0 on average. The ends are those that a t test just does not refuse."""
    study, metrics = study_of(LOGS)
    numbers, (column,) = compare.Numbers(metrics, study), share.columns(study)
    assert column.key == "perplexity@32" and share.reached(study) == "long"
    found = share.of(numbers, study, column, "constant", "long")
    assert found is not None and found.ratio == pytest.approx(0.3) and found.under == pytest.approx(1.0)
    over, under = np.array([0.3, 0.4, 0.2]), np.array([1.0, 1.2, 0.8])
    for end in (found.low, found.high):
        assert stats.ttest_1samp(over - end * under, 0).pvalue == pytest.approx(0.05)
    (said,) = share.answer(study, numbers)
    assert "from baseline to long, by log PPL 32 at step 4 (1 nats)" in said and "over seeds" in said
    assert f"constant 30 % [{100 * found.low:.0f}, {100 * found.high:.0f}]" in said


def test_without_an_arm_the_long_base_is_the_other_end() -> None:
    """One for all seeds: (3.0333 - 2.7333) of (3.0333 - 1.9) nats."""
    study, metrics = study_of({arm: logs for arm, logs in LOGS.items() if arm != "long"}, long_base="long")
    numbers, (column,) = compare.Numbers(metrics, study), share.columns(study)
    assert share.reached(study) == "(long base)"
    found = share.of(numbers, study, column, "constant", "(long base)")
    assert found is not None and found.ratio == pytest.approx(0.3 / (9.1 / 3 - 1.9))
    assert "one model for all seeds" in share.answer(study, numbers)[0]
    # Of LongPPL it chose the tokens itself: no number of its own to hold others against.
    chose = {"longppl": {"lengths": [32], "evaluator": {"kind": "long"}}}
    assert len(share.answer({**study, "evaluations": {**study["evaluations"], **chose}}, numbers)) == 1


@pytest.mark.parametrize(
    ("long", "said"),
    [
        ((3.5, 3.5, 3.5), "there is none, as long is no better than baseline"),
        ((2.9, 2.2, 2.9), "without an interval, as n = 3 does not tell the way's own length from 0"),
        ((math.nan, 2.0, 2.0), "not measured with every seed"),
    ],
)
def test_a_way_that_is_none_or_not_known_is_said(long: tuple[float, ...], said: str) -> None:
    study, metrics = study_of({**LOGS, "long": long})
    assert said in share.answer(study, compare.Numbers(metrics, study))[0]


def test_a_seed_that_is_absent_is_no_smaller_mean_of_its_base() -> None:
    study, metrics = study_of({**LOGS, "constant": (2.7, math.nan, 2.7)})
    study["bases"] = {"0": "first", "1": "first", "2": "second"}
    numbers, (column,) = compare.Numbers(metrics, study), share.columns(study)
    assert share.of(numbers, study, column, "long", "long") is not None
    assert share.of(numbers, study, column, "constant", "long") is None


def test_a_base_with_several_seeds_is_one_draw() -> None:
    """Its seeds differ by their own chance; the interval is that of the bases' means."""
    apart = {"constant": 0.1}
    twice = {arm: tuple(log + by * apart.get(arm, 0) for log in logs for by in (-1, 1)) for arm, logs in LOGS.items()}
    bases = {str(seed): f"base-{seed // 2}" for seed in range(6)}
    shares = []
    for study, metrics in (study_of(LOGS), study_of(twice, seeds=list(range(6)), bases=bases)):
        shares.append(share.of(compare.Numbers(metrics, study), study, share.columns(study)[0], "constant", "long"))
    assert shares[1] == pytest.approx(shares[0])


def test_fieller_s_interval_needs_a_denominator_and_draws() -> None:
    over, under = np.array([0.3, 0.4, 0.2]), np.array([1.0, 1.2, 0.8])
    assert math.isnan(statistics.ratio_of_means(over, np.array([1.0, -1.2, 0.8])).low)
    assert math.isnan(statistics.ratio_of_means(over[:2], under[:2]).low)
    with pytest.raises(ValueError, match="as many of each"):
        statistics.ratio_of_means(over, under[:2])
