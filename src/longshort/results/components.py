"""How much of an effect is a draw of what, and how many seeds another study would need: `tables --show components`."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from longshort.errors import UserError
from longshort.metrics.record import Column
from longshort.results import compare, replicates, statistics
from longshort.results.columns import columns_of

NAN = float("nan")
MOST_SEEDS = 1000
# Of an effect that counts as seen: how often a study like this one would see it.
POWER = 0.8


class Components(NamedTuple):
    """Variances of one effect, in the squared unit of the differences, as the method of moments estimates them.

    base: of the draw of a base; NaN where no base has several seeds, and then seed holds it, if each has its own. seed:
    of a seed. document: of the mean over these documents. rest: of that mean, for one seed: what seed and document (and
    base and document) do together. An estimate below 0 is given as 0. freedom: of the documents' part.
    """

    base: float
    seed: float
    document: float
    rest: float
    freedom: float

    def half_width(self, level: float, draws: int, seeds_per_draw: int = 1) -> float:
        """Half the joint interval that statistics.paired_difference would give on average of so many draws, of bases or
        of seeds, with the same number of documents."""
        of_draw = (0.0 if math.isnan(self.base) else self.base) + (self.seed + self.rest) / seeds_per_draw
        rest = self.rest / seeds_per_draw / draws
        of_documents = self.document + rest if math.isfinite(self.freedom) else 0.0
        t_draws, t_documents = statistics.t_quantile(level, draws - 1), statistics.t_quantile(level, self.freedom)
        return math.sqrt(t_draws**2 * of_draw / draws + t_documents**2 * of_documents)


def components(
    differences: NDArray[np.float64],
    units: NDArray[np.int64],
    weights: NDArray[np.float64] | None = None,
    strata: NDArray[np.int64] | None = None,
) -> Components:
    """The components of d[s, i] = mu + base b(s) + seed s + document i + rest, by the analysis of variance (Searle,
    Casella & McCulloch 1992, Variance Components, ch. 4).

    Args:
        differences: [seeds, documents]; [seeds, 1] where there is one number a seed: what documents add is then 0, and
            seed holds the rest.
        units: [seeds], the draw that each seed belongs to: its base, where several seeds start from each, else itself.
        weights, strata: of the documents, as in statistics.paired_difference.

    Raises:
        ValueError: there are fewer than two draws.
    """
    seeds, documents = differences.shape
    names, of = np.unique(units, return_inverse=True)
    if len(names) < 2:
        raise ValueError(f"{len(names)} draws: the components of chance need two, or more")
    w = np.full(documents, 1 / documents) if weights is None else weights / weights.sum()
    by_seed = differences @ w
    of_documents = rest = 0.0
    freedom = math.inf
    if documents > 1:
        of_documents, rest, freedom = statistics.document_parts(differences, w, strata)
    rest_of_seed = rest * seeds
    document = max(of_documents - rest, 0.0)
    if len(names) == seeds:
        return Components(NAN, max(float(by_seed.var(ddof=1)) - rest_of_seed, 0.0), document, rest_of_seed, freedom)
    means = np.array([by_seed[of == place].mean() for place in range(len(names))])
    within = float(((by_seed - means[of]) ** 2).sum()) / (seeds - len(names))
    # Of unequal groups the harmonic mean counts, as each draw's mean weighs alike.
    size = len(names) / (1 / np.bincount(of)).sum()
    base = max(float(means.var(ddof=1)) - within / size, 0.0)
    return Components(base, max(within - rest_of_seed, 0.0), document, rest_of_seed, freedom)


def draws_for(found: Components, margin: float, level: float, seeds_per_draw: int = 1) -> int | None:
    """How many draws bring the joint interval's half width to a margin; None where documents alone are wider, or no
    number up to 1,000 does."""
    fits = (n for n in range(2, MOST_SEEDS + 1) if found.half_width(level, n, seeds_per_draw) <= margin)
    return next(fits, None)


def table(metrics: pd.DataFrame, study: dict[str, Any], margin: float | None = None) -> pd.DataFrame:
    """One row for each comparison of the study: variance of the primary's paired difference by component, in squared
    per cent of the reference (of a small difference) or the column's unit, and the draws for a margin.

    share_*: of the variance of the mean over the study's own seeds. seen: the effect from which on the joint interval
    leaves 0 out with probability POWER, taking the draws' degrees of freedom for all parts.

    Args:
        margin: half width of the joint interval, in the same unit.

    Raises:
        UserError: the study names no primary number, compares nothing, or has one draw alone.
    """
    where = f"study {study['name']}"
    column = next((one for one in columns_of(study) if one.key == study.get("primary")), None)
    if column is None:
        raise UserError(f"{where} names no primary number, and components are of that alone; give `primary` there")
    if replicates.count(study) < 2:
        raise UserError(f"{where} has one {replicates.unit(study)}: how much is chance needs two, and better three")
    if not compare.pairs(study):
        raise UserError(f"{where} compares no two arms: components are of a difference; give it a second arm")
    numbers = compare.Numbers(metrics, study)
    return pd.DataFrame([_row(numbers, study, column, pair, margin) for pair in compare.pairs(study)])


def _row(
    numbers: compare.Numbers, study: dict[str, Any], column: Column, pair: tuple[str, str], margin: float | None = None
) -> dict[str, Any]:
    seeds, step = [int(seed) for seed in study["seeds"]], int(study["checkpoints"][-1])
    level = 1 - (1 - statistics.LEVEL) / compare.comparisons(study)
    paired = numbers.paired(column, *pair, step, seeds)
    row: dict[str, Any] = {"arm": pair[0], "reference": pair[1], "seeds": 0 if paired is None else len(paired.units)}
    if paired is not None and len(set(paired.units.tolist())) > 1:
        found = components(paired.differences, paired.units, paired.weights, paired.strata)
        draws = len(set(paired.units.tolist()))
        per_draw = max(1, len(paired.units) // draws)
        scale = 100.0**2 if column.relative else 1.0
        parts = {"base": found.base, "seed": found.seed, "document": found.document, "rest": found.rest}
        divisors = {"base": draws, "seed": len(paired.units), "document": 1, "rest": len(paired.units)}
        total = sum(value / divisors[name] for name, value in parts.items() if not math.isnan(value))
        row |= {f"variance_{name}": scale * value for name, value in parts.items()}
        row |= {f"share_{name}": v / divisors[name] / total if total else NAN for name, v in parts.items()}
        row["half_width"] = math.sqrt(scale) * found.half_width(level, draws, per_draw)
        t_power, t_joint = (statistics.t_quantile(one, draws - 1) for one in (2 * POWER - 1, level))
        row["seen"] = row["half_width"] * (1 + t_power / t_joint)
        if margin is not None:
            row["draws"] = draws_for(found, margin / math.sqrt(scale), level, per_draw)
    return row


def answer(numbers: compare.Numbers, study: dict[str, Any]) -> list[str]:
    """A sentence for the report: how small an effect the study would have seen, and what its chance is made of."""
    column = next((one for one in columns_of(study) if one.key == study.get("primary")), None)
    if column is None or replicates.count(study) < statistics.SEEDS_FOR_AN_INTERVAL:
        return []
    unit = " %" if column.relative else ""
    said = []
    for pair in compare.claims(study):
        row = _row(numbers, study, column, pair)
        if row["seeds"] == len(study["seeds"]) and not pd.isna(row["share_seed"]):
            drawn = row["share_seed"] + (0.0 if pd.isna(row["share_base"]) else row["share_base"])
            shares = [f"{100 * share:.0f} %" for share in (drawn, row["share_document"], row["share_rest"])]
            said.append(f"{' to '.join(pair)} ± {row['seen']:.2g}{unit} ({', '.join(shares)})")
    if not said:
        return []
    draw, count = replicates.unit(study), replicates.count(study)
    return [
        f"What could be seen: in four of five such studies of {count} {draw}s the joint interval leaves 0 out from "
        f"these effects on (in brackets the shares of {draw}, documents and rest in the variance): "
        f"{'; '.join(said)}."
    ]


def margin_of(text: str, study: dict[str, Any]) -> float:
    """A margin as a person writes it: per cent of the reference for a perplexity, else in the column's unit.

    Raises:
        UserError: it is no positive number, or of another unit than the primary number's differences.
    """
    relative = any(one.relative for one in columns_of(study) if one.key == study.get("primary"))
    try:
        margin = float(text.removesuffix("%"))
    except ValueError:
        margin = NAN
    if not 0 < margin < math.inf or text.endswith("%") != relative:
        unit = "per cent of the reference, such as 2%" if relative else "the unit of the primary number, such as 0.5"
        raise UserError(f"--margin {text!r}: give a number above 0 in {unit}")
    return margin


def text(frame: pd.DataFrame, study: dict[str, Any], margin: float | None = None) -> str:
    """The table for people, with what it rests on."""
    column = next(one for one in columns_of(study) if one.key == study["primary"])
    unit = "%" if column.relative else ""
    several = replicates.unit(study) == "base"
    own = len(replicates.base_rows(study)) > 1
    seed = "seed" if several or not own else "seed and base"
    parts = {"base": "base", "seed": seed, "document": "documents", "rest": "rest"}
    parts = parts if several else {name: word for name, word in parts.items() if name != "base"}
    draw = "bases" if several else "seeds"
    head = ["arm", "to", *(f"{word} (sd)" for word in parts.values()), *(f"{word} (share)" for word in parts.values())]
    head += ["joint ±", *([f"{draw} for ± {margin:g}{unit}"] if margin is not None else [])]
    lines = []
    for row in frame.to_dict("records"):
        if "variance_seed" not in row or pd.isna(row["variance_seed"]):
            lines.append([row["arm"], row["reference"], *["too few seeds"] * (len(head) - 2)])
            continue
        variances = [row[f"variance_{name}"] for name in parts]
        cells = ["–" if pd.isna(variance) else f"{math.sqrt(variance):.3g}" for variance in variances]
        cells += ["–" if pd.isna(row[f"share_{name}"]) else f"{100 * row[f'share_{name}']:.0f} %" for name in parts]
        few = "" if row["seeds"] == len(study["seeds"]) else f" (n = {row['seeds']})"
        cells.append(f"{row['half_width']:.3g}{unit}{few}")
        if margin is not None:
            cells.append("none" if pd.isna(row["draws"]) else f"{row['draws']:.0f}")
        lines.append([row["arm"], row["reference"], *cells])
    per = f", with {len(study['seeds']) // replicates.count(study)} seeds each" if several else ""
    notes = [
        f"Of the paired difference in {column.header} at step {study['checkpoints'][-1]}"
        + (", as a logarithm times 100: per cent, while it is small." if column.relative else "."),
        f"sd: of one {' and of one '.join(['base', 'seed'] if several else [seed])}; documents: of the mean over these "
        "documents; rest: what seed and document do together, in that mean of one seed. share: of the variance of the "
        "study's own mean.",
        f"joint ±: half of the interval that holds together for {compare.comparisons(study)} comparisons, as "
        f"{replicates.count(study)} {draw}{per} give it on average.",
        "Variances of a few seeds are known badly: with 3 the true sd lies between half and six times the one shown.",
    ]
    if margin is not None:
        notes.append(
            f"none: with these documents no number of {draw} up to {MOST_SEEDS:,} is enough; it takes more documents "
            "or a wider margin."
        )
    notes.append(replicates.sentence(study))
    return "\n".join([aligned(head, lines), "", *(f"- {note}" for note in notes)])


def aligned(head: list[str], lines: list[list[str]]) -> str:
    """A plain table, as markdown: words to the left, numbers to the right."""
    columns = list(zip(head, *lines, strict=True))
    widths = [max(3, *map(len, column)) for column in columns]
    rule = ["-" * width if place < 2 else "-" * (width - 1) + ":" for place, width in enumerate(widths)]
    drawn = []
    for line in [head, rule, *lines]:
        cells = (c.ljust(w) if place < 2 else c.rjust(w) for place, (c, w) in enumerate(zip(line, widths, strict=True)))
        drawn.append("| " + " | ".join(cells) + " |")
    return "\n".join(drawn)
