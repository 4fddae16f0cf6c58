"""Whether a corpus is the one that was read."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from longshort.data import __main__ as stage
from longshort.data import seen
from longshort.data.settings import Data
from longshort.data.tokenizers import byte_tokenizer
from longshort.training.checkpoints import identity_of
from tests.support import corpora


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


def test_a_tokenizer_in_a_folder_is_part_of_the_corpus(tmp_path: Path) -> None:
    """One that puts another token between documents makes the same splits, and another corpus."""
    byte_tokenizer().save_pretrained(tmp_path / "tokenizer")
    (tmp_path / "tokenizer/config.json").write_text("{}")  # of the model that it lies beside
    for place, row in enumerate(corpora.ROWS):
        corpora.put(tmp_path / f"texts/d{place}.txt", row.encode())
    tokenizer = {"kind": "pretrained", "name": str(tmp_path / "tokenizer")}
    data = Data.model_validate(
        {
            "corpus": {"kind": "text", "path": str(tmp_path / "texts")},
            "tokenizer": tokenizer,
            "validation": 0.2,
            "test": 0.3,
        }
    )
    record, paths = tmp_path / "corpus.json", seen.paths(data)
    seen.write(paths, seen.FIRST, record)
    before = stage.prepare(data, tmp_path / "one")
    config = tmp_path / "tokenizer/tokenizer_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "eos_token": "a"}))
    (tmp_path / "tokenizer/config.json").write_text("{ }")
    assert seen.state(paths, record) != seen.FIRST
    after = stage.prepare(data, tmp_path / "two")
    assert before["splits"] == after["splits"] and before["content"] != after["content"]
    assert identity_of({}, "code", before, None) != identity_of({}, "code", after, None)


@pytest.mark.parametrize("name", ["tokenizer.model", "merges.txt", "chat_template.jinja", "qwen.tiktoken"])
def test_each_file_that_makes_a_tokenizer_counts(tmp_path: Path, name: str) -> None:
    corpora.put(tmp_path / "tokenizer" / name, b"one")
    tokenizer = {"kind": "pretrained", "name": str(tmp_path / "tokenizer")}
    paths = seen.paths(Data.model_validate({"corpus": {"kind": "stdlib"}, "tokenizer": tokenizer}))
    seen.write(paths, seen.FIRST, tmp_path / "corpus.json")
    assert seen.state(paths, tmp_path / "corpus.json") == seen.FIRST
    corpora.put(tmp_path / "tokenizer" / name, b"another")
    assert seen.state(paths, tmp_path / "corpus.json") != seen.FIRST


def test_a_dataset_in_a_folder_counts(tmp_path: Path) -> None:
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset/train.jsonl").write_text('{"text": "a"}')
    corpus = {"kind": "hub", "dataset": str(tmp_path / "dataset"), "revision": "0" * 40}
    paths = seen.paths(Data.model_validate({"corpus": corpus}))
    seen.write(paths, seen.FIRST, tmp_path / "corpus.json")
    assert seen.state(paths, tmp_path / "corpus.json") == seen.FIRST
    (tmp_path / "dataset/train.jsonl").write_text('{"text": "b!"}')
    assert seen.state(paths, tmp_path / "corpus.json") != seen.FIRST


def test_a_file_that_can_be_read_at_last_is_read(tmp_path: Path) -> None:
    """Permissions change neither its size nor its time."""
    root, record = tmp_path / "corpus", tmp_path / "corpus.json"
    root.mkdir()
    (root / "a.txt").write_text("a document")
    path = {"": str(root)}
    seen.write(path, seen.FIRST, record)
    known = json.loads(record.read_text())
    known["files"]["a.txt"][2] = seen.NOT_READABLE
    record.write_text(json.dumps(known))
    assert seen.state(path, record) != seen.FIRST
