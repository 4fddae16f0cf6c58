"""Whether the files of the corpora are those that were read. Content decides; size and time of a file only say where to
look, so that a corpus that is touched or copied makes nothing anew."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from longshort.data import text_files
from longshort.data.left_out import LeftOut
from longshort.data.settings import Data, TextCorpus
from longshort.identity.spec import digest, dumps
from longshort.records.publish import Altered, file_digest, read_json, write_json

RECORD = "corpus.json"
FIRST = "first"  # the state of files of which nothing is recorded


def paths(data: Data) -> dict[str, str]:
    """The paths of local files that a study reads, each by what stands before the names of its files: no name of a file
    of the corpus itself begins with a slash."""
    return {
        "" if key == "corpus" else f"/{key}/": corpus.path
        for key, corpus in data.corpora.items()
        if isinstance(corpus, TextCorpus)
    }


def state(paths: dict[str, str], record: Path) -> str:
    """A word for what the files hold: that of the record while their content is as recorded, else another one."""
    if not paths:
        return FIRST
    found, known = _files(paths), _known(record)
    if not known or (found.keys() == known["files"].keys() and all(_is_same(each, known) for each in found.items())):
        return str(known.get("state", FIRST))
    return digest(dumps([[name, *_hint(file)] for name, file in found.items()]))


def write(paths: dict[str, str], state: str, record: Path) -> None:
    """To be called before the files are read: one that changes while they are is then found changed."""
    files = {name: [*_hint(file), _hash(file)] for name, file in _files(paths).items()}
    if files:
        write_json(record, {"state": state, "files": files})


def renew(paths: dict[str, str], record: Path) -> None:
    """Writes down the times of files that were only touched, so that they are not read at every look."""
    known = _known(record)
    if not paths or not known or state(paths, record) != known["state"]:
        return
    files = {name: [*_hint(file), known["files"][name][2]] for name, file in _files(paths).items()}
    if files != known["files"]:
        write_json(record, {"state": known["state"], "files": files})


def _files(paths: dict[str, str]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for before, path in paths.items():
        root, key = text_files.root_of(path), f"data.{before.strip('/') or 'corpus'}"
        found |= {before + file.relative_to(root).as_posix(): file for file in text_files.find(path, LeftOut(), key)}
    return {name.encode(errors="backslashreplace").decode(): file for name, file in sorted(found.items())}


def _known(record: Path) -> dict[str, Any]:
    try:
        known = read_json(record)
        return known if isinstance(known["files"], dict) and isinstance(known["state"], str) else {}
    except (Altered, KeyError, TypeError):
        return {}


def _is_same(file: tuple[str, Path], known: dict[str, Any]) -> bool:
    name, path = file
    size, time, content = known["files"][name]
    return [size, time] == _hint(path) or (size == _hint(path)[0] and content == _hash(path))


def _hint(file: Path) -> list[int]:
    status = file.stat()
    return [status.st_size, status.st_mtime_ns]


def _hash(file: Path) -> str:
    try:
        return file_digest(file)
    except OSError:  # it is left out when it is read
        return "not readable"
