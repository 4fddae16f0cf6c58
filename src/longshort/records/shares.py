"""What the jobs took that shared out an evaluation's items: the evaluation's own record knows the last job alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from longshort.records import layout
from longshort.records.publish import NUMBER, Altered, read_record

SAME = ("run_id", "evaluation", "code", "data")


def seconds_of(record: Path, made: dict[str, Any]) -> float:
    """Of all jobs of the evaluation that a record is of; arguments are those of `of`."""
    return float(made["seconds"]) + sum(each["seconds"] for each in of(record, made))


def of(record: Path, made: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The records of those jobs; none where one job measured all.

    made: what the evaluation's record holds. Jobs of other code, or of a training before, are not among them.
    """
    for path in sorted(Path(layout.stage_of(record).share("*", "*").record).parent.glob("*-of-*.json")):
        try:
            share = read_record(path, like={"seconds": NUMBER})
        except (Altered, OSError):
            continue
        if all(share.get(key) == made.get(key) for key in SAME):
            yield share
