"""Shards: the same tokens however the corpus is cut, and however often the work was interrupted."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from longshort.data import shards, splits
from longshort.data.shards import Document
from longshort.data.tokenizers import byte_tokenizer

SPLITS = ("train", "train", "test", "train", "train")


def corpus(documents: int = 40) -> list[Document]:
    texts = [" ".join(str(document * 7 + k * k % 97) for k in range(document + 1)) for document in range(documents)]
    return [Document(SPLITS[number % 5], f"d{number}", text) for number, text in enumerate(texts)]


def in_pieces(monkeypatch: pytest.MonkeyPatch, characters: int, out: Path) -> dict[str, list[tuple[str, list[int]]]]:
    monkeypatch.setattr(shards, "PIECE", characters)
    files = shards.write(corpus(), byte_tokenizer(), out, "a")
    found = {}
    for split in shards.SPLITS:
        shards.describe(out / split, files[split], "a")
        found[split] = [(name, ids.tolist()) for name, ids in shards.rows(out / name for name in files[split])]
    return found


def test_the_tokens_do_not_depend_on_the_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = in_pieces(monkeypatch, 10**6, tmp_path / "whole")
    cut = in_pieces(monkeypatch, 300, tmp_path / "cut")
    assert cut == whole
    assert len(list((tmp_path / "cut/train").glob("*.arrow"))) > 5
    assert whole["test"] == [(each.name, list(each.text.encode())) for each in corpus() if each.split == "test"]
    assert whole["validation"] == []


def test_datasets_reads_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = in_pieces(monkeypatch, 300, tmp_path)
    for split in shards.SPLITS:
        read = Dataset.load_from_disk(str(tmp_path / split))
        assert [(row["name"], row["input_ids"]) for row in read] == found[split]
        assert ("text" in read.column_names) == (split != "train")
        ours = splits.load(tmp_path / split).to_pylist()
        assert [(row["name"], row["input_ids"]) for row in ours] == found[split]
    texts = Dataset.load_from_disk(str(tmp_path / "test"))["text"]
    assert list(texts) == [each.text for each in corpus() if each.split == "test"]


class Killed(Exception):
    pass


def test_what_was_finished_is_not_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = in_pieces(monkeypatch, 300, tmp_path / "whole")

    def until(count: int) -> Iterator[Document]:
        yield from corpus()[:count]
        raise Killed

    out = tmp_path / "killed"
    with pytest.raises(Killed):
        shards.write(until(30), byte_tokenizer(), out, "a")
    damaged = max(out.glob("train/*.arrow"))
    whole = [file for file in out.rglob("*.arrow") if file.name != damaged.name]
    damaged.write_bytes(damaged.read_bytes()[:-1])
    before = [(file.stat().st_ino, file.stat().st_mtime_ns) for file in whole]
    assert len(before) > 5 and in_pieces(monkeypatch, 300, out) == wanted
    assert [(file.stat().st_ino, file.stat().st_mtime_ns) for file in whole] == before


def test_a_changed_text_or_tokenizer_makes_a_piece_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "PIECE", 300)

    def renewed(documents: list[Document], made_by: str) -> list[str]:
        before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.arrow")}
        shards.write(documents, byte_tokenizer(), tmp_path, made_by)
        return sorted(file.name for file, time in before.items() if file.stat().st_mtime_ns != time)

    assert renewed(corpus(), "a") == renewed(corpus(), "a") == []
    last = corpus()[-1]
    changed = last._replace(text=last.text[:-1] + "x")
    assert renewed([*corpus()[:-1], changed], "a") == [max(tmp_path.glob("train/*")).name]
    assert renewed(corpus(), "b") == sorted(file.name for file in tmp_path.rglob("*.arrow"))


@pytest.mark.parametrize("bos", [False, True])
def test_the_fast_way_gives_what_the_tokenizer_gives(bos: bool) -> None:
    """Special tokens in the text, a tokenizer that adds some of its own, and one that was left cutting and padding."""
    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    texts = [document.text for document in corpus()] + ["", "a </s> b", "naïve ✓ <unk>", " \n\t x"]
    backend.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=90, special_tokens=["<unk>", "<s>", "</s>"]))
    if bos:
        backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    tokenizer.pad_token = "</s>"
    for split_special in (False, True):
        tokenizer.split_special_tokens = split_special
        wanted = tokenizer(texts, add_special_tokens=False)["input_ids"]
        tokenizer(texts, max_length=5, truncation=True, padding=True)
        found = shards.token_ids(tokenizer, texts)
        assert [ids.tolist() for ids in found] == wanted
        assert all(ids.dtype == np.int32 for ids in found)
