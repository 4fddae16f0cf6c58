"""Checkpoints that can be trusted: a manifest of hashes is written last, and only what it confirms is used.

A checkpoint holds weights, which evaluations read, and states (optimiser, master weights, schedules), which only a
training that goes on from it needs: seven times as much where weights are bf16. A kept checkpoint loses its states once
newer ones can be resumed from (`strip`); its weights stay as they are.
"""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Collection
from contextlib import suppress
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from longshort.identity.spec import run_id, trajectory
from longshort.records.publish import altered, appears, folder_digests, read_json, sync, write_json

MANIFEST = "longshort-manifest.json"
# What else a training leaves in its folder, beside its log.
DIVERGED = "diverged.json"
# A request to save and end.
STOP = "stop"
# The steps that some study wants; any other checkpoint serves only to resume.
KEEP = "keep.json"
# How many checkpoints a training can be resumed from while it runs: the newest may be found damaged.
SPARE = 2
# What an evaluation needs of a checkpoint; the rest serves only to resume.
WEIGHTS = (
    "config.json",
    "generation_config.json",
    "model.safetensors.index.json",
    "model*.safetensors",
    "adapter_config.json",
    "adapter_model.safetensors",
)


def folder(work: Path, step: int) -> Path:
    """Where the Trainer puts the checkpoint of a step."""
    return work / f"checkpoint-{step}"


def seal(checkpoint: Path) -> None:
    """Writes the manifest: the checkpoint is whole, and on the disk, from here on. Older ones are deleted for it."""
    sync(checkpoint)
    digests = folder_digests(checkpoint)
    digests.pop(MANIFEST, None)  # no file can hold its own hash
    write_json(checkpoint / MANIFEST, digests)


def is_sealed(work: Path, step: int) -> bool:
    """Whether the checkpoint of a step was written to its end; `sound_steps` says whether it still is what was."""
    return (folder(work, step) / MANIFEST).exists()


def is_resumable(work: Path, step: int) -> bool:
    """Whether the checkpoint of a step was sealed and has its states; `sound_steps` says whether they are sound."""
    if not is_sealed(work, step):
        return False
    try:
        states = _recorded(folder(work, step))[1]
    except ValueError:
        return False
    return bool(states) and all((folder(work, step) / name).exists() for name in states)


def _recorded(checkpoint: Path) -> tuple[dict[str, str], dict[str, str]]:
    """The hashes in a checkpoint's manifest, of its weights and of its states.

    Raises:
        Altered: the manifest was edited or cut.
    """
    found: dict[str, str] = read_json(checkpoint / MANIFEST, {str: str})
    weights = {name: digest for name, digest in found.items() if any(fnmatch(name, one) for one in WEIGHTS)}
    return weights, {name: digest for name, digest in found.items() if name not in weights}


def steps_there(work: Path) -> list[int]:
    """The steps that have a checkpoint folder, sound or not, ascending."""
    names = (re.fullmatch(r"checkpoint-(\d+)", path.name) for path in work.glob("checkpoint-*"))
    return sorted(int(name[1]) for name in names if name)


def sound_steps(work: Path, patience: float = 0.0) -> tuple[list[int], list[int]]:
    """The steps whose weights verify, and those of them whose states do; both ascending. Says what it passes over.

    patience: seconds to wait for a file that another node wrote.
    """
    sound, resumable = [], []
    for step in steps_there(work):
        weights, states, trouble = _damage(folder(work, step), patience)
        if weights:
            sound.append(step)
        if states:
            resumable.append(step)
        if trouble:
            print(f"checkpoint of step {step} is not {'resumed from' if weights else 'used'}: {trouble}", flush=True)
    return sound, resumable


def _damage(checkpoint: Path, patience: float) -> tuple[bool, bool, str | None]:
    """Whether the weights of a checkpoint are as they were sealed, and its states; what is wrong, in words."""
    if not appears(checkpoint / MANIFEST, patience):
        return False, False, "it was never finished"
    try:
        weights, states = _recorded(checkpoint)
    except ValueError as error:
        return False, False, str(error)
    if trouble := altered(checkpoint, weights, patience):
        return False, False, trouble
    trouble = altered(checkpoint, states, patience) if states else None
    return True, bool(states) and trouble is None, trouble


def newest(work: Path, first: int, last: int) -> int:
    """The last step of first..last that can be resumed from; `first` if there is none."""
    return max((step for step in steps_there(work) if first < step <= last and is_resumable(work, step)), default=first)


def segments(missing: list[int], sound: list[int]) -> list[tuple[int, list[int]]]:
    """(step to resume from, wanted steps) of every piece that must be trained; 0 is the start.

    >>> segments([25, 100], [50, 150])
    [(0, [25]), (50, [100])]
    """
    pieces: dict[int, list[int]] = {}
    for step in missing:
        pieces.setdefault(max((s for s in sound if s < step), default=0), []).append(step)
    return sorted(pieces.items())


def diverged_at(work: Path) -> float:
    """The step whose loss or gradient was not finite; infinity for a run that did not diverge."""
    path = work / DIVERGED
    return read_json(path, {"step": int})["step"] if path.exists() else math.inf


def identity_of(spec: dict[str, Any], code: str, manifest: dict[str, Any], base: dict[str, str] | None) -> str:
    """Names a training and its folder in work/: what was asked, by which code, from which texts and weights, and by
    which tokenizer, where it lies in a folder."""
    own = {name: manifest[name] for name in ("tokenizer",) if name in manifest}
    return run_id(trajectory(spec), code, {"data": manifest["splits"]["train"]["sha256"], "base": base, **own})


def last_of(record: dict[str, Any]) -> dict[str, Any] | None:
    """The last checkpoint of a training's record, which other runs start from; None where it diverged before any."""
    steps = record["checkpoints"]
    return steps[max(steps, key=int)] if steps else None


def keep(work: Path, wanted: list[int]) -> list[int]:
    """Adds to the steps that are kept for good, and gives them all."""
    before = read_json(work / KEEP, [int]) if (work / KEEP).exists() else []
    steps = sorted({*before, *wanted})
    if steps != before:
        write_json(work / KEEP, steps)
    return steps


def thin(work: Path, kept: Collection[int], last: int) -> None:
    """Of the checkpoints up to step `last`, leaves the newest SPARE that can be resumed from as they are. Older ones
    are deleted, or lose their states where they are kept."""
    before = [step for step in steps_there(work) if step <= last]
    spared = [step for step in before if is_resumable(work, step)][-SPARE:]
    for step in before:
        if step not in spared and step in kept:
            strip(folder(work, step))
        elif step not in spared:
            remove(work, step)


def settle(work: Path, kept: Collection[int], end: int | None) -> None:
    """For a training that is done: deletes what only served to resume it, and states that no other one goes on from."""
    for step in steps_there(work):
        if step not in kept:
            remove(work, step)
    for step in idle(work, kept, end):
        strip(folder(work, step))


def idle(work: Path, kept: Collection[int], end: int | None) -> list[int]:
    """The kept steps whose states serve nothing once a training is done: a later step that is added goes on from the
    newest, and none is later than the end.

    end: as end_of has it.
    """
    sealed = [step for step in sorted(kept) if is_sealed(work, step)]
    goes_on = [] if end in sealed else [step for step in sealed if is_resumable(work, step)][-1:]
    return [step for step in sealed if step not in goes_on]


def end_of(spec: dict[str, Any]) -> int | None:
    """The step that no training of a specification goes beyond; None where no schedule knows its last step."""
    steps: int | None = trajectory(spec)["training"].get("steps")
    return steps


def strip(checkpoint: Path) -> None:
    """Deletes the states of a sealed checkpoint. It needs no space before it has made some, and the weights are sound
    at any moment: killed on its way, it leaves states that a manifest names and that are not there."""
    try:
        weights, states = _recorded(checkpoint)
    except ValueError:  # which of its files are weights is not known
        return
    for path in states_in(checkpoint):
        path.unlink()
    for path in checkpoint.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
    if states:
        write_json(checkpoint / MANIFEST, weights)


def states_in(checkpoint: Path) -> list[Path]:
    """All files of a sealed checkpoint but its weights and its manifest; none where that is damaged and does not say
    which these are."""
    try:
        stay = {MANIFEST, *_recorded(checkpoint)[0]}
    except ValueError:
        return []
    files = (path for path in checkpoint.rglob("*") if path.is_file())
    return [path for path in files if path.relative_to(checkpoint).as_posix() not in stay]


def remove(work: Path, step: int) -> None:
    # Without its manifest a half-deleted checkpoint counts as never finished.
    with suppress(IsADirectoryError):
        (folder(work, step) / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(folder(work, step))


def remove_unfinished(work: Path, patience: float = 0.0) -> None:
    """Deletes what a killed or failed save left, and its space with it.

    patience: seconds to wait for the manifest of one that another node may have finished.
    """
    for step in steps_there(work):
        if not appears(folder(work, step) / MANIFEST, patience):
            print(f"checkpoint of step {step} is deleted: it was never finished", flush=True)
            remove(work, step)


def weights(checkpoint: Path) -> dict[str, str]:
    """The weight files of a sealed checkpoint and their hashes.

    Raises:
        ValueError: there are none.
    """
    found, _ = _recorded(checkpoint)
    if not any(name.endswith(".safetensors") for name in found):
        raise ValueError(f"{checkpoint} holds no .safetensors file: the training saved no weights")
    return found
