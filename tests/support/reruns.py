"""What the tests of the engine share."""

from __future__ import annotations

import os
from pathlib import Path

# What follows new tables; what follows new numbers; what follows where the study's own description has changed, too.
DRAWN = {"plots": 1, "report": 1}
AFTER = {"metrics": 1, "tables": 1, **DRAWN}
RESULTS = {"study": 1, **AFTER}


def files(project: Path) -> list[Path]:
    return sorted(path for path in project.rglob("*") if path.is_file() and ".snakemake" not in path.parts)


def reverse_ages(project: Path) -> None:
    """What was written last is now the oldest: each input newer than what was made of it."""
    paths = files(project)
    ages = sorted(path.stat().st_mtime for path in paths)
    for path, age in zip(sorted(paths, key=lambda path: -path.stat().st_mtime), ages, strict=True):
        os.utime(path, (age, age))
