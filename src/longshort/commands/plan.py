"""What would run, why, and what it would cost: `longshort plan`, before anything runs.

Which jobs would run is the engine's own answer, from its dry run. Why is found by comparing what is asked for with what
the results say of themselves: the last study.json holds the settings of every arm, the records of trainings and
evaluations hold the hash of every module that they were computed by.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from longshort.commands import budget, cost, stale
from longshort.commands.resuming import Resuming
from longshort.identity.code import changed_modules, modules
from longshort.identity.spec import canonical, trajectory
from longshort.jobs import engine
from longshort.jobs.engine import PlannedJob
from longshort.metrics.catalog import METRICS
from longshort.records import layout
from longshort.records.publish import HASHES, NUMBER, read_record, read_spec, refuse_altered_table
from longshort.results.replicates import BASE, EXTENDED_BASE, LONG_BASE, NO_ARMS
from longshort.studies import Resolved
from longshort.study.wiring import EVALUATE, TRAINING, ResolvedStudy
from longshort.synthetic import study as synthetic

# What is read of what a study was: of either kind.
OF_ARMS = {"seeds": list, "arms": [{"name": str, "runs": HASHES}], "evaluations": {str: dict}}
OF_GROUPS = {"groups": {str: {"task": str, "encoding": str, "alpha": NUMBER}}}
# The rules that make the results of a run.
STAGES = ("train", *METRICS)


@dataclass
class Plan:
    """What a study, or one target of it, still needs.

    Attributes:
        why: arm -> the reasons of its jobs, in words.
        jobs: arm -> rule -> number of jobs. A run that several arms share is counted with the first of them.
        others: rule -> number of jobs that belong to no arm, such as tables and plots.
        stays: the arms that have nothing to do; empty where only a part of the study was asked for.
        cost: None where it is not counted.
        budget: what of it fits; None where no budget is given.

    Of a synthetic study, each group of models stands for an arm.
    """

    study: str
    target: str = "all"
    why: dict[str, list[str]] = field(default_factory=dict)
    jobs: dict[str, dict[str, int]] = field(default_factory=dict)
    others: dict[str, int] = field(default_factory=dict)
    stays: list[str] = field(default_factory=list)
    cost: cost.Cost | None = None
    budget: budget.Fitting | None = None


def make(
    study: Resolved,
    target: str = "all",
    jobs_at_once: int = 1,
    throughput: float | None = None,
    hours: float | None = None,
) -> Plan:
    """The plan of a study.

    Args:
        hours: a budget, device-hours.

    Raises:
        StudyError: the engine refuses to plan, in its own words; or results are not of the present code, and it would
            keep them.
        Altered: a file that the plan reads was edited or cut.
    """
    jobs = engine.dry_run(study.name, target)
    known = ("synthetic",) if study.kind == "synthetic" else STAGES
    stages = [one for job in jobs for one in _measured_by(study, job) if one.rule in known]
    if target == "all":
        of_corpora = [job for job in jobs if job.rule in ("data", layout.KEY_TOKENS)]
        made_again = {str(job.record) for job in [*stages, *of_corpora]}
        stale.refuse(study, lambda record: record not in made_again)
    path = Path(layout.study_json(study.name))
    before = _before(path, study) if path.exists() else None
    plan = Plan(study.name, target)
    by_run: dict[str, list[PlannedJob]] = {}
    for job in stages:
        by_run.setdefault(job.run, []).append(job)
    rules = Counter(job.rule for job in jobs)
    # What shares out an evaluation is counted with the job that puts it together.
    not_others = (*known, EVALUATE, "all", "specification", *(f"{metric}_share" for metric in METRICS))
    plan.others = {rule: count for rule, count in rules.items() if rule not in not_others}
    if study.kind == "synthetic":
        _explain_groups(plan, study, before, by_run)
        return plan
    if (metrics := Path(layout.metrics(layout.study_folder(study.name)))).exists():
        refuse_altered_table(metrics)
    trained = {run for run, some in by_run.items() if any(job.rule == "train" for job in some)}
    asked = Asked(study, before, by_run, Resuming(study, trained, "data" in rules), "data" in rules)
    _explain_arms(plan, asked)
    work = work_of(study, jobs)
    plan.cost = cost.estimate(study, work, jobs_at_once, throughput, "data" in rules)
    if hours is not None:
        plan.budget = budget.fitting(study, work, hours, throughput, "data" in rules)
    return plan


def _before(path: Path, study: Resolved) -> dict[str, Any]:
    """What the study was when it last ran."""
    return read_record(path, like=OF_GROUPS if study.kind == "synthetic" else OF_ARMS)


def work_of(study: ResolvedStudy, jobs: list[PlannedJob]) -> list[cost.Work]:
    """What of the planned jobs costs, each metric of a run by itself."""
    stages = [one for job in jobs for one in _measured_by(study, job) if one.rule in STAGES]
    searches = [cost.Work(layout.KEY_TOKENS, study.data, "") for job in jobs if job.rule == layout.KEY_TOKENS]
    return [*(cost.Work(job.rule, job.run, job.steps) for job in stages), *searches]


def _measured_by(study: Resolved, job: PlannedJob) -> list[PlannedJob]:
    """A job that measures a run by several metrics as those jobs that would do so alone: it measures what is due, and
    leaves the rest as it is."""
    if study.kind == "synthetic" or job.rule != EVALUATE:
        return [job]
    records = {study.evaluation_record(metric, job.run): metric for metric in study.evaluations}
    due = {record for record in records if not Path(record).exists()}
    due |= {record for record, _ in stale.found(study, lambda record: record in records)}
    # What it reads is made again, or was; what the engine says of parameters names files, too.
    updated = " ".join(said for said in job.reason.split("; ") if "nput files" in said and "Set of" not in said)
    of_all = (study.record(job.run), layout.data_manifest(study.data))
    for record, metric in records.items():
        if any(path in updated for path in (*of_all, *study.items(metric))):
            due.add(record)
    due = due or set(records)
    return [job._replace(rule=metric, outputs=[Path(record)]) for record, metric in records.items() if record in due]


def _explain_arms(plan: Plan, asked: Asked) -> None:
    study, by_run = asked.study, asked.by_run
    first: dict[str, str] = {}
    no_arms = {BASE: study.first_seeds}
    if study.extended_bases:
        no_arms[EXTENDED_BASE] = study.first_extended
    if study.long_base:
        no_arms[LONG_BASE] = {study.runs[study.long_base].seed: study.long_base}
    for arm, runs in {**no_arms, **study.arm_runs}.items():
        needed = {seed: run for seed, run in runs.items() if run in by_run}
        if not needed:
            if plan.target == "all":
                plan.stays.append(arm)
            continue
        reasons, counts = [], Counter[str]()
        for seed, run in needed.items():
            if (same := first.setdefault(run, arm)) != arm:
                reasons.append(f"the same run as {same}")
                continue
            reasons += _why(asked, arm, seed, run)
            counts.update(job.rule for job in by_run[run])
        plan.why[arm] = list(dict.fromkeys(reasons))
        plan.jobs[arm] = {rule: counts[rule] for rule in STAGES if counts[rule]}


def _explain_groups(
    plan: Plan, study: synthetic.ResolvedSynthetic, before: dict[str, Any] | None, by_run: dict[str, list[PlannedJob]]
) -> None:
    for group, name in study.names().items():
        if group in by_run:
            plan.why[name] = [reason for job in by_run[group] for reason in _why_group(study, before, group, job)]
            plan.jobs[name] = dict(Counter(job.rule for job in by_run[group]))
        elif plan.target == "all":
            plan.stays.append(name)


# ---- why -------------------------------------------------------------------------------------------------------------


class Asked(NamedTuple):
    """What the reasons are found from: the study now and at the last run, and the planned jobs."""

    study: ResolvedStudy
    before: dict[str, Any] | None
    by_run: dict[str, list[PlannedJob]]
    resuming: Resuming
    data_anew: bool


def _why(asked: Asked, arm: str, seed: int, run: str) -> list[str]:
    """The reasons of one run's jobs. Of a training that reruns, its evaluations are a consequence."""
    study = asked.study
    training = next((job for job in asked.by_run[run] if job.rule == "train"), None)
    if training is None:
        return [reason for job in asked.by_run[run] for reason in _why_measured(study, asked.before, job)]
    again = _why_again(asked, run, training.record)
    if training.record.exists():
        return again or [f"the engine says: {training.reason}"]
    if trained := _steps_of_records(training.record.parent):
        wanted = {int(step) for step in training.steps.split("-")}
        new = sorted(wanted - trained)
        said = f"checkpoint {', '.join(map(str, new))} is new" if new else "the checkpoints asked for are others"
        return [said, *again]
    return _why_new(asked, arm, seed, run)


def _why_again(asked: Asked, run: str, record: Path) -> list[str]:
    """Why a run that was trained before is trained from the start."""
    records = [record] if record.exists() else sorted(record.parent.glob("*.json"))
    code, now = asked.study.training_code(run), modules(TRAINING, asked.study.runs[run].modules)
    changed = {name: None for path in records for name in _changed(path, code, now)}
    if changed:
        return [f"{', '.join(changed)} changed"]
    if asked.data_anew:
        return ["the corpus is prepared again"]
    if asked.study.runs[run].base in asked.resuming.trained:
        return ["its base is trained again"]
    return []


def _why_new(asked: Asked, arm: str, seed: int, run: str) -> list[str]:
    """A run that was never trained: what of the settings is new."""
    study, before = asked.study, asked.before
    if before is None:
        return ["not trained yet"]
    then = {some["name"]: some for some in before["arms"]}
    shared = differences(before.get("settings", {}), study.study_settings)
    if arm in NO_ARMS:
        new = str(seed) not in map(str, before["seeds"])
        return shared or ([f"new seed {seed}"] if new else ["not trained yet"])
    if arm not in then:
        return ["new arm"]
    if str(seed) not in then[arm]["runs"]:
        return [f"new seed {seed}"]
    if then[arm]["runs"][str(seed)] == run:
        return ["not finished yet"]
    said = shared + differences(then[arm].get("settings", {}), study.settings[arm])
    said += _continues(then[arm]["runs"][str(seed)], asked, run)
    return said or _differing_alpha(then[arm]["runs"][str(seed)], study, run) or ["another base"]


def _continues(old: str, asked: Asked, run: str) -> list[str]:
    """Where the last step is another one: whether the training goes on from the old one's checkpoints."""
    study = asked.study
    path = Path(layout.spec(layout.RUNS, old))
    if not path.exists():
        return []
    then, now = read_spec(path), _spec(study, run)
    if then.get("training", {}).get("steps") == now.get("training", {}).get("steps"):
        return []
    if trajectory(then) == trajectory(now):
        resumed = max((step for step, _ in asked.resuming.pieces(run, sorted(study.study.checkpoints))), default=0)
        if resumed:
            return [f"it goes on from the checkpoint of step {resumed}"]
        return ["it starts anew: no checkpoint of the present code, corpus and base is there to go on from"]
    return ["it starts anew: a schedule of its learning rate or alpha ends at the last step, or more has changed"]


def _differing_alpha(old: str, study: ResolvedStudy, run: str) -> list[str]:
    """Equal settings, other values: the code of a schedule or of a default changed."""
    path = Path(layout.spec(layout.RUNS, old))
    if not path.exists():
        return []
    then, now = read_spec(path), _spec(study, run)
    for term in ("output", "hidden"):
        values = [((spec.get("alignment") or {}).get(term) or {}).get("alpha", 0.0) for spec in (then, now)]
        steps = (now.get("training") or {}).get("steps", 0)
        series = [value if isinstance(value, list) else [value] * steps for value in values]
        step = next((i for i, (a, b) in enumerate(zip(*series, strict=False)) if a != b), None)
        if step is not None:
            return [f"alpha of the {term} differs from step {step} on: {series[0][step]:g} -> {series[1][step]:g}"]
    return differences(then, now)


def _why_measured(study: ResolvedStudy, before: dict[str, Any] | None, job: PlannedJob) -> list[str]:
    """An evaluation whose training stays."""
    if job.record.exists():
        code = study.evaluation_code(job.rule, job.run)
        changed = _changed(job.record, code, modules(METRICS[job.rule].module))
        return [f"{', '.join(changed)} changed" if changed else f"{job.rule}: the engine says: {job.reason}"]
    if before is None or job.rule not in before["evaluations"]:
        return [f"{job.rule} is new" if before else f"{job.rule}: not measured yet"]
    now = study.summary()["evaluations"][job.rule]
    said = differences(
        {key: value for key, value in before["evaluations"][job.rule].items() if key != "id"},
        {key: value for key, value in now.items() if key != "id"},
    )
    return [f"evaluations.{job.rule}.{some}" for some in said] or [f"{job.rule}: not measured yet"]


def _why_group(
    study: synthetic.ResolvedSynthetic, before: dict[str, Any] | None, group: str, job: PlannedJob
) -> list[str]:
    """A group of a synthetic study, whose models are trained and tested by one job."""
    if job.record.exists():
        changed = _changed(job.record, study.code, modules(synthetic.TRAINING))
        return [f"{', '.join(changed)} changed" if changed else f"the engine says: {job.reason}"]
    if before is None:
        return ["not trained yet"]
    if group in before["groups"]:
        return ["not finished yet"]
    now = canonical(study.groups[group])
    alike = (
        then
        for then in before["groups"].values()
        if all(then[key] == now[key] for key in ("task", "encoding")) and bool(then["alpha"]) == bool(now["alpha"])
    )
    return next((differences(then, now) for then in alike), ["new group"])


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


def _changed(record: Path, code: str, now: dict[str, str]) -> list[str]:
    """The modules that differ from those that a result was made by, where that was not the code that makes it now."""
    made = read_record(record, like={"code": str, "modules": HASHES})
    return [] if made["code"] == code else changed_modules(made["modules"], now)


def _steps_of_records(folder: Path) -> set[int]:
    names = (path.stem for path in folder.glob("*.json"))
    return {int(step) for name in names if re.fullmatch(r"\d+(-\d+)*", name) for step in name.split("-")}


def _spec(study: ResolvedStudy, run: str) -> dict[str, Any]:
    spec: dict[str, Any] = json.loads(study.texts[run])
    return spec


# ---- in words --------------------------------------------------------------------------------------------------------


def text(plan: Plan) -> str:
    """The plan for people; arms with the same jobs for the same reasons stand together."""
    total = sum(sum(jobs.values()) for jobs in plan.jobs.values())
    if not total and not plan.others:
        if plan.target != "all":
            return f"study {plan.study}: nothing to do for {plan.target}"
        return f"study {plan.study}: nothing to do, every result is up to date"
    lines = [f"study {plan.study}"]
    grouped: dict[tuple[tuple[str, ...], tuple[tuple[str, int], ...]], list[str]] = {}
    for arm, said in plan.why.items():
        grouped.setdefault((tuple(said), tuple(plan.jobs[arm].items())), []).append(arm)
    for (reasons, jobs), arms in grouped.items():
        counted = ", ".join(f"{count} {rule}" for rule, count in jobs)
        if not jobs:  # its runs stand with another arm
            lines += ["", *(f"  {arm}: {', '.join(reasons)}" for arm in arms)]
            continue
        lines += ["", f"  {', '.join(arms)}: {counted}{' each' if len(arms) > 1 else ''}"]
        lines += [f"      {reason}" for reason in reasons]
    if plan.others:
        lines += ["", f"  then {', '.join(plan.others)}"]
    if plan.stays:
        lines += ["", f"  stays: {', '.join(plan.stays)}"]
    return "\n".join([*lines, "", *(_cost_lines(plan.cost) if plan.cost else ["  its cost is not counted"])])


def _cost_lines(what: cost.Cost) -> list[str]:
    lines = [
        f"  about {_duration(what.device_hours * 3600)} of device time, {_duration(what.wall_seconds)} with "
        f"{what.jobs_at_once} job{'s' if what.jobs_at_once > 1 else ''} at a time, "
        f"{_size(what.storage_bytes)} of checkpoints",
    ]
    if what.storage_bytes:
        lines.append(f"  at most {_size(what.storage_peak_bytes)} of checkpoints while they are trained")
    if what.memory:
        each = ", ".join(f"{part} {_size(taken)}" for part, taken in what.memory.items())
        lines.append(f"  a training takes about {_size(sum(what.memory.values()))} a process: {each}")
    return [*lines, *(f"      {source}" for source in what.sources)]


def _size(taken: float) -> str:
    return (
        f"{taken / 1e12:,.1f} TB"
        if taken >= 1e12
        else f"{taken / 1e9:,.1f} GB"
        if taken >= 1e9
        else f"{taken / 1e6:,.0f} MB"
    )


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:,.1f} h"
