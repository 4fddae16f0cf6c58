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


@contextmanager
def sole_owner(folder: Path, patience: float = 3600.0) -> Iterator[None]:
    """Waits until no other job writes below folder, then owns it. A dead owner on this host is replaced.

    Raises:
        TimeoutError: the owner was still alive after `patience` seconds.
    """
    folder.mkdir(parents=True, exist_ok=True)
    owner = folder / "owner.json"
    mine = json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "job": os.environ.get("SLURM_JOB_ID")})
    deadline = time.monotonic() + patience
    while True:
        try:
            handle = os.open(owner, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        except FileExistsError:
            if _owner_is_dead(owner):
                owner.unlink(missing_ok=True)
                continue
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"{folder} is still owned by {owner.read_text()}; end that job, or delete {owner} if it is gone"
                ) from None
            time.sleep(1.0)
            continue
        os.write(handle, mine.encode())
        os.close(handle)
        break
    try:
        yield
    finally:
        owner.unlink(missing_ok=True)


def _owner_is_dead(owner: Path) -> bool:
    try:
        state = json.loads(owner.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return False
    return state["host"] == socket.gethostname() and not Path("/proc", str(state["pid"])).exists()


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
