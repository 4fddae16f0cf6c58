"""study.json: what a study of language models says of itself to all that makes tables, plots and reports of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from longshort.records.publish import HASHES, Altered, read_record, sealed, whole_record

TEXT_OR_NONE = (str, type(None))
# What every version has written.
LIKE = {
    "name": str,
    "title": str,
    "l_train": int,
    "steps": int,
    "checkpoints": [int],
    "steps_key": str,
    "seeds": [int],
    "base_steps": int,
    "arms": [{"name": str, "description": str, "control": TEXT_OR_NONE, "runs": HASHES, "settings": dict}],
    "evaluations": {str: {"id": str}},
    "tables": [{"name": str, "title": str, "arms": [str], "compare_with": str}],
}


def seal_of(study: dict[str, Any]) -> str:
    """The seal that study.json has, or would have."""
    return str(sealed(study)["seal"])


def is_another(metrics: Path, study: dict[str, Any]) -> bool:
    """Whether numbers were collected for a study as it was before; never of an earlier version's, which do not say."""
    collected_for = whole_record(metrics.with_suffix(".json")).get("study")
    return collected_for not in (None, seal_of(study))


def read(path: Path, seal: str | None = None) -> dict[str, Any]:
    """The record of a study, with all that its readers take from it.

    Args:
        seal: that of the record that has to be there, where that is known.

    Raises:
        Altered: it was edited or cut, is another one, or lacks what is read of it.
    """
    study = read_record(path, seal, LIKE)
    seeds = {str(seed) for seed in study["seeds"]}
    bases = study.get("bases", dict.fromkeys(seeds, study.get("base")))  # one base for all, in an earlier version
    named = [bases, *(arm["runs"] for arm in study["arms"])]
    if not all(isinstance(runs, dict) and all(isinstance(runs.get(seed), str) for seed in seeds) for runs in named):
        raise Altered(
            f"{path} does not name a base and runs for each seed: another version wrote it, or it was edited and "
            "sealed anew; delete it and run snakemake again"
        )
    return study
