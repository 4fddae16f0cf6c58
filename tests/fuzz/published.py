"""What jobs left of a finished study: altered, cut, exchanged, gone, or something else in its place."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas

from tests.fuzz.engine import Kind, Mutation

OUT = "results/tiny/metrics.parquet"
COLLECT = (
    "-m",
    "longshort.collecting",
    "--study",
    "results/tiny/study.json",
    "--results",
    "results",
    "--out",
    OUT,
)
MADE_FROM = ("--metrics", OUT, "--runs", "results/tiny/runs.parquet", "--study", "results/tiny/study.json")
TABLES = ("-m", "longshort.results.tables", *MADE_FROM, "--out", "results/tiny/tables")
CLI = ("-m", "longshort.cli")
ASKED = {
    "plan": (*CLI, "plan", "--study", "tiny"),
    "status": (*CLI, "status", "--study", "tiny"),
    "partial": (*CLI, "tables", "--study", "tiny", "--partial"),
    "tables": (*CLI, "tables", "--study", "tiny"),
    "why": (*CLI, "why", "--study", "tiny", "main", "constant", "PPL 32"),
    "prune": (*CLI, "prune", "--dry-run"),
    "stale": (*CLI, "prune", "--stale", "--dry-run"),
    "accept": (*CLI, "accept", "constant", "--because", "a try", "--study", "tiny"),
    "dry run": ("-m", "snakemake", "all", "--cores", "1", "--dry-run", "--config", "study=tiny"),
}


def arms(project: Path) -> list[Path]:
    return sorted({link.resolve() for link in (project / "results/tiny/arms").glob("*/seed-0")})


def records(project: Path) -> list[Path]:
    """Of all jobs of the arms."""
    return sorted(path for run in arms(project) for path in run.rglob("2-6.json"))


def name(path: Path, project: Path) -> str:
    return path.relative_to(project).as_posix()


def altered(draw: random.Random, value: Any) -> Any:
    """The JSON value, another one at one place of it."""
    if isinstance(value, dict) and value:
        key = draw.choice(sorted(value))
        if draw.random() < 0.15:
            return {k: v for k, v in value.items() if k != key}
        return {**value, key: altered(draw, value[key])}
    if isinstance(value, list) and value:
        at = draw.randrange(len(value))
        return [*value[:at], altered(draw, value[at]), *value[at + 1 :]]
    others = [None, 0, -1, 1.5, "", "x", "../../../../pwn", [], {}, True]
    return draw.choice([other for other in others if json.dumps(other) != json.dumps(value)])


def somewhere(draw: random.Random, length: int) -> int:
    """A place in a file. Whatever its length is, which names of machines and times change, it takes one draw, so that
    what is drawn next is the same everywhere."""
    return int(draw.random() * length)


def edit_json(draw: random.Random, path: Path) -> str:
    whole = path.read_text()
    if draw.random() < 0.6:
        path.write_text(json.dumps(altered(draw, json.loads(whole))))
        return "a value"
    texts = {
        "cut": whole[: somewhere(draw, len(whole) - 2)],
        "empty": "",
        "a list": "[]",
        "a number": "5",
        "null": "null",
    }
    texts |= {"zero bytes": "\0" * len(whole), "an object": "{}", "deep": "[" * 20_000, "NaN": "NaN"}
    what = draw.choice([*texts, "no UTF-8"])
    path.write_bytes(b"\xff" + whole.encode() if what == "no UTF-8" else texts[what].encode())
    return what


def replace(draw: random.Random, path: Path) -> str:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
    put: dict[str, Callable[[], object]] = {
        "a folder": path.mkdir,
        "a pipe": lambda: os.mkfifo(path),
        "a loop": lambda: path.symlink_to(path),
        "a link to nothing": lambda: path.symlink_to("nowhere"),
        "gone": lambda: None,
    }
    what = draw.choice(list(put))
    put[what]()
    return what


def of_a_record(draw: random.Random, project: Path) -> Mutation:
    path = draw.choice([*records(project), project / "results/tiny/study.json"])
    what = edit_json(draw, path)
    said = name(path, project)
    return Mutation(f"{said}: {what}", "no number is taken by an altered record", said, commands=(COLLECT,))


def of_numbers(draw: random.Random, project: Path) -> Mutation:
    path = draw.choice(records(project)).with_suffix(".parquet")
    what = edit_table(draw, path)
    said = name(path, project)
    return Mutation(f"{said}: {what}", "no number is taken that was not published", said, commands=(COLLECT,))


def edit_table(draw: random.Random, path: Path) -> str:
    whole = path.read_bytes()
    what = draw.choice(["a value", "a row less", "cut", "a bit", "empty", "another order"])
    if what in ("a value", "a row less", "another order"):
        frame = pandas.read_parquet(path)
        numbers = [column for column in ("value", "loss") if column in frame] or [*frame.select_dtypes("float")]
        if what == "a value" and len(frame) and numbers:
            frame.loc[frame.index[draw.randrange(len(frame))], numbers[0]] = 0.5
        elif what == "a row less" or len(frame) < 2:  # of one row there is no other order
            frame = frame.iloc[1:]
        else:
            frame = frame.iloc[::-1]
        frame.to_parquet(path, index=False)
        return what
    at = somewhere(draw, len(whole))
    flipped = whole[:at] + bytes([whole[at] ^ (1 << draw.randrange(8))]) + whole[at + 1 :]
    path.write_bytes({"cut": whole[:at], "a bit": flipped, "empty": b""}[what])
    return what


def of_an_exchange(draw: random.Random, project: Path) -> Mutation:
    """Whole results, each as it was published, in each other's place."""
    here, there = draw.sample(arms(project), 2)
    stage = draw.choice(["training", "perplexity", "misalignment", "longbench_e", "perplexity numbers", "a metric"])
    if stage == "a metric":
        pairs = [(next(here.glob("perplexity/*")), next(here.glob("misalignment/*")))]
    elif stage == "perplexity numbers":
        pairs = [(next(here.glob("perplexity/*/*.parquet")), next(there.glob("perplexity/*/*.parquet")))]
    else:
        pairs = [(here / stage, there / stage)]
    copied = draw.random() < 0.4
    for one, other in pairs:
        exchange(one, other, copied)
    what = f"{stage} of {there.name} {'copied' if copied else 'moved'} to {here.name}"
    because = "a result says of which run, evaluation and steps it is"
    return Mutation(what, because, r"published for another place|not the file that was published", commands=(COLLECT,))


def exchange(one: Path, other: Path, copied: bool) -> None:
    aside = one.with_name("aside")
    one.rename(aside)
    if copied:
        (shutil.copytree if other.is_dir() else shutil.copy)(other, one)
        (shutil.rmtree if aside.is_dir() else os.unlink)(aside)
    else:
        other.rename(one)
        aside.rename(other)


def of_the_long_table(draw: random.Random, project: Path) -> Mutation:
    """metrics.parquet and runs.parquet, which tables, plots and report are made from."""
    table = project / "results/tiny" / draw.choice(["metrics.parquet", "runs.parquet"])
    record = table.with_suffix(".json")
    if draw.random() < 0.6:
        what = f"numbers: {edit_table(draw, table)}"
        if draw.random() < 0.3:
            record.unlink()
            what += ", record gone"
    else:
        what = f"record: {edit_json(draw, record)}"
    because = "tables are made from what was collected, and from nothing else"
    commands = (TABLES if table.stem == "runs" else draw.choice([TABLES, ASKED["why"]]),)
    return Mutation(f"{table.name}: {what}", because, table.stem, commands=commands)


def of_a_place(draw: random.Random, project: Path) -> Mutation:
    """Something else than a file, or nothing, where a record or its numbers belong."""
    path = draw.choice(records(project))
    path = draw.choice([path, path.with_suffix(".parquet"), project / "results/tiny/study.json"])
    what = replace(draw, path)
    said = name(path, project)
    because = "what is no file is named, and never waited for"
    return Mutation(f"{said}: {what}", because, said, commands=(COLLECT,))


def everything(project: Path) -> Iterator[Path]:
    yield from (path for path in (project / "results").rglob("*") if path.suffix in (".json", ".parquet"))


def of_anything(draw: random.Random, project: Path) -> Mutation:
    """Any file of results/, while a person asks: an answer or a refusal, but no traceback."""
    path = draw.choice(sorted(path for path in everything(project) if path.is_file()))
    said = name(path, project)
    edits = [lambda: replace(draw, path)]
    edits += [(lambda: edit_json(draw, path)) if path.suffix == ".json" else (lambda: edit_table(draw, path))] * 2
    what = draw.choice(edits)()
    asked = draw.choice(list(ASKED))
    return Mutation(
        f"{said}: {what}; {asked}",
        "a question is answered, or refused with the file's name",
        refused=r"\.json|\.parquet|nothing|no code",
        may_pass=True,
        commands=(ASKED[asked],),
    )


def of_what_is_gone(draw: random.Random, project: Path) -> Mutation:
    """A folder or file that was deleted: the study is asked about, and goes on."""
    found = sorted(path for path in (project / "results").rglob("*") if not path.is_symlink())
    found += sorted((project / "work").glob("*")) + [project / "work", project / ".snakemake", project / "corpus"]
    path = draw.choice(found)
    (shutil.rmtree if path.is_dir() else os.unlink)(path)
    asked = draw.choice([ask for ask in ASKED if ask not in ("accept", "tables", "why")])
    because = "what is gone is made again, so that nothing is refused for it"
    return Mutation(f"{name(path, project)} gone; {asked}", because, commands=(ASKED[asked],))


def of_what_lies_about(draw: random.Random, project: Path) -> Mutation:
    """What somebody put there."""
    places = [
        "results",
        "results/runs",
        "results/data",
        "results/tiny",
        "results/tiny/arms",
        "work",
        "work/evaluations",
    ]
    places += ["config/studies", "results/evaluations", "results/tiny/arms/constant"]
    place = project / draw.choice(places)
    path = place / draw.choice(
        ["0123456789abcdef", "notes.txt", ".hidden", "a b", "\x1b[2J", "b\udcff", "x.json", "x.yaml"]
    )
    put: dict[str, Callable[[], object]] = {
        "a file": lambda: path.write_text("x"),
        "a folder": path.mkdir,
        "a pipe": lambda: os.mkfifo(path),
        "a loop": lambda: path.symlink_to(path),
        "a link out": lambda: path.symlink_to("/"),
        "a full folder": lambda: shutil.copytree(project / "corpus", path),
    }
    what = draw.choice(list(put))
    put[what]()
    asked = draw.choice([ask for ask in ASKED if ask != "accept"])
    # Each study is asked what it needs before anything is deleted: one that cannot be read stops it.
    unreadable = path.suffix == ".yaml" and asked in ("prune", "stale")
    return Mutation(
        f"{what} {str(path.relative_to(project))!r}; {asked}",
        "what is not ours is left alone, and not in the way",
        refused="x.yaml|study x" if unreadable else None,
        may_pass=True,
        commands=(ASKED[asked],),
        wrong=lambda project: None if path.is_symlink() or path.exists() else f"{path.name} was deleted",
    )


def of_a_heartbeat(draw: random.Random, project: Path) -> Mutation:
    """Heartbeats, logs, owners and plans, which say how things are and decide no number."""
    found = sorted(path for path in (project / "results").rglob("*") if path.name.endswith((".heartbeat.json", ".log")))
    found += [project / "results/tiny/planned.json"]
    path = draw.choice(found)
    edit = edit_json if path.suffix == ".json" and draw.random() < 0.7 else replace
    what = edit(draw, path)
    asked = draw.choice(["status", "partial", "plan", "why"])
    because = "what only says how things are cannot stop anything"
    return Mutation(f"{name(path, project)}: {what}; {asked}", because, commands=(ASKED[asked],))


def stage(project: Path, draw: random.Random) -> tuple[str, ...]:
    """The perplexity of an arm, published elsewhere."""
    run = next(run for run in arms(project) if list(run.glob("perplexity/*/2-6.parquet")) and of_arm(run, project))
    evaluation = next(run.glob("perplexity/*")).name
    data = next(project.glob("results/data/*/manifest.json"))
    arguments = ["--spec", f"results/evaluations/{evaluation}/spec.json", "--data", name(data, project)]
    arguments += ["--run", name(run / "training/2-6.json", project), "--steps", "2-6", "--out", "again.parquet"]
    return ("-m", "longshort.evaluation.perplexity", *arguments)


def of_arm(run: Path, project: Path) -> bool:
    return run == (project / "results/tiny/arms/constant/seed-0").resolve()


def same_numbers(project: Path) -> str | None:
    run = (project / "results/tiny/arms/constant/seed-0").resolve()
    published = next(run.glob("perplexity/*/2-6.parquet"))
    # What is made again is made by the checkout's source, whose commit git knows.
    then, now = (pandas.read_parquet(path).drop(columns="commit") for path in (published, project / "again.parquet"))
    return None if now.equals(then) else "other numbers came out"


def of_an_input(draw: random.Random, project: Path) -> Mutation:
    """What an evaluation reads: weights, corpus, specification, the record of the training, finished evaluations."""
    command = stage(project, draw)
    run = (project / "results/tiny/arms/constant/seed-0").resolve()
    record = json.loads((run / "training/2-6.json").read_text())
    weights = [project / record["checkpoints"][step]["path"] / "model.safetensors" for step in ("2", "6")]
    data = next(project.glob("results/data/*/manifest.json")).parent
    inputs = [*weights, *weights, *data.glob("test/*.arrow"), *data.glob("validation/*.arrow")]
    inputs += [data / "manifest.json", run / "training/2-6.json", project / command[3]]
    finished = draw.random() < 0.3
    if finished:
        inputs = sorted((project / "work/evaluations").rglob("finished.*"))
    else:
        shutil.rmtree(project / "work/evaluations")
    path = draw.choice(inputs)
    if draw.random() < 0.3:
        what = replace(draw, path)
    elif path.suffix == ".json":
        what = edit_json(draw, path)
    else:
        whole = bytearray(path.read_bytes())
        at = somewhere(draw, len(whole))
        what = f"bit {at}"
        whole[at] ^= 1 << draw.randrange(8)
        path.write_bytes(whole if draw.random() < 0.7 else whole[:at])
    return Mutation(
        f"{name(path, project)}: {what}",
        "an altered input is refused by name; a finished evaluation that was altered is made again",
        refused=r"work/\w+|manifest|spec|training/2-6|results/data",
        may_pass=finished,
        commands=(command,),
        wrong=same_numbers,
    )


KINDS: dict[str, Kind] = {
    "a published record": of_a_record,
    "published numbers": of_numbers,
    "an exchange of results": of_an_exchange,
    "the long table": of_the_long_table,
    "no file in a record's place": of_a_place,
    "anything published, and a question": of_anything,
    "what is gone, and a question": of_what_is_gone,
    "what lies about, and a question": of_what_lies_about,
    "heartbeats and logs": of_a_heartbeat,
    "inputs of a stage": of_an_input,
}
