"""How far a study is: `longshort status`. It reads records and heartbeats alone, so no engine need run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from longshort.jobs import engine, heartbeat, slurm
from longshort.jobs.heartbeat import ALTERED, DONE, FAILED, INTERRUPTED, LOST, PENDING, RUNNING, WAITING
from longshort.records import layout
from longshort.records.publish import text_of
from longshort.study.wired import Wired
from longshort.study.wiring import ResolvedStudy
from longshort.terminal import plain

LAST_LINES = 8
DIVERGED = "diverged"
# What a person should look at first stands first.
ORDER = (ALTERED, FAILED, LOST, RUNNING, WAITING, INTERRUPTED, PENDING, DIVERGED, DONE)


@dataclass(frozen=True)
class StageState:
    """One job of a study: a training, an evaluation of a run, or a group of synthetic models."""

    run: str
    arms: str
    stage: str
    state: str
    record: Path
    log: Path
    beat: dict[str, Any]
    silent: float  # seconds since the last heartbeat


def stages(study: Wired, results: Path = Path(layout.RESULTS)) -> list[StageState]:
    """Every training and evaluation of a study, in the order in which a person wants to see them. Where several jobs
    share out the items of an evaluation that is not done, also those of them that have begun."""
    names, now = study.names(), heartbeat.clock(results)
    found = []
    for result in study.results():
        whole = _state(result.run, names[result.run], result.stage, Path(result.record), Path(result.log), now)
        found.append(whole)
        if whole.state in (DONE, DIVERGED):
            continue
        # Of as many as the study asks for now.
        jobs = study.jobs_of(result.stage) if isinstance(study, ResolvedStudy) else 1
        of_jobs = Path(layout.stage_of(result.record).share("*", jobs).heartbeat)
        for beat in of_jobs.parent.glob(of_jobs.name):
            stage, record, log = f"{result.stage} {beat.stem}", beat.with_suffix(".json"), beat.with_suffix(".log")
            found.append(_state(result.run, names[result.run], stage, record, log, now))
    return sorted(found, key=lambda stage: ORDER.index(stage.state))


def _state(run: str, arms: str, stage: str, record: Path, log: Path, now: float) -> StageState:
    said = heartbeat.verdict(record, now)
    state = DIVERGED if said.state == DONE and said.record.get("status") == DIVERGED else said.state
    return StageState(run, arms, stage, state, record, log, said.beat, said.silent)


def queued(study: Wired) -> list[slurm.Job]:
    """The jobs of a study that wait in SLURM's queue; none where there is no SLURM, or it does not answer."""
    jobs, ids = slurm.jobs_of(str(Path.cwd())) or [], study.identities()
    return [job for job in jobs if job.state == "PENDING" and ids & engine.ids_in(job.comment)]


def as_json(found: list[StageState], waiting: list[slurm.Job]) -> str:
    """reason: of a job that waits in SLURM's queue; ours: whether its owner has to do something."""
    rows = []
    for one in found:
        row = {"run": one.run, "arms": one.arms, "stage": one.stage, **one.beat, "state": one.state}
        if job := next((job for job in waiting if _is_made_by(one, job)), None):
            row |= {"queued_as": job.id, "reason": job.reason, "ours": job.waits_for[1]}
        rows.append(row)
    return json.dumps(rows, indent=2)


def shown(study: Wired) -> RenderableType:
    """A table of what is not done, the counts of all, how the failed ones ended, and why the queued ones wait."""
    found, waiting = stages(study), queued(study)
    count = {state: sum(one.state == state for one in found) for state in ORDER}
    summary = ", ".join(f"{number} {state}" for state, number in count.items() if number)
    table = Table(title=f"study {study.name}: {len(found)} jobs: {summary}", title_justify="left", box=None)
    for column in ("arm, seed", "stage", "state", "done", "loss", "tokens/s", "left", "node", "job", "memory"):
        right = column in ("done", "loss", "tokens/s", "left", "memory")
        # On a narrow terminal the names are read to the end.
        least = {"arm, seed": 12, "stage": 8, "state": 8}.get(column)
        table.add_column(column, justify="right" if right else "left", min_width=least)
    table.add_column("attempt")
    table.add_column("heartbeat")
    for one in found:
        if one.state not in (DONE, PENDING):
            table.add_row(*(Text(plain(cell)) for cell in _cells(one)))
    ended = [Text(plain(line)) for one in found if one.state in (ALTERED, FAILED, LOST) for line in _last_words(one)]
    if study.kind == "synthetic":
        ended.append(
            Text("Its jobs keep no heartbeat: one that runs or has failed counts as pending until it is done.")
        )
    return Group(table, *ended, *(Text(plain(line)) for line in _why_queued(found, waiting)))


def _why_queued(found: list[StageState], waiting: list[slurm.Job]) -> Iterator[str]:
    """Those first that wait for their owner, a line each; of the others a line a reason."""
    alike: dict[str, list[slurm.Job]] = {}
    for job in sorted(waiting, key=lambda job: not job.waits_for[1]):
        alike.setdefault(job.id if job.waits_for[1] else job.reason, []).append(job)
    for jobs in alike.values():
        words, ours = jobs[0].waits_for
        whose = "yours to mend" if ours else "nothing to mend"
        yield f"\nqueued, {whose}: {words} ({jobs[0].reason}): {'; '.join(_named(job, found) for job in jobs)}"


def _named(job: slurm.Job, found: list[StageState]) -> str:
    arms = next((f"{one.arms}, " for one in found if one.run in engine.ids_in(job.comment)), "")
    return f"{arms}{engine.rule_in(job.comment)} (job {job.id})"


def _is_made_by(one: StageState, job: slurm.Job) -> bool:
    rules = ("train",) if one.stage == layout.TRAINING else (one.stage, f"{one.stage}_share", "evaluate")
    return one.run in engine.ids_in(job.comment) and engine.rule_in(job.comment) in rules


def _cells(one: StageState) -> Iterator[str]:
    beat = one.beat
    yield from (one.arms, one.stage, one.state)
    yield f"{beat['done']} of {beat['total']} {beat.get('unit', '')}" if "done" in beat else ""
    yield _number(beat.get("loss"), ".4f")
    yield _number(beat.get("tokens_per_second"), ".0f")
    left = beat.get("seconds_left") if one.state == RUNNING else None
    yield "" if left is None else str(timedelta(seconds=round(left)))
    yield beat.get("node") or beat.get("host") or ""
    yield beat.get("job") or ""
    yield _memory(beat)
    yield f"{beat.get('attempt', '')}" + (f", after: {beat['earlier'][-1]}" if beat.get("earlier") else "")
    yield f"{timedelta(seconds=round(one.silent))} ago" if beat else ""


def _memory(beat: dict[str, Any]) -> str:
    """The most that was seen, of what SLURM gave, GiB."""
    peak, given = beat.get("peak_memory_mb"), beat.get("memory_mb")
    return "" if peak is None else f"{peak / 1024:.1f}" + (f" of {given / 1024:.1f} GiB" if given else " GiB")


def _last_words(one: StageState) -> Iterator[str]:
    if one.state == ALTERED:
        remedy = "delete it and run snakemake again"
        yield f"\n{one.arms}, {one.stage} altered: {one.record} is not the record that was published; {remedy}"
        return
    message = one.beat.get("message") or heartbeat.how_it_ended(one.beat["state"], one.beat.get("job"))
    said = f": {message}" if message != one.state else ""
    yield f"\n{one.arms}, {one.stage} {one.state}{said} ({one.log})"
    yield from (f"    {line}" for line in text_of(one.log).splitlines()[-LAST_LINES:])


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
