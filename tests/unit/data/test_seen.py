"""Whether a corpus is the one that was read."""

from __future__ import annotations

import json
import os
from pathlib import Path

from longshort.data import seen


def test_the_content_of_a_corpus_decides_and_not_its_times(tmp_path: Path) -> None:
    root, record = tmp_path / "corpus", tmp_path / "corpus.json"
    root.mkdir()
    for n in range(3):
        (root / f"d{n:02}.txt").write_text(f"document {n}")
    (root / "large.txt").write_bytes(b"x" * 2_000_000)
    path = str(root)
    assert seen.state(path, record) == seen.FIRST
    seen.write(path, seen.FIRST, record)
    os.utime(root / "large.txt", (1, 1))
    assert seen.state(path, record) == seen.FIRST
    seen.renew(path, record)
    assert json.loads(record.read_text())["files"]["large.txt"][1] == 10**9

    (root / "large.txt").write_bytes(b"y" * 2_000_000)
    changed = seen.state(path, record)
    assert seen.FIRST != changed == seen.state(path, record)
    seen.renew(path, record)
    assert seen.state(path, record) == changed
    seen.write(path, changed, record)  # as the stage does that was asked to by it
    os.utime(root / "d00.txt")
    assert seen.state(path, record) == changed
    (root / "d00.txt").unlink()
    assert seen.state(path, record) not in (seen.FIRST, changed)
    record.write_text("{")
    assert seen.state(path, record) == seen.FIRST
