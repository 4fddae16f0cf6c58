"""The log of a training, one JSON line an optimiser step: numbers that are published, so part of the code identity."""

from __future__ import annotations

import json
import os
from pathlib import Path

from longshort.records.publish import write_atomic

NAME = "log.jsonl"


def append(path: Path, row: dict[str, float]) -> None:
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")


def sync(path: Path) -> None:
    """Brings to the disk what was appended."""
    with path.open("a") as file:
        os.fsync(file.fileno())


def forget_steps(path: Path, first: int, last: int) -> None:
    """Takes steps first + 1..last, which are trained again, out of the log, and lines that a kill cut short."""
    if path.exists():
        kept = [line for line in path.read_text().splitlines() if not first < _step(line) <= last]
        write_atomic(path, "".join(line + "\n" for line in kept if _step(line)))


def _step(line: str) -> int:
    try:
        return int(json.loads(line)["step"])
    except json.JSONDecodeError:
        return 0


def read(path: Path, last: int) -> list[dict[str, float]]:
    """One row a step, up to the last one."""
    rows = {}
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue  # cut short by a kill; the step was trained and written again
        if row["step"] <= last:
            rows[row["step"]] = row
    return [rows[step] for step in sorted(rows)]


def as_parquet(rows: list[dict[str, float]]) -> bytes:
    # Late: slow to import, and the training processes need none of it.
    import pandas

    content: bytes = pandas.DataFrame(rows).to_parquet(index=False)
    return content
