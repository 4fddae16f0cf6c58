"""What the data stage costs beside plain `datasets.map` with as many processes, and what a step's windows cost.

    python benchmarks/data.py [--json FILE] [--toy]

Books of PG19's size, of lines of the standard library's sources, in parquet. Both sides are whole processes and both
write the same tokens to disk; ours also divides the corpus, leaves copies out and hashes every document. Memory is the
peak of what the processes of a side hold together and cannot drop (Pss_Anon), read twenty times a second.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.compute
from datasets import Dataset
from objective import ARMS, Step, llama
from side_by_side import alternate, arguments, ratio, report
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from longshort.data import corpora
from longshort.data.left_out import LeftOut
from longshort.data.settings import StdlibCorpus
from longshort.data.windows import TokenStream, Windows, collate
from longshort.records.publish import read_json

CORES = len(os.sched_getaffinity(0))


# What a person would write; map leaves its result in the cache, as an Arrow file.
MAP = """
import sys
from datasets import load_dataset
from transformers import AutoTokenizer

corpus, tokenizer, cores, out = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(tokenizer)
books = load_dataset("parquet", data_files=corpus, split="train", cache_dir=out)
books.map(
    lambda batch: {"input_ids": tokenizer(batch["text"], add_special_tokens=False)["input_ids"]},
    batched=True,
    num_proc=int(cores),
    remove_columns=["text"],
)
"""


class Size(NamedTuple):
    books: int
    characters: int  # of a book
    vocabulary: int


FULL, TOY = Size(240, 400_000, 32_000), Size(12, 20_000, 400)


def make(folder: Path, size: Size) -> dict[str, Any]:
    """A tokenizer and a corpus below folder, and the specification of its preparation."""
    sources = [text for _, text in corpora.documents(StdlibCorpus(kind="stdlib"), LeftOut())]
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
    backend.train_from_iterator(
        sources, trainers.BpeTrainer(vocab_size=size.vocabulary, special_tokens=["</s>"], show_progress=False)
    )
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>").save_pretrained(folder / "tokenizer")
    lines = [line for text in sources for line in text.splitlines(keepends=True)]
    draw = random.Random(0)
    books = ["".join(draw.choices(lines, k=size.characters // 20))[: size.characters] for _ in range(size.books)]
    (folder / "corpus").mkdir()
    Dataset.from_dict({"text": books}).to_parquet(str(folder / "corpus/books.parquet"), batch_size=50)
    return {
        "corpus": {"kind": "text", "path": str(folder / "corpus"), "column": "text"},
        "tokenizer": {"kind": "pretrained", "name": str(folder / "tokenizer")},
        "validation": 0.05,
        "test": 0.1,
    }


def watched(command: list[str]) -> tuple[float, int]:
    """Seconds and bytes at the peak of a command and all that it starts."""
    began, peak = time.perf_counter(), 0
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None:
            peak = max(peak, sum(map(held, family(process.pid))))
            time.sleep(0.05)
        assert process.stderr
        if process.returncode:
            raise SystemExit(process.stderr.read())
    return time.perf_counter() - began, peak


def tokens_in(file: Path) -> int:
    lengths = pyarrow.compute.list_value_length(Dataset.from_file(str(file)).data.column("input_ids"))
    return int(pyarrow.compute.sum(lengths).as_py())


def family(parent: int) -> list[int]:
    found = [parent]
    for process in found:
        for children in Path(f"/proc/{process}/task").glob("*/children"):
            try:
                found += map(int, children.read_text().split())
            except OSError:  # it ended
                continue
    return found


def held(process: int) -> int:
    try:
        said = re.search(r"Pss_Anon:\s+(\d+) kB", Path(f"/proc/{process}/smaps_rollup").read_text())
    except OSError:
        return 0
    return 1024 * int(said[1]) if said else 0


def tokenising(folder: Path, spec: dict[str, Any], rounds: int) -> tuple[dict[str, float], dict[str, str]]:
    (folder / "spec.json").write_text(json.dumps(spec))
    ours = [sys.executable, "-m", "longshort.data", "--spec", str(folder / "spec.json"), "--cores", str(CORES), "--out"]
    plain = [sys.executable, "-c", MAP, str(folder / "corpus/*"), str(folder / "tokenizer"), str(CORES)]
    found: dict[str, list[tuple[float, int]]] = {"ours": [], "map": []}
    for number in range(rounds):
        sides = [("ours", ours), ("map", plain)]
        for name, command in sides if number % 2 else reversed(sides):
            out = folder / f"{name}-{number}"
            out.mkdir()
            found[name].append(watched([*command, str(out)]))
        print(f"round {number + 1} of {rounds}", file=sys.stderr, flush=True)
    splits = read_json(folder / "ours-0/manifest.json")["splits"].values()
    tokens = sum(split["tokens"] for split in splits)
    if tokens != sum(map(tokens_in, (folder / "map-0").rglob("cache-*.arrow"))):
        raise SystemExit("the two sides made different tokens")
    pairs = list(zip(found["ours"], found["map"], strict=True))
    median = {name: [statistics.median(values) for values in zip(*each, strict=True)] for name, each in found.items()}
    of = f"{CORES} cores, {sum(split['documents'] for split in splits)} books, {tokens / 1e6:.1f} M tokens: "
    figures = {
        "tokenise_rate_over_map": statistics.median(theirs[0] / ours[0] for ours, theirs in pairs),
        "tokenise_memory_over_map": statistics.median(ours[1] / theirs[1] for ours, theirs in pairs),
    }
    notes = {
        "tokenise_rate_over_map": f"{of}{median['ours'][0]:.1f} / {median['map'][0]:.1f} s",
        "tokenise_memory_over_map": f"{median['ours'][1] / 2**20:.0f} / {median['map'][1] / 2**20:.0f} MiB",
    }
    return figures, notes


def sampling(train: Path, rounds: int, toy: bool) -> tuple[dict[str, float], dict[str, str]]:
    """The windows of a batch beside the step that they are for, of the demo's model: the smallest there is."""
    rows, length = (2, 32) if toy else (16, 128)
    windows = Windows(TokenStream(train, 0), length=length, seed=0, batch=rows, steps=10**6, max_extra=length // 2)
    batches = itertools.count()

    def draw() -> None:
        first = next(batches) * rows
        collate([windows[first + row] for row in range(rows)], length)

    step = Step(llama(128, 352, 2, 4, 257), ARMS["baseline"], rows, length, {"device": "cpu"})
    seconds = alternate({"windows": draw, "step": step}, 5 * rounds, "cpu")
    each = {name: statistics.median(values) for name, values in seconds.items()}
    what = f"{rows} x 2 x {length} tokens: {1000 * each['windows']:.2f} ms / {each['step']:.3g} s"
    return {"sampling_share_of_step": ratio(seconds, "windows", "step")}, {"sampling_share_of_step": what}


def main() -> None:
    given = arguments(__doc__)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        figures, notes = tokenising(folder, make(folder, TOY if given.toy else FULL), given.rounds)
        more = sampling(folder / "ours-0/train", given.rounds, given.toy)
    report("The data", {**figures, **more[0]}, {**notes, **more[1]}, given)


if __name__ == "__main__":
    main()
