"""Components of chance against simulated studies whose truth is known."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from longshort.errors import UserError
from longshort.results import components, statistics
from tests.support.results import make_metrics, make_study

DOCUMENTS = 40


def simulated(generator: np.random.Generator, bases: int, per_base: int, sd: dict[str, float]) -> np.ndarray:
    """[bases x per_base, documents] around 0."""
    seeds = bases * per_base
    of_base = np.repeat(generator.normal(0, sd["base"], (bases, 1)), per_base, axis=0)
    of_seed, of_document = generator.normal(0, sd["seed"], (seeds, 1)), generator.normal(0, sd["document"], DOCUMENTS)
    return of_base + of_seed + of_document + generator.normal(0, sd["rest"], (seeds, DOCUMENTS))


@pytest.mark.parametrize(("bases", "per_base"), [(5, 2), (8, 1)])
def test_components_are_those_that_were_put_in(bases: int, per_base: int) -> None:
    """On average over many studies; and the joint interval is as wide as is said of it."""
    sd = {"base": 2.0 if per_base > 1 else 0.0, "seed": 1.0, "document": 3.0, "rest": 1.5}
    generator, units = np.random.default_rng(0), np.repeat(np.arange(bases), per_base)
    found, halves, level = [], [], 1 - 0.05 / 4
    for _ in range(600):
        values = simulated(generator, bases, per_base, sd)
        found.append(components.components(values, units))
        draws = values.reshape(bases, per_base, -1).mean(1)
        interval = statistics.paired_difference(draws, comparisons=4)
        halves.append((interval.joint_high - interval.mean) ** 2)
    mean = pd.DataFrame(found).mean()
    assert mean["seed"] == pytest.approx(1.0, rel=0.1) and mean["rest"] == pytest.approx(1.5**2 / DOCUMENTS, rel=0.05)
    assert mean["document"] == pytest.approx(3.0**2 / DOCUMENTS, rel=0.05)
    assert mean["base"] == pytest.approx(4.0, rel=0.1) if per_base > 1 else math.isnan(found[0].base)
    said = components.Components(*mean).half_width(level, bases, per_base)
    assert said == pytest.approx(math.sqrt(np.mean(halves)), rel=0.05)


def test_the_draws_for_a_margin() -> None:
    """The least number whose interval is narrow enough; none where the documents alone are wider."""
    known = components.Components(math.nan, seed=1.0, document=0.0, rest=0.0, freedom=math.inf)
    wanted = components.draws_for(known, 0.5, 0.95)
    assert wanted is not None and statistics.t_quantile(0.95, wanted - 1) / math.sqrt(wanted) <= 0.5
    assert statistics.t_quantile(0.95, wanted - 2) / math.sqrt(wanted - 1) > 0.5
    assert components.draws_for(known._replace(document=1.0, freedom=39.0), 0.5, 0.95) is None


def test_components_of_a_study() -> None:
    study, metrics = make_study(), make_metrics()
    metrics = metrics[metrics["metric"].ne("perplexity") | metrics["length"].eq(32)]
    frame = components.table(metrics, study, 2.0)
    # Every document differs alike: all is the seeds'.
    row = frame.set_index(["arm", "reference"]).loc[("constant", "baseline")]
    differences = [math.log(9 / 10), math.log(10 / 12)]
    assert row["variance_seed"] == pytest.approx(100**2 * np.var(differences, ddof=1)) and row["share_seed"] == 1
    # With the margin that they have the two seeds are enough; with half of it a third is, as its t is a sixth.
    for times, wanted in ((1.001, 2), (0.5, 3)):
        asked = components.table(metrics, study, times * row["half_width"]).set_index(["arm", "reference"])
        assert asked.loc[("constant", "baseline"), "draws"] == wanted
    text = components.text(frame, study, 2.0)
    assert "seeds for ± 2%" in text and "Another base was not drawn" in text and "nan" not in text
    assert components.margin_of("2%", study) == 2.0
    with pytest.raises(UserError, match="--margin '2': give a number above 0 in per cent"):
        components.margin_of("2", study)
    with pytest.raises(UserError, match="names no primary number"):
        components.table(metrics, {**study, "primary": None})
    with pytest.raises(UserError, match="has one seed: how much is chance needs two"):
        components.table(metrics, {**study, "seeds": [0]})
