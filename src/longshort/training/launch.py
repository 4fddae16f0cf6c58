"""Runs what a training still lacks: finds finished work, resumes from sound checkpoints, starts the processes.

Imports no torch, so that a job that finds its run finished republishes in seconds.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from longshort.data import integrity
from longshort.errors import Interrupted, JobFailed, UserError
from longshort.jobs import heartbeat, slurm
from longshort.jobs.ownership import Owner
from longshort.records import layout
from longshort.records.publish import LATE, read_json, text_of, write_json
from longshort.study.schema import Training
from longshort.training import checkpoints, log, tracking
from longshort.training.worker import LAST_WORDS

SPENT = "spent.json"
NOTHING_SPENT = {"steps": 0, "seconds": 0.0, "cpu_seconds": 0.0}
# The variable that names users, by number, whose checkpoints may be resumed from.
TRUSTED_USERS = "LONGSHORT_TRUSTED_USERS"


def complete(
    job: dict[str, Any], work: Path, wanted: list[int], training: Training, owner: Owner
) -> tuple[list[int], int, float]:
    """Trains until every wanted step has a sound checkpoint, or the run diverges.

    Returns:
        The wanted steps that exist now, the number of steps trained here, and the seconds spent.

    Raises:
        JobFailed: the training failed.
        Interrupted: it was asked to stop.
    """
    began, trained = time.monotonic(), 0
    checked = stopped = False
    job_file = work / "job.json"
    keep = checkpoints.keep(work, wanted)
    patience = 0.0 if job_file.exists() and read_json(job_file, dict).get("host") == socket.gethostname() else LATE
    checkpoints.remove_unfinished(work, patience)
    sound, resumable = checkpoints.sound_steps(work, patience)
    for resume, targets in checkpoints.segments([step for step in wanted if step not in sound], resumable):
        targets = [step for step in targets if step < checkpoints.diverged_at(work)]
        if targets:
            if stopped:  # while the last step before was saved
                print(f"asked to stop (SIGTERM): the next attempt goes on after step {resume}", flush=True)
                raise Interrupted
            if not checked:
                integrity.refuse_altered(Path(job["data"]) / layout.MANIFEST, "train", content=job["content"])
                checked = True
            if resume:
                refuse_foreign(checkpoints.folder(work, resume))
            print(f"training from step {resume} to {max(targets)}", flush=True)
            for step in checkpoints.steps_there(work):
                if resume < step <= max(targets) and step not in sound:  # what is saved over it must not mix with it
                    checkpoints.remove(work, step)
            # Steps up to a sound one keep their rows, beside new ones: this piece may never be ended.
            log.forget_steps(work / log.NAME, max([resume, *sound]), max(targets))
            passed = [step for step in sound if resume < step < max(targets)]
            piece = {"resume": resume, "targets": targets, "keep": keep, "passed": passed}
            write_json(job_file, {**job, **piece, "owner": owner.token, "host": socket.gethostname()})
            since, cpu_since = time.monotonic(), heartbeat.cpu_seconds()
            try:
                stopped, said = _run_processes(job_file, job, training, owner)
            except JobFailed:
                remove_half_a_checkpoint(work, training, owner)
                raise
            sound += [step for step in targets if checkpoints.is_sealed(work, step)]
            newest = checkpoints.newest(work, resume, max(targets))
            end = int(min(max(targets), checkpoints.diverged_at(work)))
            # Processes that were asked to end before their first step may have ended well without one.
            ended = checkpoints.is_sealed(work, max(targets)) or end < max(targets)
            reached = end if ended else newest
            interrupted = stopped and reached < end
            trained += reached - resume
            # What ranks on other nodes take is not seen from here.
            cpu_seconds = heartbeat.cpu_seconds() - cpu_since if training.nodes == 1 else None
            add_spent(work, reached - resume, time.monotonic() - since, cpu_seconds)
            note_piece(work, [step for step in targets if step in sound], job["made"])
            if interrupted:
                if said:
                    remove_half_a_checkpoint(work, training, owner)
                    then = f"the next attempt goes on after step {newest}"
                    raise JobFailed(f"the training was asked to stop, and failed to save: {said}; {then}")
                print(f"asked to stop (SIGTERM): the next attempt goes on after step {newest}", flush=True)
                raise Interrupted
    there = [step for step in wanted if step in sound]
    lost = [step for step in wanted if step not in sound and step < checkpoints.diverged_at(work)]
    if lost:
        raise JobFailed(f"the training ended without the checkpoints of steps {lost}")
    # One that has not ended, for another study, was stopped: it is resumed from what a finished one needs no more.
    if all(checkpoints.is_sealed(work, step) for step in keep if step < checkpoints.diverged_at(work)):
        checkpoints.settle(work, keep, job["end"])
    return there, trained, time.monotonic() - began


def remove_half_a_checkpoint(work: Path, training: Training, owner: Owner) -> None:
    """Of a training that failed: on a full disk it would leave no room for what says so, nor for any other job. What
    another job writes here, which has taken the folder over, stays.
    """
    owner.refuse_if_lost()
    checkpoints.remove_unfinished(work, LATE if training.nodes > 1 else 0.0)


def refuse_foreign(checkpoint: Path) -> None:
    """For a checkpoint that a training is to resume from: its states are unpickled.

    Raises:
        UserError: a part of it belongs to another user, who is not said to be trusted. Nothing is deleted.
    """
    trusted = {str(os.getuid()), *os.environ.get(TRUSTED_USERS, "").split(",")}
    others = {str(path.stat().st_uid) for path in [checkpoint, *checkpoint.rglob("*")]} - trusted
    if others:
        raise UserError(
            f"{checkpoint} is not resumed from: it belongs to user {', '.join(sorted(others))}; export "
            f"{TRUSTED_USERS}={','.join(sorted(others))} if you trust what lies there (SECURITY.md)"
        )


def add_spent(work: Path, steps: int, seconds: float, cpu_seconds: float | None) -> None:
    """cpu_seconds: None where it is not known, and then the sum is not."""
    before = spent(work)
    known = before.get("cpu_seconds")
    total = None if known is None or cpu_seconds is None else known + cpu_seconds
    now = {"steps": before["steps"] + steps, "seconds": before["seconds"] + seconds, "cpu_seconds": total}
    write_json(work / SPENT, {**before, **now})


def spent(work: Path) -> dict[str, Any]:
    """What a training took over all jobs that took part in it: steps whose weights were kept, and seconds. What is
    published again must still say it, as estimates are made from it."""
    if not (work / SPENT).exists():
        return dict(NOTHING_SPENT)
    found: dict[str, Any] = read_json(work / SPENT, {"steps": int, "seconds": int | float})
    return found


def note_piece(work: Path, steps: list[int], made: dict[str, Any]) -> None:
    """Remembers by what the wanted steps were made that one job has brought to an end."""
    before = spent(work)
    write_json(work / SPENT, {**before, "pieces": [*before.get("pieces", []), {"steps": steps, **made}]})


def made(work: Path, steps: list[int]) -> dict[str, Any]:
    """Commit, environment and machine that the last of some steps was trained by, whoever publishes it; where it
    diverged before them, that it was. Nothing where that was not noted, as by an earlier version."""
    pieces = [one for one in spent(work).get("pieces", []) if not steps or max(steps) in one["steps"]]
    return {key: pieces[-1][key] for key in ("commit", "environment", "machine")} if pieces else {}


def build_extensions() -> None:
    """Compiles what DeepSpeed would compile at its first training."""
    code = "from deepspeed.accelerator import get_accelerator as a; a().create_op_builder('ShareMemCommBuilder').load()"
    subprocess.run([sys.executable, "-c", code], env=environment(1), check=True, stdout=subprocess.DEVNULL)


# A training asks for the same large blocks at every step. By default glibc gives each back to the system at once, which
# costs a page fault for every 4 KiB of the next: a quarter of a ZeRO-2 step on a CPU (benchmarks/README.md).
KEEP_FREED_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**33), "MALLOC_TRIM_THRESHOLD_": str(2**34)}


# torch.compile is given nothing in a training but what bitsandbytes does to four bits. That is decorated when peft is
# imported, which the Trainer always does, and takes torch's compiler along, a fifth of all imports, unless that is off.
NOT_COMPILED = {"TORCHDYNAMO_DISABLE": "1"}

# The world of a single process; at port 0 it listens at any that is free, as nobody else must find it.
ALONE = {
    **{"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"},
    **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"},
}


# A launcher gets requests to stop from SLURM, on each node, and where processes are tracked by cgroups nobody else: it
# leaves the file that its first argument names, and waits on.
HAND_ON = """
stop="$1"; shift
(trap '' TERM; exec "$@") & launched=$!
trap 'touch "$stop"' TERM
wait "$launched"; code=$?
while kill -0 "$launched" 2>/dev/null; do wait "$launched"; code=$?; done
exit "$code"
"""


def environment(threads: int) -> dict[str, str]:
    """The environment of the training processes."""
    here = Path(sys.executable).parent
    values = {
        **KEEP_FREED_MEMORY,
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "TOKENIZERS_PARALLELISM": "false",
        "TORCH_FORCE_WEIGHTS_ONLY_LOAD": "1",  # training/unpickling.py
        # DeepSpeed compiles a CPU collective with the first ninja that it finds; another one would compile it again.
        "PATH": os.pathsep.join([str(here), *os.get_exec_path()]),
    }
    if os.access(sys.prefix, os.W_OK):
        # Shared by all environments of a user, the compiled files would be overwritten in turn.
        values.setdefault("TORCH_EXTENSIONS_DIR", str(Path(sys.prefix) / "torch_extensions"))
    return values


def _run_processes(job_file: Path, job: dict[str, Any], training: Training, owner: Owner) -> tuple[bool, str]:
    """Runs the training processes to their end; whether they were asked to stop, and their error where that made one.

    SIGTERM is for the training processes, which save and end; torchrun would kill them instead, so it ignores it. One
    that reaches this process alone is handed on by a file, which also a process sees that is just starting.
    """
    command, world = _processes(job_file, training, job["threads"])
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
        variables = {**environment(job["threads"]), **world, LAST_WORDS: str(last_words)}
        if training.adapter is None or training.adapter.kind != "qlora":
            variables = {**NOT_COMPILED, **variables}
        if job["report_to"]:
            variables.update(tracking.environment(job["run_name"], job_file.parent.name))
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
        asked, said = request.exists(), text_of(last_words) if code and last_words.exists() else ""
        if code and not asked:
            if said:
                raise JobFailed(f"the training failed: {said}")
            code = code if code > 0 else 128 - code
            raise JobFailed(f"exit code {code}; its log says why", code)
    return asked, said


def _processes(job_file: Path, training: Training, threads: int) -> tuple[list[str], dict[str, str]]:
    """The command that starts the training processes, and the variables that say which world they are.

    torchrun sets those itself. A single process does without it: it would only import torch once more.
    """
    # A SIGTERM that comes while a process starts must not end it. (`env --ignore-signal` is missing on old clusters.)
    python = ["sh", "-c", "trap '' TERM; exec \"$@\"", "sh", sys.executable, "-m"]
    worker = ["longshort.training.worker", "--job", str(job_file)]
    if training.world_size == 1:
        return [*python, *worker], ALONE
    nodes = _nodes(training)
    command = [*_on_every_node(nodes, training, threads, job_file.with_name(checkpoints.STOP)), *python]
    command += ["torch.distributed.run", "--signals-to-handle=SIGINT", *_rendezvous(nodes, training)]
    return [*command, "--module", *worker], {}


def _nodes(training: Training) -> list[str]:
    """The names of a job's nodes; none where the training has one node, or there is no SLURM."""
    job = os.environ.get("SLURM_JOB_ID")
    if not job or training.nodes == 1:
        return []
    nodes = slurm.hostnames(job)
    if len(nodes) != training.nodes:
        raise UserError(f"this training is for {training.nodes} nodes, and job {job} has {len(nodes)}: {nodes}")
    return nodes


def _on_every_node(nodes: list[str], training: Training, threads: int, request: Path) -> list[str]:
    """One launcher a node. The engine runs the rule once, on the first node, without SLURM's variables.

    request: the file that asks all processes to save and end.
    """
    if not nodes:
        return []
    command = ["srun", f"--nodes={len(nodes)}", f"--ntasks={len(nodes)}", "--ntasks-per-node=1"]
    command += [f"--cpus-per-task={training.processes * threads}", "--kill-on-bad-exit=1", "--export=ALL"]
    return [*command, "sh", "-c", HAND_ON, "sh", str(request)]


def _rendezvous(nodes: list[str], training: Training) -> list[str]:
    """How the processes find each other: on one machine at any free port, on several nodes at the first one."""
    if not nodes:
        return ["--standalone", f"--nproc-per-node={training.world_size}"]
    job = os.environ["SLURM_JOB_ID"]
    # Jobs that share a node have different numbers.
    endpoint = f"{slurm.address(nodes[0])}:{20000 + int(job) % 12000}"
    found = [f"--nnodes={len(nodes)}", f"--nproc-per-node={training.processes}", f"--rdzv-id={job}"]
    # A launcher gives up each one whose last sign, by the clock of that one, is so many times 5 seconds old. After the
    # usual 15 seconds those whose clocks differ by more would never meet. That one has ended, srun tells the others.
    found.append("--rdzv-conf=keep_alive_max_attempt=720")
    return [*found, "--rdzv-backend=c10d", f"--rdzv-endpoint={endpoint}"]


if __name__ == "__main__":
    build_extensions()
