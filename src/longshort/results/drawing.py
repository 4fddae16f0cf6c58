"""How a study's plots are drawn: the look of an arm, axes with room for names beside the ends of curves, scales."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator
from matplotlib.transforms import blended_transform_factory

from longshort.results import long_table, replicates
from longshort.results.replicates import BASE, EXTENDED_BASE, LONG_BASE

WIDTH = 7.0
LABEL_SIZE = 6.5
LABEL_OFFSET = 0.39  # inches from the axes to the text, past the sample of the line
# Okabe and Ito's palette less black (the reference) and yellow (too faint on white), then three dark ones after
# Tol. 9 colours, 11 markers and 4 lines have no common divisor: arms that share one of them differ in the others.
REFERENCE_COLOUR = "black"
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#7F4F24", "#332288", "#999933"]
MARKERS = ["s", "^", "D", "v", "P", "X", "<", ">", "p", "h", "*"]
LINES: list[Any] = ["-", (0, (5, 1.5)), (0, (1, 1)), (0, (5, 1.2, 1, 1.2))]


class Look(NamedTuple):
    label: str
    colour: str
    marker: str
    line: Any


class Ending(NamedTuple):
    """A name to be put beside the end of its curve; x is None for a curve that could not be drawn."""

    x: float | None
    y: float
    look: Look


def looks_of(study: dict[str, Any]) -> dict[str, Look]:
    """Arm -> how it is drawn, in the study's order. Arms that are the same runs share one look; those of another length
    are lines beside the base model (references_of)."""
    same = {group[0]: group for group in long_table.equal_arms(study)}
    hidden = {name for group in same.values() for name in group[1:]}
    reference = reference_arm(study)
    looks: dict[str, Look] = {}
    place = 0
    for name in _compared(study):
        names = same.get(name, [name])
        label = " = ".join(names)
        if reference in names:
            looks[name] = Look(label, REFERENCE_COLOUR, "o", "-")
        elif name not in hidden:
            looks[name] = Look(
                label, COLOURS[place % len(COLOURS)], MARKERS[place % len(MARKERS)], LINES[place % len(LINES)]
            )
            place += 1
    return {name: look for name, look in looks.items() if name not in hidden}


def reference_arm(study: dict[str, Any]) -> str:
    """The arm that the main table compares with, else `baseline`, else the first arm."""
    names = _compared(study)
    wished = [table.get("compare_with") for table in study["tables"] if table["name"] == "main"] + ["baseline"]
    return next((name for name in wished if name in names), names[0])


def _compared(study: dict[str, Any]) -> list[str]:
    apart = replicates.references(study)
    return [arm["name"] for arm in study["arms"] if arm["name"] not in apart]


def references_of(study: dict[str, Any]) -> dict[str, Look]:
    """How the rows are drawn that are no part of the comparison: the base, and what was trained at another length."""
    dashed, dotted = (0, (4, 2)), (0, (1, 2))
    looks = {
        BASE: Look("base model", "0.55", "+", dotted),
        EXTENDED_BASE: Look("extended base", "0.55", "2", (0, (3, 1, 1, 1))),
        LONG_BASE: Look("long base", "0.35", "x", dashed),
    }
    looks = {name: looks[name] for name in replicates.models(study)}
    apart = replicates.references(study)
    return looks | {
        arm["name"]: Look(arm["name"], "0.35", "1", (0, (6, 1))) for arm in study["arms"] if arm["name"] in apart
    }


def spread_apart(wanted: Sequence[float], heights: Sequence[float], low: float, high: float) -> list[float]:
    """Moves the middles of labels within [low, high], as little as possible (least squares), so that none overlap.

    The order is kept. Labels that cannot all fit are squeezed together evenly.
    """
    if len(wanted) == 0:
        return []
    order = np.argsort(wanted, kind="stable")
    tall = np.asarray(heights, dtype="float64")[order]
    offsets = np.concatenate([[0.0], np.cumsum((tall[1:] + tall[:-1]) / 2)])
    if offsets[-1] > high - low:
        offsets *= (high - low) / offsets[-1]
    # Less the offsets, the places need only be non-decreasing: an isotonic regression, by pooling of neighbours.
    pools: list[tuple[float, int]] = []
    for value in np.asarray(wanted, dtype="float64")[order] - offsets:
        pools.append((float(value), 1))
        while len(pools) > 1 and pools[-2][0] >= pools[-1][0]:
            (before, many), (after, few) = pools[-2:]
            pools[-2:] = [((before * many + after * few) / (many + few), many + few)]
    flat = np.concatenate([np.full(count, value) for value, count in pools])
    result = np.empty(len(wanted))
    result[order] = np.clip(flat, low, high - offsets[-1]) + offsets
    return [float(place) for place in result]


def label_endings(axes: Axes, endings: list[Ending]) -> None:
    """Writes the names to the right of the axes, each with a sample of its line and a thin lead to its end."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    inches = figure.get_size_inches()
    wide, tall = axes.get_position().width * inches[0], axes.get_position().height * inches[1]
    to_axes = axes.transData + axes.transAxes.inverted()
    ends = [None if end.x is None else to_axes.transform((end.x, end.y)) for end in endings]
    wanted = [0.0 if end is None else float(np.clip(end[1], 0, 1)) for end in ends]
    line = LABEL_SIZE * 1.2 / 72 / tall
    places = spread_apart(wanted, [line * (1 + ending.look.label.count("\n")) for ending in endings], 0.0, 1.0)
    turn, start, stop, text = (1 + beside / wide for beside in (0.05, 0.11, 0.35, LABEL_OFFSET))
    for ending, end, y in zip(endings, ends, places, strict=True):
        look = ending.look
        if end is not None:
            axes.plot(
                [end[0], turn, start], [end[1], y, y], color=look.colour, linewidth=0.4,
                transform=axes.transAxes, clip_on=False, zorder=1,
            )  # fmt: skip
            axes.plot(
                [start, (start + stop) / 2, stop], [y] * 3, color=look.colour, marker=look.marker,
                linestyle=look.line, markevery=[1], markersize=3.0, markerfacecolor="white",
                transform=axes.transAxes, clip_on=False,
            )  # fmt: skip
        axes.text(text, y, look.label, fontsize=LABEL_SIZE, va="center", linespacing=0.95, transform=axes.transAxes)


def labels_of(study: dict[str, Any], metrics: pd.DataFrame) -> list[str]:
    """Every name that a plot may have to write, for the room beside the axes."""
    labels = [look.label for look in (*looks_of(study).values(), *references_of(study).values())]
    return labels + ["diverged (1 of 2)"] if long_table.first_diverged_steps(metrics) else labels


def panels(count: int, columns: int, labels: Sequence[str], footer: str) -> tuple[Figure, list[Axes]]:
    """Axes in rows of `columns`, with room to the right of each for the longest label."""
    figure = Figure(figsize=(WIDTH, 1.0))
    renderer = FigureCanvasAgg(figure).get_renderer()
    widest = max(
        (figure.text(0, 0, text, fontsize=LABEL_SIZE).get_window_extent(renderer).width for text in labels),
        default=0.0,
    )
    beside = widest / figure.dpi + 0.05
    figure = Figure(figsize=(WIDTH, 1.0))
    rows = -(-count // columns)
    left, below, above, tall = 0.56, 0.42, 0.2, 2.2
    bottom = 0.12 * (1 + footer.count("\n")) + 0.06
    wide = (WIDTH - 0.02) / columns - left - LABEL_OFFSET - beside
    height = rows * (below + above + tall) + bottom
    figure.set_size_inches(WIDTH, height)
    drawn = []
    for place in range(count):
        row, column = divmod(place, columns)
        x = column * (WIDTH - 0.02) / columns + left
        y = height - row * (below + above + tall) - above - tall
        drawn.append(figure.add_axes((x / WIDTH, y / height, wide / WIDTH, tall / height)))
    figure.text(0.08 / WIDTH, 0.05 / height, footer, fontsize=6, color="0.35", va="bottom", linespacing=1.3)
    return figure, drawn


def length_axis(axes: Axes, lengths: Sequence[int], l_train: int, name: str) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xlim(min(lengths) / 1.19, max(lengths) * 1.19)
    axes.xaxis.set_major_locator(FixedLocator([float(length) for length in lengths]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel(name)
    if not min(lengths) <= l_train <= max(lengths):
        return
    axes.axvline(l_train, color="0.45", linewidth=0.8, linestyle=(0, (2, 2)), zorder=0.5)
    axes.text(
        l_train, 1.01, "training length", fontsize=6, color="0.35", va="bottom", ha="center",
        transform=blended_transform_factory(axes.transData, axes.transAxes),
    )  # fmt: skip


def log_axis(axes: Axes) -> None:
    """A logarithmic y axis that ends at labelled ticks, so that every value lies between two."""
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    decades = np.log10(high / low)
    if decades < 0.3:
        axes.yaxis.set_major_locator(MaxNLocator(5))
    elif decades < 1:
        axes.yaxis.set_major_locator(LogLocator(subs=[1, 1.5, 2, 3, 4, 5, 6, 8]))
    elif decades < 1.6:
        axes.yaxis.set_major_locator(LogLocator(subs=[1, 1.5, 2, 3, 5, 7]))
    else:
        axes.yaxis.set_major_locator(LogLocator(subs=[1, 2, 5] if decades < 3 else [1]))
    ticks = [float(tick) for tick in axes.yaxis.get_major_locator().tick_values(low, high) if tick > 0]
    axes.yaxis.set_major_locator(FixedLocator(ticks))  # else the wider axis would choose others
    axes.set_ylim(
        max((tick for tick in ticks if tick <= low), default=low),
        min((tick for tick in ticks if tick >= high), default=high),
    )
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_minor_locator(NullLocator())


def squares(titles: Sequence[str], columns: int, footer: str) -> tuple[Figure, list[Axes], Axes]:
    """Square axes in rows of `columns` that share their outer labels, and a narrow one at the right for a scale."""
    left, below, right, gap = 0.5, 0.38, 0.68, 0.08
    above = 0.12 * (1 + max(title.count("\n") for title in titles)) + 0.12
    side = (WIDTH - left - right - (columns - 1) * gap) / columns
    rows = -(-len(titles) // columns)
    height = rows * (side + above) + below + 0.12 * (1 + footer.count("\n")) + 0.06
    figure = Figure(figsize=(WIDTH, height))
    drawn = []
    for place in range(len(titles)):
        row, column = divmod(place, columns)
        x, y = left + column * (side + gap), height - (row + 1) * (side + above)
        drawn.append(figure.add_axes((x / WIDTH, y / height, side / WIDTH, side / height)))
    beside = figure.add_axes(((WIDTH - right + 0.1) / WIDTH, 1 - (side + above) / height, 0.1 / WIDTH, side / height))
    figure.text(0.08 / WIDTH, 0.05 / height, footer, fontsize=6, color="0.35", va="bottom", linespacing=1.3)
    return figure, drawn, beside


def figure_bytes(figure: Figure) -> dict[str, bytes]:
    """The figure as pdf and png, without dates or program versions that change by the machine."""
    result = {}
    for suffix, metadata in {"pdf": {"CreationDate": None}, "png": {"Software": None}}.items():
        buffer = io.BytesIO()
        figure.savefig(buffer, format=suffix, metadata=metadata)
        result[suffix] = buffer.getvalue()
    return result
