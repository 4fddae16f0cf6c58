"""Corpora as people have them: no bad row or file stops the others, and none is left out without a word."""

from __future__ import annotations

import errno
import functools
import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from datasets import Dataset

from longshort.data import corpora, text_files
from longshort.data.left_out import LeftOut
from longshort.data.settings import Data, TextCorpus
from tests.support.corpora import ROWS, lines, prepare, put, text

TABLE = pyarrow.table({"text": ROWS})


def write_texts(root: Path) -> None:
    for n, row in enumerate(ROWS):
        (root / f"d{n:02}.txt").write_text(row)


def a_bad_line(line: bytes) -> Callable[[Path], None]:
    return lambda root: put(root / "a.jsonl", lines(ROWS[:15]) + line + b"\n" + lines(ROWS[15:]))


def no_rows(root: Path) -> None:
    pyarrow.parquet.write_table(TABLE, root / "a.parquet")
    pyarrow.parquet.write_table(TABLE.slice(0, 0), root / "b.parquet")


def cut_parquet(root: Path) -> None:
    pyarrow.parquet.write_table(TABLE, root / "a.parquet")
    put(root / "b.parquet", (root / "a.parquet").read_bytes()[:-200])


def numbers_in_a_table(root: Path) -> None:
    pyarrow.parquet.write_table(TABLE, root / "a.parquet")
    pyarrow.parquet.write_table(pyarrow.table({"text": [1, 2], "body": ["a", "b"]}), root / "b.parquet")


def linked(root: Path) -> None:
    for n, row in enumerate(ROWS):
        put((root if n < 5 else root.parent / "elsewhere") / f"d{n:02}.txt", row.encode())
    os.symlink("../elsewhere", root / "more")
    os.symlink("../corpus", root.parent / "elsewhere/back")
    os.symlink(".", root / "self")


def packed(root: Path) -> None:
    put(root / "a.jsonl", lines(ROWS[:4]))
    put(root / "e.json.gz", gzip.compress(lines(ROWS[4:6])))
    put(root / "F.JSON.ZST", pyarrow.compress(lines(ROWS[6:8]), codec="zstd", asbytes=True))
    put(root / "b.jsonl.gz", gzip.compress(lines(ROWS[8:16])))
    put(root / "C.JSONL", lines(ROWS[16:24]))
    half = pyarrow.compress(lines(ROWS[24:27]), codec="zstd", asbytes=True)
    put(root / "d.jsonl.zst", half + pyarrow.compress(lines(ROWS[27:]), codec="zstd", asbytes=True))


def foreign_name(root: Path) -> None:
    write_texts(root)
    with open(os.fsencode(root) + b"/caf\xe9.txt", "w") as file:
        file.write(text(99))


def not_a_file(root: Path) -> None:
    write_texts(root)
    (root / "folder.txt").mkdir()
    os.symlink("gone", root / "nowhere.txt")
    os.mkfifo(root / "pipe.txt")


def hidden(root: Path) -> None:
    put(root / "a.jsonl", lines(ROWS))
    put(root / ".ipynb_checkpoints/a-checkpoint.jsonl", lines(ROWS))
    put(root / ".b.txt", b"hidden")


CASES: dict[str, tuple[Callable[[Path], object], dict[str, str]]] = {
    "plain": (lambda root: put(root / "a.jsonl", lines(ROWS)), {}),
    "latin1-row": (a_bad_line(b'{"text": "caf\xe9"}'), {"not UTF-8": "a.jsonl, line 16 (byte 13)"}),
    "cut-line": (a_bad_line(b'{"text": "cut sho'), {"not JSON": "a.jsonl, line 16 (Unterminated string"}),
    "no-object": (a_bad_line(b'["text"]'), {"not JSON": "a.jsonl, line 16 (a list, no object)"}),
    "half-surrogate": (a_bad_line(b'{"text": "half \\ud83d"}'), {"half a surrogate pair": "a.jsonl#15"}),
    "null": (a_bad_line(b'{"text": null}'), {"null in place of a text": "a.jsonl, line 16"}),
    "a-number": (
        a_bad_line(b'{"text": 5, "body": "x"}'),
        {"no text in the column": "a.jsonl, line 16 ('text' of {'text': 'int', 'body': 'str'})"},
    ),
    "another-column": (
        a_bad_line(b'{"body": "x"}'),
        {"without the column": "a.jsonl, line 16 (no column 'text'; there"},
    ),
    "empty-shard": (
        lambda root: [put(root / "a.jsonl", lines(ROWS)), *(put(root / f"b.{s}", b"") for s in ("jsonl", "parquet"))],
        {"empty": "b.jsonl (no rows); b.parquet (no bytes)"},
    ),
    "no-rows": (no_rows, {"empty": "b.parquet (no rows)"}),
    "cut-parquet": (cut_parquet, {"cut or damaged": "b.parquet"}),
    "numbers-in-a-table": (
        numbers_in_a_table,
        {"no text in the column": "b.parquet ('text' of {'text': 'int64', 'body"},
    ),
    "cut-gzip": (
        lambda root: [write_texts(root), put(root / "x.txt.gz", gzip.compress(b"text" * 99)[:-9])],
        {"cut or damaged": "x.txt.gz"},
    ),
    "latin1-txt": (
        lambda root: [write_texts(root), put(root / "x.txt", b"caf\xe9")],
        {"not UTF-8": "x.txt (byte 3)"},
    ),
    "linked": (linked, {"a link to a folder that it lies in": "self; more/back"}),
    "hidden": (hidden, {"hidden": ".ipynb_checkpoints/; .b.txt"}),
    "other-kind": (
        lambda root: [write_texts(root), *(put(root / name, b"{}") for name in ("README.md", "about.json"))],
        {"of another kind": "README.md; about.json"},
    ),
    "packed": (packed, {}),
    "foreign-name": (foreign_name, {"with a name that is not UTF-8": "caf\\udce9.txt"}),
    "not-a-file": (
        not_a_file,
        {"a folder with the name of a file": "folder.txt", "no file": "nowhere.txt; pipe.txt"},
    ),
}


Row = dict[str, object]
# Column -> a row that has a text there, and what others are left out for.
NESTED: dict[str, tuple[Row, dict[str, Row]]] = {
    "meta.text": (
        {"meta": {"text": "found", "n": 1}, "text": "another"},
        {
            "null in place of a text": {"meta": None, "text": "another"},
            "without the column": {"meta": {"n": 1}, "text": "another"},
            "no text in the column": {"meta": {"text": 5, "n": 1}, "text": "another"},
        },
    ),
    "a.b.c": ({"a": {"b": {"c": "found"}}, "c": "another"}, {}),
    "dotted.name": ({"dotted.name": "found", "dotted": {"name": "another"}}, {}),
    "dotted.name.text": ({"dotted.name": {"text": "found"}}, {}),
}


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "hub"])
@pytest.mark.parametrize("column", NESTED)
def test_a_dot_leads_into_a_nested_field_unless_a_column_has_it_in_its_name(
    tmp_path: Path, column: str, kind: str
) -> None:
    row, others = NESTED[column]
    (tmp_path / "corpus").mkdir()
    path = tmp_path / "corpus" / f"rows.{'jsonl' if kind == 'jsonl' else 'parquet'}"
    if kind == "jsonl":
        path.write_text("".join(json.dumps(one) + "\n" for one in (row, *others.values())))
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), path)
    corpus: dict[str, str] = {"kind": "text", "path": str(path.parent)}
    if kind == "hub":
        corpus = {"kind": "hub", "dataset": str(path.parent), "revision": "0" * 40}
    left_out = LeftOut()
    read = Data.model_validate({"corpus": {**corpus, "column": column}}).corpus
    assert [text for _, text in corpora.documents(read, left_out)] == ["found"]
    assert {reason: said["count"] for reason, said in left_out.record().items()} == (
        dict.fromkeys(others, 1) if kind == "jsonl" else {}
    )


def texts(root: Path) -> list[str]:
    splits = (Dataset.load_from_disk(str(root.parent / "out" / split)) for split in ("train", "validation", "test"))
    return sorted(bytes(row["input_ids"]).decode() for split in splits for row in split)


@pytest.mark.parametrize("case", CASES)
def test_what_can_be_read_is_read_and_the_rest_is_named(tmp_path: Path, case: str) -> None:
    make, left_out = CASES[case]
    root = tmp_path / "corpus"
    root.mkdir()
    make(root)
    manifest = prepare(root)
    assert sorted(ROWS) == sorted(set(texts(root)))
    found = manifest["left_out"]
    assert found.keys() == left_out.keys()
    for reason, where in left_out.items():
        assert "; ".join(found[reason]["first"]).startswith(where) and found[reason]["remedy"]


def cut_lines(root: Path) -> None:
    put(root / "c4.jsonl.gz", gzip.compress(lines(ROWS * 1000))[:-2000])


def damaged_table(root: Path) -> None:
    """In its second half; the footer, which says how many rows there are, is whole."""
    file, half = root / "c4.parquet", text_files.BATCH
    pyarrow.parquet.write_table(pyarrow.table({"text": (ROWS * half)[: 2 * half]}), file, row_group_size=half)
    damaged = pyarrow.parquet.ParquetFile(file).metadata.row_group(1).column(0).dictionary_page_offset
    content = bytearray(file.read_bytes())
    content[damaged : damaged + 60] = b"\xff" * 60
    put(file, bytes(content))


@pytest.mark.parametrize("damage", [cut_lines, damaged_table])
def test_a_file_of_rows_that_breaks_off_is_no_corpus(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    """It would count as one lost document, while half of the corpus may be missing."""
    root = tmp_path / "corpus"
    put(root / "more.jsonl", lines(ROWS))
    damage(root)
    with pytest.raises(ValueError, match=r"c4\..* breaks off after \d+ documents .*; fetch it again, or take it out"):
        prepare(root)


def test_copies_that_differ_by_a_mark_or_line_ends_are_copies(tmp_path: Path) -> None:
    root = tmp_path / "corpus"
    for n in range(30):
        put(root / f"d{n:02}.txt", b"\xef\xbb\xbf" * (n % 2) + text(n // 2).encode() + b"\n" * (n % 3))
    put(root / "rows.jsonl", b"\xef\xbb\xbf" + lines([text(31), "\ufeff" + text(32)]))
    manifest = prepare(root)
    assert not [found for found in texts(root) if "\ufeff" in found]
    splits = {}
    for split in ("train", "validation", "test"):
        rows = Dataset.load_from_disk(str(tmp_path / "out" / split))
        splits[split] = {bytes(row["input_ids"]).strip() for row in rows}
    assert not splits["train"] & (splits["validation"] | splits["test"]) and not splits["validation"] & splits["test"]
    assert len(set.union(*splits.values())) == 17
    kept = sum(split["documents"] for split in manifest["splits"].values())
    copies = sum(said["count"] for reason, said in manifest["left_out"].items() if "with the text of" in reason)
    assert copies > 0 and kept + copies == 32


def test_a_glob_goes_round_no_loop_of_links(tmp_path: Path) -> None:
    """Several loops: glob.glob goes round each forty times, in every order."""
    root = tmp_path / "corpus"
    linked_round = {"self": ".", "deep/up": "..", "deep/er/top": "../..", "other": "../elsewhere"}
    for where in ("a", "deep/b", "deep/er/c", ".hidden/d"):
        put(root / f"{where}.txt", where.encode())
    put(tmp_path / "elsewhere/e.txt", b"e")
    os.symlink("../corpus", tmp_path / "elsewhere/back")
    for link, target in linked_round.items():
        os.symlink(target, root / link)
    read = {}
    for pattern in ("**/*.txt", "**", "*/*.txt", "deep/**/*.txt", "d*/er/?.txt"):
        left_out = LeftOut()
        corpus = TextCorpus(kind="text", path=f"{root}/{pattern}", column="text")
        found = sorted(text for _, text in corpora.documents(corpus, left_out))
        read[pattern] = found, left_out.record().get("a link to a folder that it lies in", {}).get("count", 0)
    everything = ["a", "deep/b", "deep/er/c", "e"]
    assert read["**/*.txt"] == read["**"] == (everything, 4)
    assert read["*/*.txt"] == (["deep/b", "e"], 1)
    assert read["deep/**/*.txt"] == (["deep/b", "deep/er/c"], 2)
    assert read["d*/er/?.txt"] == (["deep/er/c"], 0)


def test_a_glob_reads_the_same_files_by_the_same_names(tmp_path: Path) -> None:
    root = tmp_path / "corpus"
    root.mkdir()
    write_texts(root)
    os.symlink("../elsewhere", root / "more")
    put(tmp_path / "elsewhere/x.txt", b"elsewhere")
    corpus = TextCorpus(kind="text", path=str(root))
    names = [name for name, _ in corpora.documents(corpus, LeftOut())]
    assert names == [
        name for name, _ in corpora.documents(corpus.model_copy(update={"path": f"{root}/**/*.txt"}), LeftOut())
    ]


@pytest.mark.parametrize("pattern", ["", "**/*.txt"])
def test_a_folder_that_cannot_be_read_is_no_lost_document(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pattern: str
) -> None:
    """It may hold most of the corpus."""
    put(tmp_path / "corpus/mine/a.txt", b"a text")
    put(tmp_path / "corpus/theirs/b.txt", b"a text")

    def refusing(look: Callable[[Any], Any], path: Any) -> Any:
        if Path(path).name == "theirs":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return look(path)

    for name in ("scandir", "listdir"):  # the tests' own user may be root, whom no permissions hold
        monkeypatch.setattr(os, name, functools.partial(refusing, getattr(os, name)))
    with pytest.raises(ValueError, match=r"data.corpus.path: the folder .*theirs cannot be read \(Permission denied\)"):
        text_files.find(str(tmp_path / "corpus" / pattern), LeftOut())
