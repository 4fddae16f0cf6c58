"""`longshort prune`: results and checkpoints that no study in config/studies needs."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import NamedTuple

from longshort import resolve
from longshort.publish import read_json

RESULTS, WORK = Path("results"), Path("work")


class Unneeded(NamedTuple):
    """A folder that nothing needs, its size in bytes, and what it was."""

    path: Path
    size: int
    what: str


def unneeded(config: Path = resolve.CONFIG) -> list[Unneeded]:
    """Folders of results/ and work/ that belong to no run, corpus or evaluation of any study.

    Raises:
        StudyError: a study's configuration is wrong: what it needs is not known, so nothing is called unneeded.
    """
    needed: set[str] = set()
    for path in sorted((config / "studies").glob("*.yaml")):
        needed |= set(resolve.load(path.stem, config).texts)
    found = [
        Unneeded(folder, _size(folder), kind)
        for kind, what in (("runs", "run"), ("data", "corpus"), ("evaluations", "evaluation"))
        for folder in sorted((RESULTS / kind).glob("*"))
        if folder.is_dir() and folder.name not in needed and what
    ]
    kept = set()
    for record in RESULTS.glob("runs/*/training/*.json"):
        if record.parents[1].name in needed:
            said = read_json(record)
            kept.add(said["run_id"])
            kept |= {Path(checkpoint["path"]).parent.name for checkpoint in said["checkpoints"].values()}
    for beat in RESULTS.glob("runs/*/training/*.heartbeat"):  # a training that has not ended will go on
        if beat.parents[1].name in needed:
            kept.add(read_json(beat).get("run_id"))
    for folder in sorted(WORK.glob("*")):
        running = (folder / "owner.json").exists()
        if folder.is_dir() and folder.name not in kept | {"evaluations", "drivers"} and not running:
            found.append(Unneeded(folder, _size(folder), "checkpoints"))
    return found


def remove(folders: list[Unneeded]) -> None:
    for folder in folders:
        shutil.rmtree(folder.path)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
