"""Corpora, token streams, windows and their random streams."""

from __future__ import annotations

import hashlib
import json
import sysconfig
from collections import Counter
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset, List, Value

from longshort.data import __main__ as stage
from longshort.data import corpora, packages, streams, tokenizers
from longshort.data.windows import TokenStream, Windows, collate
from longshort.study.files import yaml_mapping
from tests.support.project import ROOT

SEPARATOR = 99


def stream_of(folder: Path, documents: list[list[int]]) -> TokenStream:
    names = [str(number) for number in range(len(documents))]
    split = Dataset.from_dict({"name": names, "input_ids": documents})
    split.cast_column("input_ids", List(Value("int32"))).save_to_disk(str(folder))
    return TokenStream(folder, SEPARATOR)


def test_the_stream_packs_documents_with_separators(tmp_path: Path) -> None:
    documents = [[1, 2, 3], [4], [5, 6]]
    stream = stream_of(tmp_path / "s", documents)
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
    windows = windows_of(counting)
    for step in range(windows.steps):
        assert len({windows[step * 4 + row]["extra"] for row in range(4)}) == 1
    per_row = windows_of(counting, extra_per_row=True)
    assert len({per_row[row]["extra"] for row in range(8)}) > 2


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


def test_a_corpus_too_small_for_two_windows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the training split has 41 tokens, fewer than two windows of 32"):
        windows_of(stream_of(tmp_path / "s", [list(range(40))]))


def test_streams_depend_on_name_seed_and_counter_only() -> None:
    draws = [streams.extra_length(0, step, 64) for step in range(2000)]
    assert draws == [streams.extra_length(0, step, 64) for step in range(2000)]
    assert draws != [streams.extra_length(1, step, 64) for step in range(2000)]
    assert min(draws) == 1 and max(draws) == 64
    assert np.mean(draws) == pytest.approx(32.5, abs=4 * 18.5 / np.sqrt(2000))
    # A fixed value: another library version that draws otherwise would change every experiment.
    assert draws[:6] == [6, 44, 45, 37, 23, 51]


def test_bytes_come_back_as_they_were() -> None:
    tokenizer = tokenizers.byte_tokenizer()
    text = "def f():\n\treturn 'naïve — ✓'  \n"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert bytes(ids) == text.encode()
    assert tokenizer.decode(ids) == text
    assert tokenizers.separator(tokenizer) == 256 and len(tokenizer) == 257


def prepare(tmp_path: Path, name: str = "out", **corpus: object) -> dict:
    spec = {
        "corpus": {"kind": "text", "path": str(tmp_path / "corpus"), "column": "text", **corpus},
        "tokenizer": {"kind": "bytes"},
        "validation": 0.2,
        "test": 0.2,
    }
    return stage.prepare(spec, tmp_path / name)


def test_text_files_of_every_kind_and_what_is_left_out(tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    folder.mkdir()
    for number in range(20):
        (folder / f"{number}.txt").write_text(f"document {number}")
    (folder / "empty.txt").write_text(" \n")
    (folder / "latin.txt").write_bytes("naïve".encode("latin-1"))
    rows = [{"text": "row one"}, {"text": None}, {"text": "row three"}]
    (folder / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    Dataset.from_dict({"text": ["row four", None, "row six"]}).to_parquet(str(folder / "rows.parquet"))
    manifest = prepare(tmp_path)
    assert manifest["left_out"] == {"empty": 1, "not UTF-8": 1, "no text": 2}
    assert sum(split["documents"] for split in manifest["splits"].values()) == 24

    sources = [json.loads(line) for line in (tmp_path / "out" / "sources.jsonl").read_text().splitlines()]
    assert {source["name"] for source in sources} >= {"0.txt", "rows.jsonl#0", "rows.parquet#2"}

    again = prepare(tmp_path, "again")
    assert again["content"] == manifest["content"]
    (folder / "0.txt").write_text("document x")
    assert prepare(tmp_path, "changed")["content"] != manifest["content"]


def test_no_text_is_both_trained_on_and_held_out(tmp_path: Path) -> None:
    """Copies of a test document leave the other splits, copies of a validation document leave train."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    for number in range(60):
        (folder / f"{number}.txt").write_text(f"the text {number % 20}")
    manifest = prepare(tmp_path)
    texts: dict[str, set[bytes]] = {}
    for split in ("train", "validation", "test"):
        rows = Dataset.load_from_disk(str(tmp_path / "out" / split))
        texts[split] = {bytes(row["input_ids"]) for row in rows}
    assert not texts["train"] & (texts["validation"] | texts["test"]) and not texts["validation"] & texts["test"]
    assert len(set.union(*texts.values())) == 20
    named = [corpora.split_of(f"{number}.txt", 0.2, 0.2) for number in range(60)]
    assert manifest["splits"]["test"]["documents"] == named.count("test")
    assert sum(manifest["left_out"].values()) == 60 - sum(split["documents"] for split in manifest["splits"].values())


def test_a_dataset_in_the_hubs_layout(tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    (folder / "data").mkdir(parents=True)
    Dataset.from_dict({"book": [f"book {n}" for n in range(30)]}).to_parquet(
        str(folder / "data" / "train-00000-of-00001.parquet")
    )
    corpus = {"kind": "hub", "dataset": str(folder), "revision": "main", "configuration": None, "split": "train"}
    spec = {"corpus": {**corpus, "column": "book"}, "tokenizer": {"kind": "bytes"}, "validation": 0.2, "test": 0.2}
    manifest = stage.prepare(spec, tmp_path / "out")
    assert sum(split["documents"] for split in manifest["splits"].values()) == 30
    spec["corpus"]["column"] = "text"
    with pytest.raises(ValueError, match="no column 'text'"):
        stage.prepare(spec, tmp_path / "out")


def test_a_missing_column_and_an_empty_corpus_are_named(tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    with pytest.raises(ValueError, match="no file there"):
        prepare(tmp_path)
    (tmp_path / "corpus" / "rows.jsonl").write_text('{"content": "x", "id": 1}\n')
    with pytest.raises(ValueError, match=r"no column 'text'; data.corpus.column may be one of \['content', 'id'\]"):
        prepare(tmp_path)
    (tmp_path / "corpus" / "rows.jsonl").unlink()
    (tmp_path / "corpus" / "empty.txt").write_text("")
    with pytest.raises(ValueError, match="holds no document"):
        prepare(tmp_path)


def test_a_document_keeps_its_split_when_others_come() -> None:
    before = {f"d{i}": corpora.split_of(f"d{i}", 0.1, 0.2) for i in range(500)}
    shares = Counter(before.values())
    assert 60 < shares["test"] < 140 and 25 < shares["validation"] < 80
    assert corpora.split_of("d7", 0.1, 0.2) == before["d7"]


def test_the_standard_library_is_read_by_relative_path() -> None:
    left_out: Counter[str] = Counter()
    names = [name for name, _ in corpora.documents({"kind": "stdlib"}, left_out)]
    assert "json/decoder.py" in names and len(names) > 300
    assert not [name for name in names if name.startswith(("/", "site-packages", "test/"))]
    assert (Path(sysconfig.get_path("stdlib")) / names[0]).exists()


def test_a_package_is_read_by_path_and_another_one_than_stated_is_refused() -> None:
    demo = yaml_mapping(ROOT / "config/studies/demo.yaml")["data"]["corpus"]
    documents = dict(corpora.documents(demo, Counter()))
    assert "sympy/core/basic.py" in documents and len(documents) > 800
    assert not [name for name in documents if "/tests/" in name or not name.endswith(".py")]

    # Path, size and bytes, and nothing else, are the identity.
    total = hashlib.sha256()
    folder = Path(sysconfig.get_path("purelib"))
    for name in ("tqdm/tk.py", "tqdm/utils.py"):
        source = (folder / name).read_bytes()
        total.update(f"{name}\0{len(source)}\0".encode() + source)
    small = {"kind": "package", "name": "tqdm", "without": ["tqdm/[!tu]*", "tqdm/t[!k]*"]}
    assert packages.content("tqdm", tuple(small["without"])) == total.hexdigest()

    installed = f"tqdm {version('tqdm')}"
    wrong = f"content = '0{{64}}'.*{installed}.*{total.hexdigest()}.*envs/requirements.lock"
    with pytest.raises(ValueError, match=wrong):
        list(corpora.documents({**small, "content": "0" * 64}, Counter()))
    with pytest.raises(ValueError, match="data.corpus.name = 'no-such-package': not installed here; install what"):
        packages.refuse_another({**small, "name": "no-such-package", "content": "0" * 64})
