"""Results appear whole or not at all: written beside their place, fsynced, renamed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def write_atomic(path: Path, data: bytes | str) -> None:
    """Writes data to path so that a reader sees the old content or the whole new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    _sync_folder(path.parent)


def write_json(path: Path, value: Any) -> None:
    write_atomic(path, json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is no valid JSON ({error}): it was edited or cut; delete it and run again") from error


def write_record(path: Path, record: dict[str, Any]) -> None:
    """The JSON that says how a result was made, with the hash of its own content, as no other file holds it."""
    write_json(path, {**record, "seal": _seal(record)})


def read_record(path: Path) -> dict[str, Any]:
    """What write_record wrote.

    Raises:
        ValueError: it was edited or cut since.
    """
    record = read_json(path)
    if not isinstance(record, dict) or record.pop("seal", None) != _seal(record):
        raise ValueError(f"{path} is not the record that was published; delete it and run snakemake again")
    return record


def _seal(record: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True, allow_nan=False).encode()).hexdigest()


@contextmanager
def folder_in_place(path: Path) -> Iterator[Path]:
    """Yields a fresh folder beside path; on success it takes path's place, on failure it is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    try:
        yield part
        for file in sorted(part.rglob("*")):
            if file.is_file():
                with file.open("rb") as handle:
                    os.fsync(handle.fileno())
        if path.exists():
            shutil.rmtree(path)
        part.replace(path)
        _sync_folder(path.parent)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_digests(folder: Path) -> dict[str, str]:
    """sha256 of every file below folder, by relative path."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {file.relative_to(folder).as_posix(): file_digest(file) for file in files}


def altered(folder: Path, digests: dict[str, str]) -> str | None:
    """What is wrong with the files of a folder, in words; None if each is the one that was recorded."""
    for name, digest in digests.items():
        if not (folder / name).exists():
            return f"{name} is missing"
        if file_digest(folder / name) != digest:
            return f"{name} is not the file that was written"
    return None


@contextmanager
def sole_owner(folder: Path) -> Iterator[Path]:
    """Waits until no other job writes below folder, then owns it. An owner that died on this host is replaced.

    Yields:
        The owner file. A process group of its own that the owner starts is noted there (`note_group`): the owner
        counts as alive as long as one of its processes is.
    """
    folder.mkdir(parents=True, exist_ok=True)
    owner = folder / "owner.json"
    mine = folder / f".owner.{socket.gethostname()}.{os.getpid()}"
    state = {"host": socket.gethostname(), "pid": os.getpid(), "job": os.environ.get("SLURM_JOB_ID"), "group": None}
    write_json(mine, state)
    waited = 0
    try:
        while not _claimed(mine, owner):
            if not _replaced_if_dead(owner):
                if waited % 60 == 0:
                    print(
                        f"waiting: {folder} is owned by {_content(owner)} (if it is gone, delete {owner})", flush=True
                    )
                waited += 1
                time.sleep(1.0)
        yield owner
        owner.unlink(missing_ok=True)
    except BaseException:
        if _content(owner).get("pid") == os.getpid():
            owner.unlink(missing_ok=True)
        raise
    finally:
        mine.unlink(missing_ok=True)


def note_group(owner: Path, group: int) -> None:
    write_json(owner, {**_content(owner), "group": group})


def _claimed(mine: Path, owner: Path) -> bool:
    """A link appears with its whole content, and only if nothing is there."""
    try:
        os.link(mine, owner)
    except FileExistsError:
        return False
    return True


def _replaced_if_dead(owner: Path) -> bool:
    """Takes a dead owner's file away. Of several that try, the one whose rename moved it was first."""
    state = _content(owner)
    if not state or state["host"] != socket.gethostname() or _alive(state["pid"], state["group"]):
        return not owner.exists()
    aside = owner.with_name(f".{owner.name}.{os.getpid()}.dead")
    try:
        owner.rename(aside)
    except FileNotFoundError:
        return True
    if _content(aside) != state:  # another one was faster, and this is its file
        os.link(aside, owner)
    aside.unlink()
    return True


def _alive(pid: int, group: int | None) -> bool:
    """Whether the process, or one of its group, runs; one that has ended and only waits to be collected does not."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, its_group = stat.read_text().rpartition(")")[2].split()[:3]
        except (OSError, ValueError):
            continue  # it ended meanwhile
        if state != "Z" and (int(stat.parent.name) == pid or int(its_group) == group):
            return True
    return False


def _content(owner: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(owner.read_text())
    except FileNotFoundError:
        return {}
    return content


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
