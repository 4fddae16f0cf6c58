"""What a study draws anew with its seeds, and what it does not: its bases. Imports no pandas: the Snakefile imports it.

A base is a draw, too: of its weights and of the order of its data. Where all seeds start from one, its share of chance
is in no interval. Where several seeds start from each of several bases, it is the bases that are independent draws.
"""

from __future__ import annotations

from typing import Any

# Models that are no arms stand in the long table at step 0: the bases before fine-tuning, the same with their context
# extended as the arms start from them, and the base that was trained at the test length.
BASE, EXTENDED_BASE, LONG_BASE = "(base)", "(extended base)", "(long base)"
NO_ARMS = (BASE, EXTENDED_BASE, LONG_BASE)
# Where all seeds share one, its rows have this seed.
BASE_SEED = -1


def by_first_seed(bases: dict[int, str]) -> dict[int, str]:
    """The bases (seed -> run), each by the first seed that starts from it."""
    first: dict[str, int] = {}
    for seed, run in bases.items():
        first.setdefault(run, seed)
    return {seed: run for run, seed in first.items()}


def bases_of(study: dict[str, Any]) -> dict[int, str]:
    """Seed -> base, of a resolved study (study.json); one of an earlier version names a single base."""
    if "bases" not in study:
        return {int(seed): str(study["base"]) for seed in study["seeds"]}
    return {int(seed): str(study["bases"][str(seed)]) for seed in study["seeds"]}


def base_rows(study: dict[str, Any]) -> dict[int, str]:
    """Seed -> base, as the rows of the base model are named: by first seed, or BASE_SEED where there is one base."""
    return _rows(bases_of(study))


def _rows(runs: dict[int, str]) -> dict[int, str]:
    first = by_first_seed(runs)
    return first if len(first) > 1 else dict.fromkeys([BASE_SEED], next(iter(first.values())))


def models(study: dict[str, Any]) -> dict[str, dict[int, str]]:
    """NO_ARMS, as far as the study has them -> seed of their rows -> run."""
    found = {BASE: base_rows(study)}
    if extended := study.get("extended_bases"):
        found[EXTENDED_BASE] = _rows({int(seed): str(run) for seed, run in extended.items()})
    return found | ({LONG_BASE: {BASE_SEED: str(study["long_base"])}} if study.get("long_base") else {})


def references(study: dict[str, Any]) -> set[str]:
    """The arms that are trained at another length: shown beside the base, and no part of any comparison."""
    return {arm["name"] for arm in study["arms"] if arm.get("reference")}


def unit_of(study: dict[str, Any]) -> dict[int, int]:
    """Seed -> the independent draw that it belongs to: itself, or the first seed of its base if there are several."""
    of_base = {run: seed for seed, run in base_rows(study).items()}
    several = len(of_base) > 1
    return {seed: of_base[run] if several else seed for seed, run in bases_of(study).items()}


def count(study: dict[str, Any]) -> int:
    """How many independent draws the study has."""
    return len(set(unit_of(study).values()))


def unit(study: dict[str, Any]) -> str:
    """What one draw is called."""
    return "base" if count(study) < len(study["seeds"]) else "seed"


def components(study: dict[str, Any]) -> str:
    """The components of chance that the intervals hold besides documents."""
    if len(base_rows(study)) == 1:
        return "seeds"
    return "bases" if unit(study) == "base" else "seeds, each with its own base,"


def caption(study: dict[str, Any]) -> str:
    """The same in a few words, for a plot."""
    bases = len(base_rows(study))
    if bases == 1:
        return "another base was not drawn"
    return f"of {bases} bases" if unit(study) == "base" else "each seed has its own base"


def sentence(study: dict[str, Any]) -> str:
    """What the spreads and intervals say about the base."""
    bases, seeds = len(base_rows(study)), len(study["seeds"])
    if bases == 1:
        return (
            "Another base was not drawn: all runs start from one base model, so spreads and intervals say nothing of "
            "what another base would have given."
        )
    if bases == seeds:
        return "Each seed has a base model of its own, so spreads and intervals hold the chance of the base, too."
    return (
        f"{seeds} seeds start from {bases} bases: a base counts as one draw, with the mean of its seeds, so intervals "
        "hold the chance of the base, too; a spread (±) is over all seeds."
    )
