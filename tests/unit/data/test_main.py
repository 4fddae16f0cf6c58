"""The data stage: what of a corpus becomes a document of which split, and what is refused."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from longshort.data import __main__ as stage
from longshort.data import corpora, seen, shards, splits
from longshort.data.left_out import LeftOut
from longshort.data.settings import Data, TextCorpus
from longshort.data.tokenizers import byte_tokenizer
from longshort.errors import UserError
from longshort.jobs.ownership import sole_owner
from tests.support.corpora import ROWS, lines, put


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


def test_a_corpus_in_pieces_is_the_corpus_in_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is said of it, and what trainings know it by, is that of all its documents."""
    put(tmp_path / "corpus/rows.jsonl", lines(ROWS))
    whole = prepare(tmp_path, "whole")
    monkeypatch.setattr(shards, "PIECE", 1000)
    cut = prepare(tmp_path, "cut")
    files = whole.pop("files"), cut.pop("files")
    assert cut == whole and len(files[1]) > len(files[0])
    assert (tmp_path / "cut/sources.jsonl").read_text() == (tmp_path / "whole/sources.jsonl").read_text()


@pytest.mark.parametrize("changed", ["nothing", "code", "environment", "tokenizer"])
def test_the_pieces_of_a_killed_job_serve_only_one_that_would_make_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: str
) -> None:
    put(tmp_path / "corpus/rows.jsonl", lines(ROWS))
    byte_tokenizer().save_pretrained(tmp_path / "tokenizer")
    corpus = {"kind": "text", "path": str(tmp_path / "corpus")}
    tokenizer = {"kind": "pretrained", "name": str(tmp_path / "tokenizer")}
    spec = Data.model_validate({"corpus": corpus, "tokenizer": tokenizer, "test": 0.3})

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(stage, "_content", killed)
        stage.prepare(spec, tmp_path / "out")
    written = {file: file.stat().st_mtime_ns for file in tmp_path.glob("out/*/*.arrow")}
    match changed:
        case "code":
            monkeypatch.setattr(stage, "code_hash", lambda entry: "of another version")
        case "environment":
            monkeypatch.setattr(stage.provenance, "environment", lambda: "tokenizers=9")
        case "tokenizer":
            put(tmp_path / "tokenizer/added_tokens.json", b"{}")
    stage.prepare(spec, tmp_path / "out")
    anew = {file for file, time in written.items() if file.stat().st_mtime_ns != time}
    assert written and anew == (set() if changed == "nothing" else set(written))


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


def of_a_corpus_for_each_split(tmp_path: Path, **changes: object) -> Data:
    """Sixty texts to train on, of which five are held out, too, in one way or another."""
    texts = [" ".join(f"{(n * 7 + k * k) % 97}" for k in range(100)) for n in range(60)]
    halves = [text[: len(text) // 2] for text in texts]
    for name, documents in {
        "corpus": texts,
        "validation": ["\ufeff" + texts[0], texts[1] + "\n", "one of its own", texts[3]],
        "test": [texts[2], halves[3] + " but for its end", texts[1], *(f"test {n}" for n in range(3))],
    }.items():
        (tmp_path / name).mkdir()
        for number, text in enumerate(documents):
            (tmp_path / name / f"{number}.txt").write_text(text)
    paths = {key: {"kind": "text", "path": str(tmp_path / key.split("_")[0])} for key in CORPORA}
    return Data.model_validate({**paths, **changes})


def test_a_corpus_that_is_another_one_when_it_is_read_again_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network disk failed once: what is held out would not be known, or a document would be lost without a word."""
    spec, read, times = of_a_corpus_for_each_split(tmp_path), corpora.documents, []

    def documents(corpus: Any, left_out: LeftOut, key: str) -> Iterator[tuple[str, str]]:
        times.append(key)
        found = list(read(corpus, left_out, key))
        yield from found[1:] if times.count("data.test_corpus") == 2 and key == "data.test_corpus" else found

    monkeypatch.setattr(corpora, "documents", documents)
    with pytest.raises(ValueError, match="data.test_corpus: 6 documents were read first, and then 5"):
        stage.prepare(spec, tmp_path / "out")


CORPORA = ("corpus", "validation_corpus", "test_corpus")


def test_validation_and_test_may_have_corpora_of_their_own(tmp_path: Path) -> None:
    spec = of_a_corpus_for_each_split(tmp_path)
    assert (spec.validation, spec.test) == (0, 0)
    manifest = stage.prepare(spec, tmp_path / "out")
    assert {split: said["documents"] for split, said in manifest["splits"].items()} == {
        "train": 56,  # 60 less 0, 1, 2 and 3, which are held out
        "validation": 3,
        "test": 6,
    }
    said = {reason: (left["count"], left["first"]) for reason, left in manifest["left_out"].items()}
    assert said == {
        "of train with the text of a validation document": (2, ["0.txt", "3.txt"]),
        "of train with the text of a test document": (2, ["1.txt", "2.txt"]),
        "of validation with the text of a test document": (1, ["validation_corpus: 1.txt"]),
    }
    assert splits.load(tmp_path / "out/test").column("name").to_pylist() == [f"{n}.txt" for n in range(6)]


def test_near_copies_are_left_out_from_the_share_that_is_asked_for(tmp_path: Path) -> None:
    spec = of_a_corpus_for_each_split(tmp_path, near_copies=0.85)
    manifest = stage.prepare(spec, tmp_path / "out")
    said = manifest["left_out"]["of validation, nearly a copy of a test document"]
    assert said["count"] == 1 and said["first"] == [
        "validation_corpus: 3.txt (90% of the shorter one in common with 1.txt)"
    ]
    assert manifest["splits"]["train"]["documents"] == 56 and manifest["splits"]["validation"]["documents"] == 2
    looser = stage.prepare(spec.model_copy(update={"near_copies": 0.95}), tmp_path / "looser")
    assert looser["splits"]["validation"]["documents"] == 3
    # Of 14 words, hence two passages, and one of these in common: what has just the share is left out.
    (tmp_path / "validation/4.txt").write_text("a b c d e f g h i j k l m n")
    (tmp_path / "test/6.txt").write_text("a b c d e f g h i j k l m o")
    half = stage.prepare(spec.model_copy(update={"near_copies": 0.5}), tmp_path / "half")
    named = half["left_out"]["of validation, nearly a copy of a test document"]["first"]
    assert named[1:] == ["validation_corpus: 4.txt (50% of the shorter one in common with 6.txt)"]


@pytest.mark.parametrize("key", CORPORA)
def test_a_corpus_that_is_lost_is_named_by_its_key(tmp_path: Path, key: str) -> None:
    spec = of_a_corpus_for_each_split(tmp_path)
    for file in (tmp_path / key.split("_")[0]).iterdir():
        file.write_bytes(b"\xff")
    with pytest.raises(ValueError, match=rf"{key.split('_')[0]}.*holds no document.*\n.*not UTF-8"):
        stage.prepare(spec, tmp_path / "out")
    (tmp_path / key.split("_")[0]).rename(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=rf"data\.{key}\.path = .*no file there"):
        stage.prepare(spec, tmp_path / "out")


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
    spec["corpus"]["dataset"] = str(folder.rename(tmp_path / "elsewhere"))
    assert stage.prepare(Data.model_validate(spec), tmp_path / "again")["splits"] == manifest["splits"]
    spec["corpus"]["column"] = "text"
    with pytest.raises(ValueError, match="no column 'text'"):
        stage.prepare(Data.model_validate(spec), tmp_path / "out")


def test_of_a_dataset_in_several_configurations_the_one_that_is_named_is_read(tmp_path: Path) -> None:
    configurations = {"one": 10, "other": 20}
    for name, count in configurations.items():
        put(tmp_path / f"corpus/{name}/train.jsonl", lines(ROWS[:count]))
    files = "".join(f"- config_name: {name}\n  data_files: {name}/*\n" for name in configurations)
    put(tmp_path / "corpus/README.md", f"---\nconfigs:\n{files}---\n".encode())
    for name, count in configurations.items():
        corpus = {"kind": "hub", "dataset": str(tmp_path / "corpus"), "revision": "0" * 40, "configuration": name}
        spec = Data.model_validate({"corpus": corpus, "tokenizer": {"kind": "bytes"}, "validation": 0.2, "test": 0.2})
        manifest = stage.prepare(spec, tmp_path / name)
        assert sum(split["documents"] for split in manifest["splits"].values()) == count


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


def test_what_another_job_prepared_meanwhile_is_left_as_it_is(tmp_path: Path) -> None:
    """Two engines may begin on one corpus: trainings of the first read it when the job of the second has its turn."""
    put(tmp_path / "corpus/rows.jsonl", lines(ROWS))
    spec = Data.model_validate(
        {"corpus": {"kind": "text", "path": str(tmp_path / "corpus")}, "tokenizer": {"kind": "bytes"}, "test": 0.3}
    )
    out = tmp_path / "out"
    arguments = Namespace(out=out, corpus_state=seen.FIRST, max_left_out=0.05)
    assert not stage.is_made(arguments, spec)
    with sole_owner(out) as owner:
        stage.make(arguments, spec, owner)
    assert stage.is_made(arguments, spec)
    assert not stage.is_made(arguments, spec.model_copy(update={"test": 0.2}))
    assert not stage.is_made(Namespace(**{**vars(arguments), "corpus_state": "another"}), spec)
    put(tmp_path / "corpus/more.jsonl", lines(ROWS[:3]))
    assert not stage.is_made(arguments, spec)


def test_the_stage_lets_as_much_be_lost_as_it_is_told(tmp_path: Path) -> None:
    put(tmp_path / "corpus/rows.jsonl", lines(ROWS) + b"{\n" * 4)
    spec = Data.model_validate({"corpus": {"kind": "text", "path": str(tmp_path / "corpus")}, "test": 0.3})
    out = tmp_path / "out"
    with sole_owner(out) as owner:
        with pytest.raises(UserError, match="4 of 34 documents cannot be used, more than data.max_left_out = 0.1"):
            stage.make(Namespace(out=out, corpus_state=seen.FIRST, max_left_out=0.1), spec, owner)
        stage.make(Namespace(out=out, corpus_state=seen.FIRST, max_left_out=0.2), spec, owner)
    assert (out / "manifest.json").exists()
