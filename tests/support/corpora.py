"""A corpus of thirty texts, in files of one kind or another."""

from __future__ import annotations

import json
from pathlib import Path

from longshort.data import __main__ as stage
from longshort.data.settings import Data
from longshort.records.publish import file_digest, write_record


def text(n: int) -> str:
    return f"doc {n} " + " ".join(str((n * 7 + k * k) % 97) for k in range(60 + 5 * n))


def lines(rows: list[str]) -> bytes:
    return "".join(json.dumps({"text": row}) + "\n" for row in rows).encode()


ROWS = [text(n) for n in range(30)]


def put(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def published(folder: Path) -> Path:
    """The manifest of a corpus of one file, for what only asks whether it is the one that was prepared."""
    put(folder / "train/tokens", b"of the corpus")
    files = {"train/tokens": file_digest(folder / "train/tokens")}
    write_record(folder / "manifest.json", {"files": files, "content": "that of the corpus"})
    return folder / "manifest.json"


def prepare(root: Path, path: str | None = None, **options: float) -> dict:
    corpus = {"kind": "text", "path": path or str(root), "column": "text"}
    spec = {"corpus": corpus, "tokenizer": {"kind": "bytes"}, "validation": 0.1, "test": 0.3}
    return stage.prepare(Data.model_validate(spec), root.parent / "out", **options)
