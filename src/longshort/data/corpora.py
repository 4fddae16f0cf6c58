"""Corpora: documents as (name, text).

The name divides the corpus and tells documents apart: the path of its file below the corpus' root, and the row of the
file. So no two documents share one, and it does not depend on where the corpus lies.
"""

from __future__ import annotations

import glob
import hashlib
import itertools
import sysconfig
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from longshort.data import packages
from longshort.records import hub

SUFFIXES = (".txt", ".jsonl", ".parquet")


def documents(corpus: dict[str, Any], left_out: Counter[str]) -> Iterator[tuple[str, str]]:
    """Yields (name, text) of every document; what cannot be used is counted in left_out by reason."""
    read = {"stdlib": _stdlib, "package": _package, "text": _text, "hub": _hub}[corpus["kind"]]
    for name, text in read(corpus, left_out):
        if text.strip():
            yield name, text
        else:
            left_out["empty"] += 1


def split_of(name: str, validation: float, test: float) -> str:
    """test, validation or train, by a hash of the name: adding a document moves no other."""
    share = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64
    if share < test:
        return "test"
    return "validation" if share < test + validation else "train"


def files(path: str) -> list[Path]:
    """The files of a text corpus.

    Raises:
        ValueError: there is none, or one has a suffix that is not read.
    """
    found = [file for file in _named(path) if file.is_file()]
    if not found:
        raise ValueError(f"data.corpus.path = {path!r}: no file there; give a folder, a file or a glob of {SUFFIXES}")
    strange = [file for file in found if file.suffix not in SUFFIXES]
    if strange:
        raise ValueError(f"data.corpus.path = {path!r} takes in {strange[0]}; only {SUFFIXES} are read")
    return found


def _named(path: str) -> list[Path]:
    """What has the name of a file of the corpus: folders, pipes and links to nothing, too."""
    root = Path(path)
    if root.is_dir():
        return sorted(file for file in root.rglob("*") if file.suffix in SUFFIXES)
    return sorted({Path(file) for file in glob.glob(path, recursive=True)})


def _root(path: str) -> Path:
    """What names are relative to: the folder itself, that of a file, or what comes before a glob's first pattern."""
    if Path(path).is_dir():
        return Path(path)
    fixed = itertools.takewhile(lambda part: not glob.has_magic(part), Path(path).parts[:-1])
    return Path(*fixed)


def _stdlib(corpus: dict[str, Any], left_out: Counter[str]) -> Iterator[tuple[str, str]]:
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        # Installed packages are not the standard library, and some distributions leave its tests out.
        if {"site-packages", "dist-packages", "test", "tests", "idle_test"} & set(relative.parts):
            continue
        try:
            yield relative.as_posix(), path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            left_out["not UTF-8"] += 1


def _package(corpus: dict[str, Any], left_out: Counter[str]) -> Iterator[tuple[str, str]]:
    for name, source in packages.sources(corpus):
        try:
            yield name, source.decode("utf-8-sig")
        except UnicodeDecodeError:
            left_out["not UTF-8"] += 1


def _text(corpus: dict[str, Any], left_out: Counter[str]) -> Iterator[tuple[str, str]]:
    from datasets import load_dataset

    root = _root(corpus["path"])
    found = files(corpus["path"])
    if others := [path for path in _named(corpus["path"]) if path.suffix in SUFFIXES and path not in found]:
        left_out["no file"] += len(others)
    for file in found:
        name = file.relative_to(root).as_posix()
        if any("\ud800" <= letter <= "\udfff" for letter in name):  # how Python shows bytes that are no letters
            left_out["with a name that is not UTF-8"] += 1
            continue
        if file.suffix == ".txt":
            try:
                yield name, file.read_text(encoding="utf-8")
            except UnicodeDecodeError:
                left_out["not UTF-8"] += 1
            continue
        kind = {".jsonl": "json", ".parquet": "parquet"}[file.suffix]
        rows = load_dataset(kind, data_files=str(file.resolve()), split="train", streaming=True)
        yield from _rows(rows, corpus["column"], name, left_out)


def _hub(corpus: dict[str, Any], left_out: Counter[str]) -> Iterator[tuple[str, str]]:
    from datasets import load_dataset

    part = hub.corpus(corpus)
    folder = str(hub.folder(part)) if part else corpus["dataset"]
    rows = load_dataset(folder, corpus["configuration"], split=corpus["split"], streaming=True)
    yield from _rows(rows, corpus["column"], corpus["dataset"], left_out)


def _rows(rows: Any, column: str, source: str, left_out: Counter[str]) -> Iterator[tuple[str, str]]:
    for index, row in enumerate(rows):
        if column not in row:
            raise ValueError(
                f"{source}, row {index}: no column {column!r}; data.corpus.column may be one of {sorted(row)}"
            )
        if isinstance(row[column], str):
            yield f"{source}#{index}", row[column]
        else:
            left_out["no text"] += 1
