"""Makes a study's tables from its metrics.

`python -m longshort.results.tables --metrics FILE --runs FILE --study FILE --out DIR` writes for each table of the
study NAME.parquet and NAME.csv (tidy: one row per arm, checkpoint and column, full precision), NAME.md (to be read, in
a terminal too), NAME.tex (compiles alone, and in a paper with the packages booktabs and graphicx) and NAME.html.
"""

from __future__ import annotations

import argparse
import io
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from longshort.errors import in_a_line
from longshort.identity.code import refuse_changed_code
from longshort.metrics.catalog import METRICS
from longshort.records.publish import read_record, write_atomic
from longshort.results import compare, formats, long_table, statistics
from longshort.results.columns import columns_of
from longshort.results.long_table import BASE, BASE_SEED


def table_of(study: dict[str, Any], name: str) -> dict[str, Any]:
    for table in study["tables"]:
        if table["name"] == name:
            return table
    names = ", ".join(table["name"] for table in study["tables"])
    raise ValueError(f"study {study['name']} has no table {name!r}: take one of {names}")


def steps_of(study: dict[str, Any], table: dict[str, Any]) -> list[int]:
    """The checkpoints that a table shows: all of the headline's, else the last."""
    steps = [int(step) for step in study["checkpoints"]]
    return steps if kind_of(table) == "headline" else steps[-1:]


def kind_of(table: dict[str, Any]) -> str:
    return str(table.get("columns", "headline"))


def tidy_table(
    metrics: pd.DataFrame, study: dict[str, Any], table: dict[str, Any], numbers: compare.Numbers | None = None
) -> pd.DataFrame:
    """One row per checkpoint, arm and column, in the order of the printed table.

    mean, sd, n: over the seeds that have a value. difference and what follows (compare.Compared): to the arm in
    `reference` (None: none), in per cent of it where `difference_unit` says so. best, second: among the arms whose
    seeds are all there, per column and checkpoint. verdict: of the study's primary number at the last checkpoint only:
    "yes" where the joint interval leaves 0 out, else "no"; None where nothing is claimed. paper: the published number,
    where the study names one. status: "ok", or what is absent ("diverged (1 of 2)", "missing").
    """
    numbers = numbers or compare.Numbers(metrics)
    diverged, why = long_table.first_diverged_steps(metrics), long_table.reasons(metrics)
    columns = columns_of(study, kind_of(table))
    seeds = [int(seed) for seed in study["seeds"]]
    places = [(step, arm, seeds) for step in steps_of(study, table) for arm in table["arms"]]
    if table["name"] == "main":
        places.insert(0, (0, BASE, [BASE_SEED]))
    family = compare.comparisons(study)
    published = {(one["arm"], one["step"], one["column"]): one["value"] for one in study.get("published", [])}
    last = int(study["checkpoints"][-1])
    cells = []
    for step, arm, arm_seeds in places:
        reference = compare.reference_of(study, table, arm)
        for column in columns:
            values = numbers.by_seed(column, arm, step, arm_seeds)
            summary = statistics.summarise(values)
            found = compare.NOTHING
            if reference is not None and column.compared:
                found = numbers.compared(column, arm, reference, step, arm_seeds, family)
            status = "ok" if summary.n == len(arm_seeds) else "not recorded"
            if column.compared:
                status = long_table.absence(values, arm, step, diverged, why, column.metric)
            is_primary = column.key == study.get("primary") and step == last and status == "ok"
            cells.append(
                {
                    "step": step,
                    "arm": arm,
                    "column": column.key,
                    "metric": column.metric,
                    "length": column.length,
                    "mean": summary.mean,
                    "sd": summary.sd,
                    "n": summary.n,
                    "difference": found.mean,
                    "difference_unit": "%" if column.relative else None,
                    "difference_sd": found.sd,
                    "difference_n": found.n,
                    "difference_documents": found.documents,
                    "low": found.low,
                    "high": found.high,
                    "joint_low": found.joint_low,
                    "joint_high": found.joint_high,
                    "sign_flip_p": found.p,
                    "reference": reference,
                    "verdict": _verdict(found) if is_primary else None,
                    "paper": published.get((arm, step, column.key), float("nan")),
                    "higher_is_better": column.higher_is_better,
                    "best": False,
                    "second": False,
                    "status": status,
                }
            )
    tidy = pd.DataFrame(cells)
    words = dict.fromkeys(("difference_unit", "reference", "verdict"), "string")
    tidy = tidy.astype({"length": "Int64", **words})
    compared = {column.key for column in columns if column.compared}
    return _with_best(tidy, tidy["column"].isin(compared))


def _verdict(found: compare.Compared) -> str | None:
    if found.n < statistics.SEEDS_FOR_AN_INTERVAL or math.isnan(found.joint_low):
        return None
    return "yes" if found.joint_low > 0 or found.joint_high < 0 else "no"


def _with_best(tidy: pd.DataFrame, compared: pd.Series) -> pd.DataFrame:
    """Marks the best and the second-best value; equal values share a mark."""
    whole = tidy["status"].eq("ok") & tidy["arm"].ne(BASE) & np.isfinite(tidy["mean"]) & compared
    for _, group in tidy[whole].groupby(["step", "column"]):
        if len(group) > 1:
            means = group["mean"]
            for mark in ("best", "second"):
                if means.empty:
                    break
                top = means.max() if group["higher_is_better"].iloc[0] else means.min()
                marked = means.index[np.isclose(means, top, rtol=1e-12, atol=0.0)]
                tidy.loc[marked, mark] = True
                means = means.drop(marked)
    return tidy


def notes_of(
    metrics: pd.DataFrame,
    study: dict[str, Any],
    table: dict[str, Any],
    tidy: pd.DataFrame,
    runs: pd.DataFrame | None = None,
) -> list[str]:
    """What a reader must know beside the numbers, a sentence or two each.

    Args:
        runs: as collected, for the hardware; None: not said.
    """
    seeds = [int(seed) for seed in study["seeds"]]
    listed = ", ".join(str(seed) for seed in seeds)
    if len(seeds) > 1:
        notes = [
            f"Mean ± sample sd over n = {len(seeds)} seeds ({listed}) unless a cell says otherwise; all seeds share "
            "one base model, so the sd is that of fine-tuning alone."
        ]
    else:
        notes = [f"n = 1 seed ({listed}): no spread can be given."]
    if kind_of(table) == "cost":
        notes.append(
            "Devices times hours that the jobs took, failed attempts included; planned: as `longshort plan` estimated "
            "it before the study began. Memory: the most that the training's processes took together."
        )
    else:
        notes += _comparison_notes(study, table) + _claim_notes(study, table) + _equivalence_notes(tidy)
    shown = set(tidy["metric"])
    if table["name"] == "main":
        notes.append(f"{BASE} is the base model before fine-tuning: one run, no part of the comparison.")
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
        notes.append(f"paper: the published number, where the setting is comparable ({'; '.join(sources)}).")
    notes += _same_run_notes(study, table)
    notes += _absence_notes(metrics, tidy)
    notes += _provenance_notes(metrics, study, table, tidy)
    notes += _hardware_notes(runs, tidy)
    return notes


def _hardware_notes(runs: pd.DataFrame | None, tidy: pd.DataFrame) -> list[str]:
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
    to = _compared_with(study, table)
    if not to:
        return [marks]
    said = f"Differences: mean difference to {to}, paired by seed"
    if table.get("compare_with") == "control" and len(study["checkpoints"]) > 1:
        marks += " Amounts of alpha match over the whole training: before its end, a growing alpha has spent less."
    if len(study["seeds"]) < 2:
        return [f"{said}; perplexities in per cent.", marks]
    return [
        f"{said} and, where single documents are measured, by document; perplexities in per cent. In brackets: 95 % "
        "interval of each difference alone, with seeds and documents as crossed random effects (over seeds alone for "
        "ECE, length buckets and the harness). At other checkpoints: in the .csv and .parquet of this table.",
        marks,
    ]


def _compared_with(study: dict[str, Any], table: dict[str, Any]) -> str:
    if table.get("compare_with") != "control":
        return str(table.get("compare_with") or "")
    controls: dict[str, list[str]] = {}
    for arm in table["arms"]:
        reference = compare.reference_of(study, table, arm)
        if reference is not None:
            controls.setdefault(reference, []).append(arm)
    listed = [f"{control} for {', '.join(arms)}" for control, arms in controls.items()]
    return f"the matched control ({'; '.join(listed)})"


def _claim_notes(study: dict[str, Any], table: dict[str, Any]) -> list[str]:
    """What the numbers may be taken for."""
    seeds, primary = len(study["seeds"]), study.get("primary")
    floor = statistics.sign_flip_floor(seeds)
    few = (
        f"With n = {seeds} an exact sign-flip test over seeds cannot come below p = {floor:.2g}"
        + (", so that it cannot show significance" if seeds < statistics.SEEDS_FOR_A_TEST else "")
        + "."
    )
    columns = {column.key: column.header for column in columns_of(study, kind_of(table))}
    notes = []
    if seeds < statistics.SEEDS_FOR_AN_INTERVAL:
        notes.append(
            f"{few} Below {statistics.SEEDS_FOR_AN_INTERVAL} seeds no effect is claimed: read the differences as "
            "leads, not as results."
        )
    elif primary in columns:
        family = compare.comparisons(study)
        notes.append(
            f"Primary: {columns[primary]} at step {study['checkpoints'][-1]}. Its intervals there hold together, with "
            f"95 %, for the {family} comparisons of this study's tables: † where one leaves 0 out, n. s. (not "
            f"significant) where not. Everything else is descriptive. {few}"
        )
    else:
        notes.append(f"This table is descriptive: it does not show the study's primary number. {few}")
    return notes


def _equivalence_notes(tidy: pd.DataFrame) -> list[str]:
    """The primary number as an equivalence."""
    said = []
    for _, row in tidy[tidy["verdict"].notna()].iterrows():
        unit = " %" if row["difference_unit"] == "%" else ""
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


def _absence_notes(metrics: pd.DataFrame, tidy: pd.DataFrame) -> list[str]:
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


def _provenance_notes(
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
        if runs & set(change["runs"]):
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


def contents(
    metrics: pd.DataFrame,
    study: dict[str, Any],
    table: dict[str, Any],
    runs: pd.DataFrame | None = None,
    tidy: pd.DataFrame | None = None,
) -> formats.Table:
    """A table ready to be written in any format; `tidy` where that is made already."""
    tidy = tidy_table(metrics, study, table) if tidy is None else tidy
    panels = formats.panels(tidy, columns_of(study, kind_of(table)), _compared_with(study, table))
    return formats.Table(table["name"], table["title"], panels, notes_of(metrics, study, table, tidy, runs))


def format_table(
    metrics: pd.DataFrame,
    study: dict[str, Any],
    name: str = "main",
    width: int = formats.WIDTH,
    runs: pd.DataFrame | None = None,
) -> str:
    """The table `name` of the study with its notes, as markdown whose columns are aligned for a terminal."""
    return formats.markdown(contents(metrics, study, table_of(study, name), runs), width)


def write_tables(
    metrics: pd.DataFrame, study: dict[str, Any], out: Path, runs: pd.DataFrame | None = None
) -> list[Path]:
    """Writes every table of the study in five formats; returns the paths."""
    paths = []
    numbers = compare.Numbers(metrics)
    for table in study["tables"]:
        name = table["name"]
        tidy = tidy_table(metrics, study, table, numbers)
        made = contents(metrics, study, table, runs, tidy)
        buffer = io.BytesIO()
        tidy.to_parquet(buffer, index=False)
        texts: dict[str, bytes | str] = {
            "parquet": buffer.getvalue(),
            "csv": tidy.to_csv(index=False),
            "md": formats.markdown(made),
            "tex": formats.latex(made, f"{study['name']}-{name}"),
            "html": formats.page(made),
        }
        for suffix, content in texts.items():
            paths.append(out / f"{name}.{suffix}")
            write_atomic(paths[-1], content)
    return paths


@in_a_line()
def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Makes a study's tables from its metrics.")
    parser.add_argument("--metrics", type=Path, required=True, help="the study's metrics.parquet")
    parser.add_argument("--runs", type=Path, required=True, help="the study's runs.parquet")
    parser.add_argument("--study", type=Path, required=True, help="the study's study.json")
    parser.add_argument("--out", type=Path, required=True, help="folder for the tables")
    parser.add_argument("--seal", help="refuse to run if the study's is another one")
    parser.add_argument("--code", help="refuse to run if the code's hash is another one")
    options = parser.parse_args(arguments)
    if options.code:
        refuse_changed_code(options.code, "longshort.results.tables")
    study = read_record(options.study, options.seal)
    metrics, runs = long_table.read_with_costs(options.metrics, options.runs, study)
    write_tables(metrics, study, options.out, runs)


if __name__ == "__main__":
    main()
