"""Documents to shards of tokens, with all cores and in little memory, whatever the corpus.

The corpus is cut into pieces of so much text, each of which becomes one Arrow file a split. A piece's record is written
after its files: a job that was killed goes on after the pieces that it had finished.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from longshort.identity.spec import digest, dumps
from longshort.records.publish import file_digest, read_json, write_atomic, write_json

if TYPE_CHECKING:
    from datasets import Features
    from transformers import PreTrainedTokenizerBase

SPLITS = ("train", "validation", "test")
PIECE = 2**25  # characters of text; one longer document is a piece by itself
BATCH = 2**23  # characters tokenised at a time: the tokenizer needs about a hundred bytes for each token
RECORDS = "pieces"


class Document(NamedTuple):
    split: str
    name: str
    text: str


def write(
    documents: Iterable[Document],
    tokenizer: PreTrainedTokenizerBase,
    out: Path,
    made_by: str,
    progress: Callable[[int], None] = lambda documents: None,
) -> dict[str, list[str]]:
    """Writes out/<split>/<piece>.arrow and returns the names of each split's files, in the order of the documents.

    Args:
        made_by: a hash of all that the tokens depend on besides the text; pieces of another one are made anew.
        progress: told after each piece how many documents it held.
    """
    files: dict[str, list[str]] = {split: [] for split in SPLITS}
    for number, piece in enumerate(_groups(documents, PIECE)):
        record = out / RECORDS / f"{number:05d}.json"
        key = digest(dumps([made_by, _digest_of(piece)]), 64)
        if not _finished(record, out, key):
            write_json(record, {"key": key, "files": _write_piece(piece, tokenizer, out, number)})
        for name in read_json(record)["files"]:
            files[Path(name).parent.name].append(name)
        progress(len(piece))
    return files


def describe(folder: Path, files: list[str], made_by: str) -> None:
    """Beside a split's files, what `datasets.load_from_disk` reads first, as `Dataset.save_to_disk` writes it."""
    from datasets import DatasetInfo

    DatasetInfo(features=_features(folder.name)).write_to_directory(str(folder))
    state: dict[str, object] = {
        "_data_files": [{"filename": Path(name).name} for name in files],
        "_fingerprint": made_by[:16],
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": None,
    }
    write_json(folder / "state.json", state)


def rows(files: Iterable[Path]) -> Iterator[tuple[str, NDArray[np.int32]]]:
    """Name and tokens of each document, a file at a time."""
    import pyarrow

    for file in files:
        with pyarrow.OSFile(str(file)) as source, pyarrow.ipc.open_stream(source) as batches:
            for batch in batches:
                ids = batch.column("input_ids")
                tokens, ends = ids.flatten().to_numpy(), np.cumsum(ids.value_lengths().to_numpy())
                for row, name in enumerate(batch.column("name").to_pylist()):
                    yield name, tokens[ends[row - 1] if row else 0 : ends[row]]


def token_ids(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[NDArray[np.int32]]:
    """What the tokenizer gives for each text, without special tokens: [tokens] each."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return [np.asarray(ids, np.int32) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
    # Calling the tokenizer gives the same, and offsets, which take most of the time and memory.
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = getattr(tokenizer, "split_special_tokens", False)
    return [np.asarray(each.ids, np.int32) for each in backend.encode_batch_fast(texts, add_special_tokens=False)]


def _groups(documents: Iterable[Document], characters: int) -> Iterator[list[Document]]:
    """The documents in their order, together until they have so many characters."""
    group: list[Document] = []
    size = 0
    for document in documents:
        if group and size + len(document.text) > characters:
            yield group
            group, size = [], 0
        group.append(document)
        size += len(document.text)
    if group:
        yield group


def _digest_of(piece: list[Document]) -> str:
    total = hashlib.sha256()
    for document in piece:
        for part in document:
            content = part.encode()
            total.update(len(content).to_bytes(8, "little") + content)
    return total.hexdigest()


def _finished(record: Path, out: Path, key: str) -> bool:
    if not record.exists():
        return False
    found = read_json(record, {"key": str, "files": {str: str}})
    return found["key"] == key and all(
        (out / name).exists() and file_digest(out / name) == sha for name, sha in found["files"].items()
    )


def _write_piece(piece: list[Document], tokenizer: PreTrainedTokenizerBase, out: Path, number: int) -> dict[str, str]:
    """The hash of each file, by its name below `out`."""
    import pyarrow

    tokens = [ids for group in _groups(piece, BATCH) for ids in token_ids(tokenizer, [each.text for each in group])]
    files = {}
    for split in SPLITS:
        chosen = [place for place, document in enumerate(piece) if document.split == split]
        # The first piece has a file for every split: one without documents is read like any other.
        if not chosen and number > 0:
            continue
        schema = _features(split).arrow_schema
        ids = [tokens[place] for place in chosen]
        columns = {
            "name": [piece[place].name for place in chosen],
            "text": [piece[place].text for place in chosen],
            "input_ids": pyarrow.ListArray.from_arrays(
                np.cumsum([0, *map(len, ids)], dtype=np.int32), np.concatenate([np.empty(0, np.int32), *ids])
            ),
        }
        sink = pyarrow.BufferOutputStream()
        with pyarrow.ipc.new_stream(sink, schema) as stream:
            stream.write_table(pyarrow.table({name: columns[name] for name in schema.names}, schema=schema))
        content = sink.getvalue().to_pybytes()
        name = f"{split}/{number:05d}.arrow"
        write_atomic(out / name, content)
        files[name] = hashlib.sha256(content).hexdigest()
    return files


def _features(split: str) -> Features:
    from datasets import Features, List, Value

    columns = {"name": Value("string"), "text": Value("string"), "input_ids": List(Value("int32"))}
    return Features({name: kind for name, kind in columns.items() if split != "train" or name != "text"})
