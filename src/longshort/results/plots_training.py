"""The plots of the training itself: its curves, and the weights of the alignment as they were used."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from longshort.results import long_table
from longshort.results.drawing import (
    REFERENCE_COLOUR,
    Ending,
    Look,
    label_endings,
    labels_of,
    log_axis,
    looks_of,
    panels,
    reference_arm,
)


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


def _curves(
    metrics: pd.DataFrame, looks: Mapping[str, Look], reference_ce: pd.DataFrame, quantities: Mapping[str, str]
) -> dict[str, dict[str, pd.Series]]:
    """Title of a panel -> arm -> mean over seeds by step; quantities: title -> what was logged."""
    curves: dict[str, dict[str, pd.Series]] = {}
    for title, metric in quantities.items():
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
    return {title: drawn for title, drawn in curves.items() if drawn or quantities[title] == "ce"}


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
    quantities = {
        "cross-entropy (nats/token)": "ce",
        f"cross-entropy, difference to {reference} (nats/token)": "ce",
        "divergence, unweighted (nats)": "divergence",
        "hidden distance, unweighted": "hidden",
    }
    curves = _curves(metrics, looks, training_curve(metrics, reference, "ce"), quantities)
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
        elif quantities[title] == "ce":
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
        draw(panel, {arm: drawn[arm] for arm in drawn if arm not in above}, endings, quantities[title] != "ce")
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
    drawn: set[str] = set()
    for metric in titles:
        groups: dict[tuple[float, ...], tuple[list[str], pd.Series]] = {}
        for arm in looks:
            by_seed = training_curve(metrics, arm, metric)
            if by_seed.nunique(axis=1).gt(1).any():
                drawn.add(arm)
            # Of the first seed that got farthest: a diverged one has only its beginning.
            values = by_seed[by_seed.count().idxmax()].dropna() if by_seed.size else pd.Series(dtype="float64")
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
    names = [line for groups in curves.values() for arms, _ in groups for line in _listed(looks, arms)]
    footer = "As used in training. Arms with equal weights share a curve."
    if "alpha_hidden" in curves:
        footer += " Right: the arms with a hidden divergence."
    elif hidden:
        with_hidden = ", ".join(looks[arm].label for arms, _ in hidden for arm in arms)
        footer += f" The hidden divergence weighs {weights.pop():g} throughout ({with_hidden})."
    if drawn:
        of_one = ", ".join(look.label for arm, look in looks.items() if arm in drawn)
        footer += f" Drawn anew with every seed, shown of one: {of_one}."
    if absent:
        footer += f" Missing: {', '.join(absent)}."
    figure, axes = panels(len(curves), min(len(curves), 2), names, footer)
    for panel, (metric, groups_of) in zip(axes, curves.items(), strict=True):
        endings = []
        for place, (arms, values) in enumerate(groups_of):
            look = looks[arms[0]]
            look = look._replace(label="\n".join(_listed(looks, arms)))
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


def _listed(looks: Mapping[str, Look], arms: list[str]) -> list[str]:
    """The arms of a curve in lines of its label."""
    labels = [looks[arm].label for arm in arms]
    lines = [labels[0]]
    for label in labels[1:]:
        if len(lines[-1]) + len(label) > 26:
            lines[-1] += ","
            lines.append(label)
        else:
            lines[-1] += f", {label}"
    return lines
