"""What a stage is doing, beside its result: `longshort status` reads it on any node, also after the engine died.

<steps>.heartbeat (JSON) below results/runs/<run>/ holds stage, state, attempt, earlier (how each one before ended),
seconds_before (what those took), cpu_seconds and cpu_seconds_before (of the processors: this attempt, and those), host,
boot, node, pid, born, job, began and beat (seconds since 1970), memory_mb (what SLURM gave on this node) and
peak_memory_mb (the most that was seen at a beat), and, as far as the stage knows them, run_id, done, total, unit, loss,
tokens_per_second, seconds_left and message.
"""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from longshort.errors import Exit, LongshortError
from longshort.jobs import ownership, slurm
from longshort.records import layout
from longshort.records.publish import Altered, read_json, whole_record, write_json

BEAT = 10.0
# Seconds without a beat after which a stage is taken for dead: a file system may show one late.
SILENT = 120.0
# States. A stage that was killed says RUNNING for ever: its beat is old.
WAITING, RUNNING, FINISHED, INTERRUPTED, FAILED = "waiting", "running", "finished", "interrupted", "failed"
STATES = (WAITING, RUNNING, FINISHED, INTERRUPTED, FAILED)
# What is said of a job beside them: nothing was begun; killed; its result is there; its record's seal does not hold.
PENDING, LOST, DONE, ALTERED = "pending", "lost", "done", "altered"
# What readers count on, and of what kind the rest is where it is there.
NEEDED = {"state", "host", "pid", "began", "beat"}
KINDS: dict[str, Any] = {
    **dict.fromkeys(("stage", "state", "host", "boot", "namespace", "node", "job", "run_id", "unit", "message"), str),
    **dict.fromkeys(("pid", "born", "attempt"), int),
    **dict.fromkeys(("began", "beat", "seconds_before", "memory_mb", "peak_memory_mb", "done", "total"), int | float),
    **dict.fromkeys(("cpu_seconds", "cpu_seconds_before", "loss", "tokens_per_second", "seconds_left"), int | float),
    "earlier": list,
}
Progress = Callable[[], dict[str, Any]]


def path_of(out: Path) -> Path:
    """The heartbeat of the stage that makes a result."""
    return Path(layout.stage_of(out).heartbeat)


def read(path: Path) -> dict[str, Any]:
    """A heartbeat; empty where there is none, or one that was cut or edited: it decides no number."""
    try:
        content = read_json(path)
    except (OSError, Altered):
        return {}
    if not isinstance(content, dict) or content.get("state") not in STATES or not NEEDED <= set(content):
        return {}
    known = {key: content.get(key) for key in KINDS}
    return content if all(value is None or isinstance(value, KINDS[key]) for key, value in known.items()) else {}


def clock(folder: Path) -> float:
    """Now, by the clock that also dates the heartbeats: that of the file system, as nodes may differ by minutes."""
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".now.") as file:
            return os.stat(file.name).st_mtime
    except OSError:  # somebody else's folder
        return time.time()


class Verdict(NamedTuple):
    """How a job stands. record: what its result says of itself; beat: its heartbeat, `silent` seconds ago."""

    state: str
    record: dict[str, Any]
    beat: dict[str, Any]
    silent: float


def verdict(out: Path, now: float | None = None) -> Verdict:
    """How the job stands that makes a result.

    Args:
        out: the result's record (JSON).
        now: by clock(), where many are asked for.
    """
    path, silent = path_of(out), 0.0
    beat = read(path)
    with suppress(FileNotFoundError):
        silent = max(0.0, (clock(path.parent) if now is None else now) - path.stat().st_mtime) if beat else 0.0
    record = whole_record(out)
    return Verdict(judged(beat, bool(record), out.exists() and not record, silent), record, beat, silent)


def judged(beat: dict[str, Any], is_there: bool, is_altered: bool, silent: float) -> str:
    """RUNNING, WAITING, LOST, FAILED, INTERRUPTED, DONE, PENDING or ALTERED. A job that is at work counts before the
    result of an earlier one, and a result before how a later job ended.

    Args:
        is_there: whether its record is, as it was published. That a training diverged is such a result.
        is_altered: whether its record was edited or cut.
        silent: seconds since the last beat.
    """
    state = beat.get("state")
    if state in (RUNNING, WAITING):
        return LOST if _is_gone(beat, silent) else str(state)
    if is_altered:
        return ALTERED
    if is_there:
        return DONE
    return str(state) if state in (FAILED, INTERRUPTED) else PENDING


def _is_gone(beat: dict[str, Any], silent: float) -> bool:
    """A stage that was killed cannot say so: its process is not there or, if it is not seen, its heart is still."""
    return ownership.has_ended(beat) if ownership.is_seen_from_here(beat) else silent > SILENT


def may_live(path: Path) -> bool:
    """Whether the job of a heartbeat is at work; one that cannot be read, and is young, may be that of a living job."""
    if read(path):
        return verdict(Path(layout.stage_of(path).record)).state in (RUNNING, WAITING)
    return clock(path.parent) - path.lstat().st_mtime < SILENT


class Heartbeat:
    """The state of a stage, written every BEAT seconds and whenever it changes."""

    def __init__(self, out: Path, stage: str) -> None:
        self._path = path_of(out)
        self._progress: Progress = dict
        self._first: tuple[float, float] | None = None  # time and progress of the first look
        self._lock = threading.Lock()
        self._cpu_began = cpu_seconds()
        now = time.time()
        me = ownership.about_me()
        job = me["job"]
        before = _before(self._path)
        self.earlier = _earlier_attempts(before)
        self._facts: dict[str, Any] = {
            "stage": stage,
            "state": WAITING,
            "attempt": len(self.earlier) + 1,
            "earlier": self.earlier,
            "seconds_before": _seconds_before(before),
            "cpu_seconds": 0.0,
            "cpu_seconds_before": _cpu_seconds_before(before),
            **{key: me[key] for key in ("host", "boot", "namespace", "pid", "born", "job")},
            "node": os.environ.get("SLURMD_NODENAME"),
            "began": now,
            "memory_mb": slurm.memory_mb(job) if job else None,
            "peak_memory_mb": 0.0,
        }
        if "run_id" in before:  # until this attempt knows its own: what an earlier one has saved is still gone on from
            self._facts["run_id"] = before["run_id"]

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
            self._facts["cpu_seconds"] = cpu_seconds() - self._cpu_began
            self._facts["peak_memory_mb"] = max(self._facts["peak_memory_mb"], _memory_mb())
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
    kept = _keep_log(out, len(heartbeat.earlier) + 1)
    after = f", after: {heartbeat.earlier[-1]}" if heartbeat.earlier else ""
    me = ownership.described(ownership.about_me())
    print(f"attempt {len(heartbeat.earlier) + 1}, {me}, {time.ctime()}{after}", flush=True)
    thread = threading.Thread(target=heartbeat._beat, args=(stop,), daemon=True)
    thread.start()
    try:
        yield heartbeat
    except BaseException as error:
        with suppress(OSError):  # a full disk may be what it failed of
            if isinstance(error, SystemExit) and error.code == Exit.INTERRUPTED:
                heartbeat.state(INTERRUPTED)
            else:
                heartbeat.state(FAILED, _in_words(error))
        raise
    else:
        heartbeat.state(FINISHED)
        kept.unlink(missing_ok=True)
    finally:
        stop.set()
        thread.join()


def _in_words(error: BaseException) -> str:
    if isinstance(error, SystemExit):
        return f"exit code {error.code}; its log says why" if isinstance(error.code, int) else str(error)
    return str(error) if isinstance(error, LongshortError) else f"{type(error).__name__}: {error}"


def _keep_log(out: Path, attempt: int) -> Path:
    """A second name of this attempt's log: the engine deletes the first one before the next attempt."""
    stage = layout.stage_of(out)
    if attempt == 1:
        for old in out.parent.glob(Path(stage.attempt_log("*")).name):
            old.unlink(missing_ok=True)
    kept = Path(stage.attempt_log(attempt))
    with suppress(OSError):  # no log, by hand; or a file system without links
        kept.hardlink_to(stage.log)
    return kept


def _memory_mb() -> float:
    """Resident memory of this process and all below it."""
    me, total = psutil.Process(), 0
    for process in (me, *me.children(recursive=True)):
        with suppress(psutil.Error):  # it ended meanwhile
            total += process.memory_info().rss
    return total / 2**20


def cpu_seconds() -> float:
    """What this process and all below it took of the processors, on this machine; those that ended included."""
    me, total = psutil.Process(), 0.0
    for process in (me, *me.children(recursive=True)):
        with suppress(psutil.Error):
            times = process.cpu_times()
            total += times.user + times.system + times.children_user + times.children_system
    return total


def _before(path: Path) -> dict[str, Any]:
    """The heartbeat of the attempt before, if the result was not finished by it."""
    before = read(path)
    return {} if before.get("state") == FINISHED else before


def _seconds_before(before: dict[str, Any]) -> float:
    """What all attempts that failed took, as far as their hearts were heard."""
    if not before:
        return 0.0
    return float((before.get("seconds_before") or 0.0) + before["beat"] - before["began"])


def _cpu_seconds_before(before: dict[str, Any]) -> float | None:
    """As _seconds_before; None where an attempt did not say it."""
    if not before:
        return 0.0
    earlier = before.get("cpu_seconds_before") if before.get("seconds_before") else 0.0
    last = before.get("cpu_seconds")
    return None if earlier is None or last is None else float(earlier + last)


def _earlier_attempts(before: dict[str, Any]) -> list[str]:
    """How each attempt since the result was last finished ended."""
    if not before:
        return []
    job = before.get("job")
    return [*(before.get("earlier") or []), how_it_ended(before["state"], job) + (f" (job {job})" if job else "")]


def how_it_ended(state: str, job: str | None) -> str:
    """An attempt that could not say it itself was ended from outside; SLURM may know by whom."""
    itself = state if state in (FAILED, INTERRUPTED) else "killed"
    return (slurm.ending(job) if job else None) or itself
