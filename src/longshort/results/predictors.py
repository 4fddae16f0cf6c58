"""What goes with long-context results: misalignment, training loss or LongPPL. The paper's Table 1 asks the same."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from longshort.metrics.catalog import scores_of
from longshort.metrics.record import Score
from longshort.results import compare, long_table, replicates, statistics

EXPLAINING = {"symkl": "symKL at {l_train} (nats)", "sce": "SCE at {l_train} (nats)", "loss": "training loss (nats)"}
LONGPPL = "longppl"
FORMS = ("symkl", "sce")  # of one thing, misalignment


def explaining(study: dict[str, Any]) -> dict[str, str]:
    """What may explain a score -> its label."""
    labels = {name: label.format(l_train=study["l_train"]) for name, label in EXPLAINING.items()}
    longest = _longppl(study)
    return labels if longest is None else {**labels, LONGPPL: longest.label}


def _longppl(study: dict[str, Any]) -> Score | None:
    return next((score for score in scores_of(study["evaluations"]) if score.metric == LONGPPL), None)


def points(metrics: pd.DataFrame, study: dict[str, Any]) -> pd.DataFrame:
    """One row for each checkpoint of each run: symkl and sce at l_train, loss (mean cross-entropy of the steps since
    the checkpoint before it), longppl (its logarithm at the longest length), and the long-context scores, by label;
    run, and draw: what is resampled."""
    l_train = int(study["l_train"])
    rows = long_table.single(metrics)
    wanted: dict[str, tuple[str, int | None, str | None]] = {name: (name, l_train, None) for name in ("symkl", "sce")}
    scores = scores_of(study["evaluations"])
    wanted |= {score.label: (score.metric, score.length, score.task) for score in scores}
    keys = ["arm", "seed", "step"]
    series = {
        name: long_table.at(rows, *at).drop_duplicates(keys).set_index(keys)["value"] for name, at in wanted.items()
    }
    for score in scores:
        if score.log:
            series[score.label] = series[score.label].map(compare.log)
    if (longest := _longppl(study)) is not None:
        series[LONGPPL] = series[longest.label]
    ce = metrics[metrics["metric"].eq("train/ce")]
    steps = [0, *(int(step) for step in study["checkpoints"])]
    before = pd.cut(ce["step"], steps, labels=steps[1:]).astype("Int64")
    series["loss"] = ce.assign(step=before).dropna(subset="step").groupby(keys)["value"].mean()
    found = pd.DataFrame(series).reset_index()
    arms = [arm for arm in study["arms"] if not arm.get("reference")]  # a loss at another length is another number
    runs = {(arm["name"], int(seed)): run for arm in arms for seed, run in arm["runs"].items()}
    found["run"] = [runs.get((arm, int(seed))) for arm, seed in zip(found["arm"], found["seed"], strict=True)]
    # Runs of one base resemble each other: where each seed has its own, bases are what was drawn.
    unit_of = replicates.unit_of(study)
    found["draw"] = found["seed"].map(unit_of) if over_bases(study) else found["run"]
    # Arms that are the same run are one point, of the first of them, and the base is no run of the study.
    order = [arm["name"] for arm in arms]
    found = found[found["run"].notna()].sort_values("arm", key=lambda names: names.map(order.index), kind="stable")
    return found.drop_duplicates(["run", "step"]).sort_index().reset_index(drop=True)


def over_bases(study: dict[str, Any]) -> bool:
    """Whether intervals are of a bootstrap over bases, and not over runs."""
    return len(replicates.base_rows(study)) > 1


def correlations(metrics: pd.DataFrame, study: dict[str, Any]) -> list[tuple[str, Score, statistics.Correlation]]:
    """(explaining, explained, correlation) of each with each long-context score, but of none with itself."""
    found = points(metrics, study)
    result = []
    for explained in scores_of(study["evaluations"]):
        for name in explaining(study):
            if name != explained.metric:
                columns = {"x": found[name], "y": found[explained.label], "run": found["run"], "draw": found["draw"]}
                pairs = pd.DataFrame(columns)
                result.append((name, explained, statistics.correlation(pairs)))
    return result


def answer(metrics: pd.DataFrame, study: dict[str, Any]) -> list[str]:
    """A sentence for the report on each score of LongBench-E: which goes with it best, if that can be told."""
    if "misalignment" not in study["evaluations"]:
        return []
    all_found, of = correlations(metrics, study), points(metrics, study)
    said = []
    for explained in scores_of(study["evaluations"]):
        found = {name: one for name, other, one in all_found if other == explained}
        if explained.metric.startswith("longbench") and all(math.isfinite(one.pearson_low) for one in found.values()):
            said.append(_sentence(explained, found, study, of))
    return said


def _sentence(
    explained: Score, found: dict[str, statistics.Correlation], study: dict[str, Any], of: pd.DataFrame
) -> str:
    """One explains best whose |r| is above that of each other (but for its other form) by an interval of the lead: of
    several that are known as badly, one is the first by chance."""
    labels, bases = explaining(study), over_bases(study)
    best = max(found, key=lambda name: abs(found[name].pearson))
    rivals = set(found) - (set(FORMS) if best in FORMS else {best})
    one = found[best]
    leads = [
        statistics.lead(pd.DataFrame({"x": of[best], "rival": of[rival], "y": of[explained.label], "draw": of["draw"]}))
        for rival in sorted(rivals)
    ]
    decided = all(lead > 0 for lead in leads)
    verdict = f"{labels[best]} goes with it best" if decided else "which goes with it best is undecided"
    listed = ", ".join(
        f"{labels[name]} {each.pearson:.2f} [{each.pearson_low:.2f}, {each.pearson_high:.2f}]"
        for name, each in found.items()
    )
    return (
        f"Correlation (Pearson) with {explained.label}, over {one.points} checkpoints of {one.runs} runs: {verdict}: "
        f"{listed} (95 % of a bootstrap over {'bases' if bases else 'runs'})."
    )
