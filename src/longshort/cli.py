"""`longshort`: what a person asks of a study besides running it."""

from __future__ import annotations

import json
import os
import sys
import textwrap
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from longshort import studies
from longshort.commands import accept as acceptance
from longshort.commands import budget as budgets
from longshort.commands import plan as plans
from longshort.commands import prune as pruning
from longshort.commands import why as reasons
from longshort.errors import UserError, in_a_line
from longshort.identity.accepted import ACCEPTED
from longshort.jobs import engine
from longshort.records.publish import in_words
from longshort.study import resolve
from longshort.terminal import begin_in_utf8, plain

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
StudyOption = Annotated[str, typer.Option("--study", "-s", help="file in config/studies, without .yaml")]


@app.command()
def tables(
    study: StudyOption = "demo",
    show: Annotated[str | None, typer.Option(help="table to print; default: main, or else the first")] = None,
    partial: Annotated[
        bool, typer.Option("--partial", help="make the tables from what exists, the rest marked")
    ] = False,
    margin: Annotated[
        str | None, typer.Option(help="with --show components: ± of an effect to plan for, e.g. 2%, or 0.5")
    ] = None,
    published: Annotated[
        Path | None, typer.Option(help="with --show answers, components: numbers that were published, e.g. in docs/")
    ] = None,
) -> None:
    """Print a table of a study; with --partial, make all tables from what exists first.

    --show components: how much of the primary number's differences is a draw of what; --show answers: what the numbers
    say to the study's question, in sentences.
    """
    from longshort.commands import tables as printing  # late: pandas is slow to import

    _say(printing.printed(studies.load(study), show, partial, margin, published))


@app.command("compare")
def compare_studies(
    one: Annotated[Path, typer.Argument(help="a folder results/STUDY, or metrics.parquet with study.json beside it")],
    other: Annotated[Path, typer.Argument(help="another, of this or another machine")],
    every_column: Annotated[bool, typer.Option("--all", help="all headline columns, not the primary alone")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="for scripts")] = False,
) -> None:
    """Show the effects of two studies, or of one study from two machines, side by side, and whether they agree."""
    from longshort.results import agreement

    sides = agreement.read(one), agreement.read(other)
    frame, overall = agreement.against(*sides, every_column)
    if as_json:
        rows = json.loads(frame.to_json(orient="records"))
        known = {key: None if value != value else value for key, value in overall.items()}  # JSON has no NaN
        _say(json.dumps({"effects": rows, "overall": known}, indent=2, allow_nan=False))
        return
    _say(agreement.text(frame, overall, *sides))


@app.command()
def reproduce(
    study: StudyOption = "demo",
    published: Annotated[
        Path | None,
        typer.Option(help="the published numbers; default: those in docs, the demo's if none are the study's"),
    ] = None,
    write: Annotated[bool, typer.Option("--write", help="publish this study's numbers there instead")] = False,
) -> None:
    """Say whether a study's numbers here are those that were published, and what differs if they are not."""
    from longshort.commands import reproduce as reproducing  # late: pandas is slow to import

    resolved = studies.load(study)
    path = published or reproducing.published_file(study)
    if write and path.name != f"{study}.parquet":
        raise UserError(f"{path} is no {study}.parquet; give such a file, as --published docs/{study}.parquet")
    if write:
        _say(reproducing.write(resolved, path))
    elif published is None and not path.exists():
        _say(f"{path} does not exist: no numbers are published that these could be compared with")
    else:
        _say("\n".join(reproducing.compare(resolved, path)))


@app.command()
def plan(
    target: Annotated[str, typer.Argument(help="what to make; all: the whole study")] = "all",
    study: StudyOption = "demo",
    jobs: Annotated[
        int, typer.Option("--jobs", "-j", min=1, max=100_000, help="jobs at a time, for the wall-clock time")
    ] = 1,
    throughput: Annotated[
        float | None,
        typer.Option(
            min=1.0, max=1e30, help="operations per second of a GPU or a CPU's thread, where no finished run tells"
        ),
    ] = None,
    budget: Annotated[
        str | None, typer.Option(help="device-hours, e.g. 200h: which arms fit, and an error if not all do")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="for scripts")] = False,
) -> None:
    """Say what would run, why, and what it would cost; nothing runs."""
    resolved = studies.load(study)
    hours = None if budget is None else studies.hours_of("--budget ", budget, resolved)
    studies.check_fetched(resolved)
    made = plans.make(resolved, target, jobs, throughput, hours)
    _say(json.dumps(asdict(made), indent=2) if as_json else plans.text(made))
    if made.budget is not None and resolved.kind == "language-models":
        budgets.refuse_beyond(made.budget, resolved)
        typer.echo(budgets.text(made.budget, resolved), err=as_json)


@app.command()
def why(
    result: Annotated[list[str], typer.Argument(help="a file below results/, or TABLE ROW COLUMN")],
    study: StudyOption = "demo",
    step: Annotated[int | None, typer.Option(help="checkpoint of the number; default: the last")] = None,
) -> None:
    """Say what a number or a result file was made by: run, code, commit, data, environment, job, log."""
    if len(result) == 1:
        found = [reasons.of_file(Path(result[0]))]
    elif len(result) == 3:
        table, row, column = result
        found = reasons.of_cell(study, table, row, column, step)
    else:
        raise UserError(f"{' '.join(result)}: give one file, or the three words TABLE ROW COLUMN")
    for entry in found:
        width = max(map(len, entry))
        _say("\n".join(f"{key:<{width}}  {value}" for key, value in entry.items()) + "\n")


@app.command()
def accept(
    arm: Annotated[str, typer.Argument(help="arm of the study")],
    because: Annotated[str, typer.Option(help="why the change of the code leaves its results as they are")],
    study: StudyOption = "demo",
) -> None:
    """Declare that a change of the code leaves an arm's finished results as they are."""
    for change in acceptance.accept(resolve.load(study), arm, because):
        _say(
            f"accepted for {len(change['runs'])} runs: {', '.join(change['modules']) or change['stage']} "
            f"({change['from']} -> {change['to']})"
        )
    _say("The bases, and LongPPL's key tokens, count as accepted with the arm.")
    _say(f"It stands in {ACCEPTED} and in the tables' notes.")


@app.command()
def fetch(
    study: StudyOption = "demo",
    to: Annotated[
        Path | None, typer.Option(help="folder; default: $HF_HOME. Jobs must have the same one in HF_HOME")
    ] = None,
) -> None:
    """Bring what a study takes from the Hugging Face hub, with checksums: jobs use no network."""
    if to is not None:
        if to.exists() and not to.is_dir():
            raise UserError(f"--to {to}: it is no folder; give one, or a name that is free")
        os.environ["HF_HOME"] = str(to.resolve())
    # Late: the hub's client takes its folders from the environment when it is imported.
    from longshort.commands import fetch as fetching
    from longshort.records import hub

    resolved = resolve.load(study)
    fetching.fetch(resolved.study, _say)
    _say(f"study {study} has what it needs of the hub in {hub.home()}")
    if to is not None:
        _say(f"for its jobs: export HF_HOME={hub.home()}")


@app.command()
def prune(
    folders: Annotated[
        list[str] | None,
        typer.Argument(help="what to delete, as listed; none: list only (with --stale: all that is listed)"),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="delete all that no study needs")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="do not ask")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="list only, whatever is named")] = False,
    stale: Annotated[
        bool, typer.Option("--stale", help="the records of results that other code made, so that they are made anew")
    ] = False,
    states: Annotated[
        bool, typer.Option("--states", help="what finished trainings left to resume from, and none goes on from")
    ] = False,
) -> None:
    """Show what each study in config/studies needs of the disk and what none needs, and delete what is named."""
    if stale:
        if everything or states:
            raise UserError("--stale goes without --all and --states: it deletes records, they delete folders")
        records = pruning.stale_records(folders or [])
        _say("\n".join(f"{record}: {why}" for record, why in records.items()))
        _say(f"{len(records)} results that other code than the present one made")
        if records and not dry_run and (yes or typer.confirm(f"Delete these {len(records)} records?")):
            for record in records:
                Path(record).unlink()
            _say("deleted; snakemake makes them anew")
        return
    found = pruning.kept()
    unneeded = [folder for folder in found if not folder.needed_by]
    for study in sorted({study for folder in found for study in folder.needed_by}):
        needs = [folder for folder in found if study in folder.needed_by]
        checkpoints = sum(folder.size for folder in needs if folder.path.parent == pruning.WORK)
        total = sum(folder.size for folder in needs)
        alone = sum(folder.size for folder in needs if folder.needed_by == [study])
        _say(
            f"study {study} needs {in_words(total)} in {len(needs)} folders, {in_words(checkpoints)} of it checkpoints "
            f"({in_words(alone)} that no other study needs)"
        )
        if (more := pruning.more_while_running(study)) is None:
            _say(
                "    how much more each training takes while it runs is not known: its model is not here, or not whole"
            )
        elif more:
            _say(f"    each of its trainings takes up to {in_words(more)} more while it runs")
    if idle := sum(folder.idle_size for folder in found):
        _say(
            f"{in_words(idle)} of it are states that no training goes on from: `longshort prune --states` deletes them"
        )
        if states and not dry_run and (yes or typer.confirm(f"Delete these {in_words(idle)}?")):
            pruning.strip(found)
            _say(f"deleted {in_words(idle)} of states")
    _say(
        f"{in_words(pruning.size(pruning.EVALUATIONS))} in {pruning.EVALUATIONS}: with it evaluations that run again "
        "are found finished, without it they are measured anew"
    )
    for folder in unneeded:
        _say(f"{in_words(folder.size):>10}  {folder.path}")
    _say(f"{in_words(sum(f.size for f in unneeded))} in {len(unneeded)} folders that no study in config/studies needs")
    names = [str(folder.path) for folder in unneeded] if everything else folders or []
    if names and not dry_run:
        _say(f"to be deleted: {', '.join(names)}")
    if names and not dry_run and (yes or typer.confirm(f"Delete {len(names)} folders?")):
        pruning.remove(names, found)
        _say(f"deleted {', '.join(names)}")


@app.command()
def status(
    study: StudyOption = "demo",
    watch: Annotated[bool, typer.Option("--watch", help="look again every few seconds, until interrupted")] = False,
    seconds: Annotated[float, typer.Option(min=0.5, max=86_400, help="between two looks")] = 5.0,
    as_json: Annotated[bool, typer.Option("--json", help="for scripts")] = False,
) -> None:
    """Say how far each training and evaluation is, and how the failed ones ended."""
    import time

    from rich.console import Console
    from rich.live import Live

    from longshort.commands import status as progress

    resolved = studies.load(study)
    if as_json:
        _say(progress.as_json(progress.stages(resolved), progress.queued(resolved)))
        return
    # A pipe or a log has no width of its own.
    console = Console(width=None if sys.stdout.isatty() else 200)
    if not watch:
        console.print(progress.shown(resolved))
        return
    try:
        if not console.is_terminal:  # a log: one table after the other
            while True:
                console.print(progress.shown(resolved))
                time.sleep(seconds)
        with Live(progress.shown(resolved), console=console, auto_refresh=False) as live:
            while True:
                time.sleep(seconds)
                live.update(progress.shown(resolved), refresh=True)
    except KeyboardInterrupt:
        return


@app.command()
def new(
    name: Annotated[str, typer.Argument(help="of the study; config/studies/NAME.yaml is written")],
    model: Annotated[str, typer.Option(help="folder of a model and its tokenizer, or hub id")],
    corpus: Annotated[str, typer.Option(help="folder, file or glob of texts, or id of a dataset of the hub")],
    revision: Annotated[str | None, typer.Option(help="commit of a model of the hub")] = None,
    layers: Annotated[
        int | None, typer.Option(min=1, max=10_000, help="blocks of a model that is not fetched yet")
    ] = None,
    positions: Annotated[int | None, typer.Option(min=2, help="positions of a model that is not fetched yet")] = None,
    corpus_revision: Annotated[str | None, typer.Option(help="commit of a dataset of the hub")] = None,
    column: Annotated[str, typer.Option(help="of the text in .jsonl and .parquet files, and in a dataset")] = "text",
    train_length: Annotated[int | None, typer.Option(min=2, help="tokens; default: chosen")] = None,
    test_length: Annotated[int | None, typer.Option(min=2, help="tokens; default: chosen")] = None,
    device: Annotated[str | None, typer.Option(help="cpu or gpu; default: gpu if one is here")] = None,
    memory: Annotated[
        float | None, typer.Option(min=0.1, max=1e6, help="of a GPU or the machine, GB; default: looked up")
    ] = None,
    processes: Annotated[int, typer.Option(min=1, help="of a training, with a GPU each")] = 1,
    arms: Annotated[
        str, typer.Option(help="names of config/arms.yaml")
    ] = "baseline,constant,step-linear,hidden,hidden+output",
) -> None:
    """Write a study of your own, with values from the model's files, and say what was chosen and why."""
    from longshort.commands import new as writing

    named = tuple(arms.replace(",", " ").split())
    asked = writing.Asked(
        *(name, model, corpus, revision, layers, positions, corpus_revision, column),
        *(train_length, test_length, device, memory, processes, named),
    )
    path, reasons = writing.write(asked)
    wrapped = [textwrap.fill(reason, 110, initial_indent="  ", subsequent_indent="    ") for reason in reasons]
    _say("\n".join([f"{path} is written", *wrapped, "next:", *(f"  {step}" for step in writing.next_steps(asked))]))


@app.command()
def check(study: StudyOption = "demo") -> None:
    """Check a study's configuration and say what it resolves to."""
    resolved = studies.load(study)
    studies.check_fetched(resolved)
    _say(f"study {study}: {resolved.in_words()}")


def _say(text: str) -> None:
    typer.echo(plain(text))


@in_a_line()
def main() -> None:
    begin_in_utf8()
    engine.name_the_user()
    try:
        app()
    except OSError as error:
        # A folder that may not be written to, a file where a folder belongs, a full disk: nothing that code could mend.
        raise UserError(f"{error.filename}: {error.strerror}" if error.filename else str(error)) from error


if __name__ == "__main__":
    main()
