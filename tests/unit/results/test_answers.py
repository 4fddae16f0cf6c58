"""What a study's numbers say to its question."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from longshort.results import answers, compare, components
from tests.support.results import make_metrics, make_study

SEEDS = list(range(6))
# log perplexity at 32 tokens less the baseline's, of each seed.
EFFECTS = {"constant": -0.10, "sce": 0.20}


def study_of(seeds: list[int], **more: Any) -> tuple[dict[str, Any], pd.DataFrame]:
    """baseline, constant and sce with those effects, give or take a hundredth; 0.21 less for sce at the temperature."""
    made, known = make_study(), make_metrics()
    study = {**made, "seeds": seeds, "bases": {str(seed): f"base-{seed}" for seed in seeds}, "margin": 2.0, **more}
    study["evaluations"] = {"perplexity": {"lengths": [8, 16, 32], "temperature_documents": 2}}
    study["primary"] = "perplexity_checkpoint_t@32"
    entry = made["arms"][0]
    study["arms"] = []
    for name in ("baseline", *EFFECTS):
        alignment = {"alpha": float(name != "baseline"), "divergence": "sce" if name == "sce" else "symmetric-kl"}
        settings = {**entry["settings"], "alignment": alignment}
        runs = {str(seed): f"{name}-{seed}" for seed in seeds}
        study["arms"].append({**entry, "name": name, "runs": runs, "settings": settings})
    study["tables"] = [{**made["tables"][0], "arms": [arm["name"] for arm in study["arms"]]}]
    row = known.query("metric == 'perplexity' and length == 32 and step == 4").iloc[0]
    chance = {seed: 0.01 * (-1) ** seed for seed in seeds}
    rows = []
    for seed in seeds:
        for name in ("baseline", *EFFECTS):
            effect = EFFECTS.get(name, 0.0) + (chance[seed] if name != "baseline" else 0.0)
            for metric, value in (("perplexity", effect), ("perplexity_checkpoint_t", effect - 0.21 * (name == "sce"))):
                rows.append({**row, "arm": name, "seed": seed, "metric": metric, "value": math.exp(3 + value)})
    return study, pd.DataFrame(rows).astype(known.dtypes.to_dict())


def test_what_is_calibration_alone() -> None:
    """The interval of six seeds, by hand: the mean difference and t at 5 degrees of freedom."""
    study, metrics = study_of(SEEDS)
    [said] = [line for line in answers.answers(metrics, study) if "calibration" in line]
    half = stats.t.ppf(0.975, 5) * 0.01 * math.sqrt(6 / 5) / math.sqrt(6)
    for mean, header in ((0.20, "PPL 32"), (-0.01, "PPL 32 at T")):
        low, middle, high = (100 * math.expm1(mean + by) for by in (-half, 0, half))
        assert f"{middle:+.1f} % [{low:+.1f}, {high:+.1f}] by {header}" in said


def test_of_another_primary_number_it_is_the_longest_perplexity_and_of_sce_alone() -> None:
    study, metrics = study_of(SEEDS)
    there = [line for line in answers.answers(metrics, study) if "calibration" in line]
    other = {**study, "primary": "longbench_e"}
    [said] = [line for line in answers.answers(metrics, other) if "calibration" in line]
    assert [said] == there and "LongBench-E" not in said
    # Two arms by SCE do not tell what it does.
    [sce] = [arm for arm in study["arms"] if arm["settings"]["alignment"].get("divergence") == "sce"]
    more = {**sce, "name": "another", "control": sce["name"]}
    [said] = [
        line for line in answers.answers(metrics, {**study, "arms": [*study["arms"], more]}) if "calibration" in line
    ]
    assert said == there[0]


def test_arms_that_are_not_claimed_have_an_interval_for_themselves() -> None:
    study, metrics = study_of(SEEDS, claims=["constant"])
    said = answers.answers(metrics, study)
    assert said[0].startswith(
        "Alignment with a constant alpha against none, by PPL 32 at T at step 4: better: constant"
    )
    by_hand = compare.Numbers(metrics, study)
    column = next(one for one in answers.columns_of(study) if one.key == study["primary"])
    found = by_hand.compared(column, "constant", "baseline", 4, SEEDS)
    assert found.joint_low == found.low and f"[{found.low:+.1f}, {found.high:+.1f}]" in said[0]


def test_the_smallest_effect_that_would_be_seen() -> None:
    """So often as it says, in studies that are drawn anew: six seeds whose effect is that one."""
    study, metrics = study_of(SEEDS)
    [said] = components.answer(compare.Numbers(metrics, study), {**study, "claims": ["constant"]})
    seen = float(said.split("constant to baseline ± ")[1].split(" ")[0]) / 100
    drawn = np.random.default_rng(0).normal(seen, 0.01 * math.sqrt(6 / 5), (4000, len(SEEDS)))
    low = drawn.mean(1) - stats.t.ppf(0.975, 5) * drawn.std(1, ddof=1) / math.sqrt(len(SEEDS))
    assert (low > 0).mean() == pytest.approx(components.POWER, abs=0.08)
    few, numbers = study_of([0, 1])
    assert components.answer(compare.Numbers(numbers, few), few) == []


def test_a_seed_that_diverged_is_called_that() -> None:
    study, metrics = study_of(SEEDS)
    lost = metrics["arm"].eq("constant") & metrics["seed"].eq(5)
    metrics.loc[lost, ["value", "status"]] = math.nan, "diverged"
    [said] = [one for one in answers.answers(metrics, study) if "not measured with every seed" in one]
    assert "not measured with every seed: constant to baseline (constant diverged (1 of 6))" in said
