"""Whether the files of the corpora, and of a tokenizer in a folder, are those that were read. Content decides; size and
time of a file only say where to look, so that a corpus that is touched or copied makes nothing anew."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from longshort.data import text_files
from longshort.data.left_out import LeftOut
from longshort.data.settings import BytesTokenizer, Data, HubCorpus, PretrainedTokenizer, TextCorpus, Tokenizer
from longshort.identity.spec import digest, dumps
from longshort.records import hub
from longshort.records.publish import Altered, file_digest, read_json, write_json

RECORD = "corpus.json"
# What stands before the names of a dataset's files in a folder, and of a tokenizer's.
DATASET, TOKENIZER = "/dataset/", "/tokenizer/"
TOKENIZER_SUFFIXES = (".json", ".model", ".txt", ".jinja", ".tiktoken")
OF_THE_MODEL = {"config.json", "generation_config.json", "model.safetensors.index.json"}  # which lie beside them
NOT_READABLE = "not readable"  # in place of the hash of a file's content
FIRST = "first"  # the state of files of which nothing is recorded


def paths(data: Data) -> dict[str, str]:
    """The paths of local files that a study reads, each by what stands before the names of its files: no name of a file
    of the corpus itself begins with a slash."""
    found = {}
    for key, corpus in data.corpora.items():
        if isinstance(corpus, TextCorpus):
            found["" if key == "corpus" else f"/{key}/"] = corpus.path
        elif isinstance(corpus, HubCorpus) and hub.corpus(corpus) is None:
            found[f"{DATASET}{key}/"] = corpus.dataset
    if tokenizer_files(data.tokenizer):
        found[TOKENIZER] = data.tokenizer.name  # type: ignore[union-attr]  # bytes have no files
    return found


def tokenizer_files(settings: Tokenizer) -> dict[str, Path]:
    """The files of a tokenizer in a local folder, by name; none of one that the specification says all of."""
    if isinstance(settings, BytesTokenizer) or settings.revision is not None:
        return {}
    named = {path.name: path for path in sorted(Path(settings.name).glob("*")) if path.suffix in TOKENIZER_SUFFIXES}
    return {name: path for name, path in named.items() if name not in OF_THE_MODEL and path.is_file()}


def state(paths: dict[str, str], record: Path) -> str:
    """A word for what the files hold: that of the record while their content is as recorded, else another one."""
    if not paths:
        return FIRST
    found, known = _files(paths), _known(record)
    if not known or (found.keys() == known["files"].keys() and all(_is_same(each, known) for each in found.items())):
        return str(known.get("state", FIRST))
    return digest(dumps([[name, *_hint(file)] for name, file in found.items()]))


def recorded(record: Path) -> str:
    """The word of what was read last."""
    return str(_known(record).get("state", FIRST))


def write(paths: dict[str, str], state: str, record: Path) -> None:
    """To be called before the files are read: one that changes while they are is then found changed."""
    files = {name: [*_hint(file), _hash(file)] for name, file in _files(paths).items()}
    if files:
        write_json(record, {"state": state, "files": files})


def renew(paths: dict[str, str], record: Path) -> None:
    """Writes down the times of files that were only touched, so that they are not read at every look."""
    known = _known(record)
    if not paths or not known or state(paths, record) != known["state"]:
        return
    files = {name: [*_hint(file), known["files"][name][2]] for name, file in _files(paths).items()}
    if files != known["files"]:
        write_json(record, {"state": known["state"], "files": files})


def _files(paths: dict[str, str]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for before, path in paths.items():
        if before == TOKENIZER:
            there = tokenizer_files(PretrainedTokenizer(kind="pretrained", name=path, revision=None))
            found |= {before + name: file for name, file in there.items()}
            continue
        if before.startswith(DATASET):
            there = {file.relative_to(path).as_posix(): file for file in Path(path).rglob("*") if file.is_file()}
            found |= {before + name: file for name, file in there.items()}
            continue
        root, key = text_files.root_of(path), f"data.{before.strip('/') or 'corpus'}"
        found |= {before + file.relative_to(root).as_posix(): file for file in text_files.find(path, LeftOut(), key)}
    return {name.encode(errors="backslashreplace").decode(): file for name, file in sorted(found.items())}


def _known(record: Path) -> dict[str, Any]:
    try:
        known = read_json(record)
        return known if isinstance(known["files"], dict) and isinstance(known["state"], str) else {}
    except (Altered, KeyError, TypeError):
        return {}


def _is_same(file: tuple[str, Path], known: dict[str, Any]) -> bool:
    name, path = file
    size, time, content = known["files"][name]
    if content != NOT_READABLE and [size, time] == _hint(path):  # permissions that change leave both
        return True
    return bool(size == _hint(path)[0] and content == _hash(path))


def _hint(file: Path) -> list[int]:
    status = file.stat()
    return [status.st_size, status.st_mtime_ns]


def _hash(file: Path) -> str:
    try:
        return file_digest(file)
    except OSError:  # it is left out when it is read
        return NOT_READABLE
