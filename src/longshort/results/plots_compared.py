"""Plots of what differs between arms: by length, by task, against cost, and what goes with what."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

from longshort.metrics.catalog import TASKS, scores_of
from longshort.metrics.record import Column
from longshort.results import compare, long_table, predictors, replicates
from longshort.results.columns import columns_of
from longshort.results.drawing import (
    LABEL_SIZE,
    WIDTH,
    Ending,
    Look,
    looks_of,
    reference_arm,
)

INTERVALS = "bars are 95 % intervals, paired by seed and document, as crossed random effects"


def against_reference(axes: Axes, metrics: pd.DataFrame, study: dict[str, Any], metric: str) -> list[Ending]:
    """A metric at the last checkpoint against the reference arm's, in per cent, with a band for the interval."""
    numbers = compare.Numbers(metrics, study)
    diverged, why = long_table.first_diverged_steps(metrics), long_table.reasons(metrics)
    columns = [column for column in columns_of(study) if column.metric == metric]
    seeds, step = [int(seed) for seed in study["seeds"]], int(study["checkpoints"][-1])
    x = np.array([column.length for column in columns], dtype="float64")
    reference = reference_arm(study)
    endings = []
    for arm, look in looks_of(study).items():
        of_last = numbers.by_seed(columns[-1], arm, step, seeds)
        status = long_table.absence(of_last, arm, step, diverged, why)
        look = look if status == "ok" else look._replace(label=f"{look.label}\n{status}")
        if arm == reference:
            differences = [compare.NOTHING._replace(mean=0.0, low=0.0, high=0.0)] * len(columns)
            if of_last.isna().all():
                differences = [compare.NOTHING] * len(columns)
        else:
            differences = [numbers.compared(column, arm, reference, step, seeds) for column in columns]
        mean = np.array([difference.mean for difference in differences])
        drawn = np.isfinite(mean)
        if not drawn.any():
            endings.append(Ending(None, 0.0, look))
            continue
        axes.plot(
            x[drawn], mean[drawn], color=look.colour, marker=look.marker, linestyle=look.line, markerfacecolor="w"
        )
        low, high = (
            np.array([getattr(difference, end) for difference in differences])[drawn] for end in ("low", "high")
        )
        axes.fill_between(x[drawn], low, high, color=look.colour, alpha=0.13, linewidth=0)
        endings.append(Ending(float(x[drawn][-1]), float(mean[drawn][-1]), look))
    return endings


def draw_tasks(metrics: pd.DataFrame, study: dict[str, Any]) -> Figure:
    """LongBench-E by task: a forest plot for each arm, as differences to the reference."""
    looks, reference = looks_of(study), reference_arm(study)
    arms = [arm for arm in looks if arm != reference]
    overall = next(column for column in columns_of(study) if column.key == "longbench_e")
    columns = [*columns_of(study, "tasks"), overall]
    names = [*TASKS, "mean"]
    numbers = compare.Numbers(metrics, study)
    seeds, step = [int(seed) for seed in study["seeds"]], int(study["checkpoints"][-1])
    footer = (
        f"LongBench-E, step {step}; {INTERVALS};\n{replicates.caption(study)}. A task without a bar shows no "
        "difference that can be measured."
    )
    figure, drawn = _small_multiples(max(len(arms), 1), footer)
    places = -np.arange(len(names), dtype="float64")
    places[-1] -= 0.5
    for place, (axes, arm) in enumerate(zip(drawn, arms, strict=False)):
        look = looks[arm]
        differences = [numbers.compared(column, arm, reference, step, seeds) for column in columns]
        axes.axvline(0, color="0.3", linewidth=0.6, zorder=0.6)
        status = numbers.absence(overall, arm, step, seeds)
        label = look.label if status == "ok" else f"{look.label}\n{status}"
        axes.set_title(label.replace(" = ", "\n= "), fontsize=7, loc="left")
        for y, difference, name in zip(places, differences, names, strict=True):
            if math.isfinite(difference.mean):
                if math.isfinite(difference.low):
                    axes.plot([difference.low, difference.high], [y, y], color=look.colour, linewidth=0.9)
                axes.plot(
                    [difference.mean], [y], color=look.colour, marker="D" if name == "mean" else "o", markersize=3.2,
                    markerfacecolor=look.colour if name == "mean" else "white", linestyle="none",
                )  # fmt: skip
        if not any(math.isfinite(difference.mean) for difference in differences):
            axes.text(
                0.5,
                0.5,
                "missing" if status == "ok" else status,
                transform=axes.transAxes,
                ha="center",
                va="center",
                fontsize=LABEL_SIZE,
            )
        axes.set_yticks(places, names if place % _COLUMNS == 0 else [""] * len(names), fontsize=6)
        axes.set_ylim(places[-1] - 0.7, 0.7)
        axes.xaxis.set_major_locator(MaxNLocator(3))
        axes.tick_params(axis="x", labelsize=6)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel(f"less {reference} (points)", fontsize=6.5)
    limits = [axes.get_xlim() for axes in drawn[: len(arms)]]
    for axes in drawn[: len(arms)]:  # one scale, so that arms can be held beside each other
        axes.set_xlim(min(low for low, _ in limits), max(high for _, high in limits))
    return figure


_COLUMNS = 5


def _small_multiples(count: int, footer: str) -> tuple[Figure, list[Axes]]:
    left, gap, above, tall, below, bottom = 1.0, 0.1, 0.34, 1.75, 0.42, 0.34
    rows = -(-count // _COLUMNS)
    wide = (WIDTH - left - 0.1 - (_COLUMNS - 1) * gap) / _COLUMNS
    height = rows * (above + tall + below) + bottom
    figure = Figure(figsize=(WIDTH, height))
    drawn = []
    for place in range(count):
        row, column = divmod(place, _COLUMNS)
        y = height - (row + 1) * (above + tall + below) + below
        box = ((left + column * (wide + gap)) / WIDTH, y / height, wide / WIDTH, tall / height)
        drawn.append(figure.add_axes(box))
    figure.text(0.08 / WIDTH, 0.05 / height, footer, fontsize=6, color="0.35", va="bottom", linespacing=1.3)
    return figure, drawn


def gained(study: dict[str, Any]) -> Column:
    """What an arm's gain is measured by: the primary number, else the first column."""
    columns = columns_of(study)
    return next((column for column in columns if column.key == study.get("primary")), columns[0])


def draw_gain(metrics: pd.DataFrame, study: dict[str, Any]) -> Figure:
    """What an arm costs, in training time of the reference, against what it gains."""
    numbers = compare.Numbers(metrics, study)
    looks, reference, column = looks_of(study), reference_arm(study), gained(study)
    seeds, step = [int(seed) for seed in study["seeds"]], int(study["checkpoints"][-1])
    measured = set(metrics["metric"])
    key = "cost/training_cpu_hours" if "cost/training_cpu_hours" in measured else "cost/training_hours"
    hours = next(difference for difference in columns_of(study, "cost") if difference.key == key)
    shared = "." if "CPU" in hours.header else "; other jobs on the same machine change it."
    footer = (
        f"Step {step}; {INTERVALS}; {replicates.caption(study)}.\nCost: {hours.header}, mean over seeds, "
        f"over those of {reference}{shared}"
    )
    left, below, right, height = 0.6, 0.75, 1.7, 3.0
    figure = Figure(figsize=(WIDTH, height))
    box = (left / WIDTH, below / height, (WIDTH - left - right) / WIDTH, (height - below - 0.12) / height)
    axes = figure.add_axes(box)
    axes.axhline(0, color="0.3", linewidth=0.6, zorder=0.6)
    for place, (arm, look) in enumerate(looks.items()):
        # A training that diverged has cost less: it says nothing of what the arm costs.
        both = [numbers.by_seed(column, one, step, seeds) for one in (arm, reference)]
        whole = [seed for seed in seeds if all(math.isfinite(values[seed]) for values in both)]
        cost = numbers.by_seed(hours, arm, step, whole).mean() / numbers.by_seed(hours, reference, step, whole).mean()
        status = numbers.absence(column, arm, step, seeds)
        difference = numbers.compared(column, arm, reference, step, seeds)
        if arm == reference:
            difference = difference._replace(mean=0.0, low=math.nan)
        there = math.isfinite(cost) and math.isfinite(difference.mean)
        if there and math.isfinite(difference.low):
            axes.plot([cost, cost], [difference.low, difference.high], color=look.colour, linewidth=0.8)
        if there:
            axes.plot(
                [cost], [difference.mean], color=look.colour, marker=look.marker, markersize=4.5, linestyle="none",
                markerfacecolor="white",
            )  # fmt: skip
        status = "missing" if status == "ok" and not there else status
        named = look if status == "ok" else look._replace(label=f"{look.label}: {status}")
        _legend(figure, named, place, height, right, 0.12)
    better = "higher" if column.higher_is_better else "lower"
    unit = "%" if column.relative else "difference"
    axes.set_ylabel(f"{column.header.removesuffix(' (%)')} to {reference} ({unit}; {better} is better)")
    axes.set_xlabel(f"training cost / that of {reference}")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.4g}"))
    figure.text(0.08 / WIDTH, 0.05 / height, footer, fontsize=6, color="0.35", va="bottom", linespacing=1.3)
    return figure


def draw_correlation(metrics: pd.DataFrame, study: dict[str, Any]) -> Figure:
    """Misalignment, training loss and LongPPL against long-context scores: a point for each checkpoint of a run."""
    found, looks = predictors.points(metrics, study), looks_of(study)
    said = {(x, y): one for x, y, one in predictors.correlations(metrics, study)}
    rows = scores_of(study["evaluations"])
    labels = predictors.explaining(study)
    left, gap, above, side, below, bottom, right = 0.5, 0.36, 0.36, 1.4, 0.36, 0.34, 1.75
    height = len(rows) * (above + side + below) + bottom
    figure = Figure(figsize=(WIDTH, height))
    for row, explained in enumerate(rows):
        for column, (explaining, label) in enumerate(labels.items()):
            if (explaining, explained) not in said:  # a number with itself
                continue
            wide = (WIDTH - left - right - (len(labels) - 1) * gap) / len(labels)
            y = height - (row + 1) * (above + side + below) + below
            axes = figure.add_axes(((left + column * (wide + gap)) / WIDTH, y / height, wide / WIDTH, side / height))
            for arm, look in looks.items():
                of_arm = found["arm"].eq(arm)
                axes.plot(
                    found.loc[of_arm, explaining], found.loc[of_arm, explained.label], color=look.colour,
                    marker=look.marker, linestyle="none", markersize=3.2, markerfacecolor="white",
                )  # fmt: skip
            one = said[explaining, explained]
            axes.set_title(f"r {interval(one[:3])}\n$\\rho$ {interval(one[3:6])}", fontsize=6.5, loc="left")
            axes.set_xlabel(label, fontsize=7)
            axes.set_ylabel(explained.label if not column else "", fontsize=7)
            axes.tick_params(labelsize=6)
            axes.xaxis.set_major_locator(MaxNLocator(4))
    for place, look in enumerate(looks.values()):
        _legend(figure, look, place, height, right, above)
    runs = max((one.runs for one in said.values()), default=0)
    drawn = "bases" if predictors.over_bases(study) else "runs"
    footer = (
        f"One point for each checkpoint of {runs} runs. r Pearson, $\\rho$ Spearman, with 95 % intervals of a "
        f"bootstrap over {drawn}.\nTraining loss: mean cross-entropy of the steps since the checkpoint before."
    )
    figure.text(0.08 / WIDTH, 0.05 / height, footer, fontsize=6, color="0.35", va="bottom", linespacing=1.3)
    return figure


def interval(ends: tuple[float, ...]) -> str:
    value, low, high = ends
    if not math.isfinite(value):
        return "not defined"
    return f"{value:.2f} [{low:.2f}, {high:.2f}]" if math.isfinite(low) else f"{value:.2f}"


def _legend(figure: Figure, look: Look, place: int, height: float, right: float, above: float) -> None:
    x, y = WIDTH - right + 0.2, height - above - 0.05 - place * 0.125
    figure.add_artist(
        Line2D(
            [x / WIDTH],
            [y / height],
            color=look.colour,
            marker=look.marker,
            linestyle="none",
            markersize=3.2,
            markerfacecolor="white",
        )  # fmt: skip
    )
    figure.text((x + 0.1) / WIDTH, y / height, look.label, fontsize=LABEL_SIZE, va="center")
