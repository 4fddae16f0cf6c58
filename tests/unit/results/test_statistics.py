"""Intervals and tests against simulated studies whose truth is known, closed forms, scipy and statsmodels."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import product

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from scipy import stats

from longshort.results import statistics

DOCUMENTS, SIMULATIONS, ARMS = 64, 500, 9
# Standard deviation of the seeds' part; the documents' and the rest's are 1. With 64 documents both weigh alike at
# about 0.2, and at 1 the seeds alone decide.
SEED_NOISE = [0.2, 0.4, 1.0]
# In units of the rest: the standard deviation of the documents, and the variance of the seeds over the share that a
# mean over all documents leaves of the rest's.
DOCUMENT_SDS, SEED_SHARES, SEEDS = [0.0, 0.3, 0.6, 1.0, 2.0], [0.0, 0.25, 1.0, 4.0, 8.0], [3, 5, 9]
GRID = list(product(DOCUMENT_SDS, SEED_SHARES))
# (tasks, documents of each): one corpus, and LongBench-E.
CORPUS, LONGBENCH = (1, 64), (13, 300)


def simulated(generator: np.random.Generator, seeds: int, noise: float, size: tuple[int, ...] = ()) -> NDArray:
    """[*size, seeds, documents]: crossed random effects around 0."""
    parts = [(noise, (seeds, 1)), (1.0, (1, DOCUMENTS)), (1.0, (seeds, DOCUMENTS))]
    return sum(generator.normal(0, sd, (*size, *shape)) for sd, shape in parts)


def simulated_cells(
    seeds: int, design: tuple[int, int], cells: list[tuple[float, float]], draws: int
) -> Iterator[tuple[int, NDArray]]:
    """(cell, [seeds, documents]) around 0, `draws` times each; all cells scale the same random numbers."""
    generator = np.random.default_rng([seeds, *design])
    documents = math.prod(design)
    for _ in range(draws):
        of_seed, of_document = generator.normal(size=(seeds, 1)), generator.normal(size=documents)
        rest = generator.normal(size=(seeds, documents))
        for cell, (document_sd, share) in enumerate(cells):
            yield cell, math.sqrt(share / documents) * of_seed + document_sd * of_document + rest


def check_coverage(seeds: int, design: tuple[int, int], cells: list[tuple[float, float]], draws: int) -> None:
    """Single intervals cover 94 to 98 % in each cell, and joint ones what they promise, but for two standard errors."""
    strata = np.repeat(np.arange(design[0]), design[1])
    single, joint = np.zeros(len(cells)), np.zeros(len(cells))
    for cell, values in simulated_cells(seeds, design, cells, draws):
        found = statistics.paired_difference(values, strata=strata, comparisons=15)
        single[cell] += found.low <= 0 <= found.high
        joint[cell] += found.joint_low <= 0 <= found.joint_high
    error = [math.sqrt(p * (1 - p) / draws) for p in (0.94, 0.98, 1 - 0.05 / 15)]
    for at, covered in zip(cells, single / draws, strict=True):
        assert 0.94 - 2 * error[0] <= covered <= 0.98 + 2 * error[1], at
    assert (joint / draws).min() >= 1 - 0.05 / 15 - 2 * error[2]


# 400 draws: one standard error is 0.012 at 94 %. The interval that took R from the seeds covered 91 % at 3 seeds.
@pytest.mark.parametrize("seeds", SEEDS)
def test_intervals_cover_the_truth(seeds: int) -> None:
    check_coverage(seeds, CORPUS, GRID, draws=400)


def test_intervals_over_tasks_cover_the_truth() -> None:
    check_coverage(3, LONGBENCH, [(0.0, 4.0)], draws=400)


# 3000 draws: one standard error is 0.004 at 94 %.
@pytest.mark.long
@pytest.mark.parametrize("design", [CORPUS, LONGBENCH])
@pytest.mark.parametrize("seeds", SEEDS)
def test_intervals_cover_the_truth_with_many_draws(seeds: int, design: tuple[int, int]) -> None:
    check_coverage(seeds, design, GRID, draws=3000)


def test_seeds_and_documents_may_change_places() -> None:
    """With fewer documents than seeds it is the seeds that R is taken from."""
    values = simulated(np.random.default_rng(4), 5, 1.0)[:, :20]
    assert statistics.paired_difference(values)[:5] == pytest.approx(statistics.paired_difference(values.T)[:5])


def test_an_interval_is_hardly_wider_than_one_that_takes_the_rest_from_the_seeds() -> None:
    """At 5 seeds, where that one covers 94 %, too."""
    cells = [(document_sd, share) for document_sd, share in GRID if share < 1 or document_sd > 0.3]
    widths = np.zeros((len(cells), 2))
    t_seeds, t_documents = (float(stats.t.ppf(0.975, count - 1)) for count in (5, DOCUMENTS))
    for cell, values in simulated_cells(5, CORPUS, cells, draws=200):
        by_seed, by_document = values.mean(1), values.mean(0)
        residual = values - by_document - by_seed[:, None] + values.mean()
        rest = (residual**2).sum() / (4 * (DOCUMENTS - 1)) / values.size
        of_seeds = max(by_seed.var(ddof=1) / 5 - rest, 0)
        narrow = math.sqrt(t_seeds**2 * of_seeds + t_documents**2 * by_document.var(ddof=1) / DOCUMENTS)
        found = statistics.paired_difference(values)
        widths[cell] += (found.high - found.low) / 2, narrow
    assert (widths[:, 0] / widths[:, 1]).max() <= 1.15


@pytest.mark.parametrize("noise", SEED_NOISE)
@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_nine_arms_that_do_nothing_are_seldom_called_an_effect(seeds: int, noise: float) -> None:
    """All are compared with one baseline, whose chance they share."""
    generator = np.random.default_rng([seeds, int(10 * noise), 1])
    false = 0
    for _ in range(SIMULATIONS):
        arms, baseline = simulated(generator, seeds, noise, (ARMS,)), simulated(generator, seeds, noise)
        found = [statistics.paired_difference(arm - baseline, comparisons=ARMS) for arm in arms]
        false += any(one.joint_low > 0 or one.joint_high < 0 for one in found)
    assert false / SIMULATIONS <= 0.06


def test_without_documents_it_is_the_paired_t_interval() -> None:
    generator = np.random.default_rng(0)
    one, other = generator.normal(1, 1, 6), generator.normal(0, 1, 6)
    found = statistics.paired_difference((one - other)[:, None], comparisons=3)
    expected = stats.ttest_rel(one, other).confidence_interval(0.95)
    joint = stats.ttest_rel(one, other).confidence_interval(1 - 0.05 / 3)
    assert found[1:5] == pytest.approx((expected.low, expected.high, joint.low, joint.high), rel=1e-12)
    assert found.documents == 0


def test_variance_components_are_those_of_reml() -> None:
    """In a balanced design without a negative estimate, restricted maximum likelihood is the method of moments."""
    import statsmodels.formula.api as models

    values = simulated(np.random.default_rng(3), 5, 1.0)[:, :10]
    seeds, documents = values.shape
    frame = pd.DataFrame(
        {"d": values.ravel(), "s": np.repeat(range(seeds), documents), "i": [*range(documents)] * seeds}
    )
    crossed = {"s": "0 + C(s)", "i": "0 + C(i)"}
    fitted = models.mixedlm("d ~ 1", frame, groups=np.ones(len(frame)), re_formula="0", vc_formula=crossed).fit()
    of_document, of_seed = fitted.vcomp  # by name
    quantiles = [float(stats.t.ppf(0.975, count - 1)) for count in (seeds, documents)]
    half = math.sqrt(
        quantiles[0] ** 2 * (of_seed / seeds + fitted.scale / (seeds * documents))
        + quantiles[1] ** 2 * of_document / documents
    )
    found = statistics.paired_difference(values)
    assert found.mean == pytest.approx(fitted.params["Intercept"], rel=1e-6)
    assert found.high - found.mean == pytest.approx(half, rel=1e-3)


def test_weights_and_strata_by_hand() -> None:
    values = np.array([[1.0, 2.0, 5.0, 7.0], [2.0, 3.0, 6.0, 10.0]])
    # A weight of 2 is a document that is there twice, but for the one degree of freedom less.
    found = statistics.paired_difference(values, np.array([2.0, 1.0, 1.0, 0.0]))
    assert found.mean == pytest.approx((9 / 4 + 13 / 4) / 2)
    # Two tasks far apart, with documents that agree: what differs between tasks is no chance.
    apart = np.array([[0.0, 0.1, 9.0, 9.1], [0.1, 0.0, 9.1, 9.0], [0.0, 0.1, 9.1, 9.0]])
    tasks = np.array([0, 0, 1, 1])
    with_tasks, without = (statistics.paired_difference(apart, strata=some) for some in (tasks, None))
    assert with_tasks.mean == without.mean
    assert with_tasks.high - with_tasks.low < (without.high - without.low) / 20
    alone = statistics.paired_difference(apart, strata=np.array([0, 0, 0, 1]))
    assert alone == without


def test_one_seed_has_no_interval() -> None:
    found = statistics.paired_difference(np.array([[1.0, 3.0]]))
    assert found.mean == 2 and all(math.isnan(end) for end in found[1:5])
    with pytest.raises(ValueError, match="nothing to compare"):
        statistics.paired_difference(np.zeros((0, 3)))


def test_sign_flips_are_those_of_scipy() -> None:
    differences = np.random.default_rng(1).normal(0.5, 1, 8)
    expected = stats.permutation_test(
        (differences,), np.mean, permutation_type="samples", n_resamples=np.inf, alternative="two-sided"
    )
    assert statistics.sign_flip(differences) == pytest.approx(expected.pvalue, abs=1e-12)
    assert statistics.sign_flip(np.array([1.0, 2.0])) == statistics.sign_flip_floor(2) == 0.5
    assert [count for count in range(1, 12) if statistics.sign_flip_floor(count) < 0.05][
        0
    ] == statistics.SEEDS_FOR_A_TEST
    assert math.isnan(statistics.sign_flip(np.array([])))


def test_correlations_are_those_of_scipy_and_draws_are_resampled() -> None:
    generator = np.random.default_rng(2)
    x = generator.normal(size=30)
    points = pd.DataFrame({"x": x, "y": -x + generator.normal(size=30), "run": np.repeat(range(10), 3)})
    points["draw"] = points["run"]
    found = statistics.correlation(points)
    assert found.pearson == pytest.approx(stats.pearsonr(points["x"], points["y"]).statistic)
    assert found.spearman == pytest.approx(stats.spearmanr(points["x"], points["y"]).statistic)
    assert found.pearson_low < found.pearson < found.pearson_high and (found.runs, found.points) == (10, 30)
    assert statistics.correlation(points) == found  # the same numbers each time
    # Draws are named by hashes, which are other ones where a model lies in another folder.
    assert statistics.correlation(points.assign(draw=-points["draw"])) == found
    # Each two runs start from one base: what they share is no news, and of five bases no interval is given.
    paired = statistics.correlation(points.assign(draw=points["run"] // 2))
    assert (paired.pearson, paired.runs) == (found.pearson, 10) and math.isnan(paired.pearson_low)
    # Runs whose checkpoints repeat each other tell no more than one checkpoint each.
    repeated = points.assign(x=points["x"].to_numpy()[::3].repeat(3), y=points["y"].to_numpy()[::3].repeat(3))
    single = statistics.correlation(repeated.iloc[::3])
    assert statistics.correlation(repeated)[:6] == pytest.approx(single[:6], abs=1e-12)
    assert math.isnan(statistics.correlation(points.head(2)).pearson)
    assert math.isnan(statistics.correlation(points.assign(x=1.0)).spearman_low)


def test_a_lead_is_that_of_the_same_draws() -> None:
    """Of two that are known as badly none leads; one that is the result itself leads what has nothing to do with it."""
    random = np.random.default_rng(0)
    y, noise = random.normal(size=(2, 30))
    points = pd.DataFrame({"y": y, "draw": np.arange(30)})
    assert statistics.lead(points.assign(x=y, rival=noise)) > 0.3
    alike = random.normal(size=(2, 30)) + y
    assert statistics.lead(points.assign(x=alike[0], rival=alike[1])) < 0
    leads = points.assign(x=y, rival=noise)
    assert statistics.lead(leads.assign(draw=-leads["draw"])) == statistics.lead(leads)
    assert math.isnan(statistics.lead(leads[:5]))


def test_summary_by_hand_and_nan_is_left_out() -> None:
    assert statistics.summarise(pd.Series([1.0, 2.0, 6.0])) == (3.0, pytest.approx(7**0.5), 3)
    summary = statistics.summarise(pd.Series([4.0, None, float("nan")]))
    assert summary[0] == 4.0 and np.isnan(summary.sd) and summary.n == 1
    assert np.isnan(statistics.summarise(pd.Series([None], dtype="float64")).mean)
