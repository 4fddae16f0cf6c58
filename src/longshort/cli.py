"""`longshort`: what a person asks of a study besides running it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from longshort import study as studies

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
    folder = Path("results") / study
    if partial:
        _make_partial_tables(study, folder)
    path = folder / ("partial" if partial else "tables") / f"{show}.md"
    if not path.exists():
        known = ", ".join(sorted(found.stem for found in path.parent.glob("*.md"))) or "none yet"
        raise SystemExit(f"{path} does not exist (tables there: {known}); run `snakemake all --config study={study}`")
    typer.echo(path.read_text())
    typer.echo(f"All tables: {path.parent}/   plots: {folder}/plots/   every number: {folder}/metrics.parquet")


@app.command()
def check(study: StudyOption = "demo") -> None:
    """Check a study's configuration and say what it resolves to."""
    try:
        resolved = studies.load(study)
    except studies.StudyError as error:
        raise SystemExit(str(error)) from None
    arms = len(resolved.arm_runs)
    typer.echo(
        f"study {study}: {arms} arms x {len(resolved.study.seeds)} seeds, {len(resolved.runs)} different runs "
        f"(the base included), checkpoints {resolved.steps_key}"
    )


def _make_partial_tables(study: str, folder: Path) -> None:
    from longshort.publish import write_atomic
    from longshort.results import collect, tables

    resolved = json.loads(studies.load(study).summary_text())
    metrics = folder / "partial" / "metrics.parquet"
    frame = collect.collect(resolved, Path("results"), partial=True)
    write_atomic(metrics, frame.to_parquet(index=False))
    tables.write_tables(frame, resolved, folder / "partial")


if __name__ == "__main__":
    app()
