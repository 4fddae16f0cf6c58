"""The log of a training, one JSON line an optimiser step: numbers that are published, so part of the code identity."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from longshort.records.publish import write_atomic

NAME = "log.jsonl"


def append(path: Path, row: dict[str, float]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def sync(path: Path) -> None:
    """Brings to the disk what was appended."""
    with path.open("a", encoding="utf-8") as file:
        os.fsync(file.fileno())


def forget_steps(path: Path, first: int, last: int) -> None:
    """Takes steps first + 1..last, which are trained again, out of the log, and lines that a kill cut short."""
    if path.exists():
        kept = [line for line, row in _rows(_lines(path)) if not first < row["step"] <= last]
        write_atomic(path, b"".join(line + b"\n" for line in kept))


def read(path: Path, last: int) -> list[dict[str, float]]:
    """One row a step, up to the last one."""
    rows = {row["step"]: row for _, row in _rows(_lines(path)) if row["step"] <= last}
    return [rows[step] for step in sorted(rows)]


def newest(path: Path) -> dict[str, Any]:
    """The last row, from the end of the file alone; of step 0 where there is none."""
    end = b""
    if path.is_file():
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 4096))
            end = file.read()
    rows = [row for _, row in _rows(end.splitlines()[-2:])]
    return rows[-1] if rows else {"step": 0}


def _lines(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines() if path.is_file() else []


def _rows(lines: list[bytes]) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Each line and what it holds; without those that a kill cut short, whose steps are trained and written again."""
    for line in lines:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            yield line, row


def as_parquet(rows: list[dict[str, float]]) -> bytes:
    # Late: slow to import, and the training processes need none of it.
    import pandas

    content: bytes = pandas.DataFrame(rows).to_parquet(index=False)
    return content
