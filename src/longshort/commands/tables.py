"""`longshort tables`: a study's tables, and what else its numbers say, for people."""

from __future__ import annotations

import json
import shutil
import sys
import textwrap
from pathlib import Path
from typing import Any

import pandas as pd

from longshort.collecting import numbers
from longshort.collecting import runs as how_made
from longshort.errors import UserError
from longshort.records import layout, study_json
from longshort.records.publish import read_record, sealed
from longshort.results import answers, components, long_table, published, tables
from longshort.study.wired import Wired

WIDTH = 120
CHANGED = "The configuration has changed since this was made: run snakemake again to bring it up to date."
AGAIN = "run `snakemake all --cores 2 --config study={}`"


def printed(study: Wired, show: str | None, partial: bool, margin: str | None, file: Path | None) -> str:
    """A table of a study, with what to know of it.

    Args:
        show: its name, "answers" or "components".
        file: for the latter two, the published numbers to take instead of the study's own.

    Raises:
        UserError: there is no such table, or not yet; a choice that goes with another.
    """
    if margin is not None and show != "components":
        raise UserError("--margin goes with --show components; leave it out")
    if show in ("components", "answers"):
        if partial:
            raise UserError(f"--partial makes tables; leave it out with --show {show}, which needs all that is asked")
        found = _components(study, margin, file) if show == "components" else _answers(study, file)
        is_old = file is None and _has_changed(study, study_json.read(Path(layout.study_json(study.name))))
        return f"{found}\n\n{CHANGED}" if is_old else found
    if file is not None:
        raise UserError("--published goes with --show answers and --show components; leave it out")
    names = study.table_names()
    show = show or ("main" if "main" in names else names[0])
    if show not in names:
        raise UserError(f"study {study.name} has no table {show!r}; it has {', '.join(names)}")
    if partial and study.kind == "synthetic":
        raise UserError(
            f"study {study.name} is synthetic: its tables compare all groups of models, so that none is made from a "
            f"part of them; `longshort status --study {study.name}` says which are there"
        )
    folder = layout.partial(study.name) if partial else layout.tables(study.name)
    summary = _make_partial(study, Path(folder)) if partial else None
    path = Path(layout.table(folder, show, "md"))
    if not path.exists():
        raise UserError(_not_yet(path, study.name))
    behind = folder if partial else layout.study_folder(study.name)
    made_from = Path(layout.study_json(study.name))
    read = read_record if study.kind == "synthetic" else study_json.read
    if summary is None and made_from.exists():
        summary = read(made_from)
    fitted = _fitted(behind, summary, show) if study.kind == "language-models" and summary else None
    said = [fitted or path.read_text(encoding="utf-8")]
    if not partial and summary and _has_changed(study, summary):
        said.append(CHANGED)
    plots = "" if partial else f"plots: {layout.plots(study.name)}/   "
    return "\n".join([*said, f"All tables: {folder}/   {plots}every number: {layout.metrics(behind)}"])


def _not_yet(path: Path, study: str) -> str:
    return f"{path} does not exist yet; {AGAIN.format(study)}"


def _has_changed(study: Wired, summary: dict[str, Any]) -> bool:
    """Whether the study was another one when its tables were made. summary: as study.json has it, which is written
    before what comes of it."""
    metrics = Path(layout.metrics(layout.study_folder(study.name)))
    return sealed(summary) != json.loads(study.summary_text()) or study_json.is_another(metrics, summary)


def _fitted(folder: str, summary: dict[str, Any], table: str) -> str | None:
    """The table in blocks of columns that fit the terminal; None where there is no narrow terminal, or where the
    numbers are of the study as it was."""
    width = shutil.get_terminal_size().columns
    if not sys.stdout.isatty() or width >= 200 or study_json.is_another(Path(layout.metrics(folder)), summary):
        return None
    read, runs = long_table.read_with_costs(Path(layout.metrics(folder)), Path(layout.runs(folder)), summary)
    return tables.format_table(read, summary, table, max(width, 100), runs)


def _components(study: Wired, margin: str | None, file: Path | None) -> str:
    metrics, summary = _finished(study, file)
    wanted = None if margin is None else components.margin_of(margin, summary)
    return components.text(components.table(metrics, summary, wanted), summary, wanted)


def _answers(study: Wired, file: Path | None) -> str:
    metrics, summary = _finished(study, file)
    said = [textwrap.fill(line, WIDTH, break_on_hyphens=False) for line in answers.answers(metrics, summary)]
    return "\n\n".join([textwrap.fill(summary["question"], WIDTH), *said])


def _finished(study: Wired, file: Path | None) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The numbers of a study, and what it was when they were made.

    Raises:
        UserError: it is not finished, synthetic, or another one than the file's.
    """
    if study.kind == "synthetic":
        raise UserError(f"study {study.name} is synthetic: its report answers, and only other studies have components")
    if file is not None:
        there = published.read(file)
        if there.study["name"] != study.name:
            raise UserError(f"{file} is of study {there.study['name']}; give --study {there.study['name']}")
        return there.metrics, there.study
    path = Path(layout.metrics(layout.study_folder(study.name)))
    if not path.exists():
        raise UserError(_not_yet(path, study.name))
    summary = study_json.read(Path(layout.study_json(study.name)))
    if study_json.is_another(path, summary):
        raise UserError(f"{path} is of the study as it was before it was changed: {AGAIN.format(study.name)}")
    return long_table.read(path), summary


def _make_partial(study: Wired, folder: Path) -> dict[str, Any]:
    """Makes them from what is there, and returns the study that they are of."""
    summary = json.loads(study.summary_text())
    summary.pop("seal")
    results, metrics, runs = Path(layout.RESULTS), Path(layout.metrics(folder)), Path(layout.runs(folder))
    found = numbers.collect(summary, results, study.codes())
    numbers.publish(found, how_made.collect_runs(summary, results), metrics, summary)
    read, costs = long_table.read_with_costs(metrics, runs, summary)
    tables.write_tables(read, summary, folder, costs)
    return summary
