"""Changes of the code that a person declared harmless with `longshort accept`."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from longshort.errors import UserError

ACCEPTED = Path("results/accepted.json")


def accepted_changes(path: Path | None = None) -> list[dict[str, Any]]:
    """What was accepted: {arm, runs, records, stage, from, to, modules, because, time} each.

    Raises:
        UserError: the file was cut or edited.
    """
    path = path or ACCEPTED
    if not os.path.lexists(path):
        return []
    try:
        if not path.is_file():  # to open a pipe would wait for who writes into it
            raise ValueError("it is no file")
        changes: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(changes, list):
            raise TypeError("it is no list")
        for change in changes:
            for key in ("arm", "stage", "from", "to", "because", "time"):
                if not isinstance(change[key], str) or not change[key].strip():
                    raise TypeError(f"{key} is no text")
            for key in ("runs", "records", "modules"):
                if not all(isinstance(one, str) for one in change[key]) or isinstance(change[key], str):
                    raise TypeError(f"{key} is no list of texts")
            if not change["runs"] or {Path(record).parts[2:3] for record in change["records"]} != {
                (run,) for run in change["runs"]
            }:
                raise ValueError("runs and records do not name the same runs")
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise UserError(
            f"{path} is not what `longshort accept` wrote ({type(error).__name__}: {error}): it was edited or cut; "
            "restore it, or delete it and accept again what it held"
        ) from None
    return changes
