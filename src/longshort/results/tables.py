"""Makes a study's tables from its metrics.

`python -m longshort.results.tables --metrics FILE --study FILE --out DIR` writes for each table of the study
NAME.parquet and NAME.csv (tidy: one row per arm, checkpoint and column, full precision), NAME.md (to be read, in a
terminal too) and NAME.tex (needs the packages booktabs and graphicx).
"""

from __future__ import annotations

import argparse
import io
import math
import re
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from longshort.identity import refuse_changed_code
from longshort.publish import read_json, write_atomic
from longshort.results import long_table, statistics
from longshort.results.long_table import BASE, BASE_SEED

WIDTH = 200  # characters of the widest .md table


class Column(NamedTuple):
    key: str
    metric: str
    length: int | None
    header: str
    higher_is_better: bool
    decimals: int
    block: str


def columns_of(study: dict[str, Any]) -> list[Column]:
    """The columns of every table, as far as the study evaluates them."""
    evaluations = study["evaluations"]
    l_train = int(study["l_train"])
    columns = []
    if "longbench_e" in evaluations:
        columns.append(Column("longbench_e", "longbench_e", None, "LongBench-E (%)", True, 1, "quality"))
    if "perplexity" in evaluations:
        lengths = sorted(int(length) for length in evaluations["perplexity"]["lengths"])
        for length in lengths:
            columns.append(Column(f"perplexity@{length}", "perplexity", length, f"PPL {length}", False, 2, "quality"))
        longest = lengths[-1]
        columns.append(Column(f"accuracy@{longest}", "accuracy", longest, f"accuracy {longest}", True, 3, "quality"))
        if evaluations["perplexity"]["temperature_documents"]:
            for length in lengths:
                key = "perplexity_checkpoint_t"
                columns.append(Column(f"{key}@{length}", key, length, f"PPL {length} at T", False, 2, "calibration"))
        for length in (lengths[0], longest)[: len(lengths)]:
            columns.append(Column(f"ece@{length}", "ece", length, f"ECE {length}", False, 3, "calibration"))
    if "harness" in evaluations:
        for task in evaluations["harness"]["tasks"]:
            higher = task not in evaluations["harness"]["lower_is_better"]
            columns.append(Column(f"harness:{task}", f"harness:{task}", None, task, higher, 3, "quality"))
    if "misalignment" in evaluations:
        columns.append(Column(f"sce@{l_train}", "sce", l_train, f"SCE {l_train}", False, 3, "alignment"))
        for length in [l_train] + sorted(l_train * int(factor) for factor in evaluations["misalignment"]["beyond"]):
            columns.append(Column(f"symkl@{length}", "symkl", length, f"symKL {length}", False, 3, "alignment"))
    return columns


def table_of(study: dict[str, Any], name: str) -> dict[str, Any]:
    for table in study["tables"]:
        if table["name"] == name:
            return table
    names = ", ".join(table["name"] for table in study["tables"])
    raise ValueError(f"study {study['name']} has no table {name!r}: take one of {names}")


def tidy_table(metrics: pd.DataFrame, study: dict[str, Any], table: dict[str, Any]) -> pd.DataFrame:
    """One row per checkpoint, arm and column, in the order of the printed table.

    mean, sd, n: over the seeds that have a value. difference, difference_sd, difference_n: paired by seed, to the
    arm in `reference` (None: none). best: among the arms whose seeds are all there, per column and checkpoint.
    status: "ok", or what is absent ("diverged (1 of 2)", "missing").
    """
    rows = long_table.headlines(metrics)
    diverged = long_table.first_diverged_steps(metrics)
    columns = columns_of(study)
    behind = {column: long_table.at(rows, column.metric, column.length) for column in columns}
    seeds = [int(seed) for seed in study["seeds"]]
    places = [(int(step), arm, seeds) for step in study["checkpoints"] for arm in table["arms"]]
    if table["name"] == "main":
        places.insert(0, (0, BASE, [BASE_SEED]))
    cells = []
    for step, arm, arm_seeds in places:
        reference = reference_of(study, table, arm)
        for column in columns:
            values = long_table.by_seed(behind[column], arm, step, arm_seeds)
            summary = statistics.summarise(values)
            difference = statistics.Summary(float("nan"), float("nan"), 0, 0)
            if reference is not None:
                others = long_table.by_seed(behind[column], reference, step, arm_seeds)
                difference = statistics.paired_difference(values, others)
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
                    "difference": difference.mean,
                    "difference_sd": difference.sd,
                    "difference_n": difference.n,
                    "reference": reference,
                    "higher_is_better": column.higher_is_better,
                    "best": False,
                    "status": long_table.absence(values, arm, step, diverged),
                }
            )
    tidy = pd.DataFrame(cells)
    tidy["length"] = tidy["length"].astype("Int64")
    return _with_best(tidy)


def reference_of(study: dict[str, Any], table: dict[str, Any], arm: str) -> str | None:
    """The arm that `arm` is compared with in this table; None for the reference itself and the base model."""
    if arm == BASE:
        return None
    reference = table.get("compare_with")
    if reference == "control":
        reference = next(entry["control"] for entry in study["arms"] if entry["name"] == arm)
    return None if reference == arm else reference


def _with_best(tidy: pd.DataFrame) -> pd.DataFrame:
    whole = tidy["status"].eq("ok") & tidy["arm"].ne(BASE) & np.isfinite(tidy["mean"])
    for _, group in tidy[whole].groupby(["step", "column"]):
        if len(group) > 1:
            best = group["mean"].max() if group["higher_is_better"].iloc[0] else group["mean"].min()
            tidy.loc[group.index, "best"] = np.isclose(group["mean"], best, rtol=1e-12, atol=0.0)
    return tidy


def notes_of(metrics: pd.DataFrame, study: dict[str, Any], table: dict[str, Any], tidy: pd.DataFrame) -> list[str]:
    """What a reader must know beside the numbers, a sentence or two each."""
    seeds = [int(seed) for seed in study["seeds"]]
    listed = ", ".join(str(seed) for seed in seeds)
    if len(seeds) > 1:
        notes = [
            f"Mean ± sample sd over n = {len(seeds)} seeds ({listed}) unless a cell says otherwise; all seeds share "
            "one base model, so the sd is that of fine-tuning alone."
        ]
    else:
        notes = [f"n = 1 seed ({listed}): no spread can be given."]
    notes.append(_comparison_note(study, table))
    if len(seeds) < statistics.SEEDS_FOR_A_TEST:
        notes.append(
            f"n = {len(seeds)} cannot show significance: fewer than {statistics.SEEDS_FOR_A_TEST} seeds cannot "
            "reach p < 0.05 by a sign-flip test. Read the differences as leads, not as results."
        )
    else:
        notes.append("No test was made: the differences are descriptive.")
    shown = set(tidy["metric"])
    if table["name"] == "main":
        notes.append(f"{BASE} is the base model before fine-tuning: one run, no part of the comparison.")
    if "perplexity" in shown:
        notes.append("PPL L: perplexity at a context of L tokens. accuracy: next token, 0 to 1.")
    if "perplexity_checkpoint_t" in shown:
        notes.append(
            "PPL L at T: with the logits divided by the temperature that fits validation documents best, one for each "
            "checkpoint. A difference that is gone there was calibration alone."
        )
    if "ece" in shown:
        notes.append("ECE L: expected calibration error of the next token, 15 bins, 0 to 1.")
    if "symkl" in shown:
        l_train = study["l_train"]
        notes.append(
            f"SCE and symKL in nats; {l_train}: both contexts between {l_train // 2} and {l_train} tokens; longer: "
            "one of the two contexts has that many tokens. SCE is mostly entropy: judge alignment by symKL."
        )
    if "longbench_e" in shown:
        notes += _floor_notes(metrics)
    if "harness" in study["evaluations"]:
        notes += _harness_notes(metrics, study)
    notes += _same_run_notes(study, table)
    notes += _absence_notes(metrics, tidy)
    notes += _provenance_notes(metrics, study, tidy)
    return notes


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


def _comparison_note(study: dict[str, Any], table: dict[str, Any]) -> str:
    best = "Bold: best of the arms per column and checkpoint."
    if table.get("compare_with") == "control":
        controls: dict[str, list[str]] = {}
        for arm in table["arms"]:
            reference = reference_of(study, table, arm)
            if reference is not None:
                controls.setdefault(reference, []).append(arm)
        listed = "; ".join(f"{control} for {', '.join(arms)}" for control, arms in controls.items())
        between = (
            " Amounts of alpha match over the whole training: before its end, a growing alpha has spent less."
            if len(study["checkpoints"]) > 1
            else ""
        )
        return f"In brackets: mean difference to the matched control ({listed}), paired by seed. {best}{between}"
    if table.get("compare_with"):
        return f"In brackets: mean difference to {table['compare_with']}, paired by seed. {best}"
    return best


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


def _provenance_notes(metrics: pd.DataFrame, study: dict[str, Any], tidy: pd.DataFrame) -> list[str]:
    """Protocols and commits behind the table; which columns were made by more than one code or environment."""
    rows = long_table.headlines(metrics)
    rows = rows[rows["arm"].isin(tidy["arm"]) & rows["step"].isin(tidy["step"]) & rows["value"].notna()]
    columns = columns_of(study)
    protocols: dict[str, dict[str, None]] = {}
    mixtures: dict[str, list[str]] = {}
    for column in columns:
        behind = long_table.at(rows, column.metric, column.length)
        for protocol in behind["protocol"].dropna().unique():
            protocols.setdefault(protocol, {})[column.metric] = None
        for kind in ("code", "environment"):
            arms = {_short(value): list(group["arm"].unique()) for value, group in behind.groupby(kind)}
            if len(arms) > 1:
                found = "; ".join(f"{value} ({', '.join(names)})" for value, names in arms.items())
                mixtures.setdefault(f"made by more than one {kind}: {found}", []).append(column.header)
    notes = [f"Protocol {protocol} ({', '.join(names)})." for protocol, names in protocols.items()]
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


def _decimals(tidy: pd.DataFrame, column: Column) -> int:
    """Enough digits for three significant ones of the smallest symKL, which spans orders of magnitude."""
    means = tidy.loc[tidy["column"].eq(column.key), "mean"].abs()
    means = means[np.isfinite(means) & means.gt(0)]
    if column.metric != "symkl" or means.empty:
        return column.decimals
    return min(max(column.decimals, 2 - math.floor(math.log10(means.min()))), 5)


def _number(value: float, decimals: int, sign: bool = False) -> str:
    if math.isinf(value) or math.isnan(value):
        return str(value)
    if abs(value) >= 1e5:
        return f"{value:+.2e}" if sign else f"{value:.2e}"
    text = f"{value:+.{decimals}f}" if sign else f"{value:.{decimals}f}"
    return text if float(text) else text.lstrip("+-")


def _cells(rows: list[Any], decimals: int, markup: str) -> list[str]:
    """mean ± sd (difference) for rows of the tidy table, in `markup` "md" (digits below digits) or "tex"."""
    bold = "**{}**" if markup == "md" else r"\textbf{{{}}}"
    parts: list[tuple[str, str, str]] = []
    for row in rows:
        mean = _number(row.mean, decimals)
        if row.status != "ok":
            parts.append((row.status if row.n == 0 else f"{mean}, {row.status}", "", ""))
            continue
        spread = "" if math.isnan(row.sd) else f" ± {_number(row.sd, decimals)}"
        difference = ""
        if isinstance(row.reference, str):
            absent = math.isnan(row.difference)
            difference = " (no pair)" if absent else f" ({_number(row.difference, decimals, sign=True)})"
        plain = f"  {mean}  " if markup == "md" else mean
        parts.append((bold.format(mean) if row.best else plain, spread, difference))
    if markup == "tex":
        return ["".join(part).replace("±", r"$\pm$").replace("(-", "($-$") for part in parts]
    whole = [part for part, row in zip(parts, rows, strict=True) if row.status == "ok"]
    widths = [max([len(part[place]) for part in whole], default=0) for place in range(3)]
    return [
        part[0].rjust(widths[0]) + part[1].ljust(widths[1]) + part[2].ljust(widths[2])
        if row.status == "ok"
        else part[0]
        for part, row in zip(parts, rows, strict=True)
    ]


def _printed(
    tidy: pd.DataFrame, study: dict[str, Any], table: dict[str, Any], markup: str, limit: int = WIDTH
) -> list[pd.DataFrame]:
    """The table as text, in blocks of columns that fit a terminal; each block repeats step and arm."""
    keys = list(dict.fromkeys(zip(tidy["step"], tidy["arm"], strict=True)))
    head: dict[str, list[str]] = {"step": [str(step) for step, _ in keys], "arm": [arm for _, arm in keys]}
    up, down = ("↑", "↓") if markup == "md" else (r"$\uparrow$", r"$\downarrow$")
    blocks: dict[str, dict[str, list[str]]] = {}
    for column in columns_of(study):
        decimals = _decimals(tidy, column)
        rows = list(tidy[tidy["column"].eq(column.key)].itertuples())
        name = column.header if markup == "md" else escape_latex(column.header)
        header = f"{name} {up if column.higher_is_better else down}"
        blocks.setdefault(column.block, {})[header] = _cells(rows, decimals, markup)
    frames = []
    for block in blocks.values():
        width = _width(head) + _width(block)
        parts = -(-_width(block) // (limit - _width(head))) if width > limit and markup == "md" else 1
        for headers in np.array_split(np.array(list(block)), parts):
            frames.append(pd.DataFrame(head | {header: block[header] for header in headers.tolist()}))
    return frames


def _width(columns: dict[str, list[str]]) -> int:
    return sum(3 + max(len(text) for text in [header, *texts]) for header, texts in columns.items())


def format_table(metrics: pd.DataFrame, study: dict[str, Any], name: str = "main", width: int = WIDTH) -> str:
    """The table `name` of the study with its notes, as markdown whose columns are aligned for a terminal.

    What is wider than `width` characters is divided into blocks of columns, one below the other.
    """
    table = table_of(study, name)
    tidy = tidy_table(metrics, study, table)
    blocks = [_markdown(frame) for frame in _printed(tidy, study, table, "md", width)]
    notes = "\n".join(f"- {note}" for note in notes_of(metrics, study, table, tidy))
    return "\n\n".join([f"### {table['title']}", *blocks, notes]) + "\n"


def _markdown(frame: pd.DataFrame) -> str:
    steps = frame["step"].tolist()
    frame = frame.assign(
        step=[step if step != before else "" for step, before in zip(steps, [None, *steps], strict=False)]
    )
    columns = []
    for header in frame.columns:
        texts = [header, *frame[header]]
        width = max(len(text) for text in texts)
        words = header == "arm"
        rule = "-" * width if words else "-" * (width - 1) + ":"
        texts = [text.ljust(width) if words else text.rjust(width) for text in texts]
        columns.append([texts[0], rule, *texts[1:]])
    return "\n".join("| " + " | ".join(line) + " |" for line in zip(*columns, strict=True))


def format_latex(metrics: pd.DataFrame, study: dict[str, Any], name: str) -> str:
    """The same as a LaTeX float over both columns; a block is shrunk to the line where it is wider."""
    table = table_of(study, name)
    tidy = tidy_table(metrics, study, table)
    tabulars = []
    for frame in _printed(tidy, study, table, "tex"):
        steps = frame["step"].tolist()
        # A rule before the first row of each checkpoint; a step is written once.
        starts = [row > 0 and steps[row] != steps[row - 1] for row in range(len(steps))]
        marks = [
            rf"\midrule {step}" if start else step if row == 0 else ""
            for row, (step, start) in enumerate(zip(steps, starts, strict=True))
        ]
        frame = frame.assign(step=marks, arm=[escape_latex(arm) for arm in frame["arm"]])
        layout = "rl" + "r" * (len(frame.columns) - 2)
        tabular = frame.style.hide(axis="index").to_latex(hrules=True, column_format=layout)
        shrink = r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{"
        tabulars.append(shrink + tabular.rstrip() + "}\n")
    notes = " ".join(_breakable(escape_latex(note)) for note in notes_of(metrics, study, table, tidy))
    return (
        "\\begin{table*}\n\\centering\n\\scriptsize\n\\setlength{\\tabcolsep}{4pt}\n"
        f"\\caption{{{escape_latex(table['title'])}}}\n\\label{{tab:{study['name']}-{name}}}\n"
        + "\\par\\medskip\n".join(tabulars)
        + f"\\par\\medskip\n\\parbox{{\\linewidth}}{{\\raggedright {notes}}}\n\\end{{table*}}\n"
    )


def escape_latex(text: str) -> str:
    special = {
        "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$",
        "<": "$<$", ">": "$>$", **{sign: "\\" + sign for sign in "&%$#_{}"},
    }  # fmt: skip
    return "".join(special.get(sign, sign) for sign in text)


def _breakable(text: str) -> str:
    """Lets LaTeX break the long protocol names."""
    return re.sub(r"(\\&|[/?=,])(?=\S)", r"\1\\allowbreak{}", text)


def write_tables(metrics: pd.DataFrame, study: dict[str, Any], out: Path) -> list[Path]:
    """Writes every table of the study in four formats; returns the paths."""
    paths = []
    for table in study["tables"]:
        name = table["name"]
        tidy = tidy_table(metrics, study, table)
        buffer = io.BytesIO()
        tidy.to_parquet(buffer, index=False)
        contents: dict[str, bytes | str] = {
            "parquet": buffer.getvalue(),
            "csv": tidy.to_csv(index=False),
            "md": format_table(metrics, study, name),
            "tex": format_latex(metrics, study, name),
        }
        for suffix, content in contents.items():
            paths.append(out / f"{name}.{suffix}")
            write_atomic(paths[-1], content)
    return paths


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Makes a study's tables from its metrics.")
    parser.add_argument("--metrics", type=Path, required=True, help="the study's metrics.parquet")
    parser.add_argument("--study", type=Path, required=True, help="the study's study.json")
    parser.add_argument("--out", type=Path, required=True, help="folder for the tables")
    parser.add_argument("--code", help="refuse to run if the code's hash is another one")
    options = parser.parse_args(arguments)
    if options.code:
        refuse_changed_code(options.code, "longshort.results.tables")
    try:
        write_tables(long_table.read(options.metrics), read_json(options.study), options.out)
    except ValueError as error:
        sys.exit(f"longshort.results.tables: {error}")


if __name__ == "__main__":
    main()
