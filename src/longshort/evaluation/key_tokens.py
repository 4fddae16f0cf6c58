"""Key tokens of held-out documents: those that an evaluator model predicts much better with a long context.

    python -m longshort.evaluation.key_tokens --data MANIFEST --by JSON --out results/data/ID/key-tokens-KEY/found.json

Definition of LongPPL (arXiv 2410.23771, section 3.2) as in the authors' package longppl 0.3.0: the evaluator reads the
text whole, with the special tokens that its tokenizer adds, and once more in windows of `short` + `stride` tokens that
begin `stride` apart, of which the last `stride` are looked at. A token is key if its loss falls by more than `gain`
from the short context to the long one, and is below `below` with the long one. A text is the first `length` tokens of a
document, as the study's tokenizer cuts it; of those, the ones that lie inside a key token, or inside neighbouring ones
together, are what LongPPL scores.

The evaluator `long` is a base of the study, which reads the study's own tokens; it was trained on texts that begin
anywhere, so that nothing is added before them.

Found once for an evaluator and a corpus: tokens.parquet holds the key tokens (document, position among the evaluator's
tokens, start and end in the text, both losses), scored.parquet the corpus' tokens inside them (document, position).
"""

from __future__ import annotations

import argparse
import json
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from longshort.data import integrity, splits, tokenizers
from longshort.data.settings import Data
from longshort.errors import UserError, in_a_line
from longshort.evaluation.forward import (
    TOKENS_PER_FORWARD,
    held_out_documents,
    refuse_unknown_logits,
    score_tokens,
)
from longshort.evaluation.journal import Journal
from longshort.identity.code import code_hash, refuse_changed_code
from longshort.identity.spec import canonical, digest, dumps, restored, run_id
from longshort.jobs import heartbeat, interruption
from longshort.jobs.ownership import sole_owner
from longshort.metrics.settings import Evaluator, KeyTokenSearch, LongEvaluator
from longshort.models import load
from longshort.records import hub, layout, provenance
from longshort.records.publish import (
    CHECKPOINTS,
    HASHES,
    LATE,
    altered,
    file_digest,
    file_in_place,
    folder_digests,
    read_record,
    wait_for_files,
    write_record,
)

Spans = list[tuple[int, int]]
# What a model and its tokenizer are made of.
MODEL_FILES = (".safetensors", ".json", ".model", ".txt")


class Found(NamedTuple):
    """The key tokens of a text, in its order: position among the evaluator's tokens, span in the text (characters),
    and loss with the long and the short context (nats)."""

    positions: list[int]
    spans: Spans
    long: list[float]
    short: list[float]


def find(model: Any, tokenizer: Any, text: str, search: KeyTokenSearch) -> Found:
    """The key tokens of a text under an evaluator.

    Raises:
        ValueError: the tokenizer does not say where in the text its tokens are.
    """
    if not tokenizer.is_fast:
        raise ValueError("the evaluator's tokenizer has no offsets; take a model with a tokenizer.json")
    encoded = tokenizer(text, return_offsets_mapping=True, truncation=False)
    return find_among(model, torch.tensor(encoded["input_ids"]), encoded["offset_mapping"], search)


def find_among(model: Any, ids: Tensor, offsets: Spans, search: KeyTokenSearch) -> Found:
    """The same among tokens [tokens], with the place of each in its text."""
    positions = torch.arange(search.short, len(ids))
    if not len(positions):
        return Found([], [], [], [])
    long = long_losses(model, ids, positions)
    short = short_losses(model, ids, positions, search.short, search.stride)
    key = (short - long > search.gain) & (long < search.below)
    spans = [tuple(offsets[position]) for position in positions[key].tolist()]
    return Found(positions[key].tolist(), spans, long[key].tolist(), short[key].tolist())


def long_losses(model: Any, ids: Tensor, positions: Tensor) -> Tensor:
    """Loss of the tokens ids[positions], each given all before it, nats, float64 [positions]."""
    return score_tokens(model, ids[None], ids[None, 1:], positions - 1).nll[0, 0]


def short_losses(model: Any, ids: Tensor, positions: Tensor, short: int, stride: int) -> Tensor:
    """The same with short contexts: what precedes each token in a window of `short` + `stride` tokens.

    Windows begin at multiples of `stride`; the last may be shorter. Those without any of positions are not read.

    Args:
        positions: ascending, `short` or more.
    """
    found = torch.empty(len(positions), dtype=torch.float64)
    windows = (positions - short) // stride
    wanted = windows.unique()
    whole = wanted * stride + short + stride <= len(ids)
    rows = max(1, TOKENS_PER_FORWARD // (short + stride))
    for together in (*wanted[whole].split(rows), *wanted[~whole].split(1)):
        if not len(together):
            continue
        read = torch.stack([ids[start : start + short + stride] for start in (together * stride).tolist()])
        inside = torch.isin(windows, together)
        row = torch.searchsorted(together, windows[inside])
        places = positions[inside] - windows[inside] * stride - 1
        scored = places.unique()
        losses = score_tokens(model, read, read[:, 1:], scored).nll[0]
        found[inside] = losses[row, torch.searchsorted(scored, places)]
    return found


def merged(spans: Spans) -> Spans:
    """Neighbouring spans as one."""
    joined: Spans = []
    for start, end in spans:
        if joined and joined[-1][1] == start:
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((start, end))
    return joined


def tokens_inside(offsets: Spans, spans: Spans) -> list[int]:
    """The tokens that lie in one of the spans, both ascending; not the first token, which nothing precedes."""
    found, place = [], 0
    for token, (start, end) in enumerate(offsets):
        while place < len(spans) and start >= spans[place][0] and end > spans[place][1]:
            place += 1
        if place == len(spans):
            break
        if start >= spans[place][0] and token:
            found.append(token)
    return found


def offsets_of(tokenizer: Any, text: str, ids: list[int]) -> Spans:
    """Where the tokens `ids` of the text are in it, characters.

    Raises:
        ValueError: the tokenizer makes other tokens of the text.
    """
    if tokenizer.is_fast:
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, truncation=False)
        if encoded["input_ids"][: len(ids)] != ids:
            raise ValueError("the tokenizer makes other tokens of a text than those of the corpus; prepare it anew")
        return [tuple(span) for span in encoded["offset_mapping"][: len(ids)]]
    spans, end = [], 0
    for place in range(len(ids)):
        before = tokenizer.decode(ids[max(0, place - 1) : place]) if place else ""
        start, end = end, end + len(tokenizer.decode(ids[max(0, place - 1) : place + 1])) - len(before)
        spans.append((start, end))
    return spans


# ---- the evaluator ---------------------------------------------------------------------------------------------------


def trained(evaluator: LongEvaluator) -> dict[str, Any]:
    """The record of the training of an evaluator `long`.

    Raises:
        ValueError: it is not there, or the training diverged.
    """
    path = Path(layout.training(str(evaluator.run), str(evaluator.steps)).record)
    if not path.exists():
        raise ValueError(f"the evaluator is not trained yet: {path} is missing; run snakemake")
    record = read_record(path, like={"run_id": str, "checkpoints": CHECKPOINTS})
    if str(evaluator.steps) not in record["checkpoints"]:
        raise ValueError(
            f"the evaluator's training diverged ({path}), so that it finds nothing; change model.training, or take a "
            "pretrained evaluator"
        )
    return record


def folder_of(evaluator: Evaluator) -> Path:
    if isinstance(evaluator, LongEvaluator):
        checkpoint = trained(evaluator)["checkpoints"][str(evaluator.steps)]
        if trouble := altered(Path(checkpoint["path"]), checkpoint["files"], patience=LATE):
            raise ValueError(
                f"the evaluator is not the one that was trained: {checkpoint['path']}: {trouble}; delete the record of "
                "its training and run snakemake again"
            )
        return Path(checkpoint["path"])
    part = hub.weights(evaluator)
    return hub.folder(part) if part else Path(evaluator.name)


def content_of(evaluator: Evaluator) -> str:
    """What names an evaluator: the commit of its repository, or a hash of its files, 12 hexadecimal digits."""
    if isinstance(evaluator, LongEvaluator):
        return digest(dumps(trained(evaluator)["checkpoints"][str(evaluator.steps)]["files"]), 12)
    if hub.weights(evaluator):
        return str(evaluator.revision)[:12]
    return _digest_of(evaluator.name)


@cache
def _digest_of(folder: str) -> str:
    files = folder_digests(Path(folder))
    return digest(dumps({name: sha for name, sha in files.items() if name.endswith(MODEL_FILES)}), 12)


def name_of(evaluator: Evaluator) -> str:
    """What an evaluator is called in a protocol, and in what is said to people."""
    return "long" if isinstance(evaluator, LongEvaluator) else Path(evaluator.name).name


def _loaded(evaluator: Evaluator) -> tuple[Any, Any]:
    """The model, and its tokenizer; None where it reads the study's own tokens."""
    model = load.load(folder_of(evaluator), precision=evaluator.precision).eval()
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    refuse_unknown_logits(model)
    return model, None if isinstance(evaluator, LongEvaluator) else tokenizers.pretrained(evaluator)


# ---- the stage -------------------------------------------------------------------------------------------------------


def scored(data: Path, search: KeyTokenSearch) -> dict[str, list[int]]:
    """Document -> the positions of the tokens that LongPPL scores, of all that were looked at, as they were found.

    Args:
        data: a published data folder.

    Raises:
        ValueError: nothing was found, the files were altered, or another evaluator found it.
    """
    place = layout.key_tokens(data, search.id)
    remedy = f"delete {place.record} and run snakemake again"
    if not Path(place.record).exists():
        raise ValueError(f"the key tokens were not looked for: {place.record} is missing; run snakemake")
    record = read_record(Path(place.record), like={"evaluator": str, "scored_sha256": str, "documents": [str]})
    if record["evaluator"] != content_of(search.evaluator):
        raise ValueError(
            f"the evaluator {name_of(search.evaluator)} is not the one that found the key tokens; {remedy}"
        )
    if file_digest(Path(place.scored)) != record["scored_sha256"]:
        raise ValueError(f"{place.scored} is not the file that was written; {remedy}")
    from pandas import read_parquet

    found: dict[str, list[int]] = {name: [] for name in record["documents"]}
    rows = read_parquet(place.scored)
    for document, position in zip(rows["document"], rows["position"], strict=True):
        found[document].append(int(position))
    return found


@in_a_line()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="manifest of the prepared corpus")
    parser.add_argument(
        "--by", type=json.loads, required=True, help="evaluator, short, stride, gain, below, ... (JSON)"
    )
    parser.add_argument("--out", type=Path, required=True, help="record to write; tokens and scored.parquet beside it")
    parser.add_argument("--code", help="refuse to run if the code's hash is another one")
    parser.add_argument("--work", type=Path, default=Path(layout.WORK), help="folder of unfinished work")
    arguments = parser.parse_args()
    entry = "longshort.evaluation.key_tokens"
    code = refuse_changed_code(arguments.code, entry) if arguments.code else code_hash(entry)
    interruption.end_at_once()
    hub.refuse_network()
    with heartbeat.beating(arguments.out, "key_tokens") as beat:
        try:
            search = restored(KeyTokenSearch, arguments.by)
            make(arguments.data, search, arguments.out, arguments.work, code, beat)
        except ValueError as error:
            raise UserError(f"longppl: {error}") from None


def make(data: Path, search: KeyTokenSearch, out: Path, work: Path, code: str, beat: heartbeat.Heartbeat) -> None:
    manifest = read_record(data, like={"content": str, "files": HASHES, "spec": dict})
    wait_for_files(data.parent, manifest["files"])
    made = {"evaluator": content_of(search.evaluator), "data": manifest["content"], "code": code}
    made["environment"] = provenance.environment()
    if isinstance(search.evaluator, LongEvaluator):
        made["run_id"] = trained(search.evaluator)["run_id"]
    place = Path(layout.finished_evaluation(run_id(canonical(search), code, made), work))
    with sole_owner(place) as owner:
        integrity.refuse_altered(data, "test", content=manifest["content"])
        journal = Journal(place / "journal")
        part = journal.of("key tokens")
        beat.watch(journal.progress)
        documents = dict(_texts(data.parent, search))
        part.expect(len(documents))
        tokenizer = tokenizers.load(restored(Data, manifest["spec"]).tokenizer)
        evaluator: tuple[Any, Any] | None = None
        found = {}
        for name, (text, ids) in documents.items():
            value = part.get(name)
            if value is None:
                evaluator = evaluator or _loaded(search.evaluator)
                value = _of_document(*evaluator, tokenizer, text, ids, search)
                part.add(name, value)
            found[name] = value
        _refuse_none(found, search)
        owner.refuse_if_lost()
        # The journal stays: where the corpus is prepared again, they are published again in seconds.
        _publish(found, {**made, "by": canonical(search)}, out)


def _of_document(
    model: Any, own: Any, tokenizer: Any, text: str, ids: list[int], search: KeyTokenSearch
) -> list[list[Any]]:
    """What Found has, and the positions of the study's tokens inside; own: the evaluator's tokenizer, or None."""
    offsets = offsets_of(tokenizer, text, ids)
    if own is None:
        key = find_among(model, torch.tensor(ids), offsets, search)
        return [*key, key.positions]
    key = find(model, own, text[: offsets[-1][1]], search)
    return [*key, tokens_inside(offsets, merged(key.spans))]


def _texts(data: Path, search: KeyTokenSearch) -> list[tuple[str, tuple[str, list[int]]]]:
    """Names, texts and first `length` tokens of the documents that are looked at."""
    test = splits.load(data / "test")
    texts = dict(zip(test.column("name").to_pylist(), test.column("text").to_pylist(), strict=True))
    names = list(held_out_documents(data, search.length))[: search.documents]
    if len(names) < search.documents:
        raise ValueError(
            f"LongPPL needs {search.documents} test documents of at least {search.length} tokens and {data} has "
            f"{len(names)}: lower evaluations.longppl.documents, or the longest of evaluations.longppl.lengths, "
            "or give the test split longer documents"
        )
    return [(name, (texts[name], ids[: search.length].tolist())) for name, ids in names]


def _refuse_none(found: dict[str, Any], search: KeyTokenSearch) -> None:
    without = sum(not value[-1] for value in found.values())
    print(f"{without} of {len(found)} documents have no key token", flush=True)
    if without == len(found):
        raise ValueError(
            f"the evaluator {name_of(search.evaluator)} finds no key token in {len(found)} documents: no token gains "
            f"more than {search.gain:g} nats by a context beyond {search.short} tokens and is below {search.below:g} "
            "then; take an evaluator that reads long texts better, more documents, or a lower gain"
        )


def _publish(found: dict[str, Any], made: dict[str, Any], out: Path) -> None:
    from pandas import DataFrame

    tokens = [
        (name, position, start, end, long, short)
        for name, value in found.items()
        for position, (start, end), long, short in zip(*value[:4], strict=True)
    ]
    inside = [(name, position) for name, value in found.items() for position in value[-1]]
    frames = {
        "tokens": DataFrame(tokens, columns=["document", "position", "start", "end", "loss_long", "loss_short"]),
        "scored": DataFrame(inside, columns=["document", "position"]),
    }
    record = {**made, "documents": list(found)}
    for name, frame in frames.items():
        path = out.with_name(f"{name}.parquet")
        with file_in_place(path) as part:
            frame.to_parquet(part, index=False)
        record[f"{name}_sha256"] = file_digest(path)
    write_record(out, record)


if __name__ == "__main__":
    main()
