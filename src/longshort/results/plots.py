"""Draws a study's plots.

`python -m longshort.results.plots --metrics FILE --runs FILE --study FILE --out DIR --style FILE` makes the
plots of the metrics (metrics/catalog.py), effects, training, schedules, gain and correlation, each as pdf and png, 7 in
wide. Every curve is named beside its end. The same numbers give the same bytes.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.style
import pandas as pd
from matplotlib.figure import Figure

from longshort.errors import in_a_line
from longshort.identity.code import refuse_changed_code
from longshort.metrics.catalog import plots_of
from longshort.metrics.record import Plot
from longshort.records import study_json
from longshort.records.publish import write_atomic
from longshort.results import best_alpha, long_table, plots_compared, plots_effects, plots_lengths, plots_training
from longshort.results.drawing import figure_bytes

# What the plots of the catalogue name.
DRAWINGS: dict[str, Callable[..., Figure]] = {
    "against-length": plots_lengths.draw_against_length,
    "alpha-by-length": plots_lengths.draw_alpha_by_length,
    "effects": plots_effects.draw_effects,
    "misalignment": plots_lengths.draw_misalignment,
    "misalignment-grid": plots_lengths.draw_misalignment_grid,
    "tasks": plots_compared.draw_tasks,
    "correlation": plots_compared.draw_correlation,
    "gain": plots_compared.draw_gain,
    "schedules": plots_training.draw_schedules,
    "training": plots_training.draw_training,
}


def plots_of_study(study: dict[str, Any]) -> list[Plot]:
    """In the order of the report."""
    return plots_of(study["evaluations"], best_alpha.table_of(study) is not None, bool(study.get("primary")))


def write_plots(metrics: pd.DataFrame, study: dict[str, Any], out: Path, style: Path) -> list[Path]:
    """Writes every plot that the study's evaluations allow, as pdf and png; returns the paths."""
    paths = []
    with matplotlib.style.context(style, after_reset=True):
        for plot in plots_of_study(study):
            figure = DRAWINGS[plot.drawing](metrics, study, *([plot.row] if plot.row else []))
            for suffix, content in figure_bytes(figure).items():
                paths.append(out / f"{plot.name}.{suffix}")
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
    study = study_json.read(options.study, options.seal)
    metrics, _ = long_table.read_with_costs(options.metrics, options.runs, study)
    write_plots(metrics, study, options.out, options.style)


if __name__ == "__main__":
    main()
