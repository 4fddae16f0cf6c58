"""What would run, why, and what it would cost: `longshort plan`, before anything runs.

Which jobs would run is the engine's own answer, from its dry run. Why is found by comparing what is asked for with what
the results say of themselves: the last study.json holds the settings of every arm, the records of trainings and
evaluations hold the hash of every module that they were computed by.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from longshort import cost
from longshort.identity import changed_modules, modules, trajectory
from longshort.publish import read_json
from longshort.resolve import EVALUATIONS, TRAINING, ResolvedStudy
from longshort.study import StudyError

BASE = "(base)"
RUNS = Path("results/runs")


class Job(NamedTuple):
    """One job of the dry run; run and steps for trainings and evaluations only."""

    rule: str
    run: str | None
    steps: str | None
    record: Path | None
    reason: str


@dataclass
class Plan:
    """What a study still needs. why: arm -> reasons; jobs: arm -> rule -> number of jobs; others: the rest."""

    study: str
    why: dict[str, list[str]] = field(default_factory=dict)
    jobs: dict[str, dict[str, int]] = field(default_factory=dict)
    others: dict[str, int] = field(default_factory=dict)
    stays: list[str] = field(default_factory=list)
    cost: cost.Cost | None = None


def make(study: ResolvedStudy, target: str = "all", jobs_at_once: int = 1, throughput: float = cost.THROUGHPUT) -> Plan:
    """The plan of a study.

    Raises:
        StudyError: the engine refuses to plan; its own words.
    """
    jobs = dry_run(study.name, target)
    path = Path("results") / study.name / "study.json"
    before = read_json(path) if path.exists() else None
    plan = Plan(study.name)
    by_run: dict[str, list[Job]] = {}
    for job in jobs:
        if job.run:
            by_run.setdefault(job.run, []).append(job)
    rules = Counter(job.rule for job in jobs if not job.run)
    plan.others = {rule: count for rule, count in rules.items() if rule not in ("all", "specification")}
    for arm, runs in {BASE: {0: study.base}, **study.arm_runs}.items():
        needed = {seed: run for seed, run in runs.items() if run in by_run}
        if not needed:
            plan.stays.append(arm)
            continue
        reasons = [_why(study, before, arm, seed, run, by_run, plan.others) for seed, run in needed.items()]
        plan.why[arm] = list(dict.fromkeys(reason for some in reasons for reason in some))
        counts = Counter(job.rule for run in set(needed.values()) for job in by_run[run])
        plan.jobs[arm] = {rule: counts[rule] for rule in ("train", *EVALUATIONS) if counts[rule]}
    work = [cost.Work(job.rule, run, str(job.steps)) for run, some in by_run.items() for job in some]
    plan.cost = cost.estimate(study, work, jobs_at_once, throughput)
    return plan


# ---- which jobs ------------------------------------------------------------------------------------------------------


def dry_run(study: str, target: str = "all") -> list[Job]:
    """The jobs that the engine would run for a target."""
    command = [sys.executable, "-m", "snakemake", target, "--dry-run", "--config", f"study={study}"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise StudyError(f"snakemake cannot plan {target}:\n{done.stderr.strip() or done.stdout.strip()}")
    jobs = []
    for block in re.split(r"\n(?=\[)", done.stdout + done.stderr):
        rule = re.search(r"^(?:local)?rule (\w+):", block, re.MULTILINE)
        if rule:
            said = dict(re.findall(r"^    (\w+): (.*)$", block, re.MULTILINE))
            jobs.append(_job(rule[1], said))
    return jobs


def _job(rule: str, said: dict[str, str]) -> Job:
    if rule != "train" and rule not in EVALUATIONS:
        return Job(rule, None, None, None, said.get("reason", ""))
    wildcards = dict(pair.split("=") for pair in said["wildcards"].split(", "))
    record = next(Path(path) for path in said["output"].split(", ") if path.endswith(".json"))
    return Job(rule, wildcards["run"], wildcards["steps"], record, said.get("reason", ""))


# ---- why -------------------------------------------------------------------------------------------------------------


def _why(
    study: ResolvedStudy,
    before: dict[str, Any] | None,
    arm: str,
    seed: int,
    run: str,
    by_run: dict[str, list[Job]],
    others: dict[str, int],
) -> list[str]:
    """The reasons of one run's jobs. Of a training that reruns, its evaluations are a consequence."""
    training = next((job for job in by_run[run] if job.rule == "train"), None)
    if training is None:
        return [reason for job in by_run[run] for reason in _why_measured(study, before, job)]
    assert training.record is not None
    if training.record.exists():
        changed = _changed(training.record, modules(TRAINING, study.runs[run].modules))
        if changed:
            return [f"{', '.join(changed)} changed"]
        if "data" in others:
            return ["the corpus is prepared again"]
        if run != study.base and study.base in by_run:
            return ["its base is trained again"]
        return [f"the engine says: {training.reason}"]
    if trained := _steps_of_records(training.record.parent):
        wanted = {int(step) for step in str(training.steps).split("-")}
        new = sorted(wanted - trained)
        return [f"checkpoint {', '.join(map(str, new))} is new" if new else "the checkpoints asked for are others"]
    return _why_new(study, before, arm, seed, run)


def _why_new(study: ResolvedStudy, before: dict[str, Any] | None, arm: str, seed: int, run: str) -> list[str]:
    """A run that was never trained: what of the settings is new."""
    if before is None:
        return ["not trained yet"]
    then = {some["name"]: some for some in before["arms"]}
    shared = differences(before.get("settings", {}), study.settings["study"])
    if arm == BASE:
        return shared or ["not trained yet"]
    if arm not in then:
        return ["new arm"]
    if str(seed) not in then[arm]["runs"]:
        return [f"new seed {seed}"]
    if then[arm]["runs"][str(seed)] == run:
        return ["not finished yet"]
    said = shared + differences(then[arm].get("settings", {}), study.settings[arm])
    said += _continues(then[arm]["runs"][str(seed)], study, run)
    return said or _differing_alpha(then[arm]["runs"][str(seed)], study, run) or ["another base"]


def _continues(old: str, study: ResolvedStudy, run: str) -> list[str]:
    """Where the last step is another one: whether the training goes on from the old one's checkpoints."""
    path = RUNS / old / "spec.json"
    if not path.exists():
        return []
    then, now = read_json(path), _spec(study, run)
    if then.get("training", {}).get("steps") == now.get("training", {}).get("steps"):
        return []
    if trajectory(then) == trajectory(now):
        return ["it goes on from the checkpoints that are there"]
    return ["it starts anew: a schedule of its learning rate or alpha ends at the last step, or more has changed"]


def _differing_alpha(old: str, study: ResolvedStudy, run: str) -> list[str]:
    """Equal settings, other values: the code of a schedule or of a default changed."""
    path = RUNS / old / "spec.json"
    if not path.exists():
        return []
    then, now = read_json(path), _spec(study, run)
    for term in ("output", "hidden"):
        values = [((spec.get("alignment") or {}).get(term) or {}).get("alpha", 0.0) for spec in (then, now)]
        steps = (now.get("training") or {}).get("steps", 0)
        series = [value if isinstance(value, list) else [value] * steps for value in values]
        step = next((i for i, (a, b) in enumerate(zip(*series, strict=False)) if a != b), None)
        if step is not None:
            return [f"alpha of the {term} differs from step {step} on: {series[0][step]:g} -> {series[1][step]:g}"]
    return differences(then, now)


def _why_measured(study: ResolvedStudy, before: dict[str, Any] | None, job: Job) -> list[str]:
    """An evaluation whose training stays."""
    assert job.record is not None
    if job.record.exists():
        changed = _changed(job.record, modules(EVALUATIONS[job.rule]))
        return [f"{', '.join(changed)} changed" if changed else f"{job.rule}: the engine says: {job.reason}"]
    if before is None or job.rule not in before["evaluations"]:
        return [f"{job.rule} is new" if before else f"{job.rule}: not measured yet"]
    now = study.summary()["evaluations"][job.rule]
    said = differences(
        {key: value for key, value in before["evaluations"][job.rule].items() if key != "id"},
        {key: value for key, value in now.items() if key != "id"},
    )
    return [f"evaluations.{job.rule}.{some}" for some in said] or [f"{job.rule}: not measured yet"]


def differences(before: Any, now: Any, key: str = "") -> list[str]:
    """What differs between two settings, one line a field: `alignment.schedule.end 2 -> 1.5`."""
    if isinstance(before, dict) and isinstance(now, dict) and before.get("kind") == now.get("kind"):
        names = [*before, *(name for name in now if name not in before)]
        below = (differences(before.get(name), now.get(name), f"{key}.{name}" if key else name) for name in names)
        return [line for lines in below for line in lines]
    return [] if before == now else [f"{key} {_short(before)} -> {_short(now)}"]


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_short(some)}" for key, some in value.items()) + "}"
    if value is None:
        return "(none)"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _changed(record: Path, now: dict[str, str]) -> list[str]:
    try:
        return changed_modules(read_json(record).get("modules", {}), now)
    except ValueError:
        return []


def _steps_of_records(folder: Path) -> set[int]:
    names = (path.stem for path in folder.glob("*.json"))
    return {int(step) for name in names if re.fullmatch(r"\d+(-\d+)*", name) for step in name.split("-")}


def _spec(study: ResolvedStudy, run: str) -> dict[str, Any]:
    spec: dict[str, Any] = json.loads(study.texts[run])
    return spec


# ---- in words --------------------------------------------------------------------------------------------------------


def text(plan: Plan) -> str:
    """The plan for people; arms with the same jobs for the same reasons stand together."""
    assert plan.cost is not None
    total = sum(sum(jobs.values()) for jobs in plan.jobs.values())
    if not total and not plan.others:
        return f"study {plan.study}: nothing to do, every result is up to date"
    lines = [f"study {plan.study}"]
    grouped: dict[tuple[tuple[str, ...], tuple[tuple[str, int], ...]], list[str]] = {}
    for arm, said in plan.why.items():
        grouped.setdefault((tuple(said), tuple(plan.jobs[arm].items())), []).append(arm)
    for (reasons, jobs), arms in grouped.items():
        counted = ", ".join(f"{count} {rule}" for rule, count in jobs)
        lines += ["", f"  {', '.join(arms)}: {counted}{' each' if len(arms) > 1 else ''}"]
        lines += [f"      {reason}" for reason in reasons]
    if plan.others:
        lines += ["", f"  then {', '.join(plan.others)}"]
    if plan.stays:
        lines += ["", f"  stays: {', '.join(plan.stays)}"]
    what = plan.cost
    lines += [
        "",
        f"  about {_duration(what.device_hours * 3600)} of device time, {_duration(what.wall_seconds)} with "
        f"{what.jobs_at_once} job{'s' if what.jobs_at_once > 1 else ''} at a time, "
        f"{what.storage_bytes / 2**20:,.0f} MB of checkpoints",
    ]
    lines += [f"      {source}" for source in what.sources]
    return "\n".join(lines)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:,.1f} h"
