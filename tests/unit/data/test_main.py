"""The data stage: what of a corpus becomes a document of which split, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from datasets import Dataset

from longshort.data import __main__ as stage
from longshort.data import corpora, splits
from longshort.data.left_out import LeftOut
from longshort.data.settings import Data, TextCorpus


def prepare(tmp_path: Path, name: str = "out", **corpus: object) -> dict:
    spec = {
        "corpus": {"kind": "text", "path": str(tmp_path / "corpus"), "column": "text", **corpus},
        "tokenizer": {"kind": "bytes"},
        "validation": 0.2,
        "test": 0.2,
    }
    return stage.prepare(Data.model_validate(spec), tmp_path / name)


def test_text_files_of_every_kind_and_what_is_left_out(tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    folder.mkdir()
    for number in range(20):
        (folder / f"{number}.txt").write_text(f"document {number}")
    (folder / "empty.txt").write_text(" \n")
    (folder / "latin.txt").write_bytes("naïve".encode("latin-1"))
    rows = [{"text": "row one"}, {"text": None}, {"text": "row three"}]
    (folder / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    Dataset.from_dict({"text": ["row four", None, "row six"]}).to_parquet(str(folder / "rows.parquet"))
    manifest = prepare(tmp_path)
    counts = {reason: said["count"] for reason, said in manifest["left_out"].items()}
    assert counts == {"empty": 1, "not UTF-8": 1, "null in place of a text": 2}
    assert sum(split["documents"] for split in manifest["splits"].values()) == 24

    sources = [json.loads(line) for line in (tmp_path / "out" / "sources.jsonl").read_text().splitlines()]
    assert {source["name"] for source in sources} >= {"0.txt", "rows.jsonl#0", "rows.parquet#2"}

    again = prepare(tmp_path, "again")
    assert again["content"] == manifest["content"]
    (folder / "0.txt").write_text("document x")
    assert prepare(tmp_path, "changed")["content"] != manifest["content"]


@pytest.mark.parametrize("path", ["corpus", "corpus/*/*", "corpus/**/*.*"])
def test_files_of_equal_names_stay_apart(tmp_path: Path, path: str) -> None:
    """A document is named by its path below the corpus: what a person gives, a folder or a glob, changes no name."""
    wanted = {}
    for folder in ("arxiv", "books", "code"):
        (tmp_path / "corpus" / folder).mkdir(parents=True)
        texts = [f"{folder} {row}" for row in range(10)]
        lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
        (tmp_path / "corpus" / folder / "part-000.jsonl").write_text(lines)
        (tmp_path / "corpus" / folder / "text.txt").write_text(folder)
        wanted |= {f"{folder}/part-000.jsonl#{row}": text for row, text in enumerate(texts)}
        wanted[f"{folder}/text.txt"] = folder
    prepare(tmp_path, path=str(tmp_path / path))
    for split in ("train", "validation", "test"):
        table = splits.load(tmp_path / "out" / split)
        named = zip(table.column("name").to_pylist(), table.column("input_ids").to_pylist(), strict=True)
        for name, ids in named:
            assert bytes(ids).decode() == wanted.pop(name)
            assert corpora.split_of(name, 0.2, 0.2) == split
    assert not wanted


@pytest.mark.parametrize("path", ["corpus", "corpus/*.txt", "corpus/book.txt"])
def test_a_file_of_a_flat_folder_goes_by_its_name(tmp_path: Path, path: str) -> None:
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus/book.txt").write_text("a book")
    corpus = TextCorpus(kind="text", path=str(tmp_path / path))
    assert list(corpora.documents(corpus, LeftOut())) == [("book.txt", "a book")]


def test_no_text_is_both_trained_on_and_held_out(tmp_path: Path) -> None:
    """Copies of a test document leave the other splits, copies of a validation document leave train."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    for number in range(60):
        (folder / f"{number}.txt").write_text(f"the text {number % 20}")
    manifest = prepare(tmp_path)
    texts: dict[str, set[bytes]] = {}
    for split in ("train", "validation", "test"):
        rows = Dataset.load_from_disk(str(tmp_path / "out" / split))
        texts[split] = {bytes(row["input_ids"]) for row in rows}
    assert not texts["train"] & (texts["validation"] | texts["test"]) and not texts["validation"] & texts["test"]
    assert len(set.union(*texts.values())) == 20
    named = [corpora.split_of(f"{number}.txt", 0.2, 0.2) for number in range(60)]
    assert manifest["splits"]["test"]["documents"] == named.count("test")
    left_out = sum(said["count"] for said in manifest["left_out"].values())
    assert left_out == 60 - sum(split["documents"] for split in manifest["splits"].values())


def test_a_dataset_in_the_hubs_layout(tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    (folder / "data").mkdir(parents=True)
    Dataset.from_dict({"book": [f"book {n}" for n in range(30)]}).to_parquet(
        str(folder / "data" / "train-00000-of-00001.parquet")
    )
    corpus = {"kind": "hub", "dataset": str(folder), "revision": "0" * 40, "configuration": None, "split": "train"}
    spec = {"corpus": {**corpus, "column": "book"}, "tokenizer": {"kind": "bytes"}, "validation": 0.2, "test": 0.2}
    manifest = stage.prepare(Data.model_validate(spec), tmp_path / "out")
    assert sum(split["documents"] for split in manifest["splits"].values()) == 30
    spec["corpus"]["column"] = "text"
    with pytest.raises(ValueError, match="no column 'text'"):
        stage.prepare(Data.model_validate(spec), tmp_path / "out")


def test_a_missing_column_and_an_empty_corpus_are_named(tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    with pytest.raises(ValueError, match="no file there"):
        prepare(tmp_path)
    (tmp_path / "corpus" / "rows.jsonl").write_text('{"content": "x", "id": 1}\n')
    with pytest.raises(ValueError, match=r"holds no document.*\n.*no column 'text'; there are \['content', 'id'\]"):
        prepare(tmp_path)
    (tmp_path / "corpus" / "rows.jsonl").unlink()
    (tmp_path / "corpus" / "empty.txt").write_text("")
    with pytest.raises(ValueError, match="holds no document"):
        prepare(tmp_path)
