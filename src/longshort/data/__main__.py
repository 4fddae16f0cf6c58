"""Stage: corpus -> tokens. `python -m longshort.data --spec FILE --out DIR`

Writes DIR/{train,validation,test} (Arrow: name, input_ids, and text outside train), DIR/sources.json (the hash of every
document) and, last, DIR/manifest.json (documents, tokens and hash of every split, the hash of every file, what was left
out).
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from longshort import hub, interruption, provenance
from longshort.data import corpora, tokenizers
from longshort.identity import code_hash, digest, dumps, modules, read_spec, refuse_changed_code
from longshort.ownership import Owner, sole_owner
from longshort.publish import NoSpace, folder_digests, folder_in_place, naming_a_full_disk, write_json, write_record

ENTRY = "longshort.data.__main__"
SPLITS = ("train", "validation", "test")


def prepare(spec: dict[str, Any], out: Path) -> dict[str, Any]:
    """Tokenises the corpus and returns the manifest."""
    from datasets import Dataset, Features, List, Value, disable_progress_bars

    if not sys.stderr.isatty():
        disable_progress_bars()
    tokenizer = tokenizers.load(spec["tokenizer"])
    left_out: Counter[str] = Counter()

    def rows() -> Iterator[dict[str, str]]:
        for name, text in corpora.documents(spec["corpus"], left_out):
            yield {"name": name, "text": text, "split": corpora.split_of(name, spec["validation"], spec["test"])}

    everything = Dataset.from_list(list(rows()))
    if not len(everything):
        raise ValueError(f"the corpus {spec['corpus']} holds no document ({dict(left_out)} left out); give another one")
    tokenised = everything.map(
        lambda batch: {"input_ids": tokenizer(batch["text"], add_special_tokens=False)["input_ids"]},
        batched=True,
        batch_size=64,
        features=Features({**everything.features, "input_ids": List(Value("int32"))}),
        desc="tokenise",
    )
    splits, sources = {}, {}
    for split in SPLITS:
        chosen = tokenised.select([row for row, name in enumerate(tokenised["split"]) if name == split])
        if not len(chosen) and not (split == "validation" and not spec["validation"]):
            raise ValueError(
                f"the {split} split is empty: the corpus has {len(tokenised)} documents; "
                "give more documents or change data.validation and data.test"
            )
        columns = ["name", "input_ids"] if split == "train" else ["name", "text", "input_ids"]
        chosen = chosen.select_columns(columns)
        share = tokenised.data.nbytes * len(chosen) // len(tokenised)
        with naming_a_full_disk(out / split, share), folder_in_place(out / split) as folder:
            chosen.save_to_disk(str(folder))
        splits[split], sources[split] = _content(chosen)
    write_json(out / "sources.json", sources)
    content = digest(dumps({name: split["sha256"] for name, split in splits.items()}))
    files = {f"{split}/{name}": sha for split in SPLITS for name, sha in folder_digests(out / split).items()}
    return {"spec": spec, "splits": splits, "files": files, "left_out": dict(left_out), "content": content}


def _content(split: Any) -> tuple[dict[str, Any], dict[str, str]]:
    """Counts and the hash of names and tokens, and the hash of each document by its name: equal content has an equal
    hash, whatever the files look like."""
    total = hashlib.sha256()
    tokens, documents = 0, {}
    for row in split.with_format("numpy", columns=["input_ids"], output_all_columns=True):
        ids = np.ascontiguousarray(row["input_ids"], dtype="<i4")
        total.update(f"{row['name']}\0{len(ids)}\0".encode())
        total.update(ids.tobytes())
        documents[row["name"]] = hashlib.sha256(ids.tobytes()).hexdigest()
        tokens += len(ids)
    return {"documents": len(split), "tokens": tokens, "sha256": total.hexdigest()}, documents


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spec", type=Path, required=True, help="data specification (JSON)")
    parser.add_argument("--out", type=Path, required=True, help="folder of the corpus")
    parser.add_argument("--code", help="refuse to run if the code's hash is another one")
    arguments = parser.parse_args()
    if arguments.code:
        refuse_changed_code(arguments.code, ENTRY)
    hub.refuse_network()
    interruption.end_at_once()
    with sole_owner(arguments.out) as owner:
        make(arguments, owner)


def make(arguments: argparse.Namespace, owner: Owner) -> None:
    try:
        manifest = prepare(read_spec(arguments.spec), arguments.out)
    except (ValueError, NoSpace) as error:
        raise SystemExit(f"data: {error}") from None
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
        print("left out:", ", ".join(f"{count} {reason}" for reason, count in manifest["left_out"].items()))


if __name__ == "__main__":
    main()
