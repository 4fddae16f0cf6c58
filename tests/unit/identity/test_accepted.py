"""Acceptances that were cut or edited."""

from __future__ import annotations

from pathlib import Path

import pytest

from longshort.identity.accepted import accepted_changes


@pytest.mark.parametrize("text", ['[{"arm": "constant"', '[{"arm": "constant"}]', "{}", "3"])
def test_cut_or_edited_acceptances_are_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "accepted.json").write_text(text)
    with pytest.raises(ValueError, match="accepted.json is not what `longshort accept` wrote"):
        accepted_changes(tmp_path / "accepted.json")
