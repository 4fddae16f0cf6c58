"""Which alpha is best at which test length: the claim behind Theorem 4.1 of "Long-Short Alignment" (arXiv 2506.11769).

The theorem bounds the test error by C1 L_misalign + C2 L_train + C0, where C1 / C2 grows with the test length. So the
best alpha, alpha*, should grow with it: "proportional to the ratio" of test to training length is a slope of 1 of
log alpha* on the logarithm of the ratio, "the same at every length" is a slope of 0.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from longshort.metrics.record import Column
from longshort.results import compare, formats, long_table, replicates, statistics
from longshort.results.columns import BEST_ALPHA, columns_of

# Fewer alphas have at most one that is not at the edge: the report says nothing of them.
ALPHAS_FOR_AN_ANSWER = 4
NAN = float("nan")
NOTHING = statistics.Difference(NAN, NAN, NAN, NAN, NAN, 0, 0)


class Best(NamedTuple):
    """log2 of the best alpha (NaN: not known), and whether it is an end of the grid, so that it may lie beyond."""

    log2: float
    at_edge: bool


class ByLength(NamedTuple):
    """The best alphas of one metric.

    log2, at_edge: [seeds, lengths]. means: of each length, over the seeds that have it; None where none has. slopes: of
    log alpha* on log length, one a seed; NaN where a length is absent or there is one length. slope: their mean.
    """

    name: str
    columns: list[Column]
    log2: NDArray[np.float64]
    at_edge: NDArray[np.bool_]
    means: list[statistics.Difference | None]
    slopes: NDArray[np.float64]
    slope: statistics.Difference | None

    def predicted(self, slope: float, l_train: int) -> NDArray[np.float64]:
        """log2 alpha* at every length by a line of that slope through the middle of the means."""
        ratios = np.log2([int(column.length or 0) / l_train for column in self.columns])
        means = np.array([NAN if one is None else one.mean for one in self.means])
        return float(np.mean(means)) + slope * (ratios - ratios.mean())


def table_of(study: dict[str, Any]) -> dict[str, Any] | None:
    """The study's table of best alphas, if it has one."""
    return next((table for table in study["tables"] if table.get("columns") == BEST_ALPHA), None)


def grid(study: dict[str, Any], table: dict[str, Any]) -> dict[float, str]:
    """Alpha, ascending -> the arm: those of the table's arms that differ in a constant alpha alone."""
    alike: dict[str, dict[float, str]] = {}
    for arm in study["arms"]:
        alignment = dict(arm["settings"]["alignment"])
        schedule = alignment.pop("schedule", None) or {"kind": "constant"}
        alpha = float(f"{alignment.pop('alpha') * schedule.get('times', 1.0):.12g}")
        if arm["name"] not in table["arms"] or schedule["kind"] != "constant" or alignment.get("hidden") or alpha <= 0:
            continue
        rest = json.dumps({**arm["settings"], "alignment": alignment}, sort_keys=True)
        alike.setdefault(rest, {}).setdefault(alpha, arm["name"])
    return dict(sorted(max(alike.values(), key=len, default={}).items()))


def best(log_alphas: NDArray[np.float64], losses: NDArray[np.float64]) -> Best:
    """The minimum of the parabola in log alpha through the best alpha of the grid and its two neighbours.

    Args:
        log_alphas: ascending log2 of the alphas; losses: of each, the lower the better.
    """
    place = int(np.argmin(losses))
    if place in (0, len(losses) - 1):
        return Best(float(log_alphas[place]), True)
    x, y = log_alphas[place - 1 : place + 2] - log_alphas[place], losses[place - 1 : place + 2] - losses[place]
    left, right = y[0] / x[0], y[2] / x[2]  # divided differences, from the best to each neighbour: left <= 0 <= right
    vertex = (right * x[0] - left * x[2]) / (2 * (right - left)) if right > left else 0.0
    return Best(float(log_alphas[place] + np.clip(vertex, x[0], x[2])), False)


def by_length(
    metrics: pd.DataFrame, study: dict[str, Any], table: dict[str, Any], numbers: compare.Numbers | None = None
) -> list[ByLength]:
    """The best alphas at the last checkpoint: of perplexity, and of each other headline metric with several lengths."""
    numbers = numbers or compare.Numbers(metrics, study)
    arms, diverged = grid(study, table), long_table.first_diverged_steps(metrics)
    groups: dict[str, list[Column]] = {}
    for column in columns_of(study, BEST_ALPHA):
        groups.setdefault(column.metric, []).append(column)
    result = []
    for metric, columns in groups.items():
        if arms and (metric == "perplexity" or len(columns) > 1):
            columns.sort(key=lambda column: column.length or 0)
            each = [_of_column(numbers, study, column, arms, diverged) for column in columns]
            log2 = np.array([[one.log2 for one in of_seeds] for of_seeds in each]).T
            at_edge = np.array([[one.at_edge for one in of_seeds] for of_seeds in each]).T
            if metric != "perplexity" and not np.isfinite(log2).any():
                continue
            slopes = _slopes(log2, np.log2([float(column.length or 0) for column in columns]))
            means = [_mean(study, of_length) for of_length in log2.T]
            result.append(ByLength(_name(columns[0]), columns, log2, at_edge, means, slopes, _mean(study, slopes)))
    return result


def _of_column(
    numbers: compare.Numbers,
    study: dict[str, Any],
    column: Column,
    arms: dict[float, str],
    diverged: dict[tuple[str, int], int],
) -> list[Best]:
    """The best alpha of each seed. A diverged run ends the grid; what is not measured leaves the seed's unknown."""
    seeds, step = [int(seed) for seed in study["seeds"]], int(study["checkpoints"][-1])
    values = pd.DataFrame({alpha: numbers.by_seed(column, arm, step, seeds) for alpha, arm in arms.items()})
    found = []
    for seed in seeds:
        losses = values.loc[seed].map(compare.log) if column.relative else values.loc[seed]
        losses = -losses if column.higher_is_better else losses
        lost = [diverged.get((arm, seed), step + 1) <= step for arm in arms.values()]
        losses = losses[~np.array(lost)]
        known = len(losses) > 0 and bool(np.isfinite(losses).all())
        log_alphas = np.log2(losses.index.to_numpy(dtype="float64"))
        found.append(best(log_alphas, losses.to_numpy(dtype="float64")) if known else Best(NAN, False))
    return found


def _slopes(log2: NDArray[np.float64], log_lengths: NDArray[np.float64]) -> NDArray[np.float64]:
    """Least squares of log alpha* on log length, one for each seed."""
    if len(log_lengths) < 2:
        return np.full(len(log2), NAN)
    centred = log_lengths - log_lengths.mean()
    return np.asarray(log2 @ centred / (centred @ centred), dtype="float64")


def _mean(study: dict[str, Any], values: NDArray[np.float64]) -> statistics.Difference | None:
    """Over seeds, or over bases that have several, with the t interval."""
    unit_of = replicates.unit_of(study)
    by_seed = pd.Series(values, index=[unit_of[int(seed)] for seed in study["seeds"]])
    there = np.asarray(by_seed[np.isfinite(by_seed)].groupby(level=0, sort=False).mean(), dtype=np.float64)
    return statistics.paired_difference(there[:, None]) if len(there) else None


def _name(column: Column) -> str:
    return " ".join(column.header.replace(str(column.length), "").split())


# ---- the table -------------------------------------------------------------------------------------------------------

MEAN = "mean over seeds"
CLAIMS = {"proportional to the ratio": 1.0, "the same at every length": 0.0}


def tidy_table(study: dict[str, Any], by_metric: list[ByLength]) -> pd.DataFrame:
    """One row per metric, length and row of the printed table; the length is null in the rows of slopes.

    value: the best alpha, or the slope; low, high: 95 % interval over seeds; at_edge: how many of n are at the edge.
    """
    step = int(study["checkpoints"][-1])
    cells = [(step, alphas.columns[0].metric, *cell) for alphas in by_metric for cell in _cells(study, alphas)]
    keys = ["step", "metric", "row", "length", "value", "low", "high", "n", "at_edge"]
    return pd.DataFrame(cells, columns=keys).astype({"length": "Int64"})


def _cells(study: dict[str, Any], alphas: ByLength) -> Iterator[tuple[str, int | None, float, float, float, int, int]]:
    lengths = [column.length for column in alphas.columns]
    for place, seed in enumerate(study["seeds"]):
        for length, log2, at_edge in zip(lengths, alphas.log2[place], alphas.at_edge[place], strict=True):
            yield f"seed {int(seed)}", length, 2**log2, NAN, NAN, int(np.isfinite(log2)), int(at_edge)
        yield f"seed {int(seed)}", None, alphas.slopes[place], NAN, NAN, int(np.isfinite(alphas.slopes[place])), 0
    for length, mean, log2, at_edge in zip(lengths, alphas.means, alphas.log2.T, alphas.at_edge.T, strict=True):
        mean, n = mean or NOTHING, int(np.isfinite(log2).sum())  # seeds; what the mean is of may be bases
        yield MEAN, length, 2**mean.mean, 2**mean.low, 2**mean.high, n, int(at_edge.sum())
    slope = alphas.slope or NOTHING
    yield MEAN, None, slope.mean, slope.low, slope.high, slope.seeds, 0
    for claim, of_claim in CLAIMS.items():
        for length, log2 in zip(lengths, alphas.predicted(of_claim, int(study["l_train"])), strict=True):
            yield claim, length, 2**log2, NAN, NAN, 0, 0
        yield claim, None, of_claim, NAN, NAN, 0, 0


def panels(tidy: pd.DataFrame, by_metric: list[ByLength]) -> list[formats.Panel]:
    """A panel for each metric: the best alphas by length, and the slope."""
    result = []
    for alphas in by_metric:
        rows = tidy[tidy["metric"].eq(alphas.columns[0].metric)]
        headers = [*(column.header for column in alphas.columns), "slope"]
        lines = [
            (int(of_row["step"].iloc[0]), str(label), [_cell(row) for row in of_row.itertuples()])
            for label, of_row in rows.groupby("row", sort=False)
        ]
        result.append(
            formats.Panel(f"Best alpha by {alphas.name}", headers, [None] * len(headers), lines, "best alpha")
        )
    return result


def _cell(row: Any) -> formats.Cell:
    if math.isnan(row.value):
        return formats.Cell("not known")
    after = f" [{row.low:.3g}, {row.high:.3g}]" if math.isfinite(row.low) else ""
    if row.at_edge:
        after += " at the edge" if row.n == row.at_edge else f" {row.at_edge} of {row.n} at the edge"
    return formats.Cell(f"{row.value:.3g}", after, sort=row.value)


def notes_of(study: dict[str, Any], table: dict[str, Any], by_metric: list[ByLength]) -> list[str]:
    arms = grid(study, table)
    if not arms:
        return ["None of the table's arms differ in a constant alpha alone: there is no best one to look for."]
    listed = ", ".join(f"{alpha:g} ({arm})" for alpha, arm in arms.items())
    notes = [
        f"The grid: alpha {listed}. Best alpha of a seed: the minimum of the parabola in log alpha through the best "
        "alpha of the grid and its two neighbours (perplexities by their logarithm). At the edge: the best is an end "
        "of the grid, and the true one may lie beyond; a diverged run ends the grid.",
        "Mean over seeds: of log alpha, with the 95 % t interval. Slope: of log alpha on the logarithm of the test "
        "length, by least squares for each seed, then the mean and its interval over seeds. Below: what the two claims "
        "predict, through the middle of the means.",
    ]
    return notes + [f"{alphas.name}: {verdict(alphas)}." for alphas in by_metric]


def verdict(alphas: ByLength) -> str:
    """What the slope says of the two claims."""
    if len(alphas.columns) < 2:
        return "one length, so that there is no slope"
    if alphas.slope is None:
        return "not all measured, so that there is no slope"
    said = f"the slope of log alpha on log length is {alphas.slope.mean:.2f}"
    if not math.isfinite(alphas.slope.low):
        return f"{said}; one seed gives no interval, and no claim is made"
    low, high = alphas.slope.low, alphas.slope.high
    said += f" [{low:.2f}, {high:.2f}]"
    if edge := int(alphas.at_edge.sum()):
        of = int(np.isfinite(alphas.log2).sum())
        return f"{said}; {edge} of {of} best alphas are at the edge of the grid, so that no claim is made"
    if alphas.slope.seeds < statistics.SEEDS_FOR_AN_INTERVAL:
        return f"{said}; {alphas.slope.seeds} seeds cannot show more, and no claim is made"
    judged = [
        f"{'agrees with' if low <= of_claim <= high else 'contradicts'} “{claim}” ({of_claim:g})"
        for claim, of_claim in CLAIMS.items()
    ]
    return f"{said}, which {' and '.join(judged)}"


def answer(metrics: pd.DataFrame, study: dict[str, Any], numbers: compare.Numbers) -> list[str]:
    """Sentences for the report, of perplexity and of the primary number, where the study has a grid that can answer."""
    table = table_of(study)
    if table is None or len(arms := grid(study, table)) < ALPHAS_FOR_AN_ANSWER:
        return []
    judged = {"perplexity", str(study.get("primary")).partition("@")[0]}
    found = [alphas for alphas in by_length(metrics, study, table, numbers) if alphas.columns[0].metric in judged]
    asked = f"The best of {len(arms)} alphas ({min(arms):g} to {max(arms):g}) by the length that is tested"
    step = study["checkpoints"][-1]
    return [f"{asked}, by {alphas.name} at step {step}: {verdict(alphas)}." for alphas in found]
