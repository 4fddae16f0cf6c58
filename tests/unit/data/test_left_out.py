"""How much of a corpus may be unusable, and what is said of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.corpora import ROWS, lines, prepare, put


def test_more_than_may_be_left_out_stops_it_before_anything_is_made(tmp_path: Path) -> None:
    root = tmp_path / "corpus"
    bad = [b'{"text": 5}', b"{", b'{"text": "caf\xe9"}', b'{"text": "half \\ud83d"}']
    put(root / "a.jsonl", lines(ROWS) + b"\n".join(bad[:3]) + b"\n" + b'{"text": ""}\n' * 20)
    assert prepare(root)["left_out"]["empty"]["count"] == 20
    put(root / "a.jsonl", lines(ROWS) + b"\n".join(bad))
    (tmp_path / "out/manifest.json").unlink(missing_ok=True)
    with pytest.raises(
        ValueError, match=r"4 of 34 documents cannot be used, more than data.max_left_out = 0.05"
    ) as told:
        prepare(root)
    for each in (
        "1 no text in the column: a.jsonl, line 31",
        "-> convert it, e.g. iconv",
        "a.jsonl, line 33 (byte 13)",
    ):
        assert each in str(told.value)
    assert prepare(root, max_left_out=0.2)["splits"]["train"]["documents"] > 0


def test_of_a_reason_the_first_three_are_named(tmp_path: Path) -> None:
    put(tmp_path / "corpus/a.jsonl", lines([*ROWS, *[""] * 5]))
    said = prepare(tmp_path / "corpus")["left_out"]
    assert said["empty"]["count"] == 5 and said["empty"]["first"] == ["a.jsonl#30", "a.jsonl#31", "a.jsonl#32"]
