"""What is drawn anew with the seeds, and what tables make of it."""

from __future__ import annotations

from typing import Any

import pandas as pd

from longshort.results import replicates, tables
from tests.support.results import make_metrics, make_study


def with_bases(study: dict[str, Any], *bases: str) -> dict[str, Any]:
    seeds = list(range(len(bases)))
    return {**study, "seeds": seeds, "bases": {str(seed): base for seed, base in zip(seeds, bases, strict=True)}}


def test_what_the_notes_say_of_the_base() -> None:
    study = make_study()
    fixed, own = with_bases(study, "a", "a"), with_bases(study, "a", "b")
    several = with_bases(study, "a", "a", "b", "b")
    assert [replicates.base_rows(one) for one in (fixed, own, several)] == [
        {-1: "a"},
        {0: "a", 1: "b"},
        {0: "a", 2: "b"},
    ]
    assert [replicates.count(one) for one in (fixed, own, several)] == [2, 2, 2]
    assert [replicates.unit(one) for one in (fixed, own, several)] == ["seed", "seed", "base"]
    text = tables.format_table(make_metrics(), own)
    assert "Each seed has a base model of its own" in text and "Another base was not drawn" not in text
    assert "with seeds, each with its own base, and documents as crossed random effects" in text
    former = {key: value for key, value in fixed.items() if key != "bases"} | {"base": "a"}
    assert replicates.base_rows(former) == {-1: "a"}


def test_a_base_with_several_seeds_is_one_draw() -> None:
    """The interval is that of the bases' means: copies of a seed add nothing."""
    metrics, study = make_metrics(), make_study()
    copies = metrics[metrics["seed"].ge(0)]
    doubled = pd.concat([metrics, copies.assign(seed=copies["seed"] + 2)])
    twice = {**with_bases(study, "a", "b", "a", "b"), "arms": study["arms"]}
    keys = ["low", "high", "joint_low", "joint_high", "sign_flip_p", "verdict"]
    main = tables.table_of(study, "main")
    found = [
        tables.tidy_table(numbers, one, main).set_index(["step", "arm", "column"])
        for numbers, one in ((metrics, with_bases(study, "a", "b")), (doubled, twice))
    ]
    at = [frame.loc[(4, "constant", "perplexity@32"), keys] for frame in found]
    pd.testing.assert_series_equal(*at)
