"""Documents and their splits."""

from __future__ import annotations

import sysconfig
from collections import Counter
from pathlib import Path

from longshort.data import corpora
from longshort.data.left_out import LeftOut
from longshort.data.settings import StdlibCorpus


def test_a_document_keeps_its_split_when_others_come() -> None:
    before = {f"d{i}": corpora.split_of(f"d{i}", 0.1, 0.2) for i in range(500)}
    shares = Counter(before.values())
    assert 60 < shares["test"] < 140 and 25 < shares["validation"] < 80
    assert corpora.split_of("d7", 0.1, 0.2) == before["d7"]


def test_the_standard_library_is_read_by_relative_path() -> None:
    left_out = LeftOut()
    names = [name for name, _ in corpora.documents(StdlibCorpus(kind="stdlib"), left_out)]
    assert "json/decoder.py" in names and len(names) > 300
    assert not [name for name in names if name.startswith(("/", "site-packages", "test/"))]
    assert (Path(sysconfig.get_path("stdlib")) / names[0]).exists()
