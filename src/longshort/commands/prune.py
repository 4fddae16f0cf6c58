"""`longshort prune`: what each study in config/studies needs of the disk, and what none of them needs.

It looks at folders alone that the layout makes, by their names of 16 hexadecimal digits; never at links, at what a
study names as its model, tokenizer, corpus or tasks, or at what a job is at work on.
"""

from __future__ import annotations

import re
import shutil
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from longshort import studies
from longshort.commands import cost, stale
from longshort.errors import StudyError
from longshort.jobs import heartbeat, ownership
from longshort.records import layout
from longshort.records.publish import CHECKPOINTS, read_json, read_record, read_spec
from longshort.study.resolve import CONFIG
from longshort.training import checkpoints

WORK, EVALUATIONS = Path(layout.WORK), Path(layout.finished_evaluations())
NAMED = re.compile("[0-9a-f]{16}")


class Kept(NamedTuple):
    """A folder of results/ or work/, its size in bytes, and the studies that need it.

    Attributes:
        idle: its checkpoints whose states no training goes on from; their weights are kept.
    """

    path: Path
    size: int
    needed_by: list[str]
    idle: tuple[Path, ...] = ()

    @property
    def idle_size(self) -> int:
        """Bytes of these states."""
        return sum(path.stat().st_size for checkpoint in self.idle for path in checkpoints.states_in(checkpoint))


def kept(config: Path = CONFIG) -> list[Kept]:
    """Every folder of a run, a corpus, an evaluation or a training's checkpoints.

    Raises:
        StudyError: a study's configuration is wrong: what it needs is not known, so nothing is called unneeded.
        Altered: a record was edited or cut: what it names is not known.
    """
    wired = studies.every(config)
    named = {Path(place).resolve() for study in wired.values() for place in study.external_paths()}
    found = []
    needed_work: dict[str, list[str]] = {}
    idle: dict[str, tuple[Path, ...]] = {}
    for folder in (folder for kind in layout.SHARED for folder in _folders(Path(layout.RESULTS, kind), named)):
        needed_by = [name for name, study in wired.items() if folder.name in study.texts]
        for name in _work_of(folder):
            needed_work[name] = sorted({*needed_work.get(name, []), *needed_by})
            idle[name] = idle.get(name, ()) or _idle(WORK / name, folder)
        if not _is_in_use(folder):
            found.append(Kept(folder, size(folder), needed_by))
    for folder in _folders(WORK, named):
        if not _is_in_use(folder):
            found.append(Kept(folder, size(folder), needed_work.get(folder.name, []), idle.get(folder.name, ())))
    return found


def _idle(work: Path, run: Path) -> tuple[Path, ...]:
    """The checkpoints of a run's finished training whose states serve nothing, as those of a training had that was
    finished before states were taken from what is kept; none of a training that has more to do, nor of another run's,
    which a base is that is taken as it is."""
    if not (work / checkpoints.KEEP).exists() or not read_spec(run / layout.SPEC).get("training"):
        return ()
    wanted = [step for step in read_json(work / checkpoints.KEEP, [int]) if step < checkpoints.diverged_at(work)]
    if not all(checkpoints.is_sealed(work, step) for step in wanted):
        return ()
    end = checkpoints.end_of(read_spec(run / layout.SPEC))
    idle = (checkpoints.folder(work, step) for step in checkpoints.idle(work, wanted, end))
    return tuple(checkpoint for checkpoint in idle if checkpoints.states_in(checkpoint))


def more_while_running(study: str, config: Path = CONFIG) -> float | None:
    """Bytes that each training of a study takes at most beyond what is kept of it; None where its model is not here, or
    not whole."""
    resolved = studies.load(study, config, here=False)
    try:
        return cost.more_while_running(resolved) if resolved.kind == "language-models" else 0.0
    except (OSError, ValueError):  # a UserError is one
        return None


def strip(kept: list[Kept]) -> None:
    """Deletes the states that no training goes on from.

    Raises:
        Owned: a job has begun to use a folder; it is left as it is, and those after it.
    """
    for folder in (folder for folder in kept if folder.idle):
        with ownership.sole_owner(folder.path, wait=False):
            for checkpoint in folder.idle:
                checkpoints.strip(checkpoint)


def _folders(parent: Path, named: set[Path]) -> list[Path]:
    folders = [folder for folder in sorted(parent.glob("*")) if NAMED.fullmatch(folder.name)]
    folders = [folder for folder in folders if folder.is_dir() and not folder.is_symlink()]
    return [folder for folder in folders if not any(_overlap(folder.resolve(), taken) for taken in named)]


def _overlap(one: Path, other: Path) -> bool:
    return one == other or one in other.parents or other in one.parents


def _is_in_use(folder: Path) -> bool:
    """Whether a job owns a folder, or the folder of checkpoints of a run that lies in it, or evaluates that run."""
    trainings = (Path(layout.checkpoints(name)) for name in _work_of(folder))
    if any(ownership.is_owned(owned) for owned in (folder, *trainings)):
        return True
    return any(heartbeat.may_live(path) for path in folder.rglob(f"*{layout.HEARTBEAT}"))


def stale_records(names: list[str], config: Path = CONFIG) -> dict[str, str]:
    """The records that a study needs and other code than the present one made, each with the reason; of these the named
    ones, or all where none is named.

    Raises:
        StudyError: a study's configuration is wrong, or a name is none of such a record.
        Altered: a record was edited or cut.
    """
    found = {record: why for study in studies.every(config).values() for record, why in stale.found(study)}
    chosen = [str(Path(name)) for name in names]
    for name in chosen:
        if name not in found:
            listed = "`longshort prune --stale --dry-run` lists them"
            raise StudyError(f"{name} is no record that other code made; {listed}; nothing is deleted")
    return {record: found[record] for record in chosen or found}


def remove(names: list[str], kept: list[Kept]) -> None:
    """Deletes the named folders, after all names were looked at.

    Raises:
        StudyError: a name is none of the folders that no study needs, or a job has begun to use it; nothing is deleted
            then. Or the system refuses to delete one; the message says which ones are gone.
    """
    unneeded = {str(folder.path) for folder in kept if not folder.needed_by}
    for name in names:
        if str(Path(name)) not in unneeded:
            needed_by = next((folder.needed_by for folder in kept if folder.path == Path(name)), None)
            why = f"study {', '.join(needed_by)} needs it" if needed_by else "it is none of those that are listed"
            raise StudyError(f"{name} is not deleted: {why}; `longshort prune` lists what no study needs")
    for name in names:
        if _is_in_use(Path(name)):
            raise StudyError(f"{name} is not deleted, nor anything else: a job has begun to use it")
    for place, name in enumerate(names):
        try:
            shutil.rmtree(name)
        except OSError as error:
            gone = ", ".join(names[:place]) or "nothing"
            raise StudyError(f"{name} cannot be deleted: {error}; deleted before it: {gone}") from None


def _work_of(results: Path) -> set[str]:
    """The folders of checkpoints that a run's records name, and of a training that has not ended: it will go on."""
    names: set[str] = set()
    for record in results.glob(layout.Stage(f"{layout.TRAINING}/*").record):
        said = read_record(record, like={"run_id": str, "checkpoints": CHECKPOINTS})
        names |= {said["run_id"], *(Path(one["path"]).parent.name for one in said["checkpoints"].values())}
    for beat in results.glob(layout.Stage(f"{layout.TRAINING}/*").heartbeat):
        names |= {run_id for run_id in [heartbeat.read(beat).get("run_id")] if run_id}
    return names


def size(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):  # a job that runs has removed it
            total += path.stat().st_size if path.is_file() and not path.is_symlink() else 0
    return total
