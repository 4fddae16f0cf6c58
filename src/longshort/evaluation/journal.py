"""What an evaluation has measured so far, item by item: a job that is killed goes on after the last one."""

from __future__ import annotations

import hashlib
import json
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from longshort.records.publish import naming_a_full_disk, write_atomic

SECONDS_BETWEEN_LINES = 60.0


class Measured(NamedTuple):
    """rows: numbers, as in stage.COLUMNS; items: what they were made from, one row an item, where a stage keeps it."""

    rows: list[dict[str, Any]]
    items: list[dict[str, Any]] = []


class Journal:
    """Values by key in a file that only grows; a line that a kill cut short counts as not written.

    A value is what JSON holds; floats come back bit for bit.
    """

    def __init__(self, path: Path | None = None) -> None:
        """path: the file; None keeps everything in memory (for a caller without a job)."""
        self._path = path
        self._values: dict[str, Any] = {}
        self._now: Section | None = None
        if path is not None and path.exists():
            whole = [line for line in path.read_bytes().splitlines(keepends=True) if _is_whole(line)]
            for line in whole:
                self._values.update([json.loads(line[65:])])
            if sum(map(len, whole)) < path.stat().st_size:  # appending to half a line would spoil the next one
                write_atomic(path, b"".join(whole))
            print(f"going on after {len(whole)} finished items of {path}", flush=True)

    def of(self, prefix: str) -> Section:
        """The section of one checkpoint, say."""
        self._now = Section(self, prefix)
        return self._now

    def progress(self) -> dict[str, Any]:
        """How far the section that was asked for last is, for the heartbeat."""
        return {} if self._now is None else self._now.progress()

    def get(self, key: str) -> Any:
        """The value of a key, or None."""
        return self._values.get(key)

    def add(self, key: str, value: Any) -> None:
        self._values[key] = value
        if self._path is not None:
            text = json.dumps([key, value], ensure_ascii=False).encode()
            line = hashlib.sha256(text).hexdigest().encode() + b" " + text + b"\n"
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with naming_a_full_disk(self._path, len(line)), self._path.open("ab") as file:
                file.write(line)


class Section:
    """The keys of a journal below a prefix, and how far they are: a bar on a terminal, a line a minute in a log."""

    def __init__(self, journal: Journal, prefix: str) -> None:
        self._journal, self._prefix = journal, prefix
        self._bar: Any = None
        self._said = self._began = time.monotonic()
        self._count = self._total = 0
        self._within = ""

    def expect(self, total: int) -> None:
        """How many items there will be, those that are there included."""
        self._total, self._count = total, 0
        self._bar = tqdm(total=total, desc=self._prefix, file=sys.stdout, disable=not sys.stdout.isatty())

    def progress(self) -> dict[str, Any]:
        return {"done": self._count, "total": self._total, "unit": f"items of {self._prefix}{self._within}"}

    def get(self, key: str) -> Any:
        value = self._journal.get(f"{self._prefix}/{key}")
        if value is not None:
            self._step()
        return value

    def add(self, key: str, value: Any) -> None:
        self._journal.add(f"{self._prefix}/{key}", value)
        self._step()

    def peek(self, key: str) -> Any:
        """The value of a key that is a part of an item, or None; it does not count as an item."""
        return self._journal.get(f"{self._prefix}/{key}")

    def keep(self, key: str, value: Any) -> None:
        """Adds a part of an item, which does not count as an item."""
        self._journal.add(f"{self._prefix}/{key}", value)

    def within(self, item: str, done: int, total: int) -> None:
        """How far the item is that is being measured, in parts of it."""
        self._within = f", {item}: {done} of {total}"
        if self._bar is not None:
            self._bar.set_postfix_str(self._within.removeprefix(", "))
        self._say()

    def _step(self) -> None:
        self._count += 1
        self._within = ""
        if self._bar is not None:
            self._bar.update()
        self._say()

    def _say(self) -> None:
        now = time.monotonic()
        if now - self._said > SECONDS_BETWEEN_LINES and not sys.stdout.isatty():
            self._said = now
            done = f"{self._count} of {self._total}{self._within}"
            print(f"{self._prefix}: {done} in {now - self._began:.0f} s", flush=True)


def _is_whole(line: bytes) -> bool:
    return line.endswith(b"\n") and hashlib.sha256(line[65:-1]).hexdigest().encode() == line[:64]
