"""What the checkpoints of a training take of the disk: kept once it is done, and at most while it runs."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

from longshort.commands import memory
from longshort.study.wiring import ResolvedStudy
from longshort.training import checkpoints

# Bytes of a weight in a checkpoint, and of all that serves to resume: DeepSpeed's own copy of the weights, AdamW's two
# moments, and a float32 master copy. Measured in tests/workflow/test_resume.py.
WEIGHTS = {"bf16": 2, "fp32": 4}
STATES = {"bf16": 14, "fp32": 16}


class Storage(NamedTuple):
    """Bytes of a training's new checkpoints.

    Attributes:
        kept: once it is done.
        running: while the last of them is written; those that serve only to resume may be few or none.
        source: how that is known, in words.
    """

    kept: float
    running: float
    source: str


def of_training(
    study: ResolvedStudy,
    run: str,
    wanted: Collection[int],
    missing: Collection[int],
    model: tuple[memory.Model, str],
    finished: list[tuple[dict[str, Any], dict[str, Any]]],
) -> Storage:
    """Of a run that is trained.

    Args:
        wanted: the steps whose checkpoints are asked for.
        missing: those of them that are not there, at least one.
        model: its shape, and how that is known.
        finished: specification and record of finished trainings.
    """
    precision = study.runs[run].optimisation.precision
    count, source = _weights(study, run, model, finished)
    weights, states = count * WEIGHTS[precision], count * STATES[precision]
    newest, end = max(missing), checkpoints.end_of(json.loads(study.texts[run]))
    goes_on = newest != end and newest == max(wanted)
    kept = len(missing) * weights + goes_on * states
    whole = (checkpoints.SPARE + 1) * (weights + states)  # while one is written the others are there
    return Storage(kept, (len(missing) - 1) * weights + whole, source)


def _weights(
    study: ResolvedStudy,
    run: str,
    model: tuple[memory.Model, str],
    finished: list[tuple[dict[str, Any], dict[str, Any]]],
) -> tuple[float, str]:
    """How many a checkpoint of a run holds: by a finished one of this study's base or arms, else counted."""
    training = study.runs[run].optimisation
    each = f"{WEIGHTS[training.precision]} and to resume {STATES[training.precision]} more bytes"
    if training.adapter is not None:
        weights = memory.adapted(model[0], training.adapter)
        return weights, f"{each} x {weights:.3g} weights of the adapter"
    for spec, record in finished:
        if spec.get("base") in study.bases.values() and not spec["training"].get("adapter"):
            for checkpoint in record["checkpoints"].values():
                files = [Path(checkpoint["path"], name) for name in checkpoint["files"]]
                if all(file.is_file() for file in files):
                    size = sum(file.stat().st_size for file in files)
                    return size / WEIGHTS[spec["training"]["precision"]], f"{each} a weight of a finished checkpoint"
    return model[0].weights, f"{each} x {model[0].weights:.3g} weights ({model[1]})"
