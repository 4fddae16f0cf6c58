"""Results appear whole or not at all: written beside their place, fsynced, renamed."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from longshort.errors import LongshortError, UserError
from longshort.identity.spec import digest, dumps

# What readers of records ask for: see read_json.
HASHES = {str: str}
NUMBER = (int, float)
CHECKPOINTS = {str: {"path": str, "files": HASHES}}


class Altered(UserError):
    """A published file was edited, cut, moved or deleted by hand; says which one, and what to do."""


# A shared file system may show a file of another node late: NFS keeps for up to a minute what a folder held.
LATE = 60.0
FULL = (errno.ENOSPC, errno.EDQUOT)


class NoSpace(LongshortError, OSError):
    """A file system is full; the message says which one, and what is to be done."""


def is_full(error: BaseException) -> bool:
    """Whether an error says that a file system is full; not all libraries pass the system's own on."""
    return any(os.strerror(number) in str(error) for number in FULL)


@contextmanager
def naming_a_full_disk(path: Path, needed: int) -> Iterator[None]:
    """For a block that writes about so many bytes to a path.

    Raises:
        NoSpace: in place of the error of a block for which there was no space.
    """
    try:
        yield
    except OSError as error:
        if isinstance(error, NoSpace) or not is_full(error):
            raise
        raise NoSpace(error.errno or errno.ENOSPC, no_space(path, needed)) from error


def write_atomic(path: Path, data: bytes | str) -> None:
    """Writes data to path so that a reader sees the old content or the whole new one, never a part."""
    # Outside, so that what is free is told without the part.
    with naming_a_full_disk(path, len(data)), file_in_place(path) as part:
        part.write_bytes(data.encode() if isinstance(data, str) else data)


@contextmanager
def file_in_place(path: Path) -> Iterator[Path]:
    """Yields the name of a file to write beside path; on success it takes path's place, on failure it is removed.

    Raises:
        Altered: somebody put a folder there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield part
        with part.open("rb") as file:
            os.fsync(file.fileno())
        try:
            part.replace(path)
        except IsADirectoryError:
            raise Altered(f"{path} is a folder, where a file belongs: delete it and run snakemake again") from None
    finally:
        with suppress(OSError):  # what went wrong before it is to be said
            part.unlink()
    _sync(path.parent)


def no_space(path: Path, needed: int) -> str:
    """What to say where `needed` bytes cannot be written: which file system is full, how much it lacks, what to do."""
    place = path.absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    while not place.is_mount():
        place = place.parent
    return (
        f"no space for {path}: it needs {in_words(needed)}, and the file system {place} has {in_words(free)} free "
        "(or a quota has less); make room (`longshort prune` shows what no study needs) and run again"
    )


def in_words(size: float) -> str:
    """Bytes, in the unit that a person would choose."""
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:,.1f} GB"


def write_json(path: Path, value: Any) -> None:
    write_atomic(path, json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n")


def read_json(path: Path, like: Any = object) -> Any:
    """What a JSON file holds.

    Args:
        like: what that has to be: a type, or a tuple of types; [like] for a list of such values; {key: like} for an
            object that has at least these keys; {str: like} for one with any keys.

    Raises:
        Altered: it is no file, cannot be read, is no JSON (NaN is no number there), or holds something else.
    """
    refuse_no_file(path)
    try:
        value = json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_number)
    except OSError as error:
        raise Altered(f"{path} cannot be read ({error.strerror}): check its permissions and its disk") from error
    except (ValueError, RecursionError) as error:
        raise Altered(
            f"{path} is no valid JSON ({error}): it was edited or cut; delete it and run snakemake again"
        ) from error
    if not _is_like(value, like):
        raise Altered(f"{path} does not hold what was written: it was edited; delete it and run snakemake again")
    return value


def _no_number(word: str) -> float:
    raise ValueError(f"{word} is no number")


def _is_like(value: Any, like: Any) -> bool:
    """As read_json has it."""
    if isinstance(like, list):
        return isinstance(value, list) and all(_is_like(one, like[0]) for one in value)
    if isinstance(like, dict):
        if not isinstance(value, dict):
            return False
        if str in like:
            return all(_is_like(one, like[str]) for one in value.values())
        return all(key in value and _is_like(value[key], kind) for key, kind in like.items())
    return isinstance(value, like) and not (isinstance(value, bool) and like not in (bool, object))


def read_spec(path: Path) -> dict[str, Any]:
    """A specification that a stage was given.

    Raises:
        Altered: it is not the one that its folder is named by; a folder with another kind of name promises none.
    """
    remedy = "it was edited or cut by hand; delete it and run snakemake again, or change the study in config/"
    spec: Any = read_json(path)
    name = path.absolute().parent.name
    if not isinstance(spec, dict) or (re.fullmatch("[0-9a-f]{16}", name) and digest(_or_empty(spec)) != name):
        raise Altered(f"{path} is not the specification {name} that its folder is named by: {remedy}")
    return spec


def _or_empty(spec: dict[str, Any]) -> str:
    try:
        return dumps(spec)
    except ValueError:  # a number that JSON has not
        return ""


def refuse_no_file(path: Path) -> None:
    """To be called before a file is opened: to open a pipe would wait for who writes into it.

    Raises:
        Altered: there is nothing, or something else than a file.
    """
    if not path.is_file():
        raise Altered(
            f"{path} is no file; delete it and run snakemake again"
            if os.path.lexists(path)
            else f"{path} is missing; run snakemake again"
        )


def write_record(path: Path, record: dict[str, Any]) -> None:
    """The JSON that says how a result was made, with the hash of its own content, as no other file holds it."""
    write_json(path, sealed(record))


def sealed(record: dict[str, Any]) -> dict[str, Any]:
    """A record as read_record wants it, for who writes the file by other means."""
    return {**record, "seal": _seal(record)}


def read_record(path: Path, seal: str | None = None, like: Any = object) -> dict[str, Any]:
    """What write_record wrote.

    Args:
        seal: that of the record that has to be there, where that is known.
        like: what is going to be read of it, as read_json has it.

    Raises:
        Altered: it was edited or cut since, or is another one; or, written by another version, it lacks what `like`
            asks for.
    """
    record = read_json(path)
    if not isinstance(record, dict) or (its := record.pop("seal", None)) != _seal(record) or its != (seal or its):
        raise Altered(f"{path} is not the record that was published; delete it and run snakemake again")
    if not _is_like(record, like):
        raise Altered(
            f"{path} does not hold what is read of it: another version wrote it, or it was edited and sealed anew; "
            "delete it and run snakemake again"
        )
    return record


def whole_record(path: Path, like: Any = object) -> dict[str, Any]:
    """As read_record; nothing where there is none, or one that was edited or cut: for what decides no number."""
    try:
        return read_record(path, like=like)
    except Altered:
        return {}


def text_of(path: Path) -> str:
    """A log or another text for people, as far as it is one; empty where there is none."""
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def refuse_altered_table(path: Path) -> None:
    """For a table of numbers beside which its record stands.

    Raises:
        Altered: it is not the file that the record was written for, or that one is gone.
    """
    record = path.with_suffix(".json")
    if not record.exists():
        raise Altered(f"{record} is missing, by which {path} is known; delete {path} and run snakemake again")
    if read_record(record, like={"sha256": str})["sha256"] != file_digest(path):
        raise Altered(f"{path} is not the file that was collected; delete it and run snakemake again")


def _seal(record: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True, allow_nan=False).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """sha256 of a file.

    Raises:
        Altered: it is no file.
    """
    refuse_no_file(path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_digests(folder: Path) -> dict[str, str]:
    """sha256 of every file below folder, by relative path."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {file.relative_to(folder).as_posix(): file_digest(file) for file in files}


def appears(path: Path, patience: float = LATE) -> bool:
    """Whether a file is there, or comes to be seen within so many seconds."""
    deadline = time.monotonic() + patience
    while not path.exists():
        if time.monotonic() > deadline:
            return False
        if path.parent.is_dir():
            os.listdir(path.parent)  # an NFS client asks its server then
        time.sleep(min(1.0, patience))
    return True


def wait_for_files(folder: Path, names: Iterable[str], patience: float = LATE) -> None:
    """For files that another node wrote, whose content is not looked at.

    Raises:
        Altered: one does not come to be seen.
    """
    for name in names:
        if not appears(folder / name, patience):
            raise Altered(f"{folder / name} is missing: delete {folder / 'manifest.json'} and run again")


def altered(folder: Path, digests: dict[str, str], patience: float = 0.0) -> str | None:
    """What is wrong with the files of a folder, in words; None if each is the one that was recorded.

    patience: seconds to wait for a file that another node wrote.
    """
    if not digests or not _is_like(digests, {str: str}):
        return "which files it held is not recorded as it was written"
    for name, recorded in digests.items():
        if not appears(folder / name, patience):
            return f"{name} is missing"
        if not (folder / name).is_file() or file_digest(folder / name) != recorded:
            return f"{name} is not the file that was written"
    return None


def sync(folder: Path) -> None:
    """All that is below a folder is on the disk when this returns, and the folder itself."""
    for path in [*folder.rglob("*"), folder]:
        if path.is_file() or path.is_dir():
            _sync(path)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
