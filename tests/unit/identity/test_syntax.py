"""What is remembered of the source between commands."""

from __future__ import annotations

from pathlib import Path

import pytest

from longshort.identity import code, syntax


@pytest.mark.parametrize("remembered", [None, "", '["cut', '{"a": 1}', "[]"])
def test_what_is_remembered_of_the_source_changes_no_hash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, remembered: str | None
) -> None:
    monkeypatch.setattr(syntax, "TREES", tmp_path / "trees.json")
    if remembered is not None:
        syntax.TREES.write_text(remembered)

    def planned() -> str:
        syntax._known_trees.cache_clear()
        code._Package.at.cache_clear()
        return code.source_as_planned()

    anew = planned()
    written = syntax.TREES.stat().st_mtime_ns
    assert planned() == anew
    assert syntax.TREES.stat().st_mtime_ns == written
    monkeypatch.setattr(syntax, "_parse_anew", None)  # nothing is parsed a second time
    assert planned() == anew
