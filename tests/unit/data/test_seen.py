"""Whether a corpus is the one that was read."""

from __future__ import annotations

import json
import os
from pathlib import Path

from longshort.data import seen
from longshort.data.settings import Data


def test_the_content_of_a_corpus_decides_and_not_its_times(tmp_path: Path) -> None:
    root, record = tmp_path / "corpus", tmp_path / "corpus.json"
    root.mkdir()
    for n in range(3):
        (root / f"d{n:02}.txt").write_text(f"document {n}")
    (root / "large.txt").write_bytes(b"x" * 2_000_000)
    path = {"": str(root)}
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


def test_each_corpus_of_local_files_counts(tmp_path: Path) -> None:
    record = tmp_path / "corpus.json"
    corpora = {}
    for key in ("corpus", "validation_corpus", "test_corpus"):
        (tmp_path / key).mkdir()
        (tmp_path / key / "same-name.txt").write_text(key)
        corpora[key] = {"kind": "text", "path": str(tmp_path / key)}
    paths = seen.paths(Data.model_validate(corpora))
    seen.write(paths, seen.FIRST, record)
    for key in corpora:
        file = tmp_path / key / "same-name.txt"
        os.utime(file, (1, 1))
        assert seen.state(paths, record) == seen.FIRST
        file.write_text(key[::-1])
        assert seen.state(paths, record) != seen.FIRST
        file.write_text(key)
        os.utime(file, (1, 1))
    seen.renew(paths, record)
    assert [time for _, time, _ in json.loads(record.read_text())["files"].values()] == [10**9] * 3
    assert seen.paths(Data.model_validate({"corpus": {"kind": "stdlib"}})) == {}
