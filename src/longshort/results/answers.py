"""What the numbers of a study say to its question, in sentences."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from longshort.metrics.record import Column
from longshort.results import (
    best_alpha,
    compare,
    components,
    formats,
    plots_compared,
    predictors,
    replicates,
    share,
    statistics,
)
from longshort.results.columns import columns_of


def answers(metrics: pd.DataFrame, study: dict[str, Any]) -> list[str]:
    """Sentences: what the numbers say to the study's question, then what they say besides."""
    numbers = compare.Numbers(metrics, study)
    return to_question(numbers, study) + besides(metrics, study, numbers)


def to_question(numbers: compare.Numbers, study: dict[str, Any]) -> list[str]:
    """Of the effects that are claimed (of all where none can be): alignment at all, dynamic alpha, alpha by the ratio
    of lengths or by growing views where there are such arms, hidden layers."""
    return [_answer(numbers, study, subject, pairs) for subject, pairs in _asked(study, claimed=True) if pairs]


def besides(metrics: pd.DataFrame, study: dict[str, Any], numbers: compare.Numbers) -> list[str]:
    """The effects that are not claimed, the best alpha by length, the share of what training at length gains, what of
    SCE is calibration, what goes with long-context scores, how small an effect could be seen, and what is drawn."""
    said = [_answer(numbers, study, subject, pairs) for subject, pairs in _asked(study, claimed=False) if pairs]
    said += best_alpha.answer(metrics, study, numbers) + share.answer(study, numbers)
    said += _calibration(numbers, study) + predictors.answer(metrics, study) + components.answer(numbers, study)
    return [*said, replicates.sentence(study)]


def _asked(study: dict[str, Any], claimed: bool) -> list[tuple[str, list[tuple[str, str]]]]:
    """Subjects, and of each the arms and their references."""
    names = [arm["name"] for arm in study["arms"]]
    control = {arm["name"]: arm["control"] for arm in study["arms"]}
    hidden = [arm["name"] for arm in study["arms"] if (arm["settings"]["alignment"].get("hidden") or {}).get("alpha")]
    alignment = {arm["name"]: arm["settings"]["alignment"] for arm in study["arms"]}
    others = [name for name in names if control[name] and name not in hidden]
    more = [name for name in others if (alignment[name].get("schedule") or {}).get("times", 1.0) != 1.0]
    growing = [name for name in others if alignment[name].get("sampling_start")]
    dynamic = [name for name in others if name not in more + growing]
    asked = [
        ("Alignment with a constant alpha against none", [("constant", "baseline")]),
        ("A dynamic alpha against the constant one that spends as much", [(name, control[name]) for name in dynamic]),
        ("Alpha times a ratio of lengths against the constant one", [(name, control[name]) for name in more]),
        ("Growing views against those of the same mean", [(name, control[name]) for name in growing]),
        (
            "Hidden layers alone against none, and added to the output against the output alone",
            [(name, control[name] or "baseline") for name in hidden],
        ),
    ]
    judged = replicates.count(study) >= statistics.SEEDS_FOR_AN_INTERVAL and study.get("primary")

    def stands_here(arm: str, reference: str) -> bool:
        return not judged or compare.is_claimed(study, arm, reference)

    return [
        (subject, [pair for pair in pairs if set(pair) <= set(names) and stands_here(*pair) == claimed])
        for subject, pairs in asked
    ]


def _calibration(numbers: compare.Numbers, study: dict[str, Any]) -> list[str]:
    """What the paper's divergence does to the perplexity, as it is and at the temperature that fits best: the primary
    one, else the one at the greatest length."""
    known = {column.key: column for column in columns_of(study)}
    primary = str(study.get("primary")).replace("_checkpoint_t@", "@")
    raw = [key for key in [*known, primary] if key.startswith("perplexity@") and key in known]
    both = [(key, key.replace("@", "_checkpoint_t@")) for key in raw if key.replace("@", "_checkpoint_t@") in known]
    by_sce = {
        arm["name"]: arm["settings"]["alignment"].get("divergence") == "sce" and arm["settings"]["alignment"]["alpha"]
        for arm in study["arms"]
    }
    controls = {arm["name"]: arm["control"] or share.BASELINE for arm in study["arms"]}
    asked = [(arm, controls[arm]) for arm in by_sce if by_sce[arm] and not by_sce.get(controls[arm])]
    if not both or not asked or share.BASELINE not in by_sce:
        return []
    columns = [known[key] for key in both[-1]]
    seeds, step = [int(seed) for seed in study["seeds"]], int(study["checkpoints"][-1])
    said = []
    for arm, reference in asked:
        found = [numbers.compared(column, arm, reference, step, seeds) for column in columns]
        if all(one.n == len(seeds) for one in found):
            shown = [f"{_shown(one, column)} by {column.header}" for one, column in zip(found, columns, strict=True)]
            said.append(f"{arm} to {reference} {' and '.join(shown)}")
    if not said:
        return []
    return [f"Whether what SCE does is calibration, at step {step}: {'; '.join(said)} (95 % of each effect alone)."]


def _shown(found: compare.Compared, column: Column, joint: bool = False) -> str:
    """The effect with its interval alone, or the one that holds for all claims together."""
    unit, decimals = (" %", 1) if column.relative else ("", column.decimals)
    ends = (found.joint_low, found.joint_high) if joint else (found.low, found.high)
    return formats.effect(found.mean, *ends, decimals, unit)


def _verdict(found: compare.Compared, column: Column, margin: float | None, unit: str) -> str:
    """By the joint interval, and by the margin within which the study counts an effect as none."""
    excludes = found.joint_low > 0 or found.joint_high < 0
    said = "better" if (found.mean > 0) == column.higher_is_better else "worse"
    if margin is None:
        return said if excludes else "no difference was found"
    if max(-found.joint_low, found.joint_high) < margin:
        return f"{said}, by less than {margin:g}{unit}" if excludes else f"no difference of {margin:g}{unit} or more"
    return said if excludes else "undecided"


def _answer(numbers: compare.Numbers, study: dict[str, Any], subject: str, pairs: list[tuple[str, str]]) -> str:
    column, seeds, step = plots_compared.gained(study), [int(one) for one in study["seeds"]], study["checkpoints"][-1]
    draws, unit, margin = replicates.count(study), replicates.unit(study), study.get("margin")
    runs = {arm["name"]: arm["runs"] for arm in study["arms"]}
    percent = " %" if column.relative else ""
    parts: dict[str, list[str]] = {}
    for arm, reference in pairs:
        name = f"{arm} to {reference}"
        found = numbers.compared(column, arm, reference, int(step), seeds, compare.comparisons(study))
        if runs[arm] == runs[reference]:
            parts.setdefault("the same run", []).append(name)
        elif found.n < len(seeds):
            asked = ((one, numbers.absence(column, one, int(step), seeds)) for one in (arm, reference))
            absent = "; ".join(f"{one} {what}" for one, what in asked if what != "ok")
            parts.setdefault("not measured with every seed", []).append(f"{name} ({absent})" if absent else name)
        elif study.get("primary") != column.key:
            shown = _shown(found._replace(low=math.nan), column)
            parts.setdefault("no claim is made (the study names no primary number)", []).append(f"{name} {shown}")
        elif draws < statistics.SEEDS_FOR_AN_INTERVAL:
            few = f"no claim is made ({draws} {unit}{'s' if draws > 1 else ''} cannot show one)"
            parts.setdefault(few, []).append(f"{name} {_shown(found._replace(low=math.nan), column)}")
        elif not compare.is_claimed(study, arm, reference):
            parts.setdefault("not claimed (each interval for itself)", []).append(f"{name} {_shown(found, column)}")
        else:
            shown = _shown(found, column, joint=True)
            equivalent = formats.equivalence(found.joint_low, found.joint_high, percent)
            shown += f" ({equivalent})" if equivalent and margin is None else ""
            parts.setdefault(_verdict(found, column, margin, percent), []).append(f"{name} {shown}")
    listed = "; ".join(f"{verdict}: {', '.join(some)}" for verdict, some in parts.items())
    return f"{subject}, by {column.header} at step {step}: {listed}."
