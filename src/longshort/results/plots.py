"""Draws a study's plots.

`python -m longshort.results.plots --metrics FILE --runs FILE --study FILE --out DIR --style FILE` makes perplexity,
misalignment, misalignment-grid, training, schedules, correlation, tasks and gain, each as pdf and png, 7 in wide. Every
curve is named beside its end. The same numbers give the same bytes.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib.style
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colorbar import Colorbar
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from longshort.errors import in_a_line
from longshort.identity.code import refuse_changed_code
from longshort.records.publish import read_record, write_atomic
from longshort.results import long_table, plots_compared
from longshort.results.drawing import (
    REFERENCE_COLOUR,
    WIDTH,
    Ending,
    Look,
    figure_bytes,
    label_endings,
    labels_of,
    length_axis,
    log_axis,
    looks_of,
    panels,
    reference_arm,
    squares,
)
from longshort.results.long_table import BASE, BASE_SEED

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
        base = evaluated(rows, BASE, 0, metric, lengths, [BASE_SEED])
        if base.notna().any(axis=None):
            endings.append(curve(axes, x, base, Look("base model", "0.55", "+", (0, (1, 2)))))
    return endings


def percent_of(values: pd.DataFrame, reference: pd.DataFrame) -> pd.DataFrame:
    """Difference to the reference, paired by seed, in per cent of it."""
    return 100 * (values / reference - 1)


def seeds_text(study: dict[str, Any]) -> str:
    count = len(study["seeds"])
    return "one seed" if count == 1 else f"mean over {count} seeds, whiskers from the least to the greatest seed"


def draw_perplexity(metrics: pd.DataFrame, study: dict[str, Any]) -> Figure:
    lengths = sorted(int(length) for length in study["evaluations"]["perplexity"]["lengths"])
    reference = reference_arm(study)
    footer = f"Step {study['checkpoints'][-1]}; {seeds_text(study)}.\n{BANDS}"
    figure, (left, right) = panels(2, 2, labels_of(study, metrics), footer)
    endings = against_length(left, metrics, study, "perplexity", lengths)
    length_axis(left, lengths, study["l_train"], "context length (tokens)")
    log_axis(left)
    left.set_ylabel("perplexity")
    label_endings(left, endings)
    right.axhline(0, color="black", linewidth=0.6, zorder=0.6)
    endings = plots_compared.against_reference(right, metrics, study)
    length_axis(right, lengths, study["l_train"], "context length (tokens)")
    right.set_ylabel(f"perplexity, difference to {reference} (%)")
    label_endings(right, endings)
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
        seeds = [BASE_SEED] if arm == BASE else [int(seed) for seed in study["seeds"]]
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


def training_curve(metrics: pd.DataFrame, arm: str, metric: str) -> pd.DataFrame:
    """Values of one logged quantity by step (index) and seed (columns); empty if it was not logged."""
    rows = metrics[metrics["metric"].eq(f"train/{metric}") & metrics["arm"].eq(arm)]
    return rows.pivot(index="step", columns="seed", values="value").astype("float64")


def missing(look: Look) -> Ending:
    return Ending(None, 0.0, look._replace(label=f"{look.label}: missing"))


def smooth(values: pd.Series, window: int) -> pd.Series:
    return values.rolling(window, center=True, min_periods=1).mean().where(values.notna())


def far_above(drawn: dict[str, pd.Series]) -> list[str]:
    """The arms whose curves lie wholly above four times those of the rest: another kind of divergence."""
    order = sorted(drawn, key=lambda arm: float(drawn[arm].mean()))
    for place in range(1, len(order)):
        if min(drawn[arm].min() for arm in order[place:]) > 4 * max(drawn[arm].max() for arm in order[:place]):
            return order[place:]
    return []


def draw_training(metrics: pd.DataFrame, study: dict[str, Any]) -> Figure:
    looks = looks_of(study)
    reference = reference_arm(study)
    diverged = long_table.first_diverged_steps(metrics)
    window = max(1, int(study["steps"]) // 15) | 1
    footer = (
        f"Mean over seeds, smoothed by a centred moving mean over {window} steps; grey: {reference} as logged. A "
        "curve ends where one of its seeds diverged.\n"
        "Divergence and hidden distance are each arm's own kind, without its weight; arms that do not measure "
        "one are not drawn."
    )
    reference_ce = training_curve(metrics, reference, "ce")
    wanted = {
        "cross-entropy (nats/token)": "ce",
        f"cross-entropy, difference to {reference} (nats/token)": "ce",
        "divergence, unweighted (nats)": "divergence",
        "hidden distance, unweighted": "hidden",
    }
    curves: dict[str, dict[str, pd.Series]] = {}
    for title, metric in wanted.items():
        curves[title] = {}
        for arm, look in looks.items():
            by_seed = training_curve(metrics, arm, metric)
            if "difference" in title:
                by_seed = by_seed - reference_ce
            elif metric == "ce" and look.colour != REFERENCE_COLOUR:
                continue
            mean = by_seed.mean(axis=1, skipna=False)
            if metric in ("divergence", "hidden"):
                mean = mean.where(mean > 0)
            if mean.notna().any():
                curves[title][arm] = mean
    curves = {title: drawn for title, drawn in curves.items() if drawn or "ce" == wanted[title]}
    figure, axes = panels(len(curves), 2, labels_of(study, metrics), footer)

    def draw(panel: Axes, drawn: dict[str, pd.Series], endings: list[Ending], log: bool) -> None:
        for place, (arm, mean) in enumerate(drawn.items()):
            look = looks[arm]
            gone = sum((arm, int(seed)) in diverged for seed in study["seeds"])
            if gone:
                look = look._replace(label=f"{look.label}\ndiverged ({gone} of {len(study['seeds'])})")
            line = smooth(mean, window).dropna()
            every = max(1, len(line) // 6)
            panel.plot(
                line.index, line, color=look.colour, marker=look.marker, linestyle=look.line, markerfacecolor="white",
                markersize=3.0, markevery=(place * every // max(len(drawn), 1), every),
            )  # fmt: skip
            endings.append(Ending(float(line.index[-1]), float(line.iloc[-1]), look))
        panel.set_xlim(0, int(study["steps"]))
        if log:
            log_axis(panel)
        label_endings(panel, endings)

    for panel, (title, drawn) in zip(axes, curves.items(), strict=True):
        panel.set_xlabel("optimiser step")
        panel.set_ylabel(title, fontsize=7)
        endings = []
        if "difference" in title:
            endings = [missing(look) for arm, look in looks.items() if arm not in drawn]
        elif wanted[title] == "ce":
            endings = [missing(look) for look in looks.values() if look.colour == REFERENCE_COLOUR and not drawn]
            for mean in drawn.values():
                panel.plot(mean.index, mean, color="0.75", linewidth=0.5, zorder=0.8)
        above = far_above({arm: smooth(mean, window) for arm, mean in drawn.items()}) if "diverg" in title else []
        if above:
            # A broken axis: the greater values in a panel of their own on top.
            box = panel.get_position()
            top = figure.add_axes((box.x0, box.y0 + 0.76 * box.height, box.width, 0.24 * box.height))
            panel.set_position((box.x0, box.y0, box.width, 0.69 * box.height))
            top.tick_params(labelbottom=False)
            draw(top, {arm: drawn[arm] for arm in drawn if arm in above}, [], True)
        draw(panel, {arm: drawn[arm] for arm in drawn if arm not in above}, endings, wanted[title] != "ce")
    return figure


def draw_schedules(metrics: pd.DataFrame, study: dict[str, Any]) -> Figure:
    """The weights as they were used: arms with equal weights at every step share a curve."""
    looks = looks_of(study)
    titles = {
        "alpha_output": "weight of the output divergence",
        "alpha_hidden": "weight of the hidden divergence",
    }
    curves: dict[str, list[tuple[list[str], pd.Series]]] = {}
    absent: list[str] = []
    for metric in titles:
        groups: dict[tuple[float, ...], tuple[list[str], pd.Series]] = {}
        for arm in looks:
            # All seeds follow one schedule; a diverged seed has only its beginning.
            values = training_curve(metrics, arm, metric).mean(axis=1).dropna()
            if len(values) == 0 and metric == "alpha_output":
                absent.append(arm)
            elif values.ne(0).any() or metric == "alpha_output":
                key = tuple(round(float(value), 12) for value in values)
                groups.setdefault(key, ([], values))[0].append(arm)
        curves[metric] = list(groups.values())
    hidden = curves["alpha_hidden"]
    weights = {round(float(value), 12) for _, values in hidden for value in values}
    if len(weights) < 2:
        del curves["alpha_hidden"]

    def name(arms: list[str]) -> str:
        labels = [looks[arm].label for arm in arms]
        lines = [labels[0]]
        for label in labels[1:]:
            if len(lines[-1]) + len(label) > 26:
                lines[-1] += ","
                lines.append(label)
            else:
                lines[-1] += f", {label}"
        return "\n".join(lines)

    names = [line for groups in curves.values() for arms, _ in groups for line in name(arms).split("\n")]
    footer = "As used in training. Arms with equal weights share a curve."
    if "alpha_hidden" in curves:
        footer += " Right: the arms with a hidden divergence."
    elif hidden:
        with_hidden = ", ".join(looks[arm].label for arms, _ in hidden for arm in arms)
        footer += f" The hidden divergence weighs {weights.pop():g} throughout ({with_hidden})."
    if absent:
        footer += f" Missing: {', '.join(absent)}."
    figure, axes = panels(len(curves), min(len(curves), 2), names, footer)
    for panel, (metric, groups_of) in zip(axes, curves.items(), strict=True):
        endings = []
        for place, (arms, values) in enumerate(groups_of):
            look = looks[arms[0]]
            look = look._replace(label=name(arms))
            every = max(1, len(values) // 6)
            panel.plot(
                values.index, values, color=look.colour, marker=look.marker, linestyle=look.line,
                markerfacecolor="white", markevery=(place * every // len(groups_of), every), clip_on=False,
            )  # fmt: skip
            endings.append(Ending(float(values.index[-1]), float(values.iloc[-1]), look))
        panel.set_xlim(0, int(study["steps"]))
        panel.set_ylim(bottom=0)
        panel.set_xlabel("optimiser step")
        panel.set_ylabel(titles[metric])
        label_endings(panel, endings)
    return figure


def write_plots(metrics: pd.DataFrame, study: dict[str, Any], out: Path, style: Path) -> list[Path]:
    """Writes every plot that the study's evaluations allow, as pdf and png; returns the paths."""
    drawings = {"training": draw_training, "schedules": draw_schedules, "gain": plots_compared.draw_gain}
    if "longbench_e" in study["evaluations"]:
        drawings["tasks"] = plots_compared.draw_tasks
    if "misalignment" in study["evaluations"] and {"perplexity", "longbench_e"} & set(study["evaluations"]):
        drawings["correlation"] = plots_compared.draw_correlation
    if "perplexity" in study["evaluations"]:
        drawings["perplexity"] = draw_perplexity
    if "misalignment" in study["evaluations"]:
        drawings["misalignment"] = draw_misalignment
        if study["evaluations"]["misalignment"].get("grid_sequences", 0):
            drawings["misalignment-grid"] = draw_misalignment_grid
    paths = []
    with matplotlib.style.context(style, after_reset=True):
        for name, draw in drawings.items():
            for suffix, content in figure_bytes(draw(metrics, study)).items():
                paths.append(out / f"{name}.{suffix}")
                write_atomic(paths[-1], content)
    return paths


@in_a_line()
def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Draws a study's plots from its metrics.")
    parser.add_argument("--metrics", type=Path, required=True, help="the study's metrics.parquet")
    parser.add_argument("--runs", type=Path, required=True, help="the study's runs.parquet")
    parser.add_argument("--study", type=Path, required=True, help="the study's study.json")
    parser.add_argument("--out", type=Path, required=True, help="folder for the plots")
    parser.add_argument("--style", type=Path, required=True, help="matplotlib style file (longshort.mplstyle)")
    parser.add_argument("--seal", help="refuse to run if the study's is another one")
    parser.add_argument("--code", help="refuse to run if the code's hash is another one")
    options = parser.parse_args(arguments)
    if options.code:
        refuse_changed_code(options.code, "longshort.results.plots")
    study = read_record(options.study, options.seal)
    metrics, _ = long_table.read_with_costs(options.metrics, options.runs, study)
    write_plots(metrics, study, options.out, options.style)


if __name__ == "__main__":
    main()
