"""Files that jobs left, damaged as disks, editors and people damage them: each is answered in a line that names the
file and what to do, or is of no matter; never by a traceback, and never by taking the file for what it is not."""

from __future__ import annotations

import json
import math
import re
import shutil
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import chdir
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from typer.testing import CliRunner

from longshort import cli, studies
from longshort.collecting import __main__ as collecting
from longshort.commands import cost, engine_run, stale
from longshort.errors import Exit, JobFailed, LongshortError
from longshort.evaluation import longbench, perplexity, stage
from longshort.jobs import engine, heartbeat, interruption, ownership, slurm
from longshort.jobs.engine import PlannedJob
from longshort.records import hub, layout, publish
from longshort.results import tables
from longshort.study.wiring import ResolvedStudy
from longshort.training import __main__ as training
from longshort.training import checkpoints, launch
from tests.support.project import UNFINISHED

Damage = Callable[[Any], Any]


def with_every_number(value: Any, number: float) -> Any:
    if isinstance(value, dict):
        return {key: with_every_number(one, number) for key, one in value.items()}
    if isinstance(value, list):
        return [with_every_number(one, number) for one in value]
    return number if isinstance(value, int | float) else value


def with_every_value(value: Any, other: Any) -> Any:
    if isinstance(value, dict):
        return dict.fromkeys(value, other)
    return [other for _ in value] if isinstance(value, list) else other


def one_level_down(value: Any, other: Any) -> Any:
    return {key: with_every_value(one, other) for key, one in value.items()} if isinstance(value, dict) else value


def sealed_anew(value: Any, other: Any) -> bytes:
    """As another version writes a record, or who edits one and seals it; the same where the file bears no seal."""
    if not isinstance(value, dict) or "seal" not in value:
        return json.dumps(value).encode()
    return json.dumps(publish.sealed({key: one for key, one in other.items() if key != "seal"})).encode()


# From what a file holds to the bytes that it is left with; None in place of a file: a folder.
DAMAGES: dict[str, Callable[[bytes, Any], bytes | None]] = {
    "cut": lambda whole, value: whole[: len(whole) // 2],
    "empty": lambda whole, value: b"",
    "not UTF-8": lambda whole, value: b'{"caf\xe9": 1}',
    "a list": lambda whole, value: b"[1]",
    "a number": lambda whole, value: b"5",
    "null": lambda whole, value: b"null",
    "no key": lambda whole, value: b"{}",
    "NaN": lambda whole, value: json.dumps(with_every_number(value, math.nan)).encode(),
    "of another type": lambda whole, value: json.dumps(with_every_value(value, "x")).encode(),
    "null inside": lambda whole, value: json.dumps(with_every_value(value, None)).encode(),
    "deep": lambda whole, value: b"[" * 20_000,
    "sealed anew without its keys": lambda whole, value: sealed_anew(value, {}),
    "sealed anew, with numbers": lambda whole, value: sealed_anew(value, with_every_value(value, 5)),
    "sealed anew, with nulls": lambda whole, value: sealed_anew(value, with_every_value(value, None)),
    "sealed anew, with numbers below": lambda whole, value: sealed_anew(value, one_level_down(value, 5)),
    "a folder": lambda whole, value: None,
}


class Left(NamedTuple):
    """A file that a job left.

    refused: the commands that cannot do without it. other: those that do, whatever it holds. either: those that show
    what can be shown. whole: what it holds where the finished study has none. fine: damages that are none to it.
    """

    path: Path
    refused: str = ""
    other: str = ""
    either: str = ""
    whole: Any = None
    fine: str = ""


WORKS = "it would begin to work"


class World(NamedTuple):
    commands: dict[str, Callable[[], object]]
    files: dict[str, Left]


# Name in World.files; its paths are known only where the study is finished.
FILES = """
manifest, state of a corpus, stand-in, specification of a run, specification of an evaluation, record of a training,
record of a base, record of an evaluation, heartbeat, heartbeat of an evaluation, study.json, planned.json,
metrics.json, runs.json, accepted.json, job.json, keep.json, spent.json, log.jsonl, manifest of a checkpoint,
diverged.json, owner.json, makes.json, finished.json, journal
"""
NAMES = [name.strip() for name in FILES.replace("\n", " ").split(",")]
# Nearly all commands read them.
SLOW = {"record of a training", "record of a base", "heartbeat", "heartbeat of an evaluation", "owner.json"}
SLOW |= {"manifest", "planned.json"}


@pytest.fixture(scope="module")
def copy(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    project, ignored = tmp_path_factory.mktemp("damaged") / "project", shutil.ignore_patterns(*UNFINISHED)
    return Path(shutil.copytree(finished, project, symlinks=True, ignore=ignored))


@pytest.fixture
def world(copy: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """Commands in this process; what would train or measure, or wait for other nodes, fails or ends at once."""

    def would_work(*arguments: Any, **options: Any) -> None:
        raise JobFailed(WORKS)

    monkeypatch.setattr(launch, "_run_processes", would_work)
    monkeypatch.setattr(stage, "_checkpoints", would_work)
    monkeypatch.setattr(hub, "refuse_network", lambda: None)  # for good
    monkeypatch.setattr(interruption, "end_at_once", lambda: None)
    monkeypatch.setattr(checkpoints, "remove", lambda *arguments: None)
    monkeypatch.setattr(tables, "write_tables", lambda *arguments: None)
    monkeypatch.setattr(ownership, "LOOKED_AFTER", 0.0)
    monkeypatch.setattr(engine, "remembered", lambda: lambda output: False)
    for module in (publish, checkpoints):
        monkeypatch.setattr(module, "appears", lambda path, patience=0.0: path.exists())
    with chdir(copy):
        put(Path(layout.table(layout.partial("tiny"), "main", "md")), b"")
        yield World(commands(studies.load("tiny"), monkeypatch), files(studies.load("tiny")))


def asked(*arguments: str) -> Callable[[], None]:
    def ask() -> None:
        done = CliRunner().invoke(cli.app, [*arguments, *(["--study", "tiny"] if arguments[0] != "prune" else [])])
        if done.exception:
            raise done.exception

    return ask


def run(main: Callable[[], object], *arguments: object) -> Callable[[], object]:
    def started() -> object:
        sys.argv = ["a stage", *map(str, arguments)]
        return main()

    return started


def commands(study: ResolvedStudy, monkeypatch: pytest.MonkeyPatch) -> dict[str, Callable[[], object]]:
    arm, base, steps = study.arm_runs["constant"][0], study.bases[0], study.steps_key
    record = Path(study.record(arm))
    jobs = [PlannedJob("train", {"run": arm, "steps": steps}, [record], "")]
    jobs += [
        PlannedJob("perplexity", {"run": arm, "steps": steps}, [Path(study.evaluation_record("perplexity", arm))], "")
    ]

    def plan(planned: list[PlannedJob]) -> Callable[[], None]:
        def ask() -> None:
            monkeypatch.setattr(engine, "dry_run", lambda study, target: planned)
            asked("plan")()

        return ask

    def parsed() -> None:
        resolved = studies.load("tiny")
        resolved.corpus_state()
        stale.refuse_unnoticed(resolved)

    def driven() -> None:
        monkeypatch.setattr(slurm, "jobs_of", lambda folder: [])
        monkeypatch.setattr(engine_run.ownership, "is_owned", lambda folder: folder.parent.name == "drivers")
        engine_run.orphans(study)
        cost.write_down(study)

    def measured(of: stage.Measurement) -> Callable[[], object]:
        out = Path(study.evaluation_record(of.metric, arm))
        given = ["--spec", layout.spec(layout.EVALUATIONS, study.evaluations[of.metric][0]), "--data", data]
        given += ["--run", record, "--steps", steps, "--out", out.with_suffix(".parquet")]
        return run(lambda: stage.main(of), *given, "--items", *study.items(of.metric))

    data = layout.data_manifest(study.data)
    of_run = ("--spec", layout.spec(layout.RUNS, arm), "--data", data, "--base", study.record(base))
    of_study = ("--study", "results/tiny/study.json", "--results", "results", "--out", "results/tiny/metrics.parquet")
    return {
        "plan": plan([]),
        "plan-jobs": plan(jobs),
        "status": asked("status"),
        "tables": asked("tables"),
        "partial": asked("tables", "--partial"),
        "why": asked("why", "main", "constant", "PPL 32"),
        "prune": asked("prune"),
        "accept": asked("accept", "constant", "--because", "a try"),
        "snakemake": parsed,
        "driver": driven,
        "collect": run(collecting.main, *of_study),
        "train": run(training.main, *of_run, "--steps", steps, "--out", record),
        "perplexity": measured(perplexity.MEASUREMENT),
        "longbench": measured(longbench.MEASUREMENT),
    }


def files(study: ResolvedStudy) -> dict[str, Left]:
    arm, base = study.arm_runs["constant"][0], study.bases[0]
    record, evaluation = Path(study.record(arm)), Path(study.evaluation_record("perplexity", arm))
    data, of_study = Path(layout.data_folder(study.data)), Path(layout.study_folder("tiny"))
    work = Path(layout.checkpoints(json.loads(record.read_text())["run_id"]))
    finished = next(
        path
        for path in Path(layout.finished_evaluations()).glob("*/finished.json")
        if (said := json.loads(path.read_text()))["run"] == arm and said["evaluation"] in str(evaluation)
    )
    gone = {**ownership.about_me(), "pid": 2**22 + 1}
    found = [
        Left(data / "manifest.json", "plan train perplexity", "status"),
        Left(data / "corpus.json", other="snakemake plan status"),
        Left(data / "longbench-e-1/manifest.json", "longbench"),
        Left(Path(layout.spec(layout.RUNS, arm)), "train collect"),
        Left(Path(layout.spec(layout.EVALUATIONS, study.evaluations["perplexity"][0])), "perplexity"),
        Left(record, "plan-jobs partial collect prune accept perplexity", "status"),
        Left(Path(study.record(base)), "plan train", "status"),
        Left(evaluation, "plan collect accept snakemake", "status", either="why"),
        Left(heartbeat.path_of(record), other="status collect prune", either="train"),
        Left(heartbeat.path_of(evaluation), other="status collect", either="perplexity"),
        Left(of_study / "study.json", "plan why collect tables", "status"),
        Left(of_study / "planned.json", other="collect plan", either="driver"),
        Left(of_study / "metrics.json", "plan why", "status"),
        Left(of_study / "runs.json", other="status plan"),
        Left(Path("results/accepted.json"), "plan status snakemake", whole=accepted(arm, record)),
        Left(work / "job.json", "train", fine="no key,of another type,null inside"),
        Left(work / "keep.json", "train", fine="a list"),
        Left(work / "spent.json", "train"),
        Left(work / "log.jsonl", "train"),
        Left(work / "checkpoint-6/longshort-manifest.json", other="train plan-jobs"),
        Left(work / "diverged.json", "train", whole={"step": 100, "loss": None}),
        Left(work / "owner.json", "train", whole=gone),
        Left(Path(layout.made_by_engine_run("other")), "driver", whole=["0123456789abcdef"], fine="of another type"),
        Left(finished, other="perplexity"),
        Left(finished.with_name("journal"), either="perplexity", whole=[]),
    ]
    return dict(zip(NAMES, found, strict=True))


def accepted(run: str, record: Path) -> list[dict[str, Any]]:
    said = dict.fromkeys(("arm", "stage", "from", "to", "because", "time"), "x")
    return [{**said, "runs": [run], "records": [str(record)], "modules": []}]


def answer(command: Callable[[], object], capsys: pytest.CaptureFixture[str]) -> str:
    """What a command refuses with; empty where it passes, or would begin to work."""
    capsys.readouterr()
    said = ""
    try:
        command()
    except LongshortError as error:
        said = str(error) if error.exit_code == Exit.FAILED else f"exit code {error.exit_code}\n{error}"
    except SystemExit as error:
        if error.code:
            said = capsys.readouterr().err.strip() if error.code == Exit.FAILED else f"exit code\n{error.code}"
    except Exception:
        said = traceback.format_exc()
    return "" if said == WORKS else said


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.wide if name in SLOW else ()) for name in NAMES])
def test_a_damaged_file_is_refused_by_name_or_of_no_matter(
    world: World, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    left = world.files[name]
    before = left.path.read_bytes() if left.path.exists() else None
    whole = json.dumps(left.whole).encode() if before is None else before
    value = left.whole if before is None or left.path.suffix == ".jsonl" else json.loads(before)
    wrong = []
    for damage, make in DAMAGES.items():
        for command in f"{left.refused} {left.other} {left.either}".split():
            damaged = make(whole, value)
            if damaged == json.dumps(value).encode():  # it holds no number, say
                continue
            put(left.path, damaged)
            said = answer(world.commands[command], capsys)
            put(left.path, before, gone=before is None)
            refused = command in left.refused.split() and damage not in left.fine.split(",")
            expected = command in left.either.split() or bool(said) is refused
            path = left.path.as_posix()
            named = path in said and re.search("delete|restore|run|give", said.replace(path, ""))
            if not expected or (said and (len(said.splitlines()) > 1 or not named)):
                wrong.append(f"{damage}, {command}: {said or 'it passed'}")
    assert not wrong, "\n".join(wrong)


def put(path: Path, content: bytes | None, gone: bool = False) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    if content is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    elif not gone:
        path.mkdir(parents=True)
