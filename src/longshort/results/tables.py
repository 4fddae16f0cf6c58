"""Makes a study's tables from its metrics.

`python -m longshort.results.tables --metrics FILE --runs FILE --study FILE --out DIR` writes for each table of the
study NAME.parquet and NAME.csv (tidy: one row per arm, checkpoint and column, full precision), NAME.md (to be read, in
a terminal too), NAME.tex (compiles alone, and in a paper with the packages booktabs and graphicx) and NAME.html.
"""

from __future__ import annotations

import argparse
import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from longshort.errors import in_a_line
from longshort.identity.code import refuse_changed_code
from longshort.metrics.record import Column
from longshort.records import study_json
from longshort.records.publish import write_atomic
from longshort.results import best_alpha, compare, formats, long_table, notes, replicates, statistics
from longshort.results.columns import BEST_ALPHA, columns_of, kind_of


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


def tidy_table(
    metrics: pd.DataFrame, study: dict[str, Any], table: dict[str, Any], numbers: compare.Numbers | None = None
) -> pd.DataFrame:
    """One row per checkpoint, arm and column, in the order of the printed table.

    mean, sd, n: over the seeds that have a value. difference and what follows (compare.Compared): to the arm in
    `reference` (None: none), in per cent of it where `difference_unit` says so. best, second: among the arms whose
    seeds are all there, per column and checkpoint. verdict: of the effects that the study claims, on its primary
    number at the last checkpoint: "yes" where the joint interval leaves 0 out, else "no"; None elsewhere. paper: the
    published number, where the study names one. status: "ok", or what is absent ("diverged (1 of 2)", "missing").
    """
    if kind_of(table) == BEST_ALPHA:
        return best_alpha.tidy_table(study, best_alpha.by_length(metrics, study, table, numbers))
    numbers = numbers or compare.Numbers(metrics, study)
    diverged, why = long_table.first_diverged_steps(metrics), long_table.reasons(metrics)
    columns = columns_of(study, kind_of(table))
    seeds = [int(seed) for seed in study["seeds"]]
    places = [(step, arm, seeds) for step in steps_of(study, table) for arm in table["arms"]]
    if table["name"] == "main":
        places = [(0, name, list(runs)) for name, runs in replicates.models(study).items()] + places
    family = compare.comparisons(study)
    published = {(one["arm"], one["step"], one["column"]): one["value"] for one in study.get("published", [])}
    last = int(study["checkpoints"][-1])
    cells = []
    for step, arm, arm_seeds in places:
        reference = compare.reference_of(study, table, arm)
        for column in columns:
            values = numbers.by_seed(column, arm, step, arm_seeds)
            summary = statistics.summarise(values)
            difference = compare.NOTHING
            if reference is not None and column.compared:
                difference = numbers.compared(column, arm, reference, step, arm_seeds, family)
            status = "ok" if summary.n == len(arm_seeds) else "not recorded"
            if column.compared:
                status = long_table.absence(values, arm, step, diverged, why, column.metric)
            is_primary = column.key == study.get("primary") and step == last
            # Where the reference lacks a seed, too, the effect is that of the others, and no claim.
            whole = status == "ok" and difference.n == len(arm_seeds)
            judged = is_primary and whole and reference is not None and compare.is_claimed(study, arm, reference)
            cells.append(
                {
                    "step": step,
                    "arm": arm,
                    **_of_column(column),
                    **summary._asdict(),
                    **_of_difference(column, difference),
                    "reference": reference,
                    "verdict": _verdict(difference) if judged else None,
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
    competing = ~tidy["arm"].isin([*replicates.NO_ARMS, *replicates.references(study)])
    return _with_best(tidy, tidy["column"].isin(compared) & competing)


def _of_column(column: Column) -> dict[str, Any]:
    return {"column": column.key, "metric": column.metric, "length": column.length}


def _of_difference(column: Column, difference: compare.Compared) -> dict[str, Any]:
    return {
        "difference": difference.mean,
        "difference_unit": "%" if column.relative else None,
        "difference_sd": difference.sd,
        "difference_n": difference.n,
        "difference_documents": difference.documents,
        "low": difference.low,
        "high": difference.high,
        "joint_low": difference.joint_low,
        "joint_high": difference.joint_high,
        "sign_flip_p": difference.p,
    }


def _verdict(difference: compare.Compared) -> str | None:
    if difference.draws < statistics.SEEDS_FOR_AN_INTERVAL or math.isnan(difference.joint_low):
        return None
    return "yes" if difference.joint_low > 0 or difference.joint_high < 0 else "no"


def _with_best(tidy: pd.DataFrame, compared: pd.Series) -> pd.DataFrame:
    """Marks the best and the second-best value of those that are compared; equal values share a mark."""
    whole = tidy["status"].eq("ok") & np.isfinite(tidy["mean"]) & compared
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


def contents(
    metrics: pd.DataFrame,
    study: dict[str, Any],
    table: dict[str, Any],
    runs: pd.DataFrame | None = None,
    tidy: pd.DataFrame | None = None,
) -> formats.PrintedTable:
    """A table ready to be written in any format; `tidy` where that is made already."""
    if kind_of(table) == BEST_ALPHA:
        return _best_alphas(metrics, study, table, runs)
    tidy = tidy_table(metrics, study, table) if tidy is None else tidy
    columns, to = columns_of(study, kind_of(table)), compare.compared_with(study, table)
    panels = formats.panels(tidy, columns, to, study.get("primary"))
    return formats.PrintedTable(
        table["name"], table["title"], panels, notes.notes_of(metrics, study, table, tidy, runs)
    )


def _best_alphas(
    metrics: pd.DataFrame, study: dict[str, Any], table: dict[str, Any], runs: pd.DataFrame | None
) -> formats.PrintedTable:
    found = best_alpha.by_length(metrics, study, table)
    step = int(study["checkpoints"][-1])
    behind = pd.DataFrame({"arm": [*best_alpha.grid(study, table).values()], "step": step, "status": "ok"})
    said = best_alpha.notes_of(study, table, found) + notes.absence_notes(metrics, behind)
    said += notes.provenance_notes(metrics, study, table, behind) + notes.hardware_notes(runs, behind)
    panels = best_alpha.panels(best_alpha.tidy_table(study, found), found)
    return formats.PrintedTable(table["name"], table["title"], panels, said)


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
    numbers = compare.Numbers(metrics, study)
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
    study = study_json.read(options.study, options.seal)
    metrics, runs = long_table.read_with_costs(options.metrics, options.runs, study)
    write_tables(metrics, study, options.out, runs)


if __name__ == "__main__":
    main()
