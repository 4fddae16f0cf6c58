"""The Python sources of an installed distribution as a corpus: the same text wherever the same release is installed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from fnmatch import fnmatchcase
from functools import cache
from importlib import metadata
from pathlib import Path

from longshort.data.settings import PackageCorpus


def sources(corpus: PackageCorpus, key: str = "data.corpus") -> Iterator[tuple[str, bytes]]:
    """Yields path (below where packages are installed) and bytes of each source, in the order of the paths.

    Raises:
        ValueError: as refuse_another.
    """
    refuse_another(corpus, key)
    yield from _read(corpus.name, tuple(corpus.without))


def refuse_another(corpus: PackageCorpus, key: str = "data.corpus") -> None:
    """
    Args:
        key: what the study calls it.

    Raises:
        ValueError: the distribution is not installed, or its sources are not those that the study states.
    """
    name = corpus.name
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        raise ValueError(
            f"{key}.name = {name!r}: not installed here; install what envs/requirements.lock pins (make does), "
            "or name another distribution of the lock"
        ) from None
    if (installed := content(name, tuple(corpus.without))) != corpus.content:
        raise ValueError(
            f"{key}.content = {corpus.content!r}: the sources of {name} {version}, which is installed, have "
            f"{installed!r}; install the release that the study was written for (envs/requirements.lock pins it: "
            "delete .venv and run make again), or state this hash, which is another corpus with other numbers"
        )


@cache
def content(name: str, without: tuple[str, ...]) -> str:
    """sha256 over path, size and bytes of every source."""
    total = hashlib.sha256()
    for path, source in _read(name, without):
        total.update(f"{path}\0{len(source)}\0".encode())
        total.update(source)
    return total.hexdigest()


def _read(name: str, without: tuple[str, ...]) -> Iterator[tuple[str, bytes]]:
    """What the distribution's own list names: no bytecode, no scripts, nothing that others put beside it."""
    for listed in sorted(metadata.distribution(name).files or [], key=lambda path: path.as_posix()):
        path = listed.as_posix()
        if listed.suffix != ".py" or ".." in listed.parts or any(fnmatchcase(path, each) for each in without):
            continue
        try:
            yield path, Path(str(listed.locate())).read_bytes()
        except OSError as error:
            raise ValueError(f"{name}: {error.filename} cannot be read ({error.strerror}); install it anew") from None
