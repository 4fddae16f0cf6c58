"""The effects that a study claims, as a forest plot: what its answer rests on."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from longshort.results import compare, formats, plots_compared, replicates
from longshort.results.drawing import LABEL_SIZE, REFERENCE_COLOUR, WIDTH

COLOUR = "#0072B2"


def draw_effects(metrics: pd.DataFrame, study: dict[str, Any]) -> Figure:
    """Each claimed effect on the primary number at the last checkpoint: mean, interval alone (thick) and the one that
    holds for all together (thin), with the margin below which an effect counts as none."""
    numbers, column = compare.Numbers(metrics, study), plots_compared.gained(study)
    seeds, step = [int(seed) for seed in study["seeds"]], int(study["checkpoints"][-1])
    claims, margin = compare.claims(study), study.get("margin")
    found = [numbers.compared(column, *pair, step, seeds, len(claims)) for pair in claims]
    unit, decimals = (" %", 1) if column.relative else ("", column.decimals)

    left, right, above, row, below = 2.2, 1.45, 0.1, 0.2, 0.72
    height = above + row * max(len(claims), 1) + below
    figure = Figure(figsize=(WIDTH, height))
    axes = figure.add_axes(
        (left / WIDTH, below / height, (WIDTH - left - right) / WIDTH, (height - above - below) / height)
    )
    if margin:
        axes.axvspan(-margin, margin, color="0.92", zorder=0)
    axes.axvline(0, color="0.3", linewidth=0.6, zorder=0.6)
    for place, one in enumerate(found):
        said = "not measured"
        if math.isfinite(one.mean):
            whole = one.n == len(seeds)
            joint = (one.joint_low, one.joint_high) if whole else (math.nan, math.nan)
            for low, high, width in ((*joint, 0.8), (one.low, one.high, 2.4)):
                if math.isfinite(low) and math.isfinite(high):
                    axes.plot([low, high], [-place] * 2, color=COLOUR, linewidth=width, solid_capstyle="butt")
            axes.plot([one.mean], [-place], color=REFERENCE_COLOUR, marker="D", markersize=3.2, linestyle="none")
            said = formats.effect(one.mean, *joint, decimals) + ("" if whole else f" (n = {one.n})")
        axes.text(1.02, -place, said, transform=axes.get_yaxis_transform(), fontsize=LABEL_SIZE, va="center")
    axes.set_yticks([-place for place in range(len(claims))], [f"{arm} to {reference}" for arm, reference in claims])
    axes.tick_params(axis="y", length=0, labelsize=LABEL_SIZE)
    axes.set_ylim(-len(claims) + 0.4, 0.6)
    axes.xaxis.set_major_locator(MaxNLocator(7))
    better = "right" if column.higher_is_better else "left"
    axes.set_xlabel(f"{column.header}: difference{' (%)' if column.relative else ''}; better: to the {better}")
    figure.text(
        0.08 / WIDTH, 0.05 / height, _footer(study, len(claims), margin, unit), fontsize=6, color="0.35", va="bottom",
        linespacing=1.3,
    )  # fmt: skip
    return figure


def _footer(study: dict[str, Any], family: int, margin: float | None, unit: str) -> str:
    step, draws = int(study["checkpoints"][-1]), replicates.count(study)
    kept = f"the {family} together" if family > 1 else "the one effect"
    lines = [
        f"Step {step}, {draws} {replicates.unit(study)}s; {replicates.caption(study)}. Thick: 95 % interval of an "
        f"effect alone; thin, and in brackets: of {kept}."
    ]
    if margin:
        lines.append(f"Grey: within ± {margin:g}{unit} an effect counts as none, as the study states.")
    return "\n".join(lines)
