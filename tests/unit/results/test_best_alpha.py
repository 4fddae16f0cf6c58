"""The best alpha by test length, on losses whose best alpha is known."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.style
import numpy as np
import pandas as pd
import pytest

from longshort.results import best_alpha, columns, compare, plots, plots_lengths, tables

STYLE = Path(plots.__file__).with_name("longshort.mplstyle")
GRID = [0.25, 0.5, 1.0, 2.0, 4.0, 8.0]
LENGTHS = [8, 16, 32]
TABLE = {"name": "alpha-by-length", "title": "Best", "columns": "alpha-by-length", "compare_with": "baseline"}


def study_of(seeds: int, lengths: list[int], grid: list[float] = GRID) -> dict[str, Any]:
    """Arms of constant alpha, and three that are no part of the grid."""
    constant = {"schedule": {"kind": "constant"}, "divergence": "kl"}
    alignments: dict[str, dict[str, Any]] = {
        f"x{times:g}": {"alpha": 0.1, **constant, "schedule": {"kind": "constant", "times": times}} for times in grid
    }
    alignments["none"] = {**constant, "alpha": 0.0}
    alignments["other"] = {**constant, "alpha": 0.1, "divergence": "sce"}
    alignments["growing"] = {**constant, "alpha": 0.1, "schedule": {"kind": "linear", "start": 0.0, "end": 2.0}}
    arms = [
        {
            "name": name,
            "runs": {str(seed): f"{name}-{seed}" for seed in range(seeds)},
            "settings": {"alignment": alignment, "training": {}},
        }
        for name, alignment in alignments.items()
    ]
    evaluations = {"perplexity": {"lengths": lengths, "temperature_documents": 0}}
    common = {
        "name": "s",
        "l_train": 8,
        "checkpoints": [4],
        "seeds": list(range(seeds)),
        "base": "b",
        "evaluations": evaluations,
    }
    return {**common, "arms": arms, "tables": [{**TABLE, "arms": list(alignments)}]}


def metrics_of(study: dict[str, Any], best: Callable[[int, int], float], lost: str = "") -> pd.DataFrame:
    """Log perplexities that are parabolas in log2 alpha, with their minimum at best(seed, length) times 0.1."""
    rows = []
    for arm in study["arms"]:
        alignment = arm["settings"]["alignment"]
        alpha = alignment["alpha"] * alignment["schedule"].get("times", 1.0)
        for seed in study["seeds"]:
            for length in study["evaluations"]["perplexity"]["lengths"]:
                away = np.log2(alpha / 0.1) - np.log2(best(seed, length)) if alpha else 3.0
                diverged = arm["name"] == lost
                rows.append(
                    {
                        "study": "s", "arm": arm["name"], "seed": seed, "step": 4, "metric": "perplexity",
                        "length": length, "task": None, "document": None, "n": 1, "protocol": "p", "code": "c",
                        "value": np.nan if diverged else np.exp(2 + 0.05 * away**2), "commit": "c", "environment": "e",
                        "status": "diverged" if diverged else "ok",
                    }
                )  # fmt: skip
    return pd.DataFrame(rows).astype({"length": "Int64"})


def found_of(study: dict[str, Any], best: Callable[[int, int], float], lost: str = "") -> best_alpha.ByLength:
    one, *_ = best_alpha.by_length(metrics_of(study, best, lost), study, study["tables"][0])
    return one


def test_the_grid_holds_the_arms_that_differ_in_a_constant_alpha_alone() -> None:
    study = study_of(1, LENGTHS)
    expected = {0.025: "x0.25", 0.05: "x0.5", 0.1: "x1", 0.2: "x2", 0.4: "x4", 0.8: "x8"}
    assert best_alpha.grid(study, study["tables"][0]) == expected


@pytest.mark.parametrize(
    ("slope", "verdict"), [(1.0, "agrees with “prop.*contradicts “the same"), (0.0, "contrad.*agrees")]
)
def test_a_known_slope_is_found(slope: float, verdict: str) -> None:
    # Off the grid's points, and another one for each seed: all seeds shift alike over lengths, so that slopes agree.
    factor = [0.6, 0.7, 0.65, 0.75]
    one = found_of(study_of(4, LENGTHS), lambda seed, length: factor[seed] * (length / 8) ** slope)
    wanted = [[0.1 * each * (length / 8) ** slope for length in LENGTHS] for each in factor]
    assert 2**one.log2 == pytest.approx(np.array(wanted)) and not one.at_edge.any()
    assert one.slopes == pytest.approx([slope] * 4)
    assert 2 ** one.predicted(1.0, 8)[1] == pytest.approx(2 ** one.means[1].mean)
    # A line of the slope that they have goes through all of them.
    assert 2 ** one.predicted(slope, 8) == pytest.approx([2**mean.mean for mean in one.means])
    one = found_of(
        study_of(4, LENGTHS), lambda seed, length: 0.7 * (length / 8) ** (slope + [0.1, -0.1, 0.05, -0.05][seed])
    )
    assert one.slope.low < slope < one.slope.high
    assert pd.Series([best_alpha.verdict(one)]).str.contains(verdict).all(), best_alpha.verdict(one)


def test_the_end_of_the_grid_is_said_to_be_one_and_nothing_is_claimed() -> None:
    study = study_of(3, LENGTHS)
    one = found_of(study, lambda seed, length: 4.0 * length / 8)
    assert 2 ** one.log2[0] == pytest.approx([0.4, 0.8, 0.8]) and one.at_edge[0].tolist() == [False, True, True]
    assert "6 of 9 best alphas are at the edge of the grid, so that no claim is made" in best_alpha.verdict(one)
    # A run that diverged is worse than any other: the grid ends before it.
    one = found_of(study, lambda seed, length: 4.0, lost="x8")
    assert 2 ** one.log2[0] == pytest.approx([0.4] * 3) and one.at_edge.all()
    infinite = metrics_of(study, lambda seed, length: 4.0, lost="x8").fillna({"value": np.inf})
    assert (best_alpha.by_length(infinite, study, study["tables"][0])[0].log2 == one.log2).all()


def test_the_edge_is_counted_in_seeds_where_bases_have_several() -> None:
    study = study_of(4, LENGTHS)
    study["bases"] = {"0": "one", "1": "one", "2": "another", "3": "another"}
    metrics = metrics_of(study, lambda seed, length: 4.0 * length / 8)
    tidy = best_alpha.tidy_table(study, best_alpha.by_length(metrics, study, study["tables"][0]))
    means = tidy[tidy["row"].eq(best_alpha.MEAN) & tidy["length"].notna()]
    assert means["n"].tolist() == [4, 4, 4] and means["at_edge"].tolist() == [0, 4, 4]


def test_a_base_with_several_seeds_is_one_draw() -> None:
    """Of the best alphas and of the slopes: seeds that are copies add nothing."""

    def best(seed: int, length: int) -> float:
        return [0.6, 0.7, 0.65][seed] * (length / 8) ** [0.9, 1.0, 1.2][seed]

    alone = found_of(study_of(3, LENGTHS), best)
    bases = {str(seed): f"base-{seed // 2}" for seed in range(6)}
    twice = found_of({**study_of(6, LENGTHS), "bases": bases}, lambda seed, length: best(seed // 2, length))
    assert twice.slope == pytest.approx(alone.slope)
    for of_bases, of_seeds in zip(twice.means, alone.means, strict=True):
        assert of_bases == pytest.approx(of_seeds)


def test_of_what_is_better_when_it_is_higher_the_best_alpha_has_the_most() -> None:
    study = study_of(2, [8])
    [accuracy] = [column for column in columns.columns_of(study) if column.metric == "accuracy"]
    scores = metrics_of(study, lambda seed, length: [0.7, 1.5][seed])
    scores = scores.assign(metric="accuracy", value=1 - np.log(scores["value"]) / 10)
    grid = best_alpha.grid(study, study["tables"][0])
    found = best_alpha._of_column(compare.Numbers(scores, study), study, accuracy, grid, {})
    assert [2**one.log2 for one in found] == pytest.approx([0.07, 0.15])


@pytest.mark.parametrize(
    ("seeds", "lengths", "said"),
    [(1, LENGTHS, "one seed gives no interval"), (2, LENGTHS, "2 seeds cannot show"), (3, [8], "there is no slope")],
)
def test_what_cannot_be_known_is_said(tmp_path: Path, seeds: int, lengths: list[int], said: str) -> None:
    study = study_of(seeds, lengths)
    metrics = metrics_of(study, lambda seed, length: 0.7 * length / 8)
    text = tables.format_table(metrics, study, "alpha-by-length")
    assert said in text and "| best alpha" in text and f"seed {seeds - 1}" in text
    assert len(tables.write_tables(metrics, study, tmp_path)) == 5
    with matplotlib.style.context(STYLE, after_reset=True):
        assert plots_lengths.draw_alpha_by_length(metrics, study).get_axes()


def test_what_is_not_measured_makes_no_best_alpha() -> None:
    study = study_of(2, LENGTHS)
    metrics = metrics_of(study, lambda seed, length: 0.7)
    metrics = metrics[~(metrics["arm"].eq("x4") & metrics["seed"].eq(1) & metrics["length"].eq(16))]
    one, *_ = best_alpha.by_length(metrics, study, study["tables"][0])
    assert np.isnan(one.log2[1, 1]) and np.isfinite(np.delete(one.log2.ravel(), 4)).all()
    assert np.isnan(one.slopes[1]) and one.slope.seeds == 1 and one.means[1].seeds == 1
