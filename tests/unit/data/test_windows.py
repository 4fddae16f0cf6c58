"""Packed tokens, and the windows of a training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset, List, Value

from longshort.data.streams import extra_length
from longshort.data.windows import TokenStream, Windows, collate, two_views


@pytest.mark.parametrize("tokens", [9, 17])
def test_windows_without_extra_or_overlap_are_refused(tokens: int) -> None:
    with pytest.raises(ValueError, match="l_extra"):
        two_views(torch.arange(tokens), 8)


SEPARATOR = 99


def stream_of(folder: Path, documents: list[list[int]], files: int = 1) -> TokenStream:
    names = [str(number) for number in range(len(documents))]
    split = Dataset.from_dict({"name": names, "input_ids": documents})
    split.cast_column("input_ids", List(Value("int32"))).save_to_disk(str(folder), num_shards=files)
    return TokenStream(folder, SEPARATOR)


@pytest.mark.parametrize("files", [1, 2, 3])
def test_the_stream_packs_documents_with_separators(tmp_path: Path, files: int) -> None:
    documents = [[1, 2, 3], [4], [5, 6]]
    stream = stream_of(tmp_path / "s", documents, files)
    assert len(list((tmp_path / "s").glob("*.arrow"))) == files
    whole = [1, 2, 3, SEPARATOR, 4, SEPARATOR, 5, 6, SEPARATOR]
    assert len(stream) == len(whole)
    for start in range(len(whole)):
        for count in range(1, len(whole) - start + 1):
            assert stream.read(start, count).tolist() == whole[start : start + count]


@pytest.fixture
def counting(tmp_path: Path) -> TokenStream:
    """One long document whose token is its position."""
    return stream_of(tmp_path / "s", [list(range(1000, 3000))])


def windows_of(stream: TokenStream, **changes: object) -> Windows:
    values: dict = {"length": 16, "seed": 0, "batch": 4, "steps": 50, "max_extra": 8, **changes}
    return Windows(stream, **values)


def test_views_are_the_two_ends_of_one_window(counting: TokenStream) -> None:
    windows = windows_of(counting)
    seen = set()
    for sample in range(len(windows)):
        batch = collate([windows[sample]], length=16)
        (a, b), [extra] = batch["inputs"][:, 0], batch["extra"]
        assert 1 <= extra <= 8
        assert a.shape == b.shape == (16,)
        assert (batch["targets"] == batch["inputs"] + 1).all()
        assert b[0] - a[0] == extra
        seen.add(extra)
    assert seen == set(range(1, 9))


def test_one_extra_for_each_step_whatever_the_micro_batch(counting: TokenStream) -> None:
    """Those of the run's seed, which weights that a seed draws are made from, too."""
    windows, per_row = windows_of(counting, seed=3), windows_of(counting, seed=3, extra_per_row=True)
    for sample in range(len(windows)):
        assert windows[sample]["extra"] == extra_length(3, sample // 4, 8)
        assert per_row[sample]["extra"] == extra_length(3, sample, 8)


def test_an_epoch_reads_every_slot_once_and_the_next_one_otherwise(counting: TokenStream) -> None:
    windows = windows_of(counting)
    starts = [int(windows[sample]["window"][0]) for sample in range(2 * windows.slots)]
    first, second = starts[: windows.slots], starts[windows.slots :]
    assert len(set(first)) == windows.slots and set(np.diff(sorted(first))) == {32}
    assert sorted(first) != first and sorted(first) != sorted(second)


def test_seeds_differ_and_repeat_and_ranges_share_their_windows(counting: TokenStream) -> None:
    def starts(**changes: object) -> list[int]:
        windows = windows_of(counting, **changes)
        return [int(windows[sample]["window"][0]) for sample in range(20)]

    assert starts() == starts() == starts(max_extra=4)
    assert starts(seed=1) != starts()


def test_halves_are_the_text_of_two_views_in_twice_as_many_windows(counting: TokenStream) -> None:
    two, halves = windows_of(counting), windows_of(counting, max_extra=None, halves=True, batch=8)
    assert (halves.slots, len(halves)) == (two.slots, 2 * len(two))
    for sample in range(2 * two.slots):  # also in the second epoch
        start = int(two[sample]["window"][0])
        for half in (0, 1):
            item = halves[2 * sample + half]
            first = start + half * 16
            assert item["extra"] == 0 and item["window"].tolist() == list(range(first, first + 17))


def test_a_corpus_too_small_for_two_windows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the training split has 41 tokens, fewer than two windows of 32"):
        windows_of(stream_of(tmp_path / "s", [list(range(40))]))
