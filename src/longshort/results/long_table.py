"""The long table of a study, as tables and plots read it, and what they ask of it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from longshort.errors import UserError
from longshort.metrics.catalog import of_row
from longshort.records.publish import refuse_altered_table
from longshort.results import replicates

BASE, BASE_SEED = replicates.BASE, replicates.BASE_SEED


def read(path: Path) -> pd.DataFrame:
    """The long table of results; the columns are those of DESIGN, section Results.

    Raises:
        UserError: it is not the file that was collected, a column is absent, a number is there twice, or two protocols
            share a column.
    """
    refuse_altered_table(path)
    return checked(path)


def checked(path: Path) -> pd.DataFrame:
    """The same of a file whose record is not there, as of another machine.

    Raises:
        UserError: as read, but for the first.
    """
    metrics = pd.read_parquet(path)
    needed = "arm seed step metric length task document value status protocol code commit environment".split()
    absent = [name for name in needed if name not in metrics.columns]
    if absent:
        raise UserError(f"{path} has no column {', '.join(absent)}: it is no metrics table; collect the results again")
    if not pd.api.types.is_numeric_dtype(metrics["value"]):
        raise UserError(f"{path} has values that are no numbers: it was edited; collect the results again")
    metrics["length"] = metrics["length"].astype("Int64")
    headlines(metrics)
    refuse_mixed_protocols(metrics)
    return metrics


def read_with_costs(metrics: Path, runs: Path, study: dict[str, Any]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The numbers, with what the arms cost among them, and how each run was made.

    Raises:
        UserError: as read.
    """
    made = read_runs(runs)
    cpu_time = study.get("device") == "cpu" and knows_cpu_time(made)
    return with_costs(read(metrics), made, int(study["checkpoints"][-1]), cpu_time), made


def read_runs(path: Path) -> pd.DataFrame:
    """One row for each arm, seed and stage: how it was made, and what it cost (results/README.md).

    Raises:
        UserError: it is not the file that was collected.
    """
    refuse_altered_table(path)
    return pd.read_parquet(path)


def knows_cpu_time(runs: pd.DataFrame) -> bool:
    """Whether all that took time recorded its CPU time: arms are compared by one kind of time."""
    took = runs["device_seconds"].gt(0)
    return bool(took.any() and runs.loc[took, "cpu_seconds"].notna().all())


def with_costs(metrics: pd.DataFrame, runs: pd.DataFrame, step: int, cpu_time: bool = False) -> pd.DataFrame:
    """The long table with what each arm and seed cost as further numbers, `cost/...`, at a step.

    training_hours, evaluation_hours, planned_hours: devices times hours; the first two are training_cpu_hours and
    evaluation_cpu_hours if `cpu_time`: on CPUs, jobs that share a machine lengthen each other; training_operations:
    counted, in 10^15; tokens_per_second of the training; memory_gib and device_memory_gib: the most that the training
    took, all its processes together.
    """
    unit, seconds = ("cpu_hours", "cpu_seconds") if cpu_time else ("hours", "device_seconds")
    rows = []
    for (arm, seed), stages in runs[~runs["arm"].isin(replicates.NO_ARMS)].groupby(["arm", "seed"], sort=False):
        training, evaluated = stages[stages["stage"].eq("training")], stages[stages["stage"].ne("training")]
        costs = {
            f"training_{unit}": training[seconds].sum(min_count=1) / 3600,
            f"evaluation_{unit}": evaluated[seconds].sum(min_count=1) / 3600,
            "training_operations": training["operations"].sum(min_count=1) / 1e15,
            "planned_hours": stages["planned_seconds"].sum(min_count=len(stages)) / 3600,
            "tokens_per_second": training["tokens_per_second"].mean(),
            "memory_gib": training["peak_memory_mb"].max() / 1024,
            "device_memory_gib": training["device_memory_mb"].max() / 1024,
        }
        rows += [
            {
                "arm": arm,
                "seed": seed,
                "step": step,
                "metric": f"cost/{name}",
                "value": float(value),
                "n": 1,
                "status": "ok",
            }
            for name, value in costs.items()
            if not math.isnan(value)
        ]
    added = pd.DataFrame(rows).reindex(columns=metrics.columns).astype(metrics.dtypes.to_dict()) if rows else None
    return metrics if added is None else pd.concat([metrics, added], ignore_index=True)


def evaluations(metrics: pd.DataFrame) -> pd.DataFrame:
    """The rows that evaluations made, without the curves of training and the costs."""
    return metrics[~metrics["metric"].str.match("train/|cost/")]


def single(metrics: pd.DataFrame) -> pd.DataFrame:
    """The rows that a table may show: no curve of training and no single document."""
    return metrics[~metrics["metric"].str.startswith("train/") & metrics["document"].isna()]


def headlines(metrics: pd.DataFrame) -> pd.DataFrame:
    """One row per arm, seed, step, metric and length: no single documents, of LongBench-E only `overall`.

    Raises:
        UserError: a number is there twice.
    """
    rows = evaluations(metrics)
    rows = rows[rows["document"].isna() & (rows["task"].isna() | rows["task"].eq("overall"))]
    keys = ["arm", "seed", "step", "metric", "length"]
    twice = rows[rows.duplicated(keys)]
    if len(twice):
        row = twice.iloc[0]
        raise UserError(
            f"the metrics hold {row['metric']} of arm {row['arm']}, seed {row['seed']}, step {row['step']}, "
            f"length {row['length']} more than once: delete the metrics file and collect the results again"
        )
    return rows


def at(rows: pd.DataFrame, metric: str, length: int | None, task: str | None = None) -> pd.DataFrame:
    """The rows of one metric at one length and of one task (None: the metric has no length, or no task)."""
    at_length = rows["length"].isna() if length is None else rows["length"].eq(length).fillna(False)
    of_task = rows["task"].isna() if task is None else rows["task"].eq(task).fillna(False)
    return rows[rows["metric"].eq(metric) & at_length & of_task]


def by_seed(column: pd.DataFrame, arm: str, step: int, seeds: list[int]) -> pd.Series:
    """The value of each of `seeds` (index) among the rows of one column (`at`); NaN where there is none."""
    chosen = column[column["arm"].eq(arm) & column["step"].eq(step)]
    return chosen.set_index("seed")["value"].astype("float64").reindex(seeds)


def first_diverged_steps(metrics: pd.DataFrame) -> dict[tuple[str, int], int]:
    """(arm, seed) -> the first step whose value is absent, or infinite, because that run had diverged."""
    lost = metrics[metrics["status"].eq("diverged") & ~np.isfinite(metrics["value"].astype("float64"))]
    first = lost.groupby(["arm", "seed"], as_index=False)["step"].min()
    return {(row.arm, int(row.seed)): int(row.step) for row in first.itertuples()}


def reasons(metrics: pd.DataFrame) -> dict[tuple[str, int, str], str]:
    """(arm, seed, evaluation or "training") -> why numbers are not there: failed, running, interrupted, missing."""
    absent = metrics[~metrics["status"].isin(["ok", "diverged", "undefined"])]
    rows = absent.drop_duplicates(["arm", "seed", "metric"])
    found = {}
    for arm, seed, metric, status in zip(rows["arm"], rows["seed"], rows["metric"], rows["status"], strict=True):
        stage = "training" if metric.startswith("train/") else of_row(metric).name
        found[arm, int(seed), stage] = status
    return found


def absence(
    values: pd.Series,
    arm: str,
    step: int,
    diverged: dict[tuple[str, int], int],
    why: dict[tuple[str, int, str], str] | None = None,
    metric: str = "perplexity",
) -> str:
    """What is absent among values by seed: "ok", "diverged (1 of 2)", "missing", or several, joined by a comma. A
    perplexity beyond all numbers is no value.

    Args:
        why: as `reasons` gives it; a number whose evaluation waits for its training lacks what the training lacks.
    """
    counts: dict[str, int] = {}
    for seed in (int(seed) for seed in values.index[~np.isfinite(values.astype("float64"))]):
        word = "diverged" if diverged.get((arm, seed), step + 1) <= step else "missing"
        for stage in (of_row(metric).name, "training") if why and word == "missing" else ():
            word = (why or {}).get((arm, seed, stage), "missing") if word == "missing" else word
        counts[word] = counts.get(word, 0) + 1
    parts = [word if count == len(values) else f"{word} ({count} of {len(values)})" for word, count in counts.items()]
    return ", ".join(parts) or "ok"


def refuse_mixed_protocols(metrics: pd.DataFrame) -> None:
    """Numbers of two evaluation protocols are not comparable, so they may not stand in one column.

    Raises:
        UserError: two protocols for one metric at one length.
    """
    rows = evaluations(metrics)
    rows = rows[rows["protocol"].notna() & rows["protocol"].ne("")]
    for _, group in rows.groupby(["metric", "length"], dropna=False):
        metric, length = group["metric"].iloc[0], group["length"].iloc[0]
        arms = group.groupby("protocol")["arm"].unique()
        if len(arms) > 1:
            found = " and ".join(f"{protocol!r} ({', '.join(sorted(arms[protocol]))})" for protocol in arms.index)
            place = "" if pd.isna(length) else f" at length {length}"
            raise UserError(
                f"the column {metric}{place} holds two protocols, {found}, whose numbers are not comparable: "
                f"measure them all by the present one with `snakemake all --cores 2 --forcerun {of_row(metric).name} "
                f"--config study={metrics['study'].iloc[0]}` (`--forcerun evaluate` where one job "
                "measures all), or put these arms into two studies"
            )


def equal_arms(study: dict[str, Any]) -> list[list[str]]:
    """Groups of two or more arms that are the same runs for every seed, in the study's order."""
    groups: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for arm in study["arms"]:
        runs = tuple(sorted(arm["runs"].items()))
        if runs:
            groups.setdefault(runs, []).append(arm["name"])
    return [names for names in groups.values() if len(names) > 1]
