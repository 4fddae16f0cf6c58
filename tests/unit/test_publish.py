"""Results appear whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from longshort import publish


def test_a_failed_write_leaves_the_old_file_and_no_part(tmp_path: Path) -> None:
    path = tmp_path / "out" / "value.json"
    publish.write_json(path, {"value": 1})
    with pytest.raises(ValueError):
        publish.write_json(path, {"value": float("nan")})
    with pytest.raises(RuntimeError), publish.folder_in_place(tmp_path / "out" / "folder") as part:
        (part / "file").write_text("half")
        raise RuntimeError
    assert publish.read_json(path) == {"value": 1}
    assert [file.name for file in path.parent.iterdir()] == ["value.json"]


def test_a_cut_json_is_named(tmp_path: Path) -> None:
    (tmp_path / "cut.json").write_text('{"a": ')
    with pytest.raises(ValueError, match="cut.json is no valid JSON"):
        publish.read_json(tmp_path / "cut.json")
