"""One writer a folder: a lock that waits, with the host, the processes, the SLURM job and the heartbeat of its owner.

The owner file appears whole, by a link. Its owner touches it every BEAT seconds. Another job takes it over only from an
owner that is gone: where /proc would show it, because none of its processes runs; elsewhere, because the file has not
been touched for SILENCE seconds and SLURM does not say that the owner's job runs. Time is measured by the clock of the
one that waits, since the clocks of nodes differ. An owner that was only thought gone, its file system having hung,
finds another one's token in the file and ends before it writes again. (Many parallel file systems have no flock.)
"""

from __future__ import annotations

import json
import math
import os
import socket
import stat
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from longshort.errors import Exit, LongshortError
from longshort.jobs import slurm
from longshort.records.publish import write_json

BEAT = 10.0
SILENCE = 300.0
SECONDS_BETWEEN_LINES = 60.0
# What an owner file says at least, and the owner of one that does not: such files appear whole, so it was edited.
KINDS: dict[str, Any] = {"token": str, "host": str, "pid": int, "born": int, "job": str | None, "group": int | None}
UNREADABLE: dict[str, Any] = {"token": "", "host": "", "pid": 0, "born": 0, "job": None, "group": None}
# How long it is waited for somebody to look after it.
LOOKED_AFTER = 600.0


class Lost(LongshortError, RuntimeError):
    """Another job took the folder over."""


class Owned(LongshortError, RuntimeError):
    """Another process owns the folder, or it cannot be told which one."""


class Owner(NamedTuple):
    """The owner of a folder, as its file names it."""

    file: Path
    token: str

    def note_group(self, group: int) -> None:
        """Names a process group that the owner started: it counts as alive as long as one of its processes is."""
        self.refuse_if_lost()
        write_json(self.file, {**content(self.file), "group": group, "group_born": _born(group)})

    def refuse_if_lost(self) -> None:
        """To be called before something is written that others take for whole.

        Raises:
            Lost: another job has taken the folder over.
        """
        if content(self.file).get("token") != self.token:
            now = described(content(self.file))
            raise Lost(f"{self.file.parent} was taken over by {now}; this job writes nothing more")

    @contextmanager
    def beating(self) -> Iterator[None]:
        """Touches the file while the block runs; ends this process where the folder is another's."""
        stop = threading.Event()

        def beat() -> None:
            while not stop.wait(BEAT):
                try:
                    self.refuse_if_lost()
                    os.utime(self.file)
                except Lost as error:
                    print(error, flush=True)
                    os._exit(Exit.FAILED)
                except OSError as error:  # a hanging file system: that is what SILENCE is for
                    print(f"no heartbeat in {self.file}: {error}", flush=True)

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()


@contextmanager
def sole_owner(folder: Path, wait: bool = True) -> Iterator[Owner]:
    """Waits until no other job writes below folder, then owns it.

    Raises:
        Owned: wait is False, and the folder has an owner that lives, or one that cannot be told; or the owner file
            cannot be read, and nobody has looked after it for LOOKED_AFTER seconds.
    """
    folder.mkdir(parents=True, exist_ok=True)
    me = about_me()
    owner = Owner(folder / "owner.json", me["token"])
    mine = folder / f".owner.{me['token']}"
    write_json(mine, me)
    try:
        _wait_for(owner.file, mine, wait)
        with owner.beating():
            yield owner
    finally:
        if content(owner.file).get("token") == me["token"]:
            owner.file.unlink(missing_ok=True)
        mine.unlink(missing_ok=True)


def about_me() -> dict[str, Any]:
    """Who this process is; its birth tells it from a later one with the same number."""
    return {
        "token": uuid.uuid4().hex,
        "host": socket.gethostname(),
        "boot": _boot(),
        "namespace": _namespace(),
        "pid": os.getpid(),
        "born": _born(os.getpid()),
        "job": os.environ.get("SLURM_JOB_ID"),
        "restarts": _restarts(),
        "group": None,
        "group_born": None,
    }


def content(owner: Path) -> dict[str, Any]:
    """What an owner file says; nothing if there is none, UNREADABLE if it is not one that was written here."""
    try:
        if not stat.S_ISREG(owner.lstat().st_mode):  # to read a pipe would wait for who writes into it
            return UNREADABLE
        read = json.loads(owner.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError):
        return UNREADABLE
    whole = isinstance(read, dict) and all(isinstance(read.get(key), kind) for key, kind in KINDS.items())
    return read if whole else UNREADABLE


def is_owned(folder: Path) -> bool:
    """Whether a living process owns a folder; one that is not seen from here is looked at for a few beats."""
    file = folder / "owner.json"
    first = state = content(file)
    if state is UNREADABLE:
        return True
    if not state or is_seen_from_here(state):
        return bool(state) and not has_ended(state)
    with suppress(FileNotFoundError):
        beat, until = file.stat().st_mtime, time.monotonic() + 3 * BEAT
        while time.monotonic() < until:
            if file.stat().st_mtime != beat or content(file) != first:
                return True
            time.sleep(1.0)
    return False


def is_gone(state: dict[str, Any], silent: float, patience: float) -> bool:
    """Whether an owner is gone, given the seconds that its file has not been touched, as seen from here."""
    if is_seen_from_here(state):
        return has_ended(state)
    # SLURM says of a job that was requeued that it runs, and means the new start, which may be the one that asks.
    requeued = state["job"] == os.environ.get("SLURM_JOB_ID") and state.get("restarts", _restarts()) != _restarts()
    return silent > patience and (state["job"] is None or requeued or slurm.is_over(state["job"]) is not False)


def is_seen_from_here(state: dict[str, Any]) -> bool:
    """Whether /proc here would show an owner's processes, as about_me() tells them.

    It shows none of another machine, which may have the same name, of another container, of an earlier start of this
    machine, and of another user where it hides those (hidepid).
    """
    here = {"host": socket.gethostname(), "boot": _boot(), "namespace": _namespace()}
    # Owner files of an earlier version say nothing of the latter two.
    if any((state.get(key) or value) != value for key, value in here.items()):
        return False
    group = state.get("group") or 0
    shown = {number for process, its_group, _ in _processes() for number in (process, -its_group)}
    return not any(_is_anothers(number) for number in {state["pid"], -group} - shown - {0})


def has_ended(state: dict[str, Any]) -> bool:
    """Whether a process that is seen from here has, and all of the group that it started, as about_me() tells them."""
    pid, born, group, group_born = (state.get(key) for key in ("pid", "born", "group", "group_born"))
    processes = list(_processes())
    # A number is given anew only when no group has it.
    leader = next((birth for process, _, birth in processes if process == group), None)
    if leader is not None and group_born not in (None, leader):
        group = None
    return not any(
        (process == pid and born in (None, birth)) or its_group == group for process, its_group, birth in processes
    )


def described(state: dict[str, Any]) -> str:
    if not state:
        return "nobody"
    if state is UNREADABLE:
        return "nobody that can be told"
    job = f", SLURM job {state['job']}" if state["job"] else ""
    return f"process {state['pid']} on {state['host']}{job}"


def _wait_for(owner: Path, mine: Path, wait: bool) -> None:
    # One that does not wait begins nothing that it could lose: it looks for a few beats.
    patience = SILENCE if wait else 3 * BEAT
    seen: tuple[str, float] | None = None  # the owner and its last heartbeat
    since, said, unread = 0.0, -math.inf, math.inf
    while not _claimed(mine, owner):
        time.sleep(0.01)  # its owner may have gone meanwhile, and another one come
        try:
            state, beat = content(owner), owner.lstat().st_mtime
        except FileNotFoundError:
            continue
        if not state:
            continue
        now = time.monotonic()
        if state is UNREADABLE:
            unread = min(unread, now)
            trouble = f"{owner} does not say who owns {owner.parent}: if no job is at work there, delete it"
            if not wait:
                raise Owned(trouble)
            if now - unread > LOOKED_AFTER:
                raise Owned(trouble)
            if now - said >= SECONDS_BETWEEN_LINES:
                said = now
                print(f"waiting: {trouble}", flush=True)
            time.sleep(1.0)
            continue
        unread = math.inf
        if (state["token"], beat) != seen:
            beats = is_seen_from_here(state) or seen is not None
            seen, since = (state["token"], beat), now
            if not wait and beats and not is_gone(state, 0.0, patience):
                raise Owned(described(state))
        if is_gone(state, now - since, patience):
            _take_away(owner, state)
            continue
        if now - said >= SECONDS_BETWEEN_LINES:
            said = now
            print(f"waiting: {owner.parent} is owned by {described(state)} (if it is gone, delete {owner})", flush=True)
        time.sleep(1.0)


def _claimed(mine: Path, owner: Path) -> bool:
    """A link appears with its whole content, and only if nothing is there."""
    try:
        os.link(mine, owner)
    except FileExistsError:
        # An NFS server may have made the link and its answer been lost: the client asks again, and is told this.
        return content(owner).get("token") == content(mine)["token"]
    return True


def _take_away(owner: Path, state: dict[str, Any]) -> None:
    """Removes a gone owner's file. Of several that try, the one whose rename moved it was first."""
    aside = owner.with_name(f".{owner.name}.{uuid.uuid4().hex}.gone")
    try:
        owner.rename(aside)
    except FileNotFoundError:
        return
    if content(aside)["token"] != state["token"]:  # another one was faster, and this is its file
        with suppress(FileExistsError):  # a third one has come: the faster one finds that, and ends
            os.link(aside, owner)
    aside.unlink()


def _boot() -> str:
    """Which start of this machine this is: with the next one numbers and births of processes begin anew."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()


def _processes() -> Iterator[tuple[int, int, int]]:
    """Process, its group, and when it was born (ticks since boot), of all that have not ended."""
    for process in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = process.read_text(encoding="utf-8").rpartition(")")[2].split()
        except OSError:
            continue  # it ended meanwhile
        if fields and fields[0] != "Z":  # ended, and only waits to be collected
            yield int(process.parent.name), int(fields[2]), int(fields[19])


def _born(pid: int) -> int | None:
    """None: it has ended."""
    return next((birth for process, _, birth in _processes() if process == pid), None)


def _is_anothers(number: int) -> bool:
    """Whether there is a process, or with a number below zero a group, of another user."""
    try:
        os.kill(number, 0)
    except PermissionError:
        return True
    except (ProcessLookupError, OverflowError):
        pass
    return False


def _namespace() -> str:
    """That of the numbers of processes; a container has its own."""
    return os.readlink("/proc/self/ns/pid")


def _restarts() -> str:
    """How often SLURM has started this job anew."""
    return os.environ.get("SLURM_RESTART_COUNT", "0")
