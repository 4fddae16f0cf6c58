"""What docs/findings.md has to say of a study, from its published numbers: the rows of its table, and its answers."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from longshort.results import answers, best_alpha, compare, formats, predictors, replicates, share, statistics
from longshort.results.columns import columns_of

SHOWN = {
    "perplexity@128": 2, "perplexity@1024": 2, "perplexity_checkpoint_t@1024": 2, "longppl@1024": 2, "symkl@1024": 3
}  # fmt: skip


def rows(
    metrics: pd.DataFrame, study: dict[str, Any], shown: dict[str, int] = SHOWN, effect: tuple[int, int] = (3, 1)
) -> list[str]:
    """A line for each model: mean ± sd over seeds; of the primary number the effect, with the joint interval where it
    is claimed and the one for itself elsewhere.

    Args:
        shown: columns, and how many decimals of each.
        effect: after how many of them it comes, and its decimals.
    """
    numbers = compare.Numbers(metrics, study)
    known = {column.key: column for column in columns_of(study)}
    seeds, step = [int(seed) for seed in study["seeds"]], int(study["checkpoints"][-1])
    lines = []
    models = {name: (0, list(runs)) for name, runs in replicates.models(study).items()}
    models |= {arm["name"]: (step, seeds) for arm in study["arms"]}
    for name, (at, of) in models.items():
        cells = []
        for key, decimals in shown.items():
            found = statistics.summarise(numbers.by_seed(known[key], name, at, of))
            spread = "" if math.isnan(found.sd) else f" ± {found.sd:.{decimals}f}"
            cells.append(f"{found.mean:.{decimals}f}{spread}")
        cells.insert(effect[0], _effect(numbers, study, name, effect[1]))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def _effect(numbers: compare.Numbers, study: dict[str, Any], name: str, decimals: int) -> str:
    control = {arm["name"]: arm["control"] or "baseline" for arm in study["arms"]}
    if name not in control or name in {"baseline", *replicates.references(study)}:
        return ""
    found = compared(numbers, study, name, control[name])
    claimed = compare.is_claimed(study, name, control[name])
    low, high = (found.joint_low, found.joint_high) if claimed else (found.low, found.high)
    mark = " †" if claimed and (low > 0 or high < 0) else ""
    return formats.effect(found.mean, low, high, decimals) + mark


def compared(
    numbers: compare.Numbers, study: dict[str, Any], arm: str, reference: str, key: str | None = None
) -> compare.Compared:
    column = next(one for one in columns_of(study) if one.key == (key or study["primary"]))
    seeds, step = [int(seed) for seed in study["seeds"]], int(study["checkpoints"][-1])
    return numbers.compared(column, arm, reference, step, seeds, compare.comparisons(study))


def verdicts(metrics: pd.DataFrame, study: dict[str, Any]) -> dict[str, str]:
    """The answers to the registered questions, by the rules that docs/findings.md states."""
    numbers = compare.Numbers(metrics, study)
    margin = float(study["margin"])

    def joint(*arms: str) -> str:
        control = {arm["name"]: arm["control"] or "baseline" for arm in study["arms"]}
        found = [compared(numbers, study, arm, control[arm]) for arm in arms]
        if any(one.joint_high < 0 for one in found):
            return "yes"
        return "no" if all(one.joint_low > -margin for one in found) else "undecided"

    table = best_alpha.table_of(study)
    assert table is not None
    metric = study["primary"].partition("@")[0]
    [alphas] = [one for one in best_alpha.by_length(metrics, study, table, numbers) if one.columns[0].metric == metric]
    slope, edge = alphas.slope, bool(alphas.at_edge.any())
    assert slope is not None
    grows = "yes" if slope.low > 0 else "no" if slope.low <= 0 <= slope.high < 0.5 else "undecided"
    raw = compared(numbers, study, "sce", "baseline", study["primary"].replace("_checkpoint_t@", "@"))
    fitted = compared(numbers, study, "sce", "baseline")
    hurts, as_much = raw.low > 0, fitted.low > margin
    harm = "yes" if hurts and fitted.high < margin else "no" if as_much or not hurts else "undecided"
    predicted = " ".join(predictors.answer(metrics, study))
    return {
        "a": joint("step-linear", "step-cosine", "step-exponential", "view-ratio", "curriculum"),
        "b": "undecided" if edge else grows,
        "c": joint("hidden", "hidden+output"),
        "d": harm,
        "f": "undecided" if "undecided" in predicted else "decided",
    }


def sentences(metrics: pd.DataFrame, study: dict[str, Any]) -> list[str]:
    return answers.answers(metrics, study)


def way(metrics: pd.DataFrame, study: dict[str, Any], arm: str) -> str:
    """The share of the way to the model trained at length, in per cent."""
    numbers = compare.Numbers(metrics, study)
    column = next(one for one in columns_of(study) if one.key == study["primary"])
    found = share.of(numbers, study, column, arm, "long")
    assert found is not None
    return f"{100 * found.ratio:.0f} % [{100 * found.low:.0f}, {100 * found.high:.0f}]"
