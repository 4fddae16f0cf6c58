"""Corpora of files: each is read, counted as left out, or named; none stops the stage with a traceback."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet

from tests.fuzz.engine import Kind, Mutation
from tests.support.project import TINY, write_study

CHECK = ("-m", "longshort.cli", "check", "--study", "fuzz")
SPEC = """
import json, sys
from longshort.study import resolve
study = resolve.load("fuzz")
open("spec.json", "w").write(study.texts[study.data])
"""
STAGE = ("-m", "longshort.data", "--spec", "spec.json", "--out", "results/data/x", "--cores", "1")
COMMANDS = (CHECK, ("-c", SPEC), STAGE)
TEXT = "a document of so many words, " * 20


def mutation(project: Path, what: str, refused: str | None, path: str = "corpus", fine: bool = True) -> Mutation:
    corpus = {"kind": "text", "path": path}
    write_study(project, {**TINY, "data": {**TINY["data"], "corpus": corpus}}, "fuzz")

    def wrong(project: Path) -> str | None:
        manifest = project / "results/data/x/manifest.json"
        return None if manifest.exists() else "no manifest was written"

    because = "a corpus is read, or what cannot be read of it is named or counted"
    return Mutation(what, because, refused, may_pass=fine, commands=COMMANDS, wrong=wrong)


def of_a_document(draw: random.Random, project: Path) -> Mutation:
    path = project / "corpus" / draw.choice(["x.txt", "deep/er/x.txt", "document-03.txt"])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    put: dict[str, Callable[[], object]] = {
        "empty": path.touch,
        "white": lambda: path.write_text(" \n\t"),
        "no UTF-8": lambda: path.write_bytes(TEXT.encode() + b"\xff\xfe\x80"),
        "zero bytes": lambda: path.write_bytes(b"\0" * 5000),
        "a mark": lambda: path.write_bytes(b"\xef\xbb\xbf" + TEXT.encode()),
        "a long line": lambda: path.write_text("x" * 300_000),
        "a folder": path.mkdir,
        "a pipe": lambda: os.mkfifo(path),
        "a loop": lambda: path.symlink_to(path),
        "a link to nothing": lambda: path.symlink_to("nowhere"),
        "a copy": lambda: path.write_bytes((project / "corpus/document-05.txt").read_bytes()),
        "escapes": lambda: path.write_text("\x1b[2J\x1b]0;x\x07" + TEXT),
    }
    what = draw.choice(list(put))
    put[what]()
    return mutation(project, f"{path.name}: {what}", path.name)


def of_rows(draw: random.Random, project: Path) -> Mutation:
    rows = [{"text": f"{number} {TEXT}"} for number in range(20)]
    lines = [json.dumps(row) for row in rows]
    at = draw.randrange(len(lines))
    edits = {
        "fine": lines[at],
        "cut": lines[at][:20],
        "no JSON": "{text: x}",
        "another column": '{"content": "x"}',
        "a number": '{"text": 5}',
        "nothing": '{"text": null}',
        "a list": '["text"]',
        "a word": '"text"',
        "a lone surrogate": '{"text": "\\ud800 x"}',
        "NaN": '{"text": NaN}',
        "nested": '{"text": {"a": "x"}}',
        "an empty line": "",
        "twice": '{"text": "a", "text": "b"}',
        "deep": '{"text": ' + "[" * 3000 + "]" * 3000 + "}",
    }
    what, lines[at] = draw.choice(list(edits.items()))
    content = "\n".join(lines).encode() + b"\n"
    if draw.random() < 0.15:
        what, content = "no UTF-8", content[:100] + b"\xff\xfe" + content[100:]
    (project / "corpus/rows.jsonl").write_bytes(content)
    return mutation(project, f"row {at}: {what}", "rows.jsonl")


def of_tables(draw: random.Random, project: Path) -> Mutation:
    path = project / "corpus/rows.parquet"
    texts = [f"{number} {TEXT}" for number in range(20)]
    columns: dict[str, dict[str, object]] = {
        "fine": {"text": texts},
        "another column": {"content": texts},
        "numbers": {"text": list(range(20))},
        "nothing": {"text": [None] * 20},
        "some nothing": {"text": [None, *texts]},
        "lists": {"text": [[text] for text in texts]},
        "bytes": {"text": [text.encode() + b"\xff" for text in texts]},
        "no rows": {"text": []},
        "no columns": {},
    }
    what = draw.choice([*columns, "cut", "empty", "no parquet"])
    pyarrow.parquet.write_table(pyarrow.table(columns.get(what, {"text": texts})), path)
    whole = path.read_bytes()
    if what in ("cut", "empty", "no parquet"):
        path.write_bytes({"cut": whole[: draw.randrange(4, len(whole))], "empty": b"", "no parquet": b"x" * 500}[what])
    return mutation(project, what, "rows.parquet")


def of_names(draw: random.Random, project: Path) -> Mutation:
    names = ["{x}.txt", "a\nb.txt", "$(touch PWNED).txt", "a b.txt", "'.txt", '".txt', "-x.txt", "é.txt", "\x1b[2J.txt"]
    name = draw.choice([*names, ".hidden.txt", "*.txt", "`x`.txt", "#.txt", "x.TXT", "x.txt.gz", "\\.txt", "%s.txt"])
    made = draw.random() < 0.8
    if made:
        (project / "corpus" / name).write_text(TEXT)
    else:  # that are no UTF-8
        name = "b\udcff.txt"
        (project / "corpus" / name).write_text(TEXT)
    return mutation(project, repr(name), "rename it|x.txt|name")


def of_a_path(draw: random.Random, project: Path) -> Mutation:
    paths = ["", "nowhere", "corpus/*.md", "corpus/*", "/dev/zero", "/dev/null", "corpus/document-01.txt", "..", "***"]
    path = draw.choice([*paths, "config", "corpus/[", "$(touch PWNED)", "{corpus}", "corpus\n", "~/corpus", "x" * 300])
    return mutation(project, repr(path)[:40], "corpus|split is empty|data", path)


KINDS: dict[str, Kind] = {
    "a document": of_a_document,
    "rows of a corpus": of_rows,
    "tables of a corpus": of_tables,
    "names of documents": of_names,
    "the path of a corpus": of_a_path,
}
