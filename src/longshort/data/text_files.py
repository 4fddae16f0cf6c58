"""Local files as a corpus: which are read, by which name, and their documents. No bad file or row stops the others."""

from __future__ import annotations

import codecs
import fnmatch
import glob
import gzip
import io
import itertools
import json
import os
import zlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import IO, Any, cast

from longshort.data import left_out as why
from longshort.data.left_out import LeftOut
from longshort.data.settings import TextCorpus

SUFFIXES = (".txt", ".jsonl", ".parquet")
PACKED = (".gz", ".zst")
# Rows of a Parquet file that are held at a time: a row may be a whole book.
BATCH = 64


def kind_of(file: Path) -> str | None:
    """Its suffix, less that of a packed file, whatever the case of its letters; None for what is not read.

    A packed .json is one of lines, as the shards of C4 are; one that is not packed describes others more often than
    that it holds texts.
    """
    name = file.name.lower()
    packed = name.endswith(PACKED)
    suffix = os.path.splitext(os.path.splitext(name)[0] if packed else name)[1]
    suffix = ".jsonl" if packed and suffix == ".json" else suffix
    return suffix if suffix in SUFFIXES and not (packed and suffix == ".parquet") else None


def find(path: str, left_out: LeftOut, key: str = "data.corpus") -> list[Path]:
    """The files of a corpus, in their order. key: what the study calls it.

    Raises:
        ValueError: there is none.
    """
    root = root_of(path)
    found = []
    files = _in_folder(root, left_out, key) if Path(path).is_dir() else _in_glob(path, root, left_out, key)
    for file in files:
        where = file.relative_to(root).as_posix()
        if kind_of(file) is None:
            left_out.add(why.OTHER_KIND, where)
        elif file.is_file():
            found.append(file)
        else:
            left_out.add(why.NO_FILE, where)
    if not found:
        other = f" of these kinds:\n{left_out.in_lines()}\n" if left_out else " "
        raise ValueError(
            f"{key}.path = {path!r}: no file there{other}; give a folder, a file or a glob of {SUFFIXES} (each "
            f"but the last also packed, {' or '.join(PACKED)}, and .json of lines packed so)"
        )
    return sorted(found)


def root_of(path: str) -> Path:
    """What names are relative to: the folder itself, that of a file, or what comes before a glob's first pattern."""
    if Path(path).is_dir():
        return Path(path)
    fixed = itertools.takewhile(lambda part: not glob.has_magic(part), Path(path).parts[:-1])
    return Path(*fixed)


def documents(corpus: TextCorpus, left_out: LeftOut, key: str = "data.corpus") -> Iterator[tuple[str, str]]:
    """Yields name and text: a .txt is named by its path below the root, a row by its file's and its number."""
    root = root_of(corpus.path)
    for file in find(corpus.path, left_out, key):
        name = file.relative_to(root).as_posix()
        try:
            name.encode()
        except UnicodeEncodeError:  # how Python shows bytes that are no letters
            left_out.add(why.NAME, name)
            continue
        read = {".txt": _text, ".jsonl": _lines, ".parquet": _table}[str(kind_of(file))]
        found = 0
        try:
            for document in read(file, name, corpus.column, left_out):
                found += 1
                yield document
        except (EOFError, OSError, zlib.error) as error:
            said = (error.strerror if isinstance(error, OSError) else "") or str(error).partition("\n")[0]
            if found:  # how many more there were is not known, and a large part of the corpus may be one file
                raise ValueError(
                    f"{key}.path = {corpus.path!r}: {name} breaks off after {found} documents ({said}); fetch it "
                    "again, or take it out of the path"
                ) from None
            unreadable = isinstance(error, OSError) and error.errno
            left_out.add(why.UNREADABLE if unreadable else why.DAMAGED, name, said)


def _refuse_folder(key: str, folder: object, error: OSError) -> None:
    """How much it holds is not known, and it may be most of the corpus."""
    raise ValueError(
        f"{key}.path: the folder {folder} cannot be read ({error.strerror}): check its permissions, or take it out of "
        "the path"
    ) from None


def _in_folder(root: Path, left_out: LeftOut, key: str) -> Iterator[Path]:
    """Links to folders are followed, but none that leads into itself."""

    def refused(error: OSError) -> None:
        _refuse_folder(key, error.filename, error)

    for folder, folders, names in os.walk(root, onerror=refused, followlinks=True):
        here = Path(folder)
        for name in sorted(folders):
            where = (here / name).relative_to(root).as_posix()
            if name.startswith("."):
                left_out.add(why.HIDDEN, f"{where}/")
                folders.remove(name)
            elif _goes_through_itself(here / name, root):
                left_out.add(why.LOOP, where)
                folders.remove(name)
            elif kind_of(here / name):
                left_out.add(why.FOLDER, where)
        for name in sorted(names):
            if not name.startswith("."):
                yield here / name
            elif kind_of(here / name):
                left_out.add(why.HIDDEN, (here / name).relative_to(root).as_posix())


def _in_glob(path: str, root: Path, left_out: LeftOut, key: str) -> Iterator[Path]:
    skipped: dict[Path, why.Reason] = {}
    for file in sorted(set(_matching(root, Path(path).parts[len(root.parts) :], root, skipped, key))):
        if not file.is_dir():
            yield file
        elif kind_of(file):
            left_out.add(why.FOLDER, file.relative_to(root).as_posix())
    for folder, reason in sorted(skipped.items()):
        left_out.add(reason, folder.relative_to(root).as_posix())


def _matching(
    folder: Path, pattern: tuple[str, ...], root: Path, skipped: dict[Path, why.Reason], key: str
) -> Iterator[Path]:
    """What glob.glob finds below a folder, links to folders followed but for those that lead into themselves: it would
    go round each forty times, and every way round several."""
    if not pattern:
        yield folder
        return
    part, rest = pattern[0], pattern[1:]
    if part == "**":
        yield from _matching(folder, rest, root, skipped, key)
    try:
        inside = _fitting(folder, part)
    except PermissionError as error:
        _refuse_folder(key, folder, error)
        return
    for one in inside:
        if one.is_dir() and _goes_through_itself(one, root):
            skipped[one] = why.LOOP
        else:
            deeper = part == "**" and one.is_dir()
            yield from _matching(one, pattern if deeper else rest, root, skipped, key)


def _fitting(folder: Path, part: str) -> list[Path]:
    """What of a folder a part of a pattern stands for; ** stands for all. Hidden ones are asked for by a dot."""
    if not glob.has_magic(part):
        return [folder / part] if os.path.lexists(folder / part) else []
    if not folder.is_dir():
        return []
    shown = (one for one in sorted(folder.iterdir()) if part.startswith(".") or not one.name.startswith("."))
    return [one for one in shown if fnmatch.fnmatchcase(one.name, part)]


@cache
def _goes_through_itself(folder: Path, root: Path) -> bool:
    """Whether a folder below the root is reached by a link back to one on the way."""
    if folder == root or not folder.is_relative_to(root):
        return False
    if _goes_through_itself(folder.parent, root):
        return True
    return folder.resolve() in {parent.resolve() for parent in folder.parents}


def _opened(file: Path) -> IO[bytes]:
    if file.suffix.lower() == ".gz":
        return cast(IO[bytes], gzip.open(file))
    if file.suffix.lower() == ".zst":
        import pyarrow

        return io.BufferedReader(pyarrow.input_stream(str(file), compression="zstd"))
    return file.open("rb")


def _text(file: Path, name: str, column: str, left_out: LeftOut) -> Iterator[tuple[str, str]]:
    with _opened(file) as opened, io.TextIOWrapper(opened, encoding="utf-8") as text:
        try:
            yield name, text.read()
        except UnicodeDecodeError as error:
            left_out.add(why.NOT_UTF8, name, f"byte {error.start}")


def _lines(file: Path, name: str, column: str, left_out: LeftOut) -> Iterator[tuple[str, str]]:
    row = 0
    with _opened(file) as lines:
        for number, line in enumerate(lines, 1):
            line = line.removeprefix(codecs.BOM_UTF8).strip()
            if not line:
                continue
            where = f"{name}, line {number}"
            try:
                value = json.loads(line.decode())
            except UnicodeDecodeError as error:
                left_out.add(why.NOT_UTF8, where, f"byte {error.start}")
            except (ValueError, RecursionError) as error:
                left_out.add(why.NOT_JSON, where, str(error))
            else:
                if isinstance(value, dict):
                    yield from of_row(value, column, f"{name}#{row}", where, left_out)
                else:
                    left_out.add(why.NOT_JSON, where, f"a {type(value).__name__}, no object")
            row += 1
    if not row:
        left_out.add(why.EMPTY, name, "no rows")


def of_row(row: dict[str, Any], column: str, name: str, where: str, left_out: LeftOut) -> Iterator[tuple[str, str]]:
    """The document of a row, if it has one."""
    if not (found := values_of(row, column)):
        left_out.add(why.NO_COLUMN, where, f"no column {column!r}; there are {sorted(row)}")
    elif found[0] is None:
        left_out.add(why.NO_VALUE, where)
    elif isinstance(found[0], str):
        yield name, found[0]
    else:
        kinds = {key: type(value).__name__ for key, value in row.items()}
        left_out.add(why.NO_TEXT, where, f"{column!r} of {kinds}")


def values_of(row: dict[str, Any], column: str) -> list[Any]:
    """The value of a column, alone; nothing where there is none. `meta.text` is the column of that name or, where there
    is no such column, the field `text` of the column `meta`, which is null where that is."""
    if column in row:
        return [row[column]]
    for place in (place for place, letter in enumerate(column) if letter == "."):
        inner = row.get(column[:place], {})
        if inner is None:
            return [None]
        if isinstance(inner, dict) and (found := values_of(inner, column[place + 1 :])):
            return found
    return []


def _table(file: Path, name: str, column: str, left_out: LeftOut) -> Iterator[tuple[str, str]]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(file)
        kinds = {field.name: str(field.type) for field in table.schema_arrow}
        kind = values_of(_fields(table.schema_arrow), column)
        if not table.metadata.num_rows:
            left_out.add(why.EMPTY, name, "no rows")
        elif not kind:
            left_out.add(why.NO_COLUMN, name, f"no column {column!r}; there are {sorted(kinds)}")
        elif "string" not in str(kind[0]) or "<" in str(kind[0]).removeprefix("dictionary<"):
            left_out.add(why.NO_TEXT, name, f"{column!r} of {kinds}")
        else:
            batches = table.iter_batches(BATCH, columns=[column])
            rows = (batch.slice(row, 1) for batch in batches for row in range(len(batch)))
            for row, values in enumerate(rows):
                try:
                    (value,) = values.to_pylist()
                except UnicodeDecodeError:
                    left_out.add(why.NOT_UTF8, f"{name}, row {row}")
                else:
                    yield from of_row(value, column, f"{name}#{row}", f"{name}, row {row}", left_out)
    except pyarrow.ArrowException as error:
        if file.stat().st_size:
            raise OSError(str(error)) from None
        left_out.add(why.EMPTY, name, "no bytes")


def _fields(of: Any) -> dict[str, Any]:
    """The types of a schema's or a struct's fields by name; of a struct, its own fields."""
    import pyarrow

    return {field.name: _fields(field.type) if pyarrow.types.is_struct(field.type) else field.type for field in of}
