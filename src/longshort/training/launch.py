"""Runs what a training still lacks: finds finished work, resumes from sound checkpoints, starts torchrun.

Imports no torch, so that a job that finds its run finished republishes in seconds.
"""

from __future__ import annotations

import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from longshort.publish import note_group, read_json, write_json
from longshort.training import checkpoints


def segments(missing: list[int], sound: list[int]) -> list[tuple[int, list[int]]]:
    """(step to resume from, wanted steps) of every piece that must be trained; 0 is the start.

    >>> segments([25, 100], [50, 150])
    [(0, [25]), (50, [100])]
    """
    pieces: dict[int, list[int]] = {}
    for step in missing:
        pieces.setdefault(max((s for s in sound if s < step), default=0), []).append(step)
    return sorted(pieces.items())


def complete(
    job: dict[str, Any], work: Path, wanted: list[int], spec: dict[str, Any], owner: Path
) -> tuple[list[int], int, float]:
    """Trains until every wanted step has a sound checkpoint, or the run diverges.

    Returns:
        The wanted steps that exist now, the number of steps trained here, and the seconds spent.

    Raises:
        SystemExit: the training failed; its exit code is handed on.
    """
    began, trained = time.monotonic(), 0
    sound = checkpoints.sound_steps(work)
    for resume, targets in segments([step for step in wanted if step not in sound], sound):
        targets = [step for step in targets if step < diverged_at(work)]
        if targets:
            print(f"training from step {resume} to {max(targets)}", flush=True)
            for step in targets:  # what a killed or damaged save left there
                shutil.rmtree(checkpoints.folder(work, step), ignore_errors=True)
            job_file = work / "job.json"
            write_json(job_file, {**job, "resume": resume, "targets": targets})
            trained += max(targets) - resume
            _torchrun(job_file, spec["training"]["processes"], job["threads"], owner)
    sound = checkpoints.sound_steps(work)
    there = [step for step in wanted if step in sound]
    lost = [step for step in wanted if step not in sound and step < diverged_at(work)]
    if lost:
        raise SystemExit(f"the training ended without the checkpoints of steps {lost}")
    return there, trained, time.monotonic() - began


def build_extensions() -> None:
    """Compiles what DeepSpeed would compile at its first training."""
    code = "from deepspeed.accelerator import get_accelerator as a; a().create_op_builder('ShareMemCommBuilder').load()"
    subprocess.run([sys.executable, "-c", code], env=environment(1), check=True, stdout=subprocess.DEVNULL)


# A training asks for the same large blocks at every step. By default glibc gives each back to the system at once, which
# costs a page fault for every 4 KiB of the next: a quarter of a ZeRO-2 step on a CPU (benchmarks/README.md).
KEEP_FREED_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**33), "MALLOC_TRIM_THRESHOLD_": str(2**34)}


def environment(threads: int) -> dict[str, str]:
    """The environment of the training processes."""
    here = Path(sys.executable).parent
    values = {
        **KEEP_FREED_MEMORY,
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "TOKENIZERS_PARALLELISM": "false",
        # DeepSpeed compiles a CPU collective with the first ninja that it finds; another one would compile it again.
        "PATH": os.pathsep.join([str(here), *os.get_exec_path()]),
    }
    if os.access(sys.prefix, os.W_OK):
        # Shared by all environments of a user, the compiled files would be overwritten in turn.
        values.setdefault("TORCH_EXTENSIONS_DIR", str(Path(sys.prefix) / "torch_extensions"))
    return values


def diverged_at(work: Path) -> float:
    """The step whose loss or gradient was not finite; infinity for a run that did not diverge."""
    path = work / checkpoints.DIVERGED
    return read_json(path)["step"] if path.exists() else math.inf


def _torchrun(job_file: Path, processes: int, threads: int, owner: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command += ["--module", "longshort.training.trainer", "--job", str(job_file)]
    # A group of its own, noted as owner of the folder: if this process is killed, no other one writes beside it.
    with subprocess.Popen(command, env=environment(threads), start_new_session=True) as process:
        note_group(owner, process.pid)

        def hand_on(number: int, frame: Any) -> None:
            process.terminate()

        before = {number: signal.signal(number, hand_on) for number in (signal.SIGTERM, signal.SIGINT)}
        code = process.wait()
        for number, handler in before.items():
            signal.signal(number, handler)
    if code:
        raise SystemExit(code if code > 0 else 128 - code)


if __name__ == "__main__":
    build_extensions()
