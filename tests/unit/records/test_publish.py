"""Results appear whole or not at all."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from longshort.records import publish
from tests.support.project import ROOT, on_a_small_disk


def test_a_failed_write_leaves_the_old_file_and_no_part(tmp_path: Path) -> None:
    path = tmp_path / "out" / "value.json"
    publish.write_json(path, {"value": 1})
    with pytest.raises(ValueError):
        publish.write_json(path, {"value": float("nan")})
    with pytest.raises(RuntimeError), publish.file_in_place(path) as part:
        part.write_text("half")
        raise RuntimeError
    assert publish.read_json(path) == {"value": 1}
    assert [file.name for file in path.parent.iterdir()] == ["value.json"]


WRITE_TWICE = """
import sys
from pathlib import Path
from longshort.records.publish import write_atomic
path = Path(sys.argv[1])
if path.exists():
    print("still old:", path.read_text() == "old" * 9000)
else:
    write_atomic(path, "old" * 9000)
write_atomic(path, "new" * 9000)
print("new:", path.read_text() == "new" * 9000, [file.name for file in path.parent.iterdir()])
"""


def test_where_a_disk_is_full_the_old_file_stays_and_the_file_system_is_named(tmp_path: Path) -> None:
    value = tmp_path / "disk" / "value"
    command = on_a_small_disk(value.parent, 40960, [sys.executable, "-c", WRITE_TWICE, str(value)])
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT / "src")})
    assert f"no space for {value}: it needs 27 kB, and the file system {tmp_path}/disk has 12.3 kB free" in done.stderr
    assert done.stdout.splitlines() == ["exit code 1", "still old: True", "new: True ['value']"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_quota_that_is_spent_is_a_full_disk_too(tmp_path: Path, number: int) -> None:
    """Also in the words of a library that does not pass the system's own error on."""
    with (
        pytest.raises(publish.NoSpace, match=f"no space for {tmp_path}: it needs 27 kB") as said,
        publish.naming_a_full_disk(tmp_path, 27_000),
    ):
        raise OSError(number, os.strerror(number))
    assert said.value.errno == number
    assert publish.is_full(RuntimeError(f"I/O error: {os.strerror(number)} (os error {number})"))
    with pytest.raises(PermissionError), publish.naming_a_full_disk(tmp_path, 27_000):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def test_a_file_that_is_shown_late_is_waited_for(tmp_path: Path) -> None:
    digests = {"weights": publish.file_digest(Path(__file__))}
    assert publish.altered(tmp_path, digests) == "weights is missing"
    threading.Timer(0.5, shutil.copy, (__file__, tmp_path / "weights")).start()
    assert publish.altered(tmp_path, digests, patience=60) is None
    assert publish.altered(tmp_path, {"other": ""}, patience=0.1) == "other is missing"


def test_a_cut_json_is_named(tmp_path: Path) -> None:
    (tmp_path / "cut.json").write_text('{"a": ')
    with pytest.raises(ValueError, match="cut.json is no valid JSON"):
        publish.read_json(tmp_path / "cut.json")


@pytest.mark.parametrize("edit", [{"value": 2}, {"more": 1}, {"seal": "0" * 64}])
def test_a_record_that_was_edited_is_refused(tmp_path: Path, edit: dict[str, Any]) -> None:
    record = tmp_path / "record.json"
    publish.write_record(record, {"value": 1})
    assert publish.read_record(record) == {"value": 1}
    publish.write_json(record, publish.read_json(record) | edit)
    with pytest.raises(publish.Altered, match=f"{record} is not the record that was published; delete it and run"):
        publish.read_record(record)
