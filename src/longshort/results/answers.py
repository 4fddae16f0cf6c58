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
    """Sentences, of what the study asks: alignment at all, dynamic alpha, alpha by the ratio of lengths or by growing
    views where there are such arms, hidden layers, the best alpha by length, the share of what training at length
    gains, what of SCE is calibration, what goes with long-context scores, and how small an effect could be seen; and
    what they say of the base."""
    numbers = compare.Numbers(metrics, study)
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
        *(
            [("Alpha times a ratio of lengths against the constant one", [(one, control[one]) for one in more])]
            * bool(more)
        ),
        *([("Growing views against those of the same mean", [(one, control[one]) for one in growing])] * bool(growing)),
        (
            "Hidden layers alone against none, and added to the output against the output alone",
            [(name, control[name] or "baseline") for name in hidden],
        ),
    ]
    said = []
    for subject, pairs in asked:
        there = [(arm, reference) for arm, reference in pairs if arm in names and reference in names]
        said.append(_answer(numbers, study, plots_compared.gained(study), subject, there))
    said += best_alpha.answer(metrics, study, numbers) + share.answer(study, numbers)
    said += _calibration(numbers, study) + predictors.answer(metrics, study) + components.answer(numbers, study)
    return [*said, replicates.sentence(study)]


def _calibration(numbers: compare.Numbers, study: dict[str, Any]) -> list[str]:
    """What the paper's divergence does to the perplexity, as it is and at the temperature that fits best."""
    chosen = plots_compared.gained(study)
    raw = chosen.key.replace("_checkpoint_t@", "@")
    known = {column.key: column for column in columns_of(study)}
    both = [known[key] for key in (raw, raw.replace("@", "_checkpoint_t@")) if key in known]
    names = [arm["name"] for arm in study["arms"]]
    asked = [
        (arm["name"], arm["control"] or share.BASELINE)
        for arm in study["arms"]
        if arm["settings"]["alignment"].get("divergence") == "sce" and arm["settings"]["alignment"]["alpha"]
    ]
    if len(both) < 2 or not asked or share.BASELINE not in names:
        return []
    seeds, step = [int(seed) for seed in study["seeds"]], int(study["checkpoints"][-1])
    said = []
    for arm, reference in asked:
        found = [numbers.compared(column, arm, reference, step, seeds) for column in both]
        if all(one.n == len(seeds) for one in found):
            shown = [f"{_shown(one, column)} by {column.header}" for one, column in zip(found, both, strict=True)]
            said.append(f"{arm} to {reference} {' and '.join(shown)}")
    if not said:
        return []
    return [f"Whether what SCE does is calibration, at step {step}: {'; '.join(said)} (95 % of each effect alone)."]


def _shown(found: compare.Compared, column: Column, joint: bool = False) -> str:
    """The effect with its interval alone, or the one that holds for all claims together."""
    unit, decimals = (" %", 1) if column.relative else ("", column.decimals)
    low, high = (found.joint_low, found.joint_high) if joint else (found.low, found.high)
    shown = f"{formats.number(found.mean, decimals, sign=True)}{unit}"
    if not math.isfinite(low):
        return shown
    return f"{shown} [{', '.join(formats.number(end, decimals, sign=True) for end in (low, high))}]"


def _verdict(found: compare.Compared, column: Column, margin: float | None, unit: str) -> str:
    """By the joint interval, and by the margin within which the study counts an effect as none."""
    excludes = found.joint_low > 0 or found.joint_high < 0
    said = "better" if (found.mean > 0) == column.higher_is_better else "worse"
    if margin is None:
        return said if excludes else "no difference was found"
    if max(-found.joint_low, found.joint_high) < margin:
        return f"{said}, by less than {margin:g}{unit}" if excludes else f"no difference of {margin:g}{unit} or more"
    return said if excludes else "undecided"


def _answer(
    numbers: compare.Numbers, study: dict[str, Any], column: Column, subject: str, pairs: list[tuple[str, str]]
) -> str:
    seeds, step = [int(seed) for seed in study["seeds"]], int(study["checkpoints"][-1])
    draws, unit = replicates.count(study), replicates.unit(study)
    runs = {arm["name"]: arm["runs"] for arm in study["arms"]}
    family = compare.comparisons(study)
    parts: dict[str, list[str]] = {}
    for arm, reference in pairs:
        name = f"{arm} to {reference}"
        if runs[arm] == runs[reference]:
            parts.setdefault("the same run", []).append(name)
            continue
        found = numbers.compared(column, arm, reference, step, seeds, family)
        if found.n < len(seeds):
            parts.setdefault("not measured with every seed", []).append(name)
            continue
        unit = " %" if column.relative else ""
        judged = study.get("primary") == column.key and draws >= statistics.SEEDS_FOR_AN_INTERVAL
        claimed = judged and compare.is_claimed(study, arm, reference)
        shown = _shown(found._replace(low=math.nan) if not judged else found, column, joint=claimed)
        if judged and not claimed:
            verdict = "not among the claims (each interval for itself)"
        elif judged:
            if equivalent := formats.equivalence(found.joint_low, found.joint_high, unit):
                shown += f" ({equivalent})"
            verdict = _verdict(found, column, study.get("margin"), unit)
        else:
            verdict = "no claim is made"
        parts.setdefault(verdict, []).append(f"{name} {shown}")
    if not parts:
        return f"{subject}: no arm of this study asks that."
    why = ""
    if "no claim is made" in parts:
        few = f"{draws} {unit}{'s' if draws > 1 else ''} cannot show one"
        why = f" ({few if draws < statistics.SEEDS_FOR_AN_INTERVAL else 'the study names no primary number'})"
    listed = "; ".join(
        f"{verdict}{why if verdict == 'no claim is made' else ''}: {', '.join(some)}" for verdict, some in parts.items()
    )
    return f"{subject}, by {column.header} at step {step}: {listed}."
