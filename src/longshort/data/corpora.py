"""Corpora: documents as (name, text).

The name divides the corpus and tells documents apart: the path of its file below the corpus' root, and the row of the
file. So no two documents share one, and it does not depend on where the corpus lies.
"""

from __future__ import annotations

import hashlib
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from longshort.data import left_out as why
from longshort.data import packages, text_files
from longshort.data.left_out import LeftOut
from longshort.data.settings import Corpus, HubCorpus, PackageCorpus, StdlibCorpus
from longshort.records import hub


def documents(corpus: Corpus, left_out: LeftOut, key: str = "data.corpus") -> Iterator[tuple[str, str]]:
    """Yields (name, text) of every document that can be used; the others are in left_out.

    key: what the study calls the corpus.
    """
    for name, text in _of_kind(corpus, left_out, key):
        text = text.removeprefix("\ufeff")
        if not text.strip():
            left_out.add(why.EMPTY, name)
        elif _is_encodable(text):
            yield name, text
        else:
            left_out.add(why.SURROGATE, name)


def _of_kind(corpus: Corpus, left_out: LeftOut, key: str) -> Iterator[tuple[str, str]]:
    match corpus:
        case StdlibCorpus():
            return _stdlib(left_out)
        case PackageCorpus():
            return _package(corpus, left_out, key)
        case HubCorpus():
            return _hub(corpus, left_out, key)
    return text_files.documents(corpus, left_out, key)


def _is_encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def split_of(name: str, validation: float, test: float) -> str:
    """test, validation or train, by a hash of the name: adding a document moves no other."""
    share = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64
    if share < test:
        return "test"
    return "validation" if share < test + validation else "train"


def _stdlib(left_out: LeftOut) -> Iterator[tuple[str, str]]:
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        # Installed packages are not the standard library, and some distributions leave its tests out.
        if {"site-packages", "dist-packages", "test", "tests", "idle_test"} & set(relative.parts):
            continue
        try:
            yield relative.as_posix(), path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            left_out.add(why.NOT_UTF8, relative.as_posix(), f"byte {error.start}")


def _package(corpus: PackageCorpus, left_out: LeftOut, key: str) -> Iterator[tuple[str, str]]:
    for name, source in packages.sources(corpus, key):
        try:
            yield name, source.decode()
        except UnicodeDecodeError as error:
            left_out.add(why.NOT_UTF8, name, f"byte {error.start}")


def _hub(corpus: HubCorpus, left_out: LeftOut, key: str) -> Iterator[tuple[str, str]]:
    from datasets import load_dataset

    part = hub.corpus(corpus)
    folder = str(hub.folder(part)) if part else corpus.dataset
    rows = load_dataset(folder, corpus.configuration, split=corpus.split, streaming=True)
    column, source = corpus.column, corpus.dataset
    name = source if part else corpus.split  # two copies of one folder are divided alike, wherever they lie
    for index, row in enumerate(rows):
        if not text_files.values_of(row, column):
            raise ValueError(f"{source}, row {index}: no column {column!r}; {key}.column may be one of {sorted(row)}")
        yield from text_files.of_row(row, column, f"{name}#{index}", f"{source}, row {index}", left_out)
