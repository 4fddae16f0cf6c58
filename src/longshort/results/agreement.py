"""Two studies, or one study from two machines, side by side: do their effects agree? `longshort compare A B`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow
from scipy import stats

from longshort.errors import UserError
from longshort.metrics.catalog import Column
from longshort.records import study_json
from longshort.records.publish import read_json
from longshort.results import compare, formats, long_table, published, replicates, statistics
from longshort.results.columns import columns_of
from longshort.results.components import aligned

ASSUMED = (
    "Agree: the difference of the two effects, on the scale that they are compared on, against its standard error (t, "
    "5 %, degrees of freedom by Welch and Satterthwaite). Seeds, and bases where drawn, count as new in each study, "
    "documents where the two have others and both tables hold them (published numbers: of the primary number, and of "
    "perplexities at the greatest length). What the studies do not draw anew, a fixed base above all, is in "
    "neither error: such effects may disagree by that alone. Below three draws on a side p is not known: it would be "
    "far too small far too often.",
    "Overall: the sum of the squares of the normal quantiles of each p, against chi-square with as many degrees of "
    "freedom as effects, without those that are sums of others. It takes effects for independent. Those against one "
    "reference are not, which makes a small p more frequent than it says.",
)


# What is read of study.json.
READ = {
    **{key: study_json.LIKE[key] for key in ("name", "l_train", "checkpoints", "seeds", "tables")},
    "arms": [{"name": str, "control": study_json.TEXT_OR_NONE, "runs": {str: str}}],
    "evaluations": dict,
}


class Side(NamedTuple):
    """A study's numbers and its study.json. sealed: a record, or the source's history, tells them from edited ones."""

    path: Path
    sealed: bool
    metrics: pd.DataFrame
    study: dict[str, Any]
    numbers: compare.Numbers


def read(path: Path) -> Side:
    """A results folder, or a metrics.parquet with study.json beside it, of this or another machine; or the numbers that
    were published with the source.

    Raises:
        UserError: one of the two files is not there, or is none of a study of language models.
    """
    if path.is_file() and published.is_one(path):
        there = published.read(path)
        return Side(path, True, there.metrics, there.study, compare.Numbers(there.metrics, there.study))
    table = path / "metrics.parquet" if path.is_dir() else path
    for needed in (table, table.with_name("study.json")):
        if not needed.is_file():
            said = "" if needed == path else f"{path}: "
            raise UserError(f"{said}{needed} does not exist: give a folder results/STUDY, or its metrics.parquet")
    if "arms" not in read_json(table.with_name("study.json"), dict):
        raise UserError(f"{table.with_name('study.json')} is of no study of language models; give one with arms")
    study = read_json(table.with_name("study.json"), READ)
    sealed = table.with_suffix(".json").exists()  # which a table that was sent alone has left behind
    if "seal" in study:  # which an earlier version did not write
        study = study_json.read(table.with_name("study.json"))
        if study_json.is_another(table, study):
            raise UserError(f"{table} is of the study as it was before study.json was written: run snakemake again")
    try:
        metrics = long_table.read(table) if sealed else long_table.checked(table)
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{table} is no whole metrics.parquet ({reason}): copy it again") from None
    return Side(path, sealed, metrics, study, compare.Numbers(metrics, study))


def against(one: Side, other: Side, every_column: bool = False) -> tuple[pd.DataFrame, dict[str, Any]]:
    """One row for each comparison and column that both have, and the overall test of the primary's.

    difference_*, low_*, high_*: as in the tables, in per cent or the column's unit. error: standard error of the
    difference of the effects, on the scale of the comparison; p: two-sided. agree: p of 5 % or more.

    Raises:
        UserError: they share no comparison, or have no primary number in common.
    """
    names = f"{one.path} and {other.path}"
    pairs = [pair for pair in compare.pairs(one.study) if _has(other, pair)]
    if not pairs:
        raise UserError(f"{names} share no arm with its reference: there is nothing to compare")
    columns = _columns(one, other, every_column)
    if not columns:
        raise UserError(
            f"{names}: their primary numbers are {one.study.get('primary')} and {other.study.get('primary')}; name one "
            "that both measure, or compare --all columns"
        )
    rows = [_row(one, other, column, *pair) for column in columns for pair in pairs]
    frame = pd.DataFrame(rows)
    of_their_own = frame[["arm", "reference"]].apply(tuple, axis=1).isin(_independent(one.study, pairs))
    judged = frame[frame["column"].eq(columns[0].key) & of_their_own & frame["p"].notna()]
    chi_square = float((stats.norm.isf(judged["p"] / 2) ** 2).sum())
    p = float(stats.chi2.sf(chi_square, len(judged))) if len(judged) else math.nan
    overall = {"column": columns[0].key, "chi_square": chi_square, "effects": len(judged), "p": p}
    return frame, overall


def _independent(study: dict[str, Any], pairs: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Pairs of which none is a sum of others, as arm to baseline is of arm to control and control to baseline: what is
    claimed comes first, and a pair is left out whose two arms others have joined already."""
    claimed = [pair for pair in compare.claims(study) if pair in pairs]
    joined: dict[str, str] = {}

    def end(arm: str) -> str:
        return end(joined[arm]) if arm in joined else arm

    found = []
    for arm, reference in dict.fromkeys([*claimed, *pairs]):
        if (one := end(arm)) != (other := end(reference)):
            joined[one] = other
            found.append((arm, reference))
    return found


def _has(side: Side, pair: tuple[str, str]) -> bool:
    return set(pair) <= {arm["name"] for arm in side.study["arms"]}


def _columns(one: Side, other: Side, every_column: bool) -> list[Column]:
    """The first study's primary column first."""
    known = {column.key for column in columns_of(other.study) if column.compared}
    shared = [column for column in columns_of(one.study) if column.compared and column.key in known]
    primary = [column for column in shared if column.key == one.study.get("primary")]
    return primary + [column for column in shared if column not in primary] if every_column else primary


def _row(one: Side, other: Side, column: Column, arm: str, reference: str) -> dict[str, Any]:
    row: dict[str, Any] = {"column": column.key, "header": column.header, "arm": arm, "reference": reference}
    row |= {"unit": "%" if column.relative else "", "decimals": 1 if column.relative else column.decimals}
    both: list[compare.Paired | None] = []
    for name, side in (("a", one), ("b", other)):
        seeds, step = [int(seed) for seed in side.study["seeds"]], int(side.study["checkpoints"][-1])
        shown = side.numbers.compared(column, arm, reference, step, seeds)
        row |= {f"difference_{name}": shown.mean, f"low_{name}": shown.low, f"high_{name}": shown.high}
        row |= {f"seeds_{name}": shown.n, f"whole_{name}": shown.n == len(seeds)}
        both.append(side.numbers.paired(column, arm, reference, step, seeds))
    row |= {"error": math.nan, "p": math.nan, "agree": None}
    found = [paired for paired in both if paired is not None]
    if len(found) < 2:
        return row
    same_documents = found[0].names == found[1].names and _data(one) == _data(other)
    both_hold_them = all(paired.names is not None for paired in found)
    parts = [part for paired in found for part in _variances(paired, both_hold_them and not same_documents)]
    means = [float(paired.by_seed.groupby(paired.units).mean().mean()) for paired in found]
    gap, total = means[0] - means[1], sum(part for part, _ in parts)
    if gap == 0:  # the same run twice
        return {**row, "error": math.sqrt(total) if math.isfinite(total) else math.nan, "p": 1.0, "agree": True}
    few = min(len(paired.of_units) for paired in found) < statistics.SEEDS_FOR_AN_INTERVAL
    if few or not 0 < total < math.inf:
        return row
    freedom = total**2 / sum(part**2 / freedom for part, freedom in parts)
    p = float(2 * stats.t.sf(abs(gap) / math.sqrt(total), freedom))
    return {**row, "error": math.sqrt(total), "p": p, "agree": p >= 1 - statistics.LEVEL}


def _data(side: Side) -> set[str]:
    return set(side.metrics["data"].dropna()) - {""} if "data" in side.metrics else {str(side.path)}


def _variances(paired: compare.Paired, other_documents: bool) -> list[tuple[float, float]]:
    """(variance, degrees of freedom) of the parts of an effect that another study draws anew; infinite for one draw."""
    of_units = paired.of_units
    draws, documents = of_units.shape
    if draws < 2:
        return [(math.inf, 1.0)]
    w = np.full(documents, 1 / documents) if paired.weights is None else paired.weights / paired.weights.sum()
    parts = [(float((of_units @ w).var(ddof=1)) / draws, float(draws - 1))]
    if documents > 1 and other_documents:
        of_documents, rest, freedom = statistics.document_parts(of_units, w, paired.strata)
        parts.append((max(of_documents - rest, 0.0), freedom if math.isfinite(freedom) else 1e9))
    return parts


def text(frame: pd.DataFrame, overall: dict[str, Any], one: Side, other: Side) -> str:
    """The comparison for people."""
    head = ["arm", "to", "column", "A", "B", "p", "agree?"]
    lines = []
    for row in frame.to_dict("records"):
        cells = [_effect(row, name) for name in ("a", "b")]
        p = "–" if pd.isna(row["p"]) else f"{row['p']:.2g}"
        agree = "not known" if row["agree"] is None or pd.isna(row["agree"]) else "yes" if row["agree"] else "no"
        lines.append([row["arm"], row["reference"], row["header"], *cells, p, agree])
    said = "no error is known of any effect"
    if overall["effects"]:
        said = f"chi-square {overall['chi_square']:.1f} over {overall['effects']} effects, p = {overall['p']:.2g}"
    notes = [f"{name}: {side.path} ({_drawn(side)})." for name, side in (("A", one), ("B", other))]
    notes += [
        f"{side.path} came without the record beside its metrics.parquet: nothing would tell it from an edited one."
        for side in (one, other)
        if not side.sealed
    ]
    notes += _differ(frame, one, other)
    notes += [f"Overall, {overall['column']}: {said}.", *ASSUMED]
    return "\n".join([aligned(head, lines), "", *(f"- {note}" for note in notes)])


def _names(side: Side) -> set[str]:
    return {run for arm in side.study["arms"] for run in arm["runs"].values()}


def _shared(one: Side, other: Side) -> set[str]:
    """Runs of the first that are runs of the other, too: those of one name on the same texts, unless their losses are
    others, as after a change of the code; and whatever the names are, which hold the paths of folders, those with the
    very same losses."""
    named = _names(one) & _names(other) if _data(one) == _data(other) else set()
    losses = [_losses(side) for side in (one, other)]
    shared = set()
    for arm in one.study["arms"]:
        for seed, run in arm["runs"].items():
            a, b = (of_side.get((arm["name"], seed), ()) for of_side in losses)
            if (a and a == b) or (run in named and (not (a and b) or _are_close(a, b))):
                shared.add(run)
    return shared


def _are_close(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    """Whether two losses differ by no more than the rounding of two processors comes to in a training."""
    return len(a) == len(b) and np.allclose(a, b, rtol=0.01)


def _losses(side: Side) -> dict[tuple[str, str], tuple[float, ...]]:
    """The losses of each training, step by step, by its arm and seed."""
    rows = side.metrics[side.metrics["metric"].eq("train/ce") & side.metrics["value"].notna()]
    of_runs = rows.sort_values("step").groupby(["arm", "seed"])
    return {(str(arm), str(seed)): tuple(of_run["value"]) for (arm, seed), of_run in of_runs}


def _differ(frame: pd.DataFrame, one: Side, other: Side) -> list[str]:
    """What the two were measured or made by otherwise, and what they share: a difference may be by that, or none."""
    said = []
    if both := len(_shared(one, other)):
        of = " and ".join(str(len(_names(side))) for side in (one, other))
        said.append(f"{both} runs (of {of}) are the same in A and B: every p is too great, and agreement says little.")
    for what, values in (
        ("training length", [side.study.get("l_train") for side in (one, other)]),
        ("last step", [side.study["checkpoints"][-1] for side in (one, other)]),
    ):
        if values[0] != values[1]:
            said.append(f"The {what} is {values[0]} in A and {values[1]} in B.")
    measured: dict[tuple[str, ...], list[str]] = {}
    for column in (each for each in columns_of(one.study) if each.key in set(frame["column"])):
        protocols = (set(side.numbers.behind(column)["protocol"].dropna()) for side in (one, other))
        by = tuple(", ".join(sorted(each)) or "not known" for each in protocols)
        measured.setdefault(by, []).append(column.header)
    for by, headers in measured.items():
        if by[0] != by[1]:
            said.append(f"Measured by two protocols, {' and '.join(by)}: {', '.join(headers)}.")
    arms = dict.fromkeys([*frame["arm"], *frame["reference"]])
    settings = [
        {arm["name"]: arm.get("settings", {}).get("alignment") for arm in side.study["arms"]} for side in (one, other)
    ]
    if others := [arm for arm in arms if settings[0][arm] != settings[1][arm]]:
        said.append(f"Not the same alignment in A and B, though of one name: {', '.join(others)}.")
    return said


def _drawn(side: Side) -> str:
    data = ", ".join(sorted(one[:10] for one in _data(side)))
    return f"{len(side.study['seeds'])} seeds; {replicates.caption(side.study)}; data {data}"


def _effect(row: Any, name: str) -> str:
    mean, low, high = (row[f"{part}_{name}"] for part in ("difference", "low", "high"))
    if math.isnan(mean):
        return "missing"
    few = "" if row[f"whole_{name}"] else f" (n = {row[f'seeds_{name}']})"
    return formats.effect(mean, low, high, row["decimals"], f" {row['unit']}" if row["unit"] else "") + few
