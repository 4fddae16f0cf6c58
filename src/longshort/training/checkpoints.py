"""Checkpoints that can be trusted: a manifest of hashes is written last, and only what it confirms is used."""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import Any

from longshort.identity.spec import run_id, trajectory
from longshort.records.publish import altered, appears, folder_digests, read_json, write_json

MANIFEST = "longshort-manifest.json"
# What else a training leaves in its folder, beside its log.
DIVERGED = "diverged.json"
# A request to save and end.
STOP = "stop"
# The steps that some study wants; any other checkpoint serves only to resume.
KEEP = "keep.json"
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
    """Writes the manifest: the checkpoint is whole from here on."""
    digests = folder_digests(checkpoint)
    digests.pop(MANIFEST, None)  # no file can hold its own hash
    write_json(checkpoint / MANIFEST, digests)


def is_sealed(work: Path, step: int) -> bool:
    """Whether the checkpoint of a step was written to its end; `damage` says whether it still is what was written."""
    return (folder(work, step) / MANIFEST).exists()


def damage(checkpoint: Path, patience: float = 0.0) -> str | None:
    """What is wrong with a checkpoint, in words; None if it is as it was sealed.

    patience: seconds to wait for a file that another node wrote.
    """
    if not appears(checkpoint / MANIFEST, patience):
        return "it was never finished"
    try:
        expected: dict[str, str] = read_json(checkpoint / MANIFEST)
    except ValueError as error:
        return str(error)
    return altered(checkpoint, expected, patience)


def steps_there(work: Path) -> list[int]:
    """The steps that have a checkpoint folder, sound or not, ascending."""
    names = (re.fullmatch(r"checkpoint-(\d+)", path.name) for path in work.glob("checkpoint-*"))
    return sorted(int(name[1]) for name in names if name)


def sound_steps(work: Path, patience: float = 0.0) -> list[int]:
    """The steps whose checkpoint verifies, ascending; says which ones it passes over."""
    sound = []
    for step in steps_there(work):
        trouble = damage(folder(work, step), patience)
        if trouble is None:
            sound.append(step)
        else:
            print(f"checkpoint of step {step} is not used: {trouble}", flush=True)
    return sound


def newest(work: Path, first: int, last: int) -> int:
    """The last step of first..last that was sealed; `first` if there is none."""
    sealed = (step for step in steps_there(work) if is_sealed(work, step))
    return max((step for step in sealed if first < step <= last), default=first)


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
    """Names a training and its folder in work/: what was asked, by which code, from which texts and weights."""
    return run_id(trajectory(spec), code, {"data": manifest["splits"]["train"]["sha256"], "base": base})


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


def thin(work: Path, kept: Collection[int], spare: int) -> None:
    """Deletes checkpoints that serve only to resume, but for the newest `spare`."""
    passing = [step for step in steps_there(work) if step not in kept]
    for step in passing[: len(passing) - spare]:
        remove(work, step)


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
    names = {path.name for pattern in WEIGHTS for path in checkpoint.glob(pattern)}
    if not any(name.endswith(".safetensors") for name in names):
        raise ValueError(f"{checkpoint} holds no .safetensors file: the training saved no weights")
    return {name: digest for name, digest in read_json(checkpoint / MANIFEST, {str: str}).items() if name in names}
