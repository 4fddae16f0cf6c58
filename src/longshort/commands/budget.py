"""Which arms, or which seeds, of a study fit a budget of device-hours: `longshort plan --budget`, and `--config
study=NAME budget=HOURS` of the engine, which then submits nothing that is beyond it.

Arms fit whole, with all their seeds and evaluations, in the order of the study's file, each with its control, up to the
first that does not. What all arms need is counted ahead of them: the bases and LongPPL's key tokens. What is finished
costs nothing; the corpus, the tables and the plots, which need no device, are not counted (cost.py).
"""

from __future__ import annotations

from dataclasses import dataclass

from longshort.commands import cost
from longshort.errors import UserError
from longshort.study.wiring import ResolvedStudy


@dataclass
class Fitting:
    """What of a study's unfinished work fits a budget; hours are device-hours.

    Attributes:
        shared: what is needed whatever arms are chosen.
        arms: what each arm needs besides, in the order of the file; what it shares with an arm before it counts there.
        fitting: the arms that fit, in the order of the file.
        seeds: the first so many of the seeds with which all arms fit; empty if they do with none.
    """

    budget: float
    needed: float
    shared: float
    arms: dict[str, float]
    fitting: list[str]
    seeds: list[int]

    @property
    def whole(self) -> bool:
        """Whether all of it fits."""
        return self.needed <= self.budget


def fitting(
    study: ResolvedStudy,
    work: list[cost.Work],
    budget: float,
    throughput: float | None = None,
    data_anew: bool = False,
) -> Fitting:
    """
    Args:
        work: what is to be done.
        throughput, data_anew: as in cost.seconds_of.

    Raises:
        Altered: as cost.seconds_of.
    """
    hours: dict[str, float] = {}  # by run; what is of the corpus is of all
    for one, (seconds, _) in cost.seconds_of(study, work, throughput, data_anew).items():
        hours[one.run] = hours.get(one.run, 0.0) + seconds * cost.processes(study, one) / 3600
    of_arms = {run for runs in study.arm_runs.values() for run in runs.values()}
    shared = sum(each for run, each in hours.items() if run not in of_arms)
    left, arms = dict(hours), {}
    for arm, runs in study.arm_runs.items():
        arms[arm] = sum(left.pop(run, 0.0) for run in dict.fromkeys(runs.values()))
    return Fitting(
        budget=budget,
        needed=sum(hours.values()),
        shared=shared,
        arms=arms,
        fitting=_fitting_arms(study, hours, budget - shared),
        seeds=_fitting_seeds(study, hours, budget),
    )


def _fitting_arms(study: ResolvedStudy, hours: dict[str, float], budget: float) -> list[str]:
    chosen: list[str] = []
    for arm in study.arm_runs:
        more = [*chosen, *(each for each in _with_controls(study, arm) if each not in chosen)]
        runs = {run for each in more for run in study.arm_runs[each].values()}
        if sum(hours.get(run, 0.0) for run in runs) > budget:
            break
        chosen = more
    return [arm for arm in study.arm_runs if arm in chosen]


def _with_controls(study: ResolvedStudy, arm: str) -> list[str]:
    """The arm, and the one that it is compared with, and so on."""
    control = study.arms[arm].control
    return [arm, *(_with_controls(study, control) if control else [])]


def _fitting_seeds(study: ResolvedStudy, hours: dict[str, float], budget: float) -> list[int]:
    seeds = study.study.seeds
    for count in range(len(seeds), 0, -1):
        out, by_seed = set(seeds[count:]), (*study.arm_runs.values(), study.bases, study.extended_bases)
        kept = {run for runs in by_seed for seed, run in runs.items() if seed not in out}
        left_out = {run for runs in by_seed for run in runs.values()} - kept
        if sum(each for run, each in hours.items() if run not in left_out) <= budget:
            return seeds[:count]
    return []


def refuse_beyond(found: Fitting, study: ResolvedStudy) -> None:
    """
    Raises:
        UserError: not all of it fits; it says what does, and how to ask for that.
    """
    if not found.whole:
        raise UserError(f"study {study.name}: {text(found, study)}")


def text(found: Fitting, study: ResolvedStudy) -> str:
    """For people."""
    needed, budget = _hours(found.needed), f"{found.budget:,g}"
    if found.whole:
        return f"all that is not finished fits the budget: {needed} of {budget} device-hours"
    out = [arm for arm in found.arms if arm not in found.fitting]
    within = found.shared + sum(found.arms[arm] for arm in found.fitting)
    lines = [
        f"what is not finished needs {needed} device-hours, more than the budget of {budget}",
        f"  bases and what else all arms share: {_hours(found.shared)}",
        f"  arms that fit, in the order of the file, whole: {_listed(found, found.fitting) or 'none'}",
        f"  arms that do not: {_listed(found, out)}",
    ]
    if found.fitting:
        lines.append(f"to ask for {_hours(within)} device-hours: `arms: [{', '.join(found.fitting)}]`")
    if found.seeds:
        lines.append(f"to ask for all arms with fewer seeds: `seeds: {found.seeds}`")
    if not found.fitting and not found.seeds:
        lines.append("no arm fits with all seeds, and not all arms do with one: take out arms and seeds, or steps")
    lines.append(
        f"Change config/studies/{study.name}.yaml so, or raise the budget. What is taken out now can be put back "
        "later, and nothing is made twice"
    )
    return "\n".join(lines)


def _listed(found: Fitting, arms: list[str]) -> str:
    return ", ".join(f"{arm} {_hours(found.arms[arm])}" for arm in arms)


def _hours(hours: float) -> str:
    return f"{hours:,.0f}" if hours >= 1000 else f"{hours:.3g}"
