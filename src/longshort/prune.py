"""`longshort prune`: what each study in config/studies needs of the disk, and what none of them needs."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import NamedTuple

from longshort import resolve, stale
from longshort.publish import read_json, read_record
from longshort.study import StudyError

RESULTS, WORK = Path("results"), Path("work")
# Finished evaluations, by what they are made of: a job that runs again finds its own there.
EVALUATIONS = WORK / "evaluations"
KINDS = ("runs", "data", "evaluations")


class Kept(NamedTuple):
    """A folder of results/ or work/, its size in bytes, and the studies that need it."""

    path: Path
    size: int
    needed_by: list[str]


def kept(config: Path = resolve.CONFIG) -> list[Kept]:
    """Every folder of a run, a corpus, an evaluation or a training's checkpoints.

    Raises:
        StudyError: a study's configuration is wrong: what it needs is not known, so nothing is called unneeded.
        Altered: a record was edited or cut: what it names is not known.
    """
    studies = {
        path.stem: set(resolve.load_any(path.stem, config).texts)
        for path in sorted((config / "studies").glob("*.yaml"))
    }
    found = []
    needed_work: dict[str, list[str]] = {}
    for folder in (folder for kind in KINDS for folder in sorted((RESULTS / kind).glob("*")) if folder.is_dir()):
        if (folder / "owner.json").exists():  # a corpus that is being prepared
            continue
        needed_by = [study for study, needed in studies.items() if folder.name in needed]
        found.append(Kept(folder, size(folder), needed_by))
        for name in _work_of(folder):
            needed_work[name] = sorted({*needed_work.get(name, []), *needed_by})
    for folder in sorted(WORK.glob("*")):
        if folder.is_dir() and folder.name not in ("evaluations", "drivers") and not (folder / "owner.json").exists():
            found.append(Kept(folder, size(folder), needed_work.get(folder.name, [])))
    return found


def stale_records(config: Path = resolve.CONFIG) -> dict[str, str]:
    """The records that a study needs and other code than the present one made, each with the reason.

    Raises:
        StudyError: a study's configuration is wrong.
        Altered: a record was edited or cut.
    """
    studies = (resolve.load_any(path.stem, config) for path in sorted((config / "studies").glob("*.yaml")))
    return {record: why for study in studies for record, why in stale.found(study)}


def remove(names: list[str], found: list[Kept]) -> None:
    """Deletes the named folders, after all names were looked at.

    Raises:
        StudyError: a name is none of the folders that no study needs; nothing is deleted then.
    """
    unneeded = {str(folder.path) for folder in found if not folder.needed_by}
    for name in names:
        if str(Path(name)) not in unneeded:
            needed_by = next((folder.needed_by for folder in found if folder.path == Path(name)), None)
            why = f"study {', '.join(needed_by)} needs it" if needed_by else "it is none of those that are listed"
            raise StudyError(f"{name} is not deleted: {why}; `longshort prune` lists what no study needs")
    for name in names:
        shutil.rmtree(name)


def _work_of(results: Path) -> set[str]:
    """The folders of checkpoints that a run's records name, and of a training that has not ended: it will go on."""
    names: set[str] = set()
    for record in results.glob("training/*.json"):
        said = read_record(record)
        names |= {said["run_id"], *(Path(one["path"]).parent.name for one in said["checkpoints"].values())}
    for beat in results.glob("training/*.heartbeat"):
        names |= {read_json(beat).get("run_id")} - {None}
    return names


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
