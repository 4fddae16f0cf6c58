"""Stage: the synthetic study's long table, tables, plot and report, from the numbers of its groups.

`python -m longshort.synthetic.results --study FILE --numbers FILE... --out DIR --style FILE`
"""

from __future__ import annotations

import argparse
import base64
import io
import math
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.style
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy import stats

from longshort.errors import in_a_line
from longshort.identity.code import refuse_changed_code
from longshort.records.publish import Altered, file_digest, read_record, write_atomic
from longshort.results import drawing, formats, report
from longshort.results.drawing import Ending, Look
from longshort.results.formats import Cell, Panel, PrintedTable

ENTRY = "longshort.synthetic.results"
ALIGNED = "identity + alignment"
LEVEL = 0.95
LOWEST = 1e-6  # squared error, of the plot
NAMES = {"none": "no encoding", "learned": "learned", "rope": "RoPE", "alibi": "ALiBi"}
LOOKS = [("black", "-"), *zip(drawing.COLOURS, [*drawing.LINES[1:], *drawing.LINES], strict=False)]


class Estimate(NamedTuple):
    """A mean over seeds with its 95 % interval (Student's t); NaN where one seed gives none."""

    mean: float
    low: float
    high: float


class Growth(NamedTuple):
    """error(l) = start + slope (l - l_train)^2 beyond l_train, least squares; r2: the variance it explains."""

    slope: Estimate
    r2: Estimate


# ---- numbers ---------------------------------------------------------------------------------------------------------


def collect(study: dict[str, Any], files: Sequence[Path]) -> pd.DataFrame:
    """One row for each task, encoding, arm, seed and length.

    Raises:
        ValueError: a file is not the one that was published, or two protocols share a column.
    """
    frames = []
    for file in files:
        record = read_record(file.with_name("record.json"))
        if record["sha256"] != file_digest(file):
            raise Altered(f"{file} is not the file that was published; delete it and run snakemake again")
        spec, frame = record["spec"], pd.read_parquet(file)
        frame["arm"] = ALIGNED if spec["alpha"] else frame.pop("parameterisation")
        frame["status"] = np.where(np.isfinite(frame["value"]), "ok", "diverged")
        about = {"study": study["name"], "task": spec["task"], "encoding": spec["encoding"]}
        about |= {"step": spec["training"]["steps"], "run": file.parents[1].name}
        about |= {name: record[name] for name in ("protocol", "code", "commit", "environment")}
        frames.append(frame.assign(**about))
    metrics = pd.concat(frames, ignore_index=True)
    columns = "study task encoding arm seed step metric length value status protocol run code commit environment"
    if metrics["protocol"].nunique() > 1:
        raise ValueError(f"the groups follow several protocols: {', '.join(sorted(metrics['protocol'].unique()))}")
    return metrics[columns.split()]


def curves(metrics: pd.DataFrame, task: str, encoding: str, arm: str) -> pd.DataFrame:
    """Errors by length (index) and seed (columns)."""
    rows = metrics[metrics["task"].eq(task) & metrics["encoding"].eq(encoding) & metrics["arm"].eq(arm)]
    return rows.pivot(index="length", columns="seed", values="value")


def estimate(values: NDArray[np.float64]) -> Estimate:
    mean, n = float(np.mean(values)), len(values)
    if n < 2 or not np.isfinite(values).all():
        return Estimate(mean, math.nan, math.nan)
    half = float(stats.t.ppf(0.5 + LEVEL / 2, n - 1) * np.std(values, ddof=1) / math.sqrt(n))
    return Estimate(mean, mean - half, mean + half)


def geometric(values: NDArray[np.float64]) -> Estimate:
    """Of errors, which scatter by factors: mean and interval of their logarithms, mapped back."""
    return Estimate(*np.exp(estimate(np.log(np.maximum(values, np.finfo(float).tiny)))))


def growth(errors: pd.DataFrame, l_train: int) -> Growth:
    """Theorem 3.1 of the paper bounds the error by a multiple of (l_test - l_train)^2."""
    beyond = errors[errors.index > l_train]
    x = (beyond.index.to_numpy(dtype="float64") - l_train) ** 2
    slopes, explained = [], []
    for _, y in beyond.items():
        if not np.isfinite(y).all():  # it diverged, and so does the mean
            slopes.append(math.nan)
            explained.append(math.nan)
            continue
        slope, start = np.polyfit(x, y, 1)
        slopes.append(slope)
        explained.append(1 - np.sum((y - start - slope * x) ** 2) / max(np.sum((y - y.mean()) ** 2), 1e-300))
    return Growth(estimate(np.array(slopes)), estimate(np.array(explained)))


def arms_of(metrics: pd.DataFrame, task: str) -> list[str]:
    return list(metrics.loc[metrics["task"].eq(task), "arm"].unique())


# ---- tables ----------------------------------------------------------------------------------------------------------


def tables(metrics: pd.DataFrame, study: dict[str, Any]) -> dict[str, tuple[PrintedTable, pd.DataFrame]]:
    """The tables ready to be written, and their numbers."""
    made = {"growth": _growth_table(metrics, study)}
    if "length" in study["tasks"]:
        made["parameterisations"] = _parameterisation_table(metrics, study)
    return made


def bands(study: dict[str, Any]) -> dict[str, tuple[int, int]]:
    train, test = study["lengths"]["train"], study["lengths"]["test"]
    return {
        f"Lengths 1 to {train}, which were trained": (1, train),
        f"Lengths {train + 1} to {test}": (train + 1, test),
        f"Length {test}": (test, test),
    }


def _parameterisation_table(metrics: pd.DataFrame, study: dict[str, Any]) -> tuple[PrintedTable, pd.DataFrame]:
    arms, step = arms_of(metrics, "length"), int(study["training"]["steps"])
    panels, rows = [], []
    for caption, (low, high) in bands(study).items():
        found = {}
        for encoding in study["encodings"]:
            for arm in arms:
                errors = curves(metrics, "length", encoding, arm).loc[low:high].mean().to_numpy()
                found[arm, encoding] = geometric(errors)
                about = {"encoding": encoding, "arm": arm, "from_length": low, "to_length": high}
                rows.append({**about, **found[arm, encoding]._asdict(), "seeds": len(errors)})
        cells = {
            key: _cell(value, [found[arm, key[1]].mean for arm in arms], lower_is_better=True)
            for key, value in found.items()
        }
        headers = [NAMES[encoding] for encoding in study["encodings"]]
        drawn = [(step, arm, [cells[arm, encoding] for encoding in study["encodings"]]) for arm in arms]
        panels.append(Panel(caption, headers, [False] * len(headers), drawn))
    notes = [
        f"Mean squared error of the predicted length, in tokens squared, after mapping back; {_of_seeds(study)}: "
        "geometric mean [95 % interval of the mean logarithm, Student's t].",
        f"Predictions mapped back above {study['cap']:g} count as {study['cap']:g}, those of every arm.",
        "Bold: best of the arms by column; underlined: second.",
        *_provenance(metrics),
    ]
    if ALIGNED in arms:
        notes.insert(
            2,
            f"{ALIGNED}: the length itself, with {study['alpha']:g} times the squared difference of the predictions "
            "from a sequence and from it without its beginning added to the loss.",
        )
    title = "What is predicted in place of the length"
    return PrintedTable("parameterisations", title, panels, notes), pd.DataFrame(rows)


def _growth_table(metrics: pd.DataFrame, study: dict[str, Any]) -> tuple[PrintedTable, pd.DataFrame]:
    rows, drawn = [], []
    for task in study["tasks"]:
        for arm in arms_of(metrics, task):
            cells = []
            for encoding in study["encodings"]:
                found = growth(curves(metrics, task, encoding, arm), study["lengths"]["train"])
                cells += [_cell(found.slope), Cell(_digits(found.r2.mean, ".2f"), sort=found.r2.mean)]
                said = {f"slope_{part}": value for part, value in found.slope._asdict().items()}
                rows.append({"task": task, "arm": arm, "encoding": encoding, **said, "r2": found.r2.mean})
            drawn.append((int(study["training"]["steps"]), task if task == "mean" else f"{task}, {arm}", cells))
    headers = [text for encoding in study["encodings"] for text in (f"{NAMES[encoding]}: slope", "R²")]
    train = study["lengths"]["train"]
    notes = [
        f"error(l) = start + slope (l - {train})² at every length l above {train}, by least squares, seed by seed "
        "(Theorem 3.1 bounds the error by such a curve).",
        f"Slope: mean over {len(study['seeds'])} seeds [95 % interval, Student's t]; R²: mean over seeds. A model that "
        f"answers {train} whatever the length has a slope of 1.",
        *_provenance(metrics),
    ]
    title = "How the error grows with the distance from the trained lengths"
    panel = Panel("", headers, [None] * len(headers), drawn)
    return PrintedTable("growth", title, [panel], notes), pd.DataFrame(rows)


def _cell(value: Estimate, among: Sequence[float] = (), lower_is_better: bool = True) -> Cell:
    order = sorted(number for number in among if math.isfinite(number))
    place = order.index(value.mean) if value.mean in order else -1
    return Cell(_digits(value.mean), _interval(value), place == 0, place == 1 and len(order) > 2, value.mean)


def _interval(value: Estimate) -> str:
    return f" [{_digits(value.low)}, {_digits(value.high)}]" if math.isfinite(value.low) else ""


def _digits(value: float, layout: str = ".3g") -> str:
    """Three digits that count; errors span many decades."""
    if not math.isfinite(value):
        return "diverged"
    return f"{value:{layout}}" if abs(value) < 1000 else f"{value:,.0f}".replace(",", "")


def _of_seeds(study: dict[str, Any]) -> str:
    return f"{len(study['seeds'])} seeds, {study['test_sequences']} sequences"


def _provenance(metrics: pd.DataFrame) -> list[str]:
    return [
        f"Protocol {metrics['protocol'].iloc[0]}.",
        f"Commit: {', '.join(sorted(str(one) for one in metrics['commit'].unique()))}.",
    ]


# ---- plot ------------------------------------------------------------------------------------------------------------


def draw_error(metrics: pd.DataFrame, study: dict[str, Any]) -> Figure:
    """Test error against length: each task with each encoding, then each encoding with each arm of the length task."""
    panels: list[tuple[str, list[tuple[str, pd.DataFrame]]]] = []
    for task in study["tasks"]:
        arm = arms_of(metrics, task)[0]
        of = [(NAMES[encoding], curves(metrics, task, encoding, arm)) for encoding in study["encodings"]]
        panels.append((f"{task} of the sequence, predicted as it is" if arm == "identity" else f"{task}, {arm}", of))
    if "length" in study["tasks"]:
        arms = arms_of(metrics, "length")
        for encoding in study["encodings"]:
            of = [(arm, curves(metrics, "length", encoding, arm)) for arm in arms]
            panels.append((f"length, {NAMES[encoding]}", of))
    labels = [label for _, of in panels for label, _ in of]
    errors_drawn = np.concatenate([errors.to_numpy().ravel() for _, of in panels for _, errors in of])
    highest = 10 ** math.ceil(math.log10(errors_drawn[np.isfinite(errors_drawn)].max(initial=1.0)))
    footer = (
        f"Mean squared error after mapping back; line: geometric mean of {len(study['seeds'])} seeds, band: least to "
        f"greatest seed; dashed: longest trained length. Errors below {LOWEST:g} are not shown."
    )
    figure, drawn = drawing.panels(len(panels), 2, labels, footer)
    for axes, (title, of) in zip(drawn, panels, strict=True):
        endings = []
        for (label, errors), (colour, line) in zip(of, LOOKS, strict=False):
            shown = errors.clip(lower=LOWEST / 10).to_numpy()
            mean = np.exp(np.log(shown).mean(axis=1))
            axes.plot(errors.index, mean, color=colour, linestyle=line, marker="")
            axes.fill_between(errors.index, shown.min(axis=1), shown.max(axis=1), color=colour, alpha=0.12, linewidth=0)
            endings.append(Ending(float(errors.index[-1]), float(mean[-1]), Look(label, colour, "", line)))
        axes.set_title(title)
        axes.set_xlabel("length (tokens)")
        axes.set_ylabel("mean squared error")
        axes.axvline(study["lengths"]["train"], color="0.45", linewidth=0.8, linestyle=(0, (2, 2)), zorder=0.5)
        axes.set_ylim(LOWEST, highest)  # the same everywhere: the figure compares its panels
        drawing.log_axis(axes)
        drawing.label_endings(axes, endings)
    return figure


# ---- report ----------------------------------------------------------------------------------------------------------


def answers(metrics: pd.DataFrame, study: dict[str, Any]) -> list[str]:
    """What the numbers say, in sentences, beside what the paper says."""
    train, test = study["lengths"]["train"], study["lengths"]["test"]
    said = []
    for task in study["tasks"]:
        arm = arms_of(metrics, task)[0]
        parts = []
        for encoding in study["encodings"]:
            errors = curves(metrics, task, encoding, arm)
            ends = [geometric(errors.loc[length].to_numpy()).mean for length in (train, test)]
            parts.append(f"{NAMES[encoding]} {_digits(ends[0])} and {_digits(ends[1])}")
        said.append(f"Mean squared error of the {task} ({arm}) at {train} and at {test} tokens: {'; '.join(parts)}.")
    arms = arms_of(metrics, "length") if "length" in study["tasks"] else []
    for arm in arms[1:]:
        parts = []
        for encoding in study["encodings"]:
            ours, plain = (
                np.log(curves(metrics, "length", encoding, one).loc[train + 1 :].mean().to_numpy())
                for one in (arm, arms[0])
            )
            ratio = Estimate(*np.exp(estimate(ours - plain)))
            parts.append(f"{NAMES[encoding]} {_digits(ratio.mean)}{_interval(ratio)}")
        said.append(f"{arm}: error beyond {train} tokens over that of {arms[0]}, paired by seed: {'; '.join(parts)}.")
    return said


def page(metrics: pd.DataFrame, study: dict[str, Any], made: Sequence[PrintedTable], plot: bytes) -> str:
    """The report; nothing in it asks for anything outside."""
    facts = metrics.groupby(["task", "encoding", "run", "code", "commit"], sort=False).size().reset_index()
    rows = "".join(
        f"<tr>{''.join(f'<td class=left>{escape(str(value))}</td>' for value in row)}</tr>"
        for row in facts[["task", "encoding", "run", "code", "commit"]].itertuples(index=False)
    )
    picture = base64.b64encode(plot).decode()
    sections = {
        "Answer": "".join(f"<p>{escape(line)}</p>" for line in answers(metrics, study)),
        "Error against length": f'<figure><img src="data:image/png;base64,{picture}" '
        'alt="Test error against length, for every task, encoding and arm"></figure>',
        "Tables": "".join(formats.fragment(table, folded=True) for table in made),
        "Provenance": "<div class=scroll><table><thead><tr>"
        + "".join(
            f"<th><button type=button>{name}</button></th>" for name in ("task", "encoding", "run", "code", "commit")
        )
        + f"</tr></thead><tbody>{rows}</tbody></table></div>",
        "How to reproduce": f"<pre>.venv/bin/snakemake all --cores 2 --config study={escape(study['name'])}</pre>",
    }
    body = "".join(
        f'<section id="{title.lower().replace(" ", "-")}"><h2>{escape(title)}</h2>{content}</section>'
        for title, content in sections.items()
    )
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(study["title"])}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">\n'
        f"<style>{report.STYLE}</style></head>\n<body>\n<header><h1>{escape(study['title'])}</h1>"
        f"<p>{escape(study['question'])}</p></header>\n<main>{body}</main>\n<script>{report.SCRIPT}</script>\n</body></html>\n"
    )


# ---- all of it -------------------------------------------------------------------------------------------------------


def write(study: dict[str, Any], numbers: Sequence[Path], out: Path, style: Path) -> None:
    metrics = collect(study, numbers)
    made = tables(metrics, study)
    for name, (table, tidy) in made.items():
        texts: dict[str, bytes | str] = {
            "parquet": _parquet(tidy),
            "csv": tidy.to_csv(index=False),
            "md": formats.markdown(table),
            "tex": formats.latex(table, f"{study['name']}-{name}"),
            "html": formats.page(table),
        }
        for suffix, content in texts.items():
            write_atomic(out / "tables" / f"{name}.{suffix}", content)
    with matplotlib.style.context(style, after_reset=True):
        figure = drawing.figure_bytes(draw_error(metrics, study))
    for suffix, drawn in figure.items():
        write_atomic(out / "plots" / f"error.{suffix}", drawn)
    write_atomic(out / "report.html", page(metrics, study, [table for table, _ in made.values()], figure["png"]))
    write_atomic(out / "metrics.parquet", _parquet(metrics))


def _parquet(frame: pd.DataFrame) -> bytes:
    buffer = io.BytesIO()
    frame.to_parquet(buffer, index=False)
    return buffer.getvalue()


@in_a_line()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", type=Path, required=True, help="the study's study.json")
    parser.add_argument("--numbers", type=Path, nargs="+", required=True, help="the numbers of its groups")
    parser.add_argument("--out", type=Path, required=True, help="folder of the study's results")
    parser.add_argument("--style", type=Path, required=True, help="matplotlib style file (longshort.mplstyle)")
    parser.add_argument("--seal", help="refuse to run if the study's is another one")
    parser.add_argument("--code", help="refuse to run if the code's hash is another one")
    arguments = parser.parse_args()
    if arguments.code:
        refuse_changed_code(arguments.code, ENTRY)
    write(read_record(arguments.study, arguments.seal), arguments.numbers, arguments.out, arguments.style)


if __name__ == "__main__":
    main()
