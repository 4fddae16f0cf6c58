"""Stage: corpus -> tokens. `python -m longshort.data --spec FILE --out DIR`

Writes DIR/{train,validation,test} (Arrow: name, input_ids, and text outside train), DIR/sources.jsonl (split, name and
hash of every document) and, last, DIR/manifest.json (documents, tokens and hash of every split, the hash of every file,
what was left out). Reads the corpus twice: what is held out has to be known before anything is trained on.
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
from typing import Any, TextIO

import numpy as np
from tqdm import tqdm

from longshort.data import corpora, seen, shards, tokenizers
from longshort.data.left_out import LeftOut, Reason
from longshort.data.settings import Data, StdlibCorpus, TextCorpus
from longshort.errors import UserError, in_a_line
from longshort.identity.code import code_hash, modules, refuse_changed_code
from longshort.identity.spec import canonical, digest, dumps, restored
from longshort.jobs import interruption
from longshort.jobs.ownership import Owner, sole_owner
from longshort.records import hub, provenance
from longshort.records.publish import (
    NoSpace,
    file_in_place,
    folder_digests,
    naming_a_full_disk,
    read_spec,
    write_record,
)

ENTRY = "longshort.data.__main__"
STRICTER = {"train": ("test", "validation"), "validation": ("test",), "test": ()}


def prepare(spec: Data, out: Path, max_left_out: float = 0.05) -> dict[str, Any]:
    """Tokenises the corpus and returns the manifest.

    max_left_out: share of the documents that may be lost.
    """
    tokenizer = tokenizers.load(spec.tokenizer)
    total, held_out = _held_out(spec, max_left_out)
    left_out = LeftOut()
    documents = _disjoint(spec, held_out, left_out)
    made_by = digest(dumps([canonical(spec), code_hash(ENTRY), provenance.environment()]), 64)
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
        if not counts["documents"] and not (split == "validation" and not spec.validation):
            raise ValueError(
                f"the {split} split is empty: the corpus has {total} documents; "
                "give more documents or change data.validation and data.test"
            )
        for file in (out / split).iterdir():
            if f"{split}/{file.name}" not in files[split]:  # of another corpus or another way to cut it
                file.unlink()
        shards.describe(out / split, files[split], made_by)
    shutil.rmtree(out / shards.RECORDS)
    hashes = {f"{split}/{name}": sha for split in splits for name, sha in folder_digests(out / split).items()}
    content = digest(dumps({name: split["sha256"] for name, split in splits.items()}))
    return {
        "spec": canonical(spec),
        "splits": splits,
        "files": hashes,
        "left_out": left_out.record(),
        "content": content,
    }


def _held_out(spec: Data, max_left_out: float) -> tuple[int, dict[str, set[bytes]]]:
    """How many documents there are, and the hashes of the texts of validation and test."""
    count, left_out = 0, LeftOut()
    texts: dict[str, set[bytes]] = {"validation": set(), "test": set()}
    for name, text in corpora.documents(spec.corpus, left_out):
        count += 1
        split = corpora.split_of(name, spec.validation, spec.test)
        if split in texts:
            texts[split].add(_fingerprint(text))
    if not count:
        raise ValueError(
            f"the corpus {canonical(spec.corpus)} holds no document; give another one. Left out:\n{left_out.in_lines()}"
        )
    left_out.refuse_too_many(count, max_left_out)
    return count, texts


def _disjoint(spec: Data, held_out: dict[str, set[bytes]], left_out: LeftOut) -> Iterator[shards.Document]:
    """The documents with their split, less those whose text is in a split that is held out from theirs."""
    for name, text in corpora.documents(spec.corpus, left_out):
        split = corpora.split_of(name, spec.validation, spec.test)
        copies = [other for other in STRICTER[split] if _fingerprint(text) in held_out[other]]
        if copies:
            words = f"of {split} with the text of a {copies[0]} document"
            left_out.add(Reason(words, "nothing needs to be done", lost=False), name)
        else:
            yield shards.Document(split, name, text)


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
    with sole_owner(arguments.out) as owner:
        make(arguments, owner)


def make(arguments: argparse.Namespace, owner: Owner) -> None:
    spec = restored(Data, read_spec(arguments.spec))
    if isinstance(spec.corpus, StdlibCorpus):
        print("WARNING: the standard library is another corpus in another Python: these numbers hold for this one only")
    try:
        if isinstance(spec.corpus, TextCorpus):
            seen.write(spec.corpus.path, arguments.corpus_state, arguments.out / seen.RECORD)
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
