"""`longshort`: what a person asks of a study besides running it."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Annotated

import typer

from longshort import resolve
from longshort.publish import read_json
from longshort.study import StudyError

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
StudyOption = Annotated[str, typer.Option("--study", "-s", help="file in config/studies, without .yaml")]


@app.command()
def tables(
    study: StudyOption = "demo",
    show: Annotated[str, typer.Option(help="table to print")] = "main",
    partial: Annotated[
        bool, typer.Option("--partial", help="make the tables from what exists, the rest marked")
    ] = False,
) -> None:
    """Print a table of a study; with --partial, make all tables from what exists first."""
    resolved = _load(study)
    results = Path("results") / study
    if show not in resolved.tables:
        raise SystemExit(f"study {study} has no table {show!r}; it has {', '.join(resolved.tables)}")
    folder = results / ("partial" if partial else "tables")
    if partial:
        _make_partial_tables(study, folder)
    path = folder / f"{show}.md"
    if not path.exists():
        raise SystemExit(f"{path} does not exist yet; run `snakemake all --cores 2 --config study={study}`")
    typer.echo(_fitted(folder if partial else results, results / "study.json", show) or path.read_text())
    made_from = results / "study.json"
    if not partial and made_from.exists() and read_json(made_from) != json.loads(resolved.summary_text()):
        typer.echo(
            "The configuration has changed since this table was made: run snakemake again to bring it up to date."
        )
    if partial:
        typer.echo(f"All tables: {folder}/   every number: {folder}/metrics.parquet")
    else:
        typer.echo(f"All tables: {folder}/   plots: {results}/plots/   every number: {results}/metrics.parquet")


@app.command()
def check(study: StudyOption = "demo") -> None:
    """Check a study's configuration and say what it resolves to."""
    resolved = _load(study)
    arms = len(resolved.arm_runs)
    typer.echo(
        f"study {study}: {arms} arms x {len(resolved.study.seeds)} seeds, {len(resolved.runs)} different runs "
        f"(the base included), checkpoints {resolved.steps_key}"
    )


def _fitted(metrics: Path, study: Path, table: str) -> str | None:
    """The table in blocks of columns that fit the terminal; None where there is no narrow terminal."""
    width = shutil.get_terminal_size().columns
    if not sys.stdout.isatty() or width >= 200 or not study.exists():
        return None
    from longshort.results import tables
    from longshort.results.metrics import read_metrics

    return tables.format_table(read_metrics(metrics / "metrics.parquet"), read_json(study), table, max(width, 100))


def _load(study: str) -> resolve.ResolvedStudy:
    try:
        return resolve.load(study)
    except StudyError as error:
        raise SystemExit(str(error)) from None


def _make_partial_tables(study: str, folder: Path) -> None:
    resolved = json.loads(_load(study).summary_text())
    # Late: pandas is slow to import, and `check` needs none of it.
    from longshort.publish import write_atomic
    from longshort.results import collect, tables

    frame = collect.collect(resolved, Path("results"), partial=True)
    write_atomic(folder / "metrics.parquet", frame.to_parquet(index=False))
    tables.write_tables(frame, resolved, folder)


if __name__ == "__main__":
    app()
