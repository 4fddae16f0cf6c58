"""Differences between arms, paired by seed and document: what results.statistics needs of the long table."""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from longshort.metrics.record import Column
from longshort.results import long_table, replicates, statistics
from longshort.results.columns import BEST_ALPHA

NAN = float("nan")


class Compared(NamedTuple):
    """A mean paired difference in the column's unit, or in per cent of the reference (`relative`).

    sd: over seeds. low, high: 95 % interval; joint_low, joint_high: one that holds for all comparisons together. n:
    seeds that both arms have. documents: how many are paired, 0 where none are known. p: exact sign flips over seeds.
    draws: the independent ones among the seeds; with several seeds of each base, the bases: interval and p are of them.
    """

    mean: float
    sd: float
    low: float
    high: float
    joint_low: float
    joint_high: float
    n: int
    documents: int
    p: float
    draws: int


NOTHING = Compared(NAN, NAN, NAN, NAN, NAN, NAN, 0, 0, NAN, 0)


def pairs(study: dict[str, Any]) -> list[tuple[str, str]]:
    """Arm and reference of all pairs of different runs that the study's tables compare, each by its first names."""
    runs = {arm["name"]: tuple(sorted(arm["runs"].values())) for arm in study["arms"]}
    found: dict[tuple[Any, Any], tuple[str, str]] = {}
    for table in study["tables"]:
        if table.get("columns") == BEST_ALPHA:  # it compares lengths
            continue
        for arm in table["arms"]:
            reference = reference_of(study, table, arm)
            if reference is not None and runs[arm] != runs[reference]:
                found.setdefault((runs[arm], runs[reference]), (arm, reference))
    return list(found.values())


def claims(study: dict[str, Any]) -> list[tuple[str, str]]:
    """Arm and reference of the effects that are claimed, the family of the joint intervals: of the arms that the study
    names for it, each with its control or the baseline; where it names none, of all pairs."""
    control = {arm["name"]: arm["control"] for arm in study["arms"]}
    return [(name, control[name] or "baseline") for name in study.get("claims", [])] or pairs(study)


def is_claimed(study: dict[str, Any], arm: str, reference: str) -> bool:
    """Whether the two are such a pair, by these or other names of the same runs."""
    runs = {entry["name"]: entry["runs"] for entry in study["arms"]}
    return any((runs[arm], runs[reference]) == (runs[one], runs[other]) for one, other in claims(study))


def comparisons(study: dict[str, Any]) -> int:
    """How many effects are claimed."""
    return max(1, len(claims(study)))


def reference_of(study: dict[str, Any], table: dict[str, Any], arm: str) -> str | None:
    """The arm that `arm` is compared with in a table; None for that one itself, for a model that is no arm, and for an
    arm of another training length."""
    if arm in replicates.NO_ARMS or arm in replicates.references(study):
        return None
    reference = table.get("compare_with")
    if reference == "control":
        reference = next(entry["control"] for entry in study["arms"] if entry["name"] == arm)
    return None if reference == arm else reference


def compared_with(study: dict[str, Any], table: dict[str, Any]) -> str:
    """What the arms of a table are compared with, in words; empty where with nothing."""
    if table.get("compare_with") != "control":
        return str(table.get("compare_with") or "")
    controls: dict[str, list[str]] = {}
    for arm in table["arms"]:
        reference = reference_of(study, table, arm)
        if reference is not None:
            controls.setdefault(reference, []).append(arm)
    listed = [f"{control} for {', '.join(arms)}" for control, arms in controls.items()]
    return f"the control of each arm ({'; '.join(listed)})"


def log(value: float) -> float:
    """NaN where there is none."""
    return math.log(value) if 0 < value < math.inf else NAN


class Documents(NamedTuple):
    """values [seeds, documents] of an arm, NaN where there is none; names: (task, document), ascending; n: weights."""

    names: list[tuple[str, str]]
    seeds: list[int]
    values: NDArray[np.float64]
    n: NDArray[np.float64]


def documents_of(rows: pd.DataFrame) -> Documents:
    """Rows of one number a document and seed, as an array: the comparisons of a study need thousands of them.

    Raises:
        ValueError: a document has two numbers with one seed.
    """
    keys = list(zip(rows["task"].fillna(""), rows["document"], strict=True))
    names, seeds = sorted(set(keys)), sorted({int(seed) for seed in rows["seed"]})
    places, of_seed = {name: place for place, name in enumerate(names)}, {seed: k for k, seed in enumerate(seeds)}
    at = np.array([of_seed[int(seed)] for seed in rows["seed"]]), np.array([places[key] for key in keys])
    count = np.zeros((len(seeds), len(names)), dtype=int)
    np.add.at(count, at, 1)
    for seed, place in np.argwhere(count > 1):
        task, document = names[place]
        of = f" of {task}" if task else ""
        raise ValueError(
            f"the document {document!r}{of} has {count[seed, place]} numbers of one kind with seed {seeds[seed]}; "
            "names of documents must differ, so delete the evaluation and run snakemake again"
        )
    values = np.full(count.shape, NAN)
    values[at] = rows["value"].to_numpy(dtype="float64")
    n = dict(zip(reversed(keys), reversed(rows["n"].to_list()), strict=True))
    return Documents(names, seeds, values, np.array([n[name] for name in names], dtype="float64"))


class Paired(NamedTuple):
    """Differences of two arms, on the scale that they are compared on (logarithms of a perplexity).

    differences: [seeds, documents]; [seeds, 1] where no documents are known (names None). units [seeds]: the
    independent draw that each seed belongs to. weights, strata: as statistics.paired_difference takes them.
    """

    by_seed: pd.Series
    differences: NDArray[np.float64]
    units: NDArray[np.int64]
    names: list[tuple[str, str]] | None
    weights: NDArray[np.float64] | None
    strata: NDArray[np.int64] | None

    @property
    def of_units(self) -> NDArray[np.float64]:
        """The differences [draws, documents]: of each draw the mean of its seeds."""
        return np.stack([self.differences[self.units == unit].mean(0) for unit in dict.fromkeys(self.units.tolist())])


class Numbers:
    """The numbers of a study by column, of whole texts and of single documents.

    One serves all tables of a study: they show the same pairs of arms again and again, and each is compared once.
    """

    def __init__(self, metrics: pd.DataFrame, study: dict[str, Any]) -> None:
        self._unit_of = replicates.unit_of(study)
        self._single = long_table.single(metrics)
        self._metrics = metrics
        of_documents = metrics[metrics["document"].notna()]
        # 0 stands for no length, as NaN would equal no key.
        lengths = of_documents["length"].fillna(0).astype("int64")
        keys = [of_documents["metric"], lengths, of_documents["arm"], of_documents["step"]]
        self._documents = {key: rows for key, rows in of_documents.groupby(keys)}
        self._behind: dict[Column, pd.DataFrame] = {}
        self._by_seed: dict[Column, dict[Any, pd.Series]] = {}
        self._tables: dict[tuple[Column, str, int], Documents | None] = {}
        self._compared: dict[tuple[Column, str, str, int, tuple[int, ...], int], Compared] = {}

    def behind(self, column: Column) -> pd.DataFrame:
        """The rows of a column."""
        if column not in self._behind:
            self._behind[column] = long_table.at(self._single, column.metric, column.length, column.task)
        return self._behind[column]

    def by_seed(self, column: Column, arm: str, step: int, seeds: list[int]) -> pd.Series:
        """The value of each of `seeds` (index); NaN where there is none."""
        if column not in self._by_seed:
            self._by_seed[column] = {
                key: rows.set_index("seed")["value"].astype("float64")
                for key, rows in self.behind(column).groupby(["arm", "step"])
            }
        values = self._by_seed[column].get((arm, step), pd.Series(dtype="float64", name="value"))
        return values.reindex(pd.Index(seeds, name="seed"))

    def absence(self, column: Column, arm: str, step: int, seeds: list[int]) -> str:
        """What is absent among the values of `seeds`, as long_table.absence says it."""
        return long_table.absence(self.by_seed(column, arm, step, seeds), arm, step, self._diverged)

    @cached_property
    def _diverged(self) -> dict[tuple[str, int], int]:
        return long_table.first_diverged_steps(self._metrics)

    def by_document(self, column: Column, arm: str, step: int) -> Documents | None:
        """The numbers of single documents; None where there are none."""
        key = column, arm, step
        if key not in self._tables:
            rows = self._documents.get((str(column.documents), column.length or 0, arm, step))
            self._tables[key] = None
            if column.documents is not None and rows is not None:
                if column.task not in (None, "overall"):
                    rows = rows[rows["task"].eq(str(column.task))]
                self._tables[key] = documents_of(rows[rows["value"].notna()])
        return self._tables[key]

    def compared(
        self, column: Column, arm: str, reference: str, step: int, seeds: list[int], comparisons: int = 1
    ) -> Compared:
        """Arm less reference, over the seeds that both have."""
        key = column, arm, reference, step, tuple(seeds), comparisons
        if key not in self._compared:
            self._compared[key] = self._compare(*key)
        return self._compared[key]

    def _compare(
        self, column: Column, arm: str, reference: str, step: int, the_seeds: tuple[int, ...], comparisons: int
    ) -> Compared:
        paired = self.paired(column, arm, reference, step, list(the_seeds))
        if paired is None:
            return NOTHING
        by_seed, of_units = paired.by_seed, paired.of_units
        found = statistics.paired_difference(of_units, paired.weights, paired.strata, comparisons)
        ends = [found.mean, found.low, found.high, found.joint_low, found.joint_high]
        spread: pd.Series = by_seed
        if column.relative:
            ends = [math.inf if end >= 700 else 100 * math.expm1(end) for end in ends]
            spread = 100 * by_seed.map(math.expm1)
        sd = float(spread.std(ddof=1)) if len(spread) > 1 else NAN
        flipped = [by_seed.to_numpy()[paired.units == unit].mean() for unit in dict.fromkeys(paired.units.tolist())]
        p = statistics.sign_flip(np.array(flipped))
        n = len(by_seed)
        return Compared(ends[0], sd, ends[1], ends[2], ends[3], ends[4], n, found.documents, p, len(of_units))

    def paired(self, column: Column, arm: str, reference: str, step: int, seeds: list[int]) -> Paired | None:
        """The differences of the seeds that both arms have; None where there are none."""
        values, others = (self.by_seed(column, name, step, seeds) for name in (arm, reference))
        if column.relative:
            values, others = values.map(log), others.map(log)
        by_seed = (values - others).replace([np.inf, -np.inf], np.nan).dropna()
        if by_seed.empty:
            return None
        units = np.array([self._unit_of.get(int(seed), int(seed)) for seed in by_seed.index])
        found = self._by_document(column, arm, reference, step, list(by_seed.index))
        if found is None:
            return Paired(by_seed, by_seed.to_numpy()[:, None], units, None, None, None)
        differences, of = found
        strata = pd.factorize(np.array([task for task, _ in of.names], dtype=object))[0]
        # Every task counts alike, whatever the number of its documents.
        weights = of.n / np.bincount(strata, weights=of.n)[strata]
        return Paired(by_seed, differences, units, of.names, weights, strata)

    def _by_document(
        self, column: Column, arm: str, reference: str, step: int, seeds: list[int]
    ) -> tuple[NDArray[np.float64], Documents] | None:
        """Differences [seeds, documents] and what they are of, where both arms have every document with every seed."""
        one, other = self.by_document(column, arm, step), self.by_document(column, reference, step)
        if one is None or other is None or one.names != other.names:
            return None
        if not set(seeds) <= set(one.seeds) & set(other.seeds):
            return None
        table = one.values[[one.seeds.index(seed) for seed in seeds]]
        table = table - other.values[[other.seeds.index(seed) for seed in seeds]]
        return (table, one) if np.isfinite(table).all() else None
