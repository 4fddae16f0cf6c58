"""Files of one name in several folders: each of their documents is its own, from the file to the paired difference."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch

from longshort.data import splits
from longshort.data.tokenizers import byte_tokenizer
from longshort.results.columns import columns_of
from longshort.results.compare import Numbers
from tests.support.corpora import ROWS, lines, prepare, put
from tests.support.longbench import tiny_llama
from tests.support.perplexity import PREFIX, evaluate
from tests.support.results import make_study

LENGTH = 32


def shards(root: Path) -> None:
    for source in ("arxiv", "books", "github"):
        put(root / source / "part-000.jsonl", lines([f"{source} {row}" for row in ROWS]))


def books(root: Path) -> None:
    for number, row in enumerate(ROWS):
        put(root / f"book{number:02}/text.txt", row.encode())


@pytest.mark.parametrize(("make", "pattern", "count"), [(shards, "*/*.jsonl", 90), (books, "**/text.txt", 30)])
def test_namesakes_are_documents_of_their_own(
    tmp_path: Path, make: Callable[[Path], None], pattern: str, count: int
) -> None:
    root = tmp_path / "corpus"
    make(root)
    for path in (root, root / pattern):
        manifest = prepare(root, str(path))
        names = [
            name for split in manifest["splits"] for name in splits.load(tmp_path / "out" / split)["name"].to_pylist()
        ]
        assert len(names) == len(set(names)) == count and not manifest["left_out"]
        assert all(said["documents"] for said in manifest["splits"].values())  # not all of a name in one split


def test_a_difference_by_document_pairs_each_namesake_with_itself(tmp_path: Path) -> None:
    """By hand: the mean over documents of what the two models differ by on the same one."""
    shards(tmp_path / "corpus")
    prepare(tmp_path / "corpus")
    test = splits.load(tmp_path / "out/test")
    texts = dict(zip(test["name"].to_pylist(), test["input_ids"].to_pylist(), strict=True))
    assert len({name.split("/")[-1] for name in texts}) < len(texts)
    settings = {"lengths": [LENGTH], "documents": len(texts), "protocol": PREFIX, "temperature_documents": 0}
    frames, loss = [], {}
    for factor, arm in ((1.0, "baseline"), (1.5, "constant")):
        model = tiny_llama()
        with torch.no_grad():
            model.get_output_embeddings().weight.mul_(factor)
        rows = evaluate(model, byte_tokenizer(), settings, tmp_path / "out").rows
        frames.append(pd.DataFrame(rows).assign(arm=arm, seed=0, step=4))
        for name, ids in texts.items():
            with torch.no_grad():
                said = model(torch.tensor([[256, *ids[: LENGTH - 1]]])).logits[0].double().log_softmax(-1)
            loss[arm, name] = -said[range(LENGTH), ids[:LENGTH]].mean().item()
    study = make_study()
    column = next(column for column in columns_of(study) if column.key == f"perplexity@{LENGTH}")
    found = Numbers(pd.concat(frames, ignore_index=True), study).compared(column, "constant", "baseline", 4, [0])
    by_hand = sum(loss["constant", name] - loss["baseline", name] for name in texts) / len(texts)
    assert abs(by_hand) > 0.01 and found.mean == pytest.approx(100 * math.expm1(by_hand), rel=1e-5)
    assert found.documents == len(texts)
