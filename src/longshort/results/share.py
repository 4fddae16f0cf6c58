"""How much of the way from the baseline to a model that has seen long texts an arm goes, by log perplexity."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from longshort.metrics.record import Column
from longshort.results import compare, formats, plots_compared, replicates, statistics
from longshort.results.columns import columns_of

BASELINE = "baseline"


def columns(study: dict[str, Any]) -> list[Column]:
    """The perplexities that the share is given of: the primary number if it is one, and LongPPL at its longest."""
    measured = columns_of(study)
    longest = {column.metric: column for column in measured if column.relative}  # of each metric, the last length
    found = [plots_compared.gained(study), *(longest[one] for one in ("longppl",) if one in longest)]
    found = [column for column in dict.fromkeys(found) if column.relative]
    return found or [longest[one] for one in ("perplexity",) if one in longest]


def reached(study: dict[str, Any]) -> str | None:
    """The model at the other end of the way: the arm that was trained at the greatest length, which starts from the
    baseline's base with every seed; else the base that was, one for all seeds; None: there is neither."""
    arms = {arm["name"]: arm["settings"]["lengths"]["train"] for arm in study["arms"] if arm.get("reference")}
    longer = {name: length for name, length in arms.items() if length > study["l_train"]}
    if longer:
        return max(longer, key=lambda name: longer[name])
    return replicates.LONG_BASE if study.get("long_base") else None


def of(numbers: compare.Numbers, study: dict[str, Any], column: Column, arm: str, end: str) -> statistics.Ratio | None:
    """mean over seeds of (baseline - arm) / mean over seeds of (baseline - end), of log perplexities, with Fieller's
    interval over seeds, or over bases that have several; None where a number is absent."""
    seeds, step = [int(seed) for seed in study["seeds"]], int(study["checkpoints"][-1])
    baseline = numbers.by_seed(column, BASELINE, step, seeds).map(compare.log)
    of_arm = numbers.by_seed(column, arm, step, seeds).map(compare.log)
    if end == replicates.LONG_BASE:
        one = numbers.by_seed(column, end, 0, [replicates.BASE_SEED]).map(compare.log)
        of_end = pd.Series(float(one.iloc[0]), index=baseline.index)
    else:
        of_end = numbers.by_seed(column, end, step, seeds).map(compare.log)
    gains = baseline - of_arm, baseline - of_end
    if not np.isfinite(pd.concat(gains)).all():
        return None
    return statistics.ratio_of_means(*(_of_units(study, gain) for gain in gains))


def _of_units(study: dict[str, Any], by_seed: pd.Series) -> NDArray[np.float64]:
    """Of each independent draw the mean of its seeds."""
    unit_of = replicates.unit_of(study)
    units = [unit_of[int(seed)] for seed in by_seed.index]
    return np.asarray(by_seed.groupby(units, sort=False).mean(), dtype=np.float64)


def answer(study: dict[str, Any], numbers: compare.Numbers) -> list[str]:
    """Sentences for the report, where the study has a model that has seen long texts, and a baseline."""
    runs, end = {arm["name"]: arm["runs"] for arm in study["arms"]}, reached(study)
    if end is None or BASELINE not in runs:
        return []
    arms = [arm for arm in runs if arm not in replicates.references(study) and runs[arm] != runs[BASELINE]]
    if not arms:
        return []
    chose = study["evaluations"].get("longppl", {}).get("evaluator", {}).get("kind") == "long"
    found = columns(study)
    if end == replicates.LONG_BASE and chose:  # its own LongPPL is of tokens that it chose
        found = [column for column in found if column.metric != "longppl"]
    return [_sentence(numbers, study, column, arms, end) for column in found]


def _sentence(numbers: compare.Numbers, study: dict[str, Any], column: Column, arms: list[str], end: str) -> str:
    step, unit = study["checkpoints"][-1], replicates.unit(study)
    asked = f"Of the way from {BASELINE} to {end}, by log {column.header} at step {step}"
    whole = of(numbers, study, column, end, end) if end != replicates.LONG_BASE else None
    shares = {arm: of(numbers, study, column, arm, end) for arm in arms}
    known = {arm: share for arm, share in shares.items() if share is not None}
    if not known or (end != replicates.LONG_BASE and whole is None):
        return f"{asked}: not measured with every seed."
    way = next(iter(known.values())).under
    if way <= 0:
        return f"{asked}: there is none, as {end} is no better than {BASELINE} there."
    claimed = {arm for arm, _ in compare.claims(study)} if study.get("claims") else set(arms)
    farthest = max(known, key=lambda arm: known[arm].ratio)
    said = [f"{arm} {_shown(share)}" for arm, share in known.items() if arm in claimed]
    seeds = [int(seed) for seed in study["seeds"]]
    absent = [arm for arm in shares if arm not in known and arm in claimed]
    said += [f"{arm} {numbers.absence(column, arm, int(step), seeds)}" for arm in absent]
    runs = {arm["name"]: arm["runs"] for arm in study["arms"]}
    if all(runs[farthest] != runs[arm] for arm in claimed):
        said.append(f"and {farthest}, farthest of those that are not claimed, {_shown(known[farthest])}")
    after = (
        f"in brackets Fieller's 95 % interval over {unit}s, documents held fixed"
        if any(math.isfinite(share.low) for share in known.values())
        else f"without an interval, as n = {replicates.count(study)} does not tell the way's own length from 0"
    )
    one = ", one model for all seeds" if end == replicates.LONG_BASE else ""
    return f"{asked} ({way:.3g} nats{one}), an arm goes: {', '.join(said)} ({after})."


def _shown(share: statistics.Ratio) -> str:
    ratio, low, high = (formats.number(100 * one, 0) for one in (share.ratio, share.low, share.high))
    return f"{ratio} % [{low}, {high}]" if math.isfinite(share.low) else f"{ratio} %"
