"""What a stage is doing, beside its result: `longshort status` reads it on any node, also after the driver died.

<steps>.heartbeat (JSON) below results/runs/<run>/ holds stage, state, attempt, host, node, pid, job, began and beat
(seconds since 1970) and, as far as the stage knows them, run_id, done, total, unit, loss, tokens_per_second,
seconds_left and message.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from longshort import interruption, ownership
from longshort.publish import read_json, write_json

BEAT = 10.0
# States. A stage that was killed says RUNNING for ever: its beat is old.
WAITING, RUNNING, FINISHED, INTERRUPTED, FAILED = "waiting", "running", "finished", "interrupted", "failed"
Progress = Callable[[], dict[str, Any]]


def path_of(out: Path) -> Path:
    """The heartbeat of the stage that makes a result."""
    return out.with_suffix(".heartbeat")


class Heartbeat:
    """The state of a stage, written every BEAT seconds and whenever it changes."""

    def __init__(self, out: Path, stage: str) -> None:
        self._path = path_of(out)
        self._progress: Progress = dict
        self._first: tuple[float, float] | None = None  # time and progress of the first look
        self._lock = threading.Lock()
        now = time.time()
        self.attempt = _attempts_before(self._path) + 1
        self._facts: dict[str, Any] = {
            "stage": stage,
            "state": WAITING,
            "attempt": self.attempt,
            "host": socket.gethostname(),
            "node": os.environ.get("SLURMD_NODENAME"),
            "pid": os.getpid(),
            "job": os.environ.get("SLURM_JOB_ID"),
            "began": now,
        }

    def state(self, state: str, message: str | None = None) -> None:
        self.note(state=state, message=message)

    def note(self, **facts: Any) -> None:
        self._facts.update(facts)
        self._write()

    def watch(self, progress: Progress) -> None:
        """Asks the function at every beat: `done`, `total`, `unit`, and what else there is to say."""
        self._progress = progress
        self.state(RUNNING)

    def _write(self) -> None:
        with self._lock:
            self._facts.update(self._progress(), beat=time.time())
            self._facts["seconds_left"] = self._seconds_left()
            write_json(self._path, self._facts)

    def _seconds_left(self) -> float | None:
        """From the speed since the first look: a resumed training begins in the middle."""
        done, total = self._facts.get("done"), self._facts.get("total")
        if done is None or total is None:
            return None
        now = time.monotonic()
        if self._first is None:
            self._first = now, done
        since, first = self._first
        return (total - done) * (now - since) / (done - first) if done > first else None

    def _beat(self, stop: threading.Event) -> None:
        while not stop.wait(BEAT):
            try:
                self._write()
            except OSError as error:  # a full or hanging disk is the stage's to report
                print(f"no heartbeat in {self._path}: {error}", flush=True)


@contextmanager
def beating(out: Path, stage: str) -> Iterator[Heartbeat]:
    """Beats while the block runs, and says in the end how it ended."""
    heartbeat, stop = Heartbeat(out, stage), threading.Event()
    heartbeat.state(WAITING)
    # A log holds all attempts, one below the other.
    print(f"attempt {heartbeat.attempt}, {ownership.described(ownership.about_me())}, {time.ctime()}", flush=True)
    thread = threading.Thread(target=heartbeat._beat, args=(stop,), daemon=True)
    thread.start()
    try:
        yield heartbeat
    except BaseException as error:
        with suppress(OSError):  # a full disk may be what it failed of
            if isinstance(error, SystemExit) and error.code == interruption.EXIT_CODE:
                heartbeat.state(INTERRUPTED)
            else:
                said = str(error) if isinstance(error, SystemExit) else f"{type(error).__name__}: {error}"
                heartbeat.state(FAILED, said)
        raise
    else:
        heartbeat.state(FINISHED)
    finally:
        stop.set()
        thread.join()


def _attempts_before(path: Path) -> int:
    """Attempts since the result was last finished."""
    try:
        before = read_json(path)
    except (FileNotFoundError, ValueError):
        return 0
    return 0 if before["state"] == FINISHED else int(before["attempt"])
