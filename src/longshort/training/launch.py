"""Runs what a training still lacks: finds finished work, resumes from sound checkpoints, starts torchrun.

Imports no torch, so that a job that finds its run finished republishes in seconds.
"""

from __future__ import annotations

import json
import math
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from longshort import interruption, slurm
from longshort.ownership import Owner
from longshort.publish import LATE, read_json, write_atomic, write_json
from longshort.training import checkpoints
from longshort.training.worker import LAST_WORDS


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
    job: dict[str, Any], work: Path, wanted: list[int], spec: dict[str, Any], owner: Owner
) -> tuple[list[int], int, float]:
    """Trains until every wanted step has a sound checkpoint, or the run diverges.

    Returns:
        The wanted steps that exist now, the number of steps trained here, and the seconds spent.

    Raises:
        SystemExit: the training failed, or was asked to stop; the exit code is not 0.
    """
    began, trained = time.monotonic(), 0
    job_file = work / "job.json"
    keep = checkpoints.keep(work, wanted)
    patience = 0.0 if job_file.exists() and read_json(job_file).get("host") == socket.gethostname() else LATE
    checkpoints.remove_unfinished(work, patience)
    sound = checkpoints.sound_steps(work, patience)
    for resume, targets in segments([step for step in wanted if step not in sound], sound):
        targets = [step for step in targets if step < diverged_at(work)]
        if targets:
            print(f"training from step {resume} to {max(targets)}", flush=True)
            for step in checkpoints.steps_there(work):
                if resume < step <= max(targets):  # damaged: what is saved over it must not mix with it
                    checkpoints.remove(work, step)
            forget_steps(work / checkpoints.LOG, resume, max(targets))
            piece = {"resume": resume, "targets": targets, "keep": keep}
            write_json(job_file, {**job, **piece, "owner": owner.token, "host": socket.gethostname()})
            stopped = _torchrun(job_file, spec["training"], job["threads"], owner)
            trained += max(targets) - resume
            sound += [step for step in targets if checkpoints.is_sealed(work, step)]
            newest = checkpoints.newest(work, resume, max(targets))
            if stopped and newest < max(targets) < diverged_at(work):
                print(f"asked to stop (SIGTERM): the next attempt goes on after step {newest}", flush=True)
                raise SystemExit(interruption.EXIT_CODE)
    there = [step for step in wanted if step in sound]
    lost = [step for step in wanted if step not in sound and step < diverged_at(work)]
    if lost:
        raise SystemExit(f"the training ended without the checkpoints of steps {lost}")
    checkpoints.thin(work, keep, spare=0)
    return there, trained, time.monotonic() - began


def forget_steps(log: Path, first: int, last: int) -> None:
    """Takes steps first + 1..last, which are trained again, out of the log, and lines that a kill cut short."""
    if log.exists():
        kept = [line for line in log.read_text().splitlines() if not first < _step(line) <= last]
        write_atomic(log, "".join(line + "\n" for line in kept if _step(line)))


def _step(line: str) -> int:
    try:
        return int(json.loads(line)["step"])
    except json.JSONDecodeError:
        return 0


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


def _torchrun(job_file: Path, training: dict[str, Any], threads: int, owner: Owner) -> bool:
    """Runs the training processes to their end; whether they were asked to stop.

    SIGTERM is for the training processes, which save and end; torchrun would kill them instead, so it ignores it. One
    that reaches this process alone is handed on by a file, which also a process sees that is just starting.
    """
    nodes = _nodes(training)
    command = [*_on_every_node(nodes, training, threads), "env", "--ignore-signal=TERM", sys.executable]
    command += ["-m", "torch.distributed.run", "--signals-to-handle=SIGINT", *_rendezvous(nodes, training)]
    command += ["--module", "longshort.training.worker", "--job", str(job_file)]
    process: subprocess.Popen[bytes] | None = None
    request = job_file.with_name(checkpoints.STOP)
    request.unlink(missing_ok=True)

    def ask_to_stop(number: int, frame: Any) -> None:
        if request.exists() and number == signal.SIGINT and process is not None:
            os.killpg(process.pid, signal.SIGKILL)  # a person who asks twice does not want to wait
        request.touch()

    before = {number: signal.signal(number, ask_to_stop) for number in (signal.SIGTERM, signal.SIGINT)}
    # A group of its own, noted as owner of the folder: if this process is killed, no other one writes beside it.
    with tempfile.TemporaryDirectory() as here:
        last_words = Path(here) / "last-words"
        variables = {**environment(threads), LAST_WORDS: str(last_words)}
        process = subprocess.Popen(command, env=variables, start_new_session=True)
        try:
            owner.note_group(process.pid)
            code = process.wait()
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            for number, handler in before.items():
                signal.signal(number, handler)
        asked = request.exists()
        if code and not asked:
            if last_words.exists():
                raise SystemExit(f"the training failed: {last_words.read_text()}")
            raise SystemExit(code if code > 0 else 128 - code)
    return asked


def _nodes(training: dict[str, Any]) -> list[str]:
    """The names of a job's nodes; none where the training has one node, or there is no SLURM."""
    job = os.environ.get("SLURM_JOB_ID")
    if not job or training["nodes"] == 1:
        return []
    nodes = slurm.hostnames(job)
    if len(nodes) != training["nodes"]:
        raise SystemExit(f"this training is for {training['nodes']} nodes, and job {job} has {len(nodes)}: {nodes}")
    return nodes


def _on_every_node(nodes: list[str], training: dict[str, Any], threads: int) -> list[str]:
    """One launcher a node. The engine runs the rule once, on the first node, without SLURM's variables."""
    if not nodes:
        return []
    command = ["srun", f"--nodes={len(nodes)}", f"--ntasks={len(nodes)}", "--ntasks-per-node=1"]
    return [*command, f"--cpus-per-task={training['processes'] * threads}", "--kill-on-bad-exit=1", "--export=ALL"]


def _rendezvous(nodes: list[str], training: dict[str, Any]) -> list[str]:
    """How the processes find each other: on one machine at any free port, on several nodes at the first one."""
    if not nodes:
        return ["--standalone", f"--nproc-per-node={training['processes'] * training['nodes']}"]
    job = os.environ["SLURM_JOB_ID"]
    # Jobs that share a node have different numbers.
    endpoint = f"{slurm.address(nodes[0])}:{20000 + int(job) % 12000}"
    found = [f"--nnodes={len(nodes)}", f"--nproc-per-node={training['processes']}", f"--rdzv-id={job}"]
    # A launcher gives up each one whose last sign, by the clock of that one, is so many times 5 seconds old. After the
    # usual 15 seconds those whose clocks differ by more would never meet. That one has ended, srun tells the others.
    found.append("--rdzv-conf=keep_alive_max_attempt=720")
    return [*found, "--rdzv-backend=c10d", f"--rdzv-endpoint={endpoint}"]


if __name__ == "__main__":
    build_extensions()
