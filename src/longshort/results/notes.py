"""What a reader must know beside the numbers of a table."""

from __future__ import annotations

import re
from typing import Any

import pandas as pd

from longshort.metrics.catalog import METRICS
from longshort.results import compare, formats, long_table, replicates, statistics
from longshort.results.columns import columns_of, kind_of
from longshort.results.replicates import BASE, EXTENDED_BASE, LONG_BASE


def notes_of(
    metrics: pd.DataFrame,
    study: dict[str, Any],
    table: dict[str, Any],
    tidy: pd.DataFrame,
    runs: pd.DataFrame | None = None,
) -> list[str]:
    """The notes of a table, a sentence or two each.

    Args:
        runs: as collected, for the hardware; None: not said.
    """
    seeds = [int(seed) for seed in study["seeds"]]
    listed = ", ".join(str(seed) for seed in seeds)
    if len(seeds) > 1:
        notes = [
            f"Mean ± sample sd over n = {len(seeds)} seeds ({listed}) unless a cell says otherwise.",
            replicates.sentence(study),
        ]
    else:
        notes = [f"n = 1 seed ({listed}): no spread can be given.", replicates.sentence(study)]
    if kind_of(table) == "cost":
        notes.append(_hours_note(study, runs))
        notes.append(
            "Failed attempts are included. Operations: of one whole training, as `longshort plan` counts. Planned: "
            "as it estimated before the study began. Memory: the most that a training's processes took together."
        )
    else:
        notes += _comparison_notes(study, table) + _claim_notes(study, table) + _equivalence_notes(tidy)
    shown = set(tidy["metric"])
    if table["name"] == "main":
        bases = len(replicates.base_rows(study))
        said = "the base model before fine-tuning: one run" if bases == 1 else f"the {bases} bases before fine-tuning"
        notes.append(f"{BASE} is {said}, no part of the comparison.")
    notes += _reference_notes(study, table, shown)
    lengths = {"l_train": study["l_train"], "half": study["l_train"] // 2}
    for metric in METRICS.values():
        notes += [sentence.format(**lengths) for row, sentence in metric.legend.items() if row in shown]
    if "longbench_e" in shown:
        notes += _floor_notes(metrics)
    if kind_of(table) == "buckets":
        notes.append("Means over the tasks that have documents of so many words; the last column is the headline.")
    if "harness" in study["evaluations"] and kind_of(table) == "headline":
        notes += _harness_notes(metrics, study)
    if tidy["paper"].notna().any():
        sources = dict.fromkeys(one["source"] for one in study["published"])
        notes.append(
            f"paper: the published number, where the setting is comparable ({'; '.join(sources)}). The baseline here "
            "is trained on both views of each window, as every arm is; the paper's was probably trained on one, as the "
            "arm baseline-single-view is."
        )
    notes += _same_run_notes(study, table)
    # A column of which nothing was recorded is not shown.
    recorded = tidy.groupby("column")["status"].transform(lambda status: status.ne("not recorded").any())
    notes += absence_notes(metrics, tidy[recorded])
    notes += provenance_notes(metrics, study, table, tidy)
    notes += hardware_notes(runs, tidy)
    return notes


def _reference_notes(study: dict[str, Any], table: dict[str, Any], shown: set[str]) -> list[str]:
    """What the rows are that are no part of the comparison, but for the base."""
    notes = []
    if study.get("extended_bases") and table["name"] == "main":
        notes.append(
            f"{EXTENDED_BASE} is {BASE} with its context extended ({study['extended_by']}), untrained: where the arms "
            f"start. {BASE} is measured as it is, not extended, at every length."
        )
    for arm in study["arms"]:
        if arm.get("reference") and arm["name"] in table["arms"]:
            notes.append(
                f"{arm['name']} is trained on windows of {arm['settings']['lengths']['train']} tokens, as many tokens "
                "a step as the other arms: a reference, no part of the comparison."
            )
    if study.get("long_base") and table["name"] == "main":
        long = study["settings"]["lengths"]["test"]
        said = f"{LONG_BASE} is one model, trained from the start on windows of {long} tokens, as many tokens as {BASE}"
        chose = (study["evaluations"].get("longppl") or {}).get("evaluator", {}).get("kind") == "long"
        if chose and "longppl" in shown:
            said += (
                "; it chose the key tokens by its own loss, so that its LongPPL is below what another such model has"
            )
        notes.append(f"{said}.")
    return notes


def _hours_note(study: dict[str, Any], runs: pd.DataFrame | None) -> str:
    """Which time the hours are of."""
    if study.get("device") != "cpu" or runs is None:
        return "Device-hours: devices times hours that the jobs took."
    if long_table.knows_cpu_time(runs):
        return "CPU-hours: time on processors of a job with all its processes, whatever else the machine did meanwhile."
    return (
        "Device-hours: processes times hours that the jobs took, on machines that they may have shared: some of their "
        "records are older and hold no CPU time."
    )


def hardware_notes(runs: pd.DataFrame | None, tidy: pd.DataFrame) -> list[str]:
    if runs is None:
        return []
    behind = runs[runs["arm"].isin(tidy["arm"]) & runs["hardware"].notna()]
    counts = behind.groupby("hardware")["run"].nunique()
    listed = "; ".join(f"{name} ({count} runs)" if len(counts) > 1 else str(name) for name, count in counts.items())
    return [f"Hardware: {listed}."] if listed else []


def _floor_notes(metrics: pd.DataFrame) -> list[str]:
    """A mean over tasks says little where most of them are at their floor."""
    rows = metrics[(metrics["metric"] == "longbench_e") & ~metrics["task"].fillna("overall").str.contains(":|overall")]
    best = rows.groupby("task")["value"].max()
    floored = int((best == 0).sum())
    if not floored:
        return []
    return [f"LongBench-E: {floored} of {len(best)} tasks score 0 in every run; the mean rests on the others."]


def _harness_notes(metrics: pd.DataFrame, study: dict[str, Any]) -> list[str]:
    """Which metric each column of the harness shows: a task's rows begin with its main one."""
    rows = metrics.loc[metrics["metric"].eq("harness"), "task"].dropna().drop_duplicates()
    shown = []
    for task in study["evaluations"]["harness"]["tasks"]:
        first = next((row.removeprefix(f"{task}:") for row in rows if row.startswith(f"{task}:")), None)
        shown.append(f"{task}: {first or 'mean over its tasks'}")
    return [f"Main metrics of lm_eval's tasks: {'; '.join(shown)}."] if len(rows) else []


def _comparison_notes(study: dict[str, Any], table: dict[str, Any]) -> list[str]:
    """What is compared with what, and how the intervals are made."""
    marks = "Bold: best of the arms per column and checkpoint; underlined: second."
    to = compare.compared_with(study, table)
    if not to:
        return [marks]
    said = f"Differences: mean difference to {to}, paired by seed"
    if table.get("compare_with") == "control" and len(study["checkpoints"]) > 1:
        marks += " Amounts of alpha match over the whole training: before its end, a growing alpha has spent less."
    if len(study["seeds"]) < 2:
        return [f"{said}; perplexities in per cent.", marks]
    components, unit = replicates.components(study), replicates.unit(study)
    return [
        f"{said} and, where single documents are measured, by document; perplexities in per cent. In brackets: 95 % "
        f"interval of each difference alone, with {components} and documents as crossed random effects (over {unit}s "
        "alone for ECE, length buckets and the harness). At other checkpoints: in the .csv and .parquet of this table.",
        marks,
    ]


def _claim_notes(study: dict[str, Any], table: dict[str, Any]) -> list[str]:
    """What the numbers may be taken for."""
    if not compare.claims(study):  # there is nothing that is compared
        return []
    draws, unit, primary = replicates.count(study), replicates.unit(study), study.get("primary")
    few = exact_test(study)
    columns = {column.key: column.header for column in columns_of(study, kind_of(table))}
    notes = []
    if draws < statistics.SEEDS_FOR_AN_INTERVAL:
        notes.append(
            f"{few} Below {statistics.SEEDS_FOR_AN_INTERVAL} {unit}s no effect is claimed: read the differences as "
            "leads, not as results."
        )
    elif primary in columns:
        family = compare.comparisons(study)
        held = f"{family} comparison{'s' if family > 1 else ''} of this study's tables"
        if study.get("claims"):
            held = f"{family} effects that the study claims ({_listed(compare.claims(study))})"
        notes.append(
            f"Primary: {columns[primary]} at step {study['checkpoints'][-1]}. Its intervals there hold together, with "
            f"95 %, for the {held}: † where one leaves 0 out, n. s. (not significant) where not. Everything else is "
            f"descriptive. {few}"
        )
    else:
        notes.append(f"This table is descriptive: it does not show the study's primary number. {few}")
    return notes


def _listed(pairs: list[tuple[str, str]]) -> str:
    return ", ".join(f"{arm} to {reference}" for arm, reference in pairs)


def exact_test(study: dict[str, Any]) -> str:
    """What an exact sign-flip test could show with so many seeds, after Holm's correction over all that is claimed."""
    draws, family = replicates.count(study), compare.comparisons(study)
    floor = statistics.sign_flip_floor(draws)
    said = f"With n = {draws} an exact sign-flip test over {replicates.unit(study)}s cannot come below p = {floor:.2g}"
    if draws < statistics.SEEDS_FOR_A_TEST:
        return f"{said}, so that it cannot show significance."
    passes = "passes" if family * floor < 1 - statistics.LEVEL else "does not pass"
    return f"{said}, which {passes} Holm's correction over {family} comparison{'s' if family > 1 else ''}."


def _equivalence_notes(tidy: pd.DataFrame) -> list[str]:
    """The primary number as an equivalence."""
    said = []
    for _, row in tidy[tidy["verdict"].notna()].iterrows():
        unit = "" if pd.isna(row["difference_unit"]) else f" {row['difference_unit']}"
        if equivalent := formats.equivalence(row["joint_low"], row["joint_high"], unit):
            said.append(f"{row['arm']} to {row['reference']} {equivalent}")
    return [f"The primary number as an equivalence, by the joint intervals: {'; '.join(said)}."] if said else []


def _same_run_notes(study: dict[str, Any], table: dict[str, Any]) -> list[str]:
    notes = []
    for group in long_table.equal_arms(study):
        shown = [arm for arm in group if arm in table["arms"]]
        for arm in shown[1:]:
            notes.append(f"{arm} is the same run as {shown[0]}: trained once, shown in both rows.")
    return notes


def absence_notes(metrics: pd.DataFrame, tidy: pd.DataFrame) -> list[str]:
    notes = []
    arms = list(dict.fromkeys(tidy["arm"]))
    runs = [(arm, seed, step) for (arm, seed), step in long_table.first_diverged_steps(metrics).items() if arm in arms]
    if runs:
        runs.sort(key=lambda run: (arms.index(run[0]), run[1]))
        listed = "; ".join(f"{arm}, seed {seed} (no value from step {step} on)" for arm, seed, step in runs)
        notes.append(f"Diverged: {listed}.")
    lost = tidy[tidy["status"].ne("ok")]
    if len(lost):
        notes.append(
            f"{len(lost)} of {len(tidy)} cells lack a seed: a number in such a cell is that of the other seeds, has "
            "no spread or difference beside it and is never bold."
        )
    return notes


def provenance_notes(
    metrics: pd.DataFrame, study: dict[str, Any], table: dict[str, Any], tidy: pd.DataFrame
) -> list[str]:
    """Protocols and commits behind the table; what was made by more than one code or environment."""
    rows = long_table.single(metrics)
    rows = rows[rows["arm"].isin(tidy["arm"]) & rows["step"].isin(tidy["step"]) & rows["value"].notna()]
    columns = [column for column in columns_of(study, kind_of(table)) if column.compared]
    protocols: dict[str, dict[str, None]] = {}
    mixtures: dict[str, list[str]] = {}
    for column in columns:
        behind = long_table.at(rows, column.metric, column.length, column.task)
        for protocol in behind["protocol"].dropna().unique():
            protocols.setdefault(protocol, {})[column.metric] = None
        for kind in ("code", "environment"):
            arms = {_short(value): list(group["arm"].unique()) for value, group in behind.groupby(kind)}
            if len(arms) > 1:
                found = "; ".join(f"{value} ({', '.join(names)})" for value, names in arms.items())
                mixtures.setdefault(f"made by more than one {kind}: {found}", []).append(column.header)
    notes = [f"Protocol {protocol} ({', '.join(names)})." for protocol, names in protocols.items()]
    # A run that is not there yet, in a partial table, has no environment.
    of_trainings = metrics["metric"].eq("train/loss") & metrics["environment"].fillna("").ne("")
    trained = metrics[of_trainings & metrics["arm"].isin(tidy["arm"])]
    for environment, group in trained.groupby("environment") if trained["environment"].nunique() > 1 else ():
        notes.append(f"Mixed trainings: {', '.join(group['arm'].unique())} by {_short(environment)}.")
    notes += [f"Mixed columns ({', '.join(headers)}), {mixture}." for mixture, headers in mixtures.items()]
    runs = {run for arm in study["arms"] if arm["name"] in set(tidy["arm"]) for run in arm["runs"].values()}
    for change in study.get("accepted", []):
        # What all runs share, LongPPL's key tokens, is of no arm's runs.
        if runs & set(change["runs"]) or change["arm"] in set(tidy["arm"]):
            notes.append(
                f"Accepted by hand for {change['arm']} ({change['time']}): {', '.join(change['modules'])} changed, "
                f"code {_short(change['from'])} -> {_short(change['to'])}, because: {change['because']}."
            )
    commits = sorted({_short(commit) for commit in rows["commit"].dropna() if commit})
    if commits:
        notes.append(f"Commit: {commits[0]}." if len(commits) == 1 else f"Mixed commits: {', '.join(commits)}.")
    return notes


def _short(digest: object) -> str:
    """Ten digits of a hexadecimal digest, with whatever follows it ("-dirty")."""
    return re.sub(r"^([0-9a-f]{10})[0-9a-f]+", r"\1", str(digest))
