"""One writer a folder."""

from __future__ import annotations

import errno
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from longshort.errors import Exit
from longshort.jobs import ownership, slurm
from tests.support.waiting import PATIENCE, wait_until


def test_a_second_owner_waits_for_the_first(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from longshort.jobs.ownership import sole_owner\n"
        "with sole_owner(Path(sys.argv[1])): print('mine', flush=True); time.sleep(0.7); print('no more', flush=True)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None and first.stdout.readline() == "mine\n"
        with ownership.sole_owner(tmp_path):
            os.set_blocking(first.stdout.fileno(), False)
            assert first.stdout.readline() == "no more\n"
    assert not (tmp_path / "owner.json").exists()


def test_a_dead_owner_is_replaced(tmp_path: Path) -> None:
    write_owner(tmp_path, pid=ended_process())
    with ownership.sole_owner(tmp_path) as owner:
        assert json.loads(owner.file.read_text())["pid"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


def test_a_later_process_with_the_number_of_the_owner_is_not_the_owner(tmp_path: Path) -> None:
    write_owner(tmp_path, pid=os.getpid(), born=-1)
    with ownership.sole_owner(tmp_path):
        pass


def test_an_owner_whose_children_live_is_not_dead(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(0.7)"], start_new_session=True) as child:
        write_owner(tmp_path, pid=ended_process(), group=child.pid)
        with ownership.sole_owner(tmp_path):
            assert child.poll() is not None  # its state: ended, not collected


@contextmanager
def beating(owner: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that touches the file until it is killed, once it has begun.

    The clock of the file system may be wrong by years: only whether the time changes counts.
    """
    beats = """
import itertools, os, sys, time
for beat in itertools.count():
    os.utime(sys.argv[1], (beat, beat))
    print("touched", flush=True) if not beat else None
    time.sleep(0.1)
"""
    command = [sys.executable, "-c", beats, str(owner)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == "touched\n"
            yield process
        finally:
            process.kill()


def test_an_owner_on_another_host_is_waited_for_as_long_as_its_heart_beats(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ownership, "SILENCE", 2.5)
    with beating(write_owner(tmp_path, host="elsewhere")) as other:
        threading.Timer(4, other.kill).start()
        with ownership.sole_owner(tmp_path):
            assert other.poll() is not None


def test_an_owner_touches_its_file_as_long_as_it_owns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another node knows by nothing else that it lives."""
    monkeypatch.setattr(ownership, "BEAT", 0.05)
    with ownership.sole_owner(tmp_path) as owner:
        for _ in range(2):
            os.utime(owner.file, (1, 1))
            wait_until(lambda: owner.file.stat().st_mtime > 1, lambda: "its owner did not touch it")


def test_the_slower_one_of_two_that_find_a_dead_owner_leaves_the_new_one_its_folder(tmp_path: Path) -> None:
    owner = write_owner(tmp_path, token="the faster one's")
    ownership._take_away(owner, {"token": "the dead one's"})
    assert ownership.content(owner)["token"] == "the faster one's" and list(tmp_path.iterdir()) == [owner]


def test_a_third_one_that_comes_while_the_slower_one_looks_keeps_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The faster one finds its token there, and ends."""
    rename = Path.rename

    def and_a_third_one_comes(file: Path, aside: Path) -> None:
        rename(file, aside)
        write_owner(tmp_path, token="the third one's")

    owner = write_owner(tmp_path, token="the faster one's")
    monkeypatch.setattr(Path, "rename", and_a_third_one_comes)
    ownership._take_away(owner, {"token": "the dead one's"})
    assert ownership.content(owner)["token"] == "the third one's" and list(tmp_path.iterdir()) == [owner]


@pytest.mark.parametrize(("over", "gone"), [(None, True), (True, True), (False, False)])
def test_a_silent_owner_is_gone_unless_its_job_runs(
    monkeypatch: pytest.MonkeyPatch, over: bool | None, gone: bool
) -> None:
    """None: SLURM is not there, or has forgotten the job."""
    monkeypatch.setattr(slurm, "is_over", lambda job: over)
    state = {"host": "elsewhere", "pid": 1, "born": 1, "group": None, "job": "7"}
    assert ownership.is_gone(state, 301.0, 300.0) is gone
    assert not ownership.is_gone(state, 299.0, 300.0)


def test_an_owner_that_was_replaced_ends_before_it_writes(tmp_path: Path) -> None:
    with pytest.raises(ownership.Lost, match="taken over by process 1 on elsewhere, SLURM job 7"):
        with ownership.sole_owner(tmp_path) as owner:
            write_owner(tmp_path, host="elsewhere", pid=1, job="7")
            owner.refuse_if_lost()
    assert ownership.content(tmp_path / "owner.json")["host"] == "elsewhere"
    code = (
        "import sys, time; from pathlib import Path; from longshort.jobs import ownership\n"
        "ownership.BEAT = 0.1\n"
        "with ownership.sole_owner(Path(sys.argv[1])) as owner:\n"
        "    owner.file.write_text(owner.file.read_text().replace(owner.token, 'another'))\n"
        "    time.sleep(600)"
    )
    (tmp_path / "owner.json").unlink()
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 1 and "writes nothing more" in done.stdout


@pytest.mark.parametrize("said", ["{}", "", "[]", '{"token": "t"}', '{"token": 7, "host": null}', "a folder", "a loop"])
def test_an_owner_that_cannot_be_told_is_named_waited_for_and_given_up(
    tmp_path: Path, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "owner.json"
    if said == "a folder":
        file.mkdir()
    elif said == "a loop":
        file.symlink_to(file.name)
    else:
        file.write_text(said)
    monkeypatch.setattr(ownership, "LOOKED_AFTER", 0.5)
    assert ownership.is_owned(tmp_path)
    with pytest.raises(ownership.Owned, match=f"{file} does not say who owns {tmp_path}: .* delete it"):
        with ownership.sole_owner(tmp_path, wait=False):
            pass
    with pytest.raises(ownership.Owned, match="delete it"):
        with ownership.sole_owner(tmp_path):
            pass
    assert "waiting: " in capsys.readouterr().out
    file.rmdir() if said == "a folder" else file.unlink()
    with ownership.sole_owner(tmp_path):
        pass


def test_a_file_system_that_fails_for_a_moment_takes_nothing_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The heartbeat goes on after it; only another one's token ends an owner."""

    def failing(*_: object, **__: object) -> str:
        raise OSError(errno.ESTALE, "Stale file handle")

    with ownership.sole_owner(tmp_path) as owner:
        with monkeypatch.context() as broken:
            broken.setattr(Path, "read_text", failing)
            with pytest.raises(OSError, match="Stale"):
                owner.refuse_if_lost()
        owner.refuse_if_lost()


def test_one_that_waits_ends_when_it_is_asked_to(tmp_path: Path) -> None:
    (tmp_path / "owner.json").write_text("{}")
    code = (
        "import sys; from pathlib import Path; from longshort.jobs import interruption, ownership\n"
        "interruption.end_at_once()\n"
        "with ownership.sole_owner(Path(sys.argv[1])): pass"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True) as waiting:
        assert waiting.stdout is not None and waiting.stdout.readline().startswith("waiting: ")
        waiting.terminate()
        assert waiting.wait(timeout=PATIENCE) == Exit.INTERRUPTED


def write_owner(folder: Path, **given: object) -> Path:
    state = {"token": "its", "host": socket.gethostname(), "pid": 1, "born": 1, "job": None, "group": None}
    (folder / "owner.json").write_text(json.dumps({**state, **given}))
    return folder / "owner.json"


def ended_process() -> int:
    done = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    return int(done.stdout)


@pytest.mark.parametrize("owned", [True, False])
def test_a_folder_of_a_dead_owner_is_not_owned(tmp_path: Path, owned: bool) -> None:
    assert not ownership.is_owned(tmp_path)
    write_owner(tmp_path, pid=os.getpid() if owned else ended_process(), born=ownership.about_me()["born"])
    assert ownership.is_owned(tmp_path) is owned


@pytest.mark.parametrize(
    "place", ["boot", *(pytest.param(place, marks=pytest.mark.wide) for place in ("namespace", "hidden"))]
)
def test_what_is_not_seen_from_here_is_owned_as_long_as_its_heart_beats(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """Another machine of this name (or this one before it started anew), another container, another user's processes
    that /proc hides: that no such process is shown does not say that it has ended."""

    kill = os.kill

    def refused(number: int, signal: int) -> None:
        if signal == 0:
            raise PermissionError(number)
        kill(number, signal)

    monkeypatch.setattr(ownership, "BEAT", 0.5)
    monkeypatch.setattr(ownership, "SILENCE", 2.5)
    if place == "hidden":
        monkeypatch.setattr(os, "kill", refused)
    elsewhere = {} if place == "hidden" else {place: "another"}
    owner = write_owner(tmp_path, pid=2**22 + 1, **elsewhere)
    with beating(owner) as other:
        assert ownership.is_owned(tmp_path)
        with pytest.raises(ownership.Owned), ownership.sole_owner(tmp_path, wait=False):
            pass
        threading.Timer(1, other.kill).start()
        with ownership.sole_owner(tmp_path):
            assert other.poll() is not None
    assert not ownership.is_owned(tmp_path)


def test_a_later_group_with_the_number_of_the_owners_is_not_the_owners(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True) as other:
        write_owner(tmp_path, pid=ended_process(), group=other.pid, group_born=1)
        assert not ownership.is_owned(tmp_path)
        write_owner(tmp_path, pid=ended_process())
        ownership.Owner(tmp_path / "owner.json", "its").note_group(other.pid)
        assert ownership.is_owned(tmp_path)
        other.kill()


def test_a_requeued_job_does_not_wait_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """SLURM says of its number that it runs."""
    monkeypatch.setattr(slurm, "is_over", lambda job: False)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    before = {**ownership.about_me(), "host": "elsewhere"}
    assert not ownership.is_gone(before, 301.0, 300.0)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert ownership.is_gone(before, 301.0, 300.0) and not ownership.is_gone(before, 299.0, 300.0)
    monkeypatch.setenv("SLURM_JOB_ID", "8")
    assert not ownership.is_gone(before, 301.0, 300.0)


def test_a_link_that_was_made_before_its_answer_was_lost_is_ours(tmp_path: Path) -> None:
    ownership.write_json(tmp_path / "mine", {**ownership.about_me(), "token": "t"})
    assert ownership._claimed(tmp_path / "mine", tmp_path / "owner.json")
    assert ownership._claimed(tmp_path / "mine", tmp_path / "owner.json")
    ownership.write_json(tmp_path / "another", {**ownership.about_me(), "token": "u"})
    assert not ownership._claimed(tmp_path / "another", tmp_path / "owner.json")
