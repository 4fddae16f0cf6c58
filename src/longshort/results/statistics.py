"""Means, spreads, paired differences with intervals, and correlations over the runs of a study.

Every arm is measured with the same seeds and on the same documents, so differences are paired by both. Seeds and
documents are crossed random effects: another seed, and another document, would have given another difference. To
resample or average over one of the two alone takes chance for an effect.
"""

from __future__ import annotations

import math
from functools import cache
from itertools import product
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

LEVEL = 0.95
# The least p of an exact two-sided sign-flip test over n pairs is 2 / 2^n: 0.0625 at 5 seeds, 0.03125 at 6.
SEEDS_FOR_A_TEST = 6
# The interval of two seeds rests on one deviation, which t = 12.7 makes up for: no effect is claimed.
SEEDS_FOR_AN_INTERVAL = 3
RESAMPLES = 2000
# What resampling fewer draws gives is their own spread, and no interval.
DRAWS_TO_RESAMPLE = 6
MOST_SEEDS_TO_FLIP = 16


class Summary(NamedTuple):
    mean: float
    sd: float
    n: int


class Difference(NamedTuple):
    """A mean paired difference, in the unit of what was compared.

    low, high: the 95 % interval of this difference alone; joint_low, joint_high: one of `comparisons` that hold
    together with 95 %. NaN where there are too few seeds. seeds, documents: what it rests on (documents 0: none known).
    """

    mean: float
    low: float
    high: float
    joint_low: float
    joint_high: float
    seeds: int
    documents: int


class Ratio(NamedTuple):
    """over / under of two means, and the 95 % interval of their ratio; NaN where it has no two ends."""

    ratio: float
    low: float
    high: float
    over: float
    under: float


class Correlation(NamedTuple):
    """pearson and spearman with 95 % intervals over draws; NaN where they are not defined."""

    pearson: float
    pearson_low: float
    pearson_high: float
    spearman: float
    spearman_low: float
    spearman_high: float
    runs: int
    points: int


def summarise(values: pd.Series) -> Summary:
    """Mean and sample standard deviation (n - 1) of one number per seed, in the unit of `values`.

    NaN, None and what is infinite are left out; n counts the others. Without a value the mean is NaN; with fewer than
    two, so is the sd.
    """
    numbers = values.astype("float64").to_numpy()
    present = numbers[np.isfinite(numbers)]
    if len(present) == 0:
        return Summary(float("nan"), float("nan"), 0)
    sd = float(present.std(ddof=1)) if len(present) > 1 else float("nan")
    return Summary(float(present.mean()), sd, len(present))


def paired_difference(
    differences: NDArray[np.float64],
    weights: NDArray[np.float64] | None = None,
    strata: NDArray[np.int64] | None = None,
    comparisons: int = 1,
) -> Difference:
    """Mean of the differences [seeds, documents] of two arms, with intervals for crossed random effects.

    d[s, i] = mu + seed s + document i + rest. With weights w (sum 1) the estimate is the mean over seeds of
    sum w_i d[s, i]. Of its variance three parts are estimated by the method of moments: S from the means of the seeds
    and D from those of the documents hold their own component and a share of the rest, R is that share alone, so that
    S + D counts it twice.

    * The joint intervals are Bonferroni's, over `comparisons`, with the half width sqrt(t_S^2 S + t_D^2 D): each part
      with the t quantile of its own degrees of freedom. It covers at least what it promises, whatever the components
      are (Banerjee 1960, Sankhya 22, 357), and is wide at 3 seeds because little is known then.
    * The interval of one difference counts R once: it is taken from the part with more degrees of freedom, as a rule
      that of the documents. Without a document component this is the t interval over the seeds' means. It covers 94.5
      to 98 % with document components from 0 to twice the rest's standard deviation, seed components from 0 to eight
      times R, and 3 to 9 seeds (tests/unit/results/test_statistics.py). Taken from S, R leaves 91 % at 3 seeds, as S
      is known too badly to be corrected.

    Args:
        differences: NaN-free; [seeds, 1] where there is one number a seed and no documents.
        weights: of the documents; None: equal ones.
        strata: the task that each document belongs to: tasks are fixed, documents vary within them. One that has a
            single document says nothing of how its documents vary; then all are one stratum.
        comparisons: how many differences are judged together.

    Raises:
        ValueError: there is no seed or no document.
    """
    seeds, documents = differences.shape
    if not seeds or not documents:
        raise ValueError(f"differences of {seeds} seeds and {documents} documents: there is nothing to compare")
    w = np.full(documents, 1 / documents) if weights is None else weights / weights.sum()
    by_seed = differences @ w
    mean = float(by_seed.mean())
    nan = float("nan")
    known = documents if documents > 1 else 0
    if seeds < 2:
        return Difference(mean, nan, nan, nan, nan, seeds, known)
    of_seeds = float(by_seed.var(ddof=1)) / seeds
    of_documents = rest = 0.0
    freedom = math.inf
    if documents > 1:
        of_documents, rest, freedom = document_parts(differences, w, strata)

    def half_width(level: float, twice: float) -> float:
        parts = [(t_quantile(level, seeds - 1), of_seeds), (t_quantile(level, freedom), of_documents)]
        (less, well_known), (more, little_known) = sorted(parts)
        return math.sqrt(more**2 * little_known + less**2 * max(well_known - twice, 0.0))

    half = half_width(LEVEL, rest)
    joint = half_width(1 - (1 - LEVEL) / comparisons, 0.0)
    return Difference(mean, mean - half, mean + half, mean - joint, mean + joint, seeds, known)


def ratio_of_means(over: NDArray[np.float64], under: NDArray[np.float64]) -> Ratio:
    """The ratio of two means over the same draws [draws], with Fieller's interval (1954, J. R. Stat. Soc. B 16, 175).

    It holds every ratio r for which the mean of over - r under does not differ from 0 (t test, 5 %): exact for normal
    draws. Where `under` itself is not told from 0 it has no two ends, and NaN stands for both; as with fewer draws than
    SEEDS_FOR_AN_INTERVAL.

    Raises:
        ValueError: there is no draw, or they are not paired.
    """
    if not len(over) or over.shape != under.shape:
        raise ValueError(f"a ratio of {len(over)} and {len(under)} draws: give as many of each")
    x, y = float(over.mean()), float(under.mean())
    ratio = x / y if y else math.nan
    if len(over) < SEEDS_FOR_AN_INTERVAL:
        return Ratio(ratio, math.nan, math.nan, x, y)
    spread = t_quantile(LEVEL, len(over) - 1) ** 2 * np.cov(over, under) / len(over)
    # a r^2 - 2 b r + c <= 0
    a, b, c = y * y - spread[1, 1], x * y - spread[0, 1], x * x - spread[0, 0]
    if a <= 0:
        return Ratio(ratio, math.nan, math.nan, x, y)
    half = math.sqrt(max(b * b - a * c, 0.0))
    return Ratio(ratio, float((b - half) / a), float((b + half) / a), x, y)


@cache
def t_quantile(level: float, freedom: float) -> float:
    return float(stats.t.ppf((1 + level) / 2, freedom))


def _usable(strata: NDArray[np.int64] | None, documents: int) -> NDArray[np.int64]:
    if strata is None or np.bincount(strata).min() < 2:
        return np.zeros(documents, dtype=np.int64)
    return strata


def document_parts(
    differences: NDArray[np.float64], w: NDArray[np.float64], strata: NDArray[np.int64] | None
) -> tuple[float, float, float]:
    """The documents' part, the rest, and the documents' degrees of freedom (Satterthwaite's, over strata)."""
    seeds = len(differences)
    strata = _usable(strata, differences.shape[1])
    of_documents, rests = [], []
    for stratum in np.unique(strata):
        inside = strata == stratum
        share = w[inside] / w[inside].sum()
        block = differences[:, inside]
        count = block.shape[1]
        by_document, by_seed = block.mean(0), block @ share
        centre = by_document @ share
        scale = count / (count - 1) * w[inside] ** 2
        of_documents.append((float(scale @ (by_document - centre) ** 2), count - 1))
        residual = block - by_document - by_seed[:, None] + centre
        rests.append(float((residual**2 @ scale).sum()) / (seeds * (seeds - 1)))
    total = sum(part for part, _ in of_documents)
    squares = sum(part**2 / freedom for part, freedom in of_documents)
    return total, sum(rests), round(total**2 / squares, 9) if squares else math.inf


def sign_flip(differences: NDArray[np.float64]) -> float:
    """The exact two-sided p that the mean of one difference a seed is 0, every sign being as probable; its floor is
    2 / 2^n. NaN without a seed, or above 16.
    """
    count = len(differences)
    if not 0 < count <= MOST_SEEDS_TO_FLIP:
        return float("nan")
    signs = np.array(list(product([1.0, -1.0], repeat=count)))
    sums = np.abs(signs @ differences)
    return float((sums >= abs(differences.sum()) * (1 - 1e-12)).mean())


def sign_flip_floor(seeds: int) -> float:
    return min(1.0, 2.0 / 2**seeds)


def correlation(points: pd.DataFrame, resamples: int = RESAMPLES) -> Correlation:
    """Pearson's and Spearman's correlation of the columns x and y, over the checkpoints of runs (column run).

    The checkpoints of a run are no independent points, nor are the runs of one base: what the column draw names is
    resampled, with all its points: 95 % percentile intervals of a bootstrap with a fixed seed. NaN with fewer than
    three points or without variance; no interval with fewer than DRAWS_TO_RESAMPLE.
    """
    points = points[np.isfinite(points["x"]) & np.isfinite(points["y"])]
    x, y = points["x"].to_numpy(dtype="float64"), points["y"].to_numpy(dtype="float64")
    drawn, enough = _drawn(points["draw"], resamples)
    found = _correlations(x, y, drawn)
    ends = np.full((2, 2), np.nan)
    if enough and np.isfinite(found[:, 0]).all():
        ends = np.nanquantile(found[:, 1:], [0.025, 0.975], axis=1).T
    (pearson_low, pearson_high), (spearman_low, spearman_high) = ends.tolist()
    pearson, spearman = found[:, 0].tolist()
    runs = points["run"].nunique()
    return Correlation(pearson, pearson_low, pearson_high, spearman, spearman_low, spearman_high, runs, len(points))


def lead(points: pd.DataFrame, resamples: int = RESAMPLES) -> float:
    """The lower end of the 95 % interval of how much greater |Pearson's r| of x and y is than that of rival and y, over
    the same resampled draws as `correlation` takes; NaN where that has no interval."""
    points = points.loc[np.isfinite(points["x"]) & np.isfinite(points["rival"]) & np.isfinite(points["y"])]
    drawn, enough = _drawn(points["draw"], resamples)
    x, rival, y = (points[name].to_numpy(dtype="float64") for name in ("x", "rival", "y"))
    gained = np.abs(_correlations(x, y, drawn)[0]) - np.abs(_correlations(rival, y, drawn)[0])
    return float(np.nanquantile(gained[1:], 0.025)) if enough and math.isfinite(gained[0]) else math.nan


def _drawn(of: pd.Series, resamples: int) -> tuple[NDArray[np.float64], bool]:
    """How often each point is there, [1 + resamples, points]: once for the estimate, then as its draw is drawn; and
    whether there are draws enough, without which the first is all."""
    # In their order of appearance: names of runs are other ones where files lie elsewhere.
    of_draw = pd.factorize(of)[0]
    draws = int(of_draw.max(initial=-1)) + 1
    drawn = np.ones((1, draws))
    if draws >= DRAWS_TO_RESAMPLE:
        generator = np.random.default_rng(0)
        again = [np.bincount(generator.integers(0, draws, draws), minlength=draws) for _ in range(resamples)]
        drawn = np.vstack([drawn, *again])
    return drawn[:, of_draw], draws >= DRAWS_TO_RESAMPLE


def _correlations(x: NDArray[np.float64], y: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Pearson's and Spearman's [2, resamples] of points that are there weights [resamples, points] times.

    NaN for a resample of fewer than three points, or in which one of the two does not vary.
    """
    if len(x) < 3:
        return np.full((2, len(weights)), np.nan)
    ranks, few = [], weights.sum(1) < 3
    for values in (x, y):
        # Of a point that is there w times, the mean of its w ranks.
        below, equal = values[:, None] < values, values[:, None] == values
        ranks.append(weights @ below + (weights @ equal + 1) / 2)
        there = np.where(weights > 0, values, np.nan)
        few |= np.fmax.reduce(there, axis=1) == np.fmin.reduce(there, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        found = np.array([_weighted(x, y, weights), _weighted(ranks[0], ranks[1], weights)])
    found[:, few] = np.nan
    return found


def _weighted(x: NDArray[np.float64], y: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Pearson's correlation, a row of weights each; x, y: [points] or [resamples, points]."""
    total = weights.sum(1, keepdims=True)
    dx, dy = (values - (weights * values).sum(1, keepdims=True) / total for values in (x, y))
    products: NDArray[np.float64] = (weights * dx * dy).sum(1)
    return products / np.sqrt((weights * dx**2).sum(1) * (weights * dy**2).sum(1))
