"""The plots of numbers by context length: perplexity and its like, misalignment, and the grid of pairs of lengths."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colorbar import Colorbar
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from longshort.results import best_alpha, long_table, plots_compared, replicates
from longshort.results.columns import columns_of
from longshort.results.drawing import (
    COLOURS,
    LINES,
    WIDTH,
    Ending,
    Look,
    label_endings,
    labels_of,
    length_axis,
    log_axis,
    looks_of,
    panels,
    reference_arm,
    references_of,
    squares,
)
from longshort.results.long_table import BASE

RIGHT_PANEL = "Right: paired by seed; points are shifted sideways for legibility."
BANDS = "Right: bands are 95 % intervals, paired by seed and document, as crossed random effects."
LONGER = "length of the longer context (tokens)"
HEAT = matplotlib.colormaps["viridis"]  # perceptually uniform, the same order for colour-blind eyes and in grey


def curve(axes: Axes, x: np.ndarray, by_seed: pd.DataFrame, look: Look, shift: float = 1.0) -> Ending:
    """Draws the mean over seeds (columns) at each x (index), whiskers from the least to the greatest seed."""
    values = by_seed.to_numpy(dtype="float64", copy=True)
    values[~np.isfinite(values)] = np.nan
    drawn = np.isfinite(values).any(axis=1)
    if not drawn.any():
        return Ending(None, 0.0, look)
    x, values = x[drawn] * shift, values[drawn]
    mean = np.nanmean(values, axis=1)
    single = values.shape[1] == 1
    whiskers = np.abs(np.stack([np.nanmin(values, axis=1), np.nanmax(values, axis=1)]) - mean)
    axes.errorbar(
        x, mean, yerr=None if single else whiskers, color=look.colour, marker=look.marker, linestyle=look.line,
        markerfacecolor="white", elinewidth=0.6, capsize=1.2, capthick=0.6,
    )  # fmt: skip
    return Ending(float(x[-1]), float(mean[-1]), look)


def evaluated(
    rows: pd.DataFrame, arm: str, step: int, metric: str, lengths: Sequence[int], seeds: list[int]
) -> pd.DataFrame:
    """Values by length (index) and seed (columns)."""
    series = [long_table.by_seed(long_table.at(rows, metric, length), arm, step, seeds) for length in lengths]
    return pd.DataFrame(series, index=list(lengths))


def against_length(
    axes: Axes,
    metrics: pd.DataFrame,
    study: dict[str, Any],
    metric: str,
    lengths: Sequence[int],
    against: Callable[[pd.DataFrame, pd.DataFrame], pd.DataFrame] | None = None,
) -> list[Ending]:
    """One metric at the last checkpoint, a curve per arm.

    `against`: what to draw, from an arm's values and those of the reference; None: the values themselves.
    """
    rows = long_table.headlines(metrics)
    diverged = long_table.first_diverged_steps(metrics)
    seeds = [int(seed) for seed in study["seeds"]]
    step = int(study["checkpoints"][-1])
    x = np.array(lengths, dtype="float64")
    looks = looks_of(study)
    reference = evaluated(rows, reference_arm(study), step, metric, lengths, seeds)
    endings = []
    for place, (arm, look) in enumerate(looks.items()):
        values = evaluated(rows, arm, step, metric, lengths, seeds)
        status = long_table.absence(values.iloc[-1], arm, step, diverged)
        if status != "ok":
            look = look._replace(label=f"{look.label}\n{status}")
        if against is not None:
            values = against(values, reference)
        # Whiskers side by side instead of on top of each other.
        beside = against is not None or len(lengths) == 1
        shift = 2 ** (0.22 * (place / max(len(looks) - 1, 1) - 0.5)) if beside else 1.0
        endings.append(curve(axes, x, values, look, shift))
    if against is None:
        others = replicates.models(study)
        for name, look in references_of(study).items():
            at_step, of = (0, list(others[name])) if name in others else (step, seeds)
            values = evaluated(rows, name, at_step, metric, lengths, of)
            if values.notna().any(axis=None):
                endings.append(curve(axes, x, values, look))
    return endings


def percent_of(values: pd.DataFrame, reference: pd.DataFrame) -> pd.DataFrame:
    """Difference to the reference, paired by seed, in per cent of it."""
    return 100 * (values / reference - 1)


def seeds_text(study: dict[str, Any]) -> str:
    count = len(study["seeds"])
    drawn = "one seed" if count == 1 else f"mean over {count} seeds, whiskers from the least to the greatest seed"
    return f"{drawn}; {replicates.caption(study)}"


def draw_against_length(metrics: pd.DataFrame, study: dict[str, Any], metric: str) -> Figure:
    """A metric against context length, and its difference to the reference, at the last checkpoint."""
    measured = [column for column in columns_of(study) if column.metric == metric and column.length is not None]
    lengths = sorted(int(column.length or 0) for column in measured)
    reference = reference_arm(study)
    footer = f"Step {study['checkpoints'][-1]}; {seeds_text(study)}.\n{BANDS}"
    figure, (left, right) = panels(2, 2, labels_of(study, metrics), footer)
    endings = against_length(left, metrics, study, metric, lengths)
    length_axis(left, lengths, study["l_train"], "context length (tokens)")
    log_axis(left)
    left.set_ylabel(metric)
    label_endings(left, endings)
    right.axhline(0, color="black", linewidth=0.6, zorder=0.6)
    endings = plots_compared.against_reference(right, metrics, study, metric)
    length_axis(right, lengths, study["l_train"], "context length (tokens)")
    right.set_ylabel(f"{metric}, difference to {reference} (%)")
    label_endings(right, endings)
    return figure


def draw_alpha_by_length(metrics: pd.DataFrame, study: dict[str, Any]) -> Figure:
    """The best alpha against the test length, a panel a metric, with the lines of the two claims."""
    table = best_alpha.table_of(study)
    assert table is not None
    found, alphas = best_alpha.by_length(metrics, study, table), list(best_alpha.grid(study, table))
    footer = (
        f"Step {study['checkpoints'][-1]}; small: each seed, by a parabola in log alpha (filled: at the edge of the "
        "grid); large: mean over seeds, 95 % interval.\n"
        "Lines: what the two claims predict, through the middle of the means."
    )
    looks = {
        1.0: Look("proportional\nto the ratio", COLOURS[0], "", LINES[1]),
        0.0: Look("the same at\nevery length", COLOURS[1], "", LINES[2]),
    }
    figure, places = panels(len(found), 2, [line for look in looks.values() for line in look.label.split("\n")], footer)
    for axes, one in zip(places, found, strict=True):
        lengths = [int(column.length or 0) for column in one.columns]
        for seed, edges in zip(one.log2, one.at_edge, strict=True):
            for length, log2, at_edge in zip(lengths, seed, edges, strict=True):
                axes.plot([length], [2**log2], "o", color="0.55", markersize=2.5, mfc="0.55" if at_edge else "white")
        for length, mean in zip(lengths, one.means, strict=True):
            if mean is not None:
                axes.plot([length], [2**mean.mean], "D", color="black", markersize=4, zorder=3)
                axes.plot([length] * 2, [2**mean.low, 2**mean.high], color="black", linewidth=0.9, zorder=3)
        endings = []
        for slope, look in looks.items():
            predicted = 2 ** one.predicted(slope, int(study["l_train"]))
            axes.plot(lengths, predicted, color=look.colour, linestyle=look.line, marker="", zorder=1)
            there = bool(np.isfinite(predicted[-1]))
            endings.append(Ending(float(lengths[-1]) if there else None, float(predicted[-1]) if there else 0.0, look))
        length_axis(axes, lengths, study["l_train"], "context length (tokens)")
        axes.set_yscale("log", base=2)
        axes.set_ylim(min(alphas) / 2, max(alphas) * 2)
        axes.set_yticks(alphas, [f"{alpha:g}" for alpha in alphas])
        axes.minorticks_off()
        axes.set_ylabel(f"best alpha by {one.name}")
        label_endings(axes, endings)
    return figure


def draw_misalignment(metrics: pd.DataFrame, study: dict[str, Any]) -> Figure:
    """The training length stands apart: there both contexts are inside the training range."""
    l_train = int(study["l_train"])
    beyond = sorted(l_train * int(factor) for factor in study["evaluations"]["misalignment"]["beyond"])
    reference = reference_arm(study)
    footer = (
        f"Step {study['checkpoints'][-1]}; {seeds_text(study)}. At {l_train} (not joined, at the left on its own "
        f"scale) both contexts are {l_train // 2} to {l_train}\n"
        f"tokens long, beyond it one of the two is that long. {RIGHT_PANEL}\n"
        "SCE is mostly entropy: judge alignment by the symmetric KL."
    )
    figure, axes = panels(4, 2, labels_of(study, metrics), footer)
    for row, (metric, name) in enumerate({"symkl": "symmetric KL", "sce": "SCE"}.items()):
        left, right = axes[2 * row : 2 * row + 2]
        endings = against_length(left, metrics, study, metric, beyond or [l_train])
        length_axis(left, beyond or [l_train], l_train, LONGER)
        log_axis(left)
        inside = left
        if beyond:
            box = left.get_position()
            narrow, gap = 0.4 / WIDTH, 0.28 / WIDTH
            wide = box.width - narrow - gap
            inside = figure.add_axes((box.x0, box.y0, narrow, box.height))
            left.set_position((box.x1 - wide, box.y0, wide, box.height))
            left.xaxis.label.set_x(1 - box.width / wide / 2)  # under both
            against_length(inside, metrics, study, metric, [l_train])
            length_axis(inside, [l_train], l_train, "")
            log_axis(inside)
            against_length(right, metrics, study, metric, [l_train], percent_of)
        inside.set_ylabel(f"{name} (nats)")
        label_endings(left, endings)
        right.axhline(0, color="black", linewidth=0.6, zorder=0.6)
        endings = against_length(right, metrics, study, metric, beyond or [l_train], percent_of)
        length_axis(right, [l_train, *beyond], l_train, LONGER)
        right.set_ylabel(f"{name}, difference to {reference} (%)")
        label_endings(right, endings)
    return figure


def grids_of(metrics: pd.DataFrame, study: dict[str, Any]) -> dict[str, tuple[pd.DataFrame, str]]:
    """Arm -> symmetric KL by shorter (index) and longer context (columns), mean over seeds; and what is absent.

    At the last checkpoint, and of the base model.
    """
    rows = metrics[metrics["metric"].eq("symkl_grid")]
    rows = rows.assign(shorter=rows["task"].astype("int64"), longer=rows["length"].astype("int64"))
    lengths = sorted({*rows["shorter"], *rows["longer"]})
    diverged = long_table.first_diverged_steps(metrics)
    grids = {}
    for arm in [BASE, *looks_of(study)]:
        step = 0 if arm == BASE else int(study["checkpoints"][-1])
        seeds = list(replicates.base_rows(study)) if arm == BASE else [int(seed) for seed in study["seeds"]]
        chosen = rows[rows["arm"].eq(arm) & rows["step"].eq(step) & rows["seed"].isin(seeds)]
        mean = chosen.pivot_table(index="shorter", columns="longer", values="value", aggfunc="mean")
        mean = mean.reindex(index=lengths[:-1], columns=lengths[1:]).astype("float64")
        status = long_table.absence(chosen.groupby("seed")["value"].mean().reindex(seeds), arm, step, diverged)
        grids[arm] = mean, status
    return grids


def draw_misalignment_grid(metrics: pd.DataFrame, study: dict[str, Any]) -> Figure:
    """A panel an arm: symmetric KL of the distributions after the same text, cut to a shorter and a longer context."""
    l_train = int(study["l_train"])
    seeds = len(study["seeds"])
    footer = (
        f"Step {study['checkpoints'][-1]}; {'one seed' if seeds == 1 else f'mean over {seeds} seeds'}. The colour is "
        "on one logarithmic scale for all panels."
    )
    if study["evaluations"]["misalignment"]["beyond"]:
        footer += (
            f" Dashed: the training length,\n{l_train} tokens; the longer context is within it on the left of the "
            "upright line, the shorter one above the level line."
        )
    grids = grids_of(metrics, study)
    labels = {BASE: "base model", **{arm: look.label for arm, look in looks_of(study).items()}}
    titles = [label.replace(" = ", " =\n") if len(label) > 30 else label for label in labels.values()]
    columns = min(4, max(3, -(-len(grids) // 3)))
    figure, places, beside = squares(titles, columns, footer)
    low, high = grid_scale(np.concatenate([mean.to_numpy().ravel() for mean, _ in grids.values()]))
    scale = LogNorm(low, high, clip=True)
    for place, (panel, title, (mean, status)) in enumerate(zip(places, titles, grids.values(), strict=True)):
        panel.set_title(title, fontsize=7, pad=3)
        heat_map(panel, mean, scale, l_train)
        if status != "ok":
            panel.text(0.02, 0.03, status.replace(", ", "\n"), fontsize=6, color="0.35", transform=panel.transAxes)
        if place % columns == 0:
            panel.set_ylabel("shorter context (tokens)", fontsize=7)
        else:
            panel.tick_params(labelleft=False)
        if place + columns >= len(grids):
            panel.set_xlabel("longer context (tokens)", fontsize=7)
        else:
            panel.tick_params(labelbottom=False)
    bar = Colorbar(beside, cmap=HEAT, norm=scale)
    bar.outline.set_visible(False)
    bar.minorticks_off()
    ticks = [tick for tick in LogLocator(subs=[1, 2, 5]).tick_values(low, high) if low <= tick <= high]
    bar.set_ticks(ticks, labels=[f"{tick:g}" for tick in ticks])
    bar.set_label("symmetric KL (nats)", fontsize=7)
    beside.tick_params(labelsize=6)
    return figure


def grid_scale(values: np.ndarray) -> tuple[float, float]:
    """The ends of a logarithmic scale for all values: four decades at most, one at least; what is below is clipped.

    A millionth of a nat is the least upper end: distributions that are equal differ by what rounding leaves, or by 0.
    """
    positive = values[np.isfinite(values) & (values > 0)]
    greatest = max(float(positive.max(initial=0)), 1e-6)
    least = float(positive.min(initial=greatest))
    return min(max(least, greatest * 1e-4), greatest / 10), greatest


def heat_map(axes: Axes, values: pd.DataFrame, scale: LogNorm, l_train: int) -> None:
    """Cells of the values by shorter (rows) and longer context (columns), each with its number."""
    rows, columns = [int(length) for length in values.index], [int(length) for length in values.columns]
    edges = np.arange(max(len(columns), 1) + 1) - 0.5
    axes.set_xlim(edges[0], edges[-1])
    axes.set_ylim(edges[-1], edges[0])
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, pad=2, labelsize=6)
    axes.set_xticks(range(len(columns)), [str(length) for length in columns])
    axes.set_yticks(range(len(rows)), [str(length) for length in rows])
    numbers = values.to_numpy()
    if not np.isfinite(numbers).any():
        return
    axes.pcolormesh(
        edges, edges, np.ma.masked_invalid(numbers), cmap=HEAT, norm=scale, edgecolors="white", linewidth=0.4
    )
    for (row, column), value in np.ndenumerate(numbers):
        if np.isfinite(value):
            red, green, blue, _ = HEAT(float(scale(value)))
            ink = "white" if 0.299 * red + 0.587 * green + 0.114 * blue < 0.42 else "black"
            axes.text(column, row, short_number(value), fontsize=5.5, color=ink, ha="center", va="center")
    if l_train in rows and l_train in columns:
        right, below = columns.index(l_train) + 0.5, rows.index(l_train) + 0.5
        axes.plot(
            [right, right, edges[-1]], [edges[0], below, below], color="black", linewidth=0.9, linestyle=(0, (2, 1.5))
        )


def short_number(value: float) -> str:
    """About two digits in at most six characters: 12, 1.0, 0.12, 0.0012, 1e-4."""
    if value == 0:
        return "0"
    if value < 0.001:
        return f"{value:.0e}".replace("e-0", "e-")
    return f"{value:.0f}" if value >= 9.95 else f"{value:#.2g}"
