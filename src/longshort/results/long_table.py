"""The long table of a study, as tables and plots read it, and what they ask of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

# The base model before fine-tuning stands in the table as an arm of its own, at step 0.
BASE, BASE_SEED = "(base)", -1


def read(path: Path) -> pd.DataFrame:
    """The long table of results; the columns are those of DESIGN, section Results.

    Raises:
        ValueError: a column is absent, a number is there twice, or two protocols share a column.
    """
    metrics = pd.read_parquet(path)
    needed = "arm seed step metric length task document value status protocol code commit environment".split()
    absent = [name for name in needed if name not in metrics.columns]
    if absent:
        raise ValueError(f"{path} has no column {', '.join(absent)}: it is no metrics table; collect the results again")
    metrics["length"] = metrics["length"].astype("Int64")
    headlines(metrics)
    refuse_mixed_protocols(metrics)
    return metrics


def evaluations(metrics: pd.DataFrame) -> pd.DataFrame:
    """The rows that evaluations made, without the curves of training."""
    return metrics[~metrics["metric"].str.startswith("train/")]


def headlines(metrics: pd.DataFrame) -> pd.DataFrame:
    """One row per arm, seed, step, metric and length: no single documents, of LongBench-E only `overall`.

    Raises:
        ValueError: a number is there twice.
    """
    rows = evaluations(metrics)
    rows = rows[rows["document"].isna() & (rows["task"].isna() | rows["task"].eq("overall"))]
    keys = ["arm", "seed", "step", "metric", "length"]
    twice = rows[rows.duplicated(keys)]
    if len(twice):
        row = twice.iloc[0]
        raise ValueError(
            f"the metrics hold {row['metric']} of arm {row['arm']}, seed {row['seed']}, step {row['step']}, "
            f"length {row['length']} more than once: delete the metrics file and collect the results again"
        )
    return rows


def at(rows: pd.DataFrame, metric: str, length: int | None) -> pd.DataFrame:
    """The rows of one metric at one length (None: the metric has no length)."""
    at_length = rows["length"].isna() if length is None else rows["length"].eq(length).fillna(False)
    return rows[rows["metric"].eq(metric) & at_length]


def by_seed(column: pd.DataFrame, arm: str, step: int, seeds: list[int]) -> pd.Series:
    """The value of each of `seeds` (index) among the rows of one column (`at`); NaN where there is none."""
    chosen = column[column["arm"].eq(arm) & column["step"].eq(step)]
    return chosen.set_index("seed")["value"].astype("float64").reindex(seeds)


def first_diverged_steps(metrics: pd.DataFrame) -> dict[tuple[str, int], int]:
    """(arm, seed) -> the first step whose value is absent because that run had diverged."""
    lost = metrics[metrics["status"].eq("diverged") & metrics["value"].isna()]
    first = lost.groupby(["arm", "seed"], as_index=False)["step"].min()
    return {(row.arm, int(row.seed)): int(row.step) for row in first.itertuples()}


def absence(values: pd.Series, arm: str, step: int, diverged: dict[tuple[str, int], int]) -> str:
    """What is absent among values by seed: "ok", "diverged (1 of 2)", "missing", or both joined by a comma."""
    lost = [int(seed) for seed in values.index[values.isna()]]
    gone = sum(1 for seed in lost if diverged.get((arm, seed), step + 1) <= step)
    counts = {"diverged": gone, "missing": len(lost) - gone}
    parts = [
        word if count == len(values) else f"{word} ({count} of {len(values)})"
        for word, count in counts.items()
        if count
    ]
    return ", ".join(parts) or "ok"


def refuse_mixed_protocols(metrics: pd.DataFrame) -> None:
    """Numbers of two evaluation protocols are not comparable, so they may not stand in one column.

    Raises:
        ValueError: two protocols for one metric at one length.
    """
    rows = evaluations(metrics)
    rows = rows[rows["protocol"].notna() & rows["protocol"].ne("")]
    for _, group in rows.groupby(["metric", "length"], dropna=False):
        metric, length = group["metric"].iloc[0], group["length"].iloc[0]
        arms = group.groupby("protocol")["arm"].unique()
        if len(arms) > 1:
            found = " and ".join(f"{protocol!r} ({', '.join(sorted(arms[protocol]))})" for protocol in arms.index)
            place = "" if pd.isna(length) else f" at length {length}"
            raise ValueError(
                f"the column {metric}{place} holds two protocols, {found}, whose numbers are not comparable: "
                f"measure them all by the present one with `snakemake all --cores 2 --forcerun {_rule_of(metric)} "
                f"--config study={metrics['study'].iloc[0]}`, or put these arms into two studies"
            )


def _rule_of(metric: str) -> str:
    """The rule of the workflow that measures a metric."""
    if metric.startswith(("harness", "longbench_e")):
        return metric.split(":")[0]
    return "misalignment" if metric.startswith(("sce", "entropy_floor", "symkl")) else "perplexity"


def equal_arms(study: dict[str, Any]) -> list[list[str]]:
    """Groups of two or more arms that are the same runs for every seed, in the study's order."""
    groups: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for arm in study["arms"]:
        runs = tuple(sorted(arm["runs"].items()))
        if runs:
            groups.setdefault(runs, []).append(arm["name"])
    return [names for names in groups.values() if len(names) > 1]
