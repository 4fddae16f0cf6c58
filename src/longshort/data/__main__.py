"""Stage: corpus -> tokens. `python -m longshort.data --spec FILE --out DIR`

Writes DIR/{train,validation,test} (Arrow: name, input_ids, and text outside train), DIR/sources.jsonl (split, name and
hash of every document) and, last, DIR/manifest.json (documents, tokens and hash of every split, the hash of every file,
what was left out). Reads the corpora twice: what is held out has to be known before anything is trained on.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import numpy as np
from tqdm import tqdm

from longshort.data import corpora, near_copies, seen, shards, tokenizers
from longshort.data.left_out import LeftOut, Reason
from longshort.data.settings import Data, StdlibCorpus
from longshort.errors import UserError, in_a_line
from longshort.identity.code import code_hash, modules, refuse_changed_code
from longshort.identity.spec import canonical, digest, dumps, restored
from longshort.jobs import interruption
from longshort.jobs.ownership import Owner, sole_owner
from longshort.records import hub, provenance
from longshort.records.publish import (
    Altered,
    NoSpace,
    file_digest,
    file_in_place,
    folder_digests,
    naming_a_full_disk,
    read_record,
    read_spec,
    write_record,
)

ENTRY = "longshort.data.__main__"
STRICTER = {"train": ("test", "validation"), "validation": ("test",), "test": ()}


class HeldOut(NamedTuple):
    """What must not be in a split that is less strictly held out: hashes of texts, and passages where these count."""

    texts: set[bytes]
    passages: near_copies.HeldOut


def prepare(spec: Data, out: Path, max_left_out: float = 0.05) -> dict[str, Any]:
    """Tokenises the corpora and returns the manifest.

    max_left_out: share of the documents of each that may be lost.
    """
    tokenizer = tokenizers.load(spec.tokenizer)
    total, held_out, read = _held_out(spec, max_left_out)
    left_out = LeftOut()
    documents = _disjoint(spec, held_out, read, left_out)
    # Of a tokenizer in a folder the specification says but the name; what it puts between documents is in no split.
    by = {name: file_digest(path) for name, path in seen.tokenizer_files(spec.tokenizer).items()}
    own = {"tokenizer": digest(dumps(by))} if by else {}
    made_by = digest(dumps([canonical(spec), code_hash(ENTRY), provenance.environment(), own]), 64)
    with tqdm(total=total, desc="tokenise", unit="documents", disable=not sys.stderr.isatty()) as bar:

        def progress(count: int) -> None:
            bar.update(count)
            if bar.disable:
                bar.n += count
                print(f"tokenise: {bar.n} of {total} documents", flush=True)

        files = shards.write(documents, tokenizer, out, made_by, progress)
    splits = {}
    path = out / "sources.jsonl"
    with (
        naming_a_full_disk(path, 150 * total),
        file_in_place(path) as part,
        part.open("w", encoding="utf-8") as sources,
    ):
        for split, names in files.items():
            splits[split] = _content(split, [out / name for name in names], sources)
    for split, counts in splits.items():
        asked = split != "validation" or spec.validation or spec.validation_corpus
        if asked and not counts["documents"]:
            raise ValueError(
                f"the {split} split is empty, of {total} documents in all; "
                "give more documents or change data.validation and data.test"
            )
        for file in (out / split).iterdir():
            if f"{split}/{file.name}" not in files[split]:  # of another corpus or another way to cut it
                file.unlink()
        shards.describe(out / split, files[split], made_by)
    shutil.rmtree(out / shards.RECORDS)
    hashes = {f"{split}/{name}": sha for split in splits for name, sha in folder_digests(out / split).items()}
    content = digest(dumps({**{name: split["sha256"] for name, split in splits.items()}, **own}))
    return {
        **own,
        "spec": canonical(spec),
        "splits": splits,
        "files": hashes,
        "left_out": left_out.record(),
        "content": content,
    }


class Read:
    """Which documents were read of a corpus, by split, name and length."""

    def __init__(self) -> None:
        self.count, self._digest = 0, hashlib.sha256()

    def add(self, document: shards.Document) -> None:
        self.count += 1
        self._digest.update(f"{document.split}\0{document.name}\0{len(document.text)}\n".encode())

    def digest(self) -> bytes:
        return self._digest.digest()


def _held_out(spec: Data, max_left_out: float) -> tuple[int, dict[str, HeldOut], dict[str, Read]]:
    """How many documents there are, what is held out for validation and test, and what was read of each corpus."""
    total, read = 0, {key: Read() for key in spec.corpora}
    held_out = {split: HeldOut(set(), near_copies.HeldOut()) for split in ("validation", "test")}
    for key, corpus in spec.corpora.items():
        left_out = LeftOut()
        for document in _documents(spec, key, left_out):
            read[key].add(document)
            split, name, text = document
            if split in held_out:
                held_out[split].texts.add(_fingerprint(text))
                if spec.near_copies:
                    held_out[split].passages.add(name, text)
        if not (count := read[key].count):
            raise ValueError(
                f"the corpus {canonical(corpus)} holds no document; give another one. Left out:\n{left_out.in_lines()}"
            )
        left_out.refuse_too_many(count, max_left_out)
        total += count
    return total, held_out, read


def _documents(spec: Data, key: str, left_out: LeftOut) -> Iterator[shards.Document]:
    """The documents of one of the corpora, each with its split."""
    left_out.before = "" if key == "corpus" else f"{key}: "
    for name, text in corpora.documents(spec.corpora[key], left_out, f"data.{key}"):
        drawn = corpora.split_of(name, spec.validation, spec.test)
        yield shards.Document(drawn if key == "corpus" else key.removesuffix("_corpus"), name, text)


def _disjoint(
    spec: Data, held_out: dict[str, HeldOut], read: dict[str, Read], left_out: LeftOut
) -> Iterator[shards.Document]:
    """The documents with their split, less those whose text, or much of it, is held out from theirs.

    Raises:
        ValueError: they are not those that were read first: what is held out may be among the others, or some are lost.
    """
    for key in spec.corpora:
        again = Read()
        for document in _documents(spec, key, left_out):
            again.add(document)
            if (copy := _copy(document, held_out, spec.near_copies)) is None:
                yield document
            else:
                words, more = copy
                left_out.add(Reason(words, "nothing needs to be done", lost=False), document.name, more)
        if again.digest() != read[key].digest():
            raise ValueError(
                f"data.{key}: {read[key].count} documents were read first, and then {again.count}, or others: a file "
                "changed meanwhile, or could not be read once; run again when it holds still"
            )


def _copy(document: shards.Document, held_out: dict[str, HeldOut], share: float | None) -> tuple[str, str] | None:
    """Of what a document is a copy, or near enough to one, in words, and how near; None if of nothing."""
    stricter = STRICTER[document.split]
    fingerprint = _fingerprint(document.text)
    for other in stricter:
        if fingerprint in held_out[other].texts:
            return f"of {document.split} with the text of a {other} document", ""
    if not share or not stricter:
        return None
    passages = near_copies.passages(document.text)
    for other in stricter:
        closest = held_out[other].passages.closest(passages)
        if closest and closest.share >= share:
            more = f"{closest.share:.0%} of the shorter one in common with {closest.name}"
            return f"of {document.split}, nearly a copy of a {other} document", more
    return None


def _fingerprint(text: str) -> bytes:
    """Copies differ in the white space around them at most."""
    return hashlib.sha256(text.strip().encode()).digest()


def _content(split: str, files: list[Path], sources: TextIO) -> dict[str, Any]:
    """Counts and the hash of names and tokens: equal content has an equal hash, whatever the files look like."""
    total = hashlib.sha256()
    tokens = documents = 0
    for name, row in shards.rows(files):
        ids = np.ascontiguousarray(row, dtype="<i4")
        total.update(f"{name}\0{len(ids)}\0".encode())
        total.update(ids.tobytes())
        sha = hashlib.sha256(ids.tobytes()).hexdigest()
        sources.write(json.dumps({"split": split, "name": name, "sha256": sha}) + "\n")
        documents, tokens = documents + 1, tokens + len(ids)
    return {"documents": documents, "tokens": tokens, "sha256": total.hexdigest()}


@in_a_line()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spec", type=Path, required=True, help="data specification (JSON)")
    parser.add_argument("--out", type=Path, required=True, help="folder of the corpus")
    parser.add_argument("--cores", type=int, default=len(os.sched_getaffinity(0)), help="that tokenise")
    parser.add_argument(
        "--corpus-state", default=seen.FIRST, help="what is written down as the state of the corpus' own files"
    )
    parser.add_argument("--max-left-out", type=float, default=0.05, help="share of the documents that may be lost")
    parser.add_argument("--code", help="refuse to run if the code's hash is another one")
    arguments = parser.parse_args()
    if arguments.code:
        refuse_changed_code(arguments.code, ENTRY)
    # The tokenizer's own threads; it reads these once.
    os.environ.update(TOKENIZERS_PARALLELISM="true", RAYON_NUM_THREADS=str(arguments.cores))
    hub.refuse_network()
    interruption.end_at_once()
    spec = restored(Data, read_spec(arguments.spec))
    with sole_owner(arguments.out) as owner:
        if is_made(arguments, spec):
            print("it is prepared already")
        else:
            make(arguments, spec, owner)


def is_made(arguments: argparse.Namespace, spec: Data) -> bool:
    """Whether the corpus is there as this job would prepare it. When a job begins, its engine takes away what it shall
    make anew, so that another engine's job made it while this one waited: what reads it must not be written over."""
    try:
        made = read_record(arguments.out / "manifest.json", like={"code": str, "environment": str, "spec": dict})
    except (OSError, Altered):
        return False
    record = arguments.out / seen.RECORD
    same_files = seen.state(seen.paths(spec), record) == seen.recorded(record) == arguments.corpus_state
    now = code_hash(ENTRY), provenance.environment(), canonical(spec)
    return same_files and (made["code"], made["environment"], made["spec"]) == now


def make(arguments: argparse.Namespace, spec: Data, owner: Owner) -> None:
    if any(isinstance(corpus, StdlibCorpus) for corpus in spec.corpora.values()):
        print("WARNING: the standard library is another corpus in another Python: these numbers hold for this one only")
    try:
        seen.write(seen.paths(spec), arguments.corpus_state, arguments.out / seen.RECORD)
        manifest = prepare(spec, arguments.out, arguments.max_left_out)
    except (ValueError, NoSpace) as error:
        raise UserError(f"data: {error}") from None
    manifest.update(
        code=code_hash(ENTRY),
        modules=modules(ENTRY),
        commit=provenance.commit(),
        environment=provenance.environment(),
        machine=provenance.machine(),
    )
    owner.refuse_if_lost()
    write_record(arguments.out / "manifest.json", manifest)
    for name, split in manifest["splits"].items():
        print(f"{name}: {split['documents']} documents, {split['tokens']} tokens")
    if manifest["left_out"]:
        print("left out:")
        for reason, said in manifest["left_out"].items():
            more = " ..." if said["count"] > len(said["first"]) else ""
            print(f"  {said['count']} {reason}: {'; '.join(said['first'])}{more} -> {said['remedy']}")


if __name__ == "__main__":
    main()
