"""Results appear whole or not at all."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
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


def test_a_second_owner_waits_for_the_first(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from longshort.publish import sole_owner\n"
        "with sole_owner(Path(sys.argv[1])): print('mine', flush=True); time.sleep(0.7)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None and first.stdout.readline() == "mine\n"
        began = time.monotonic()
        with publish.sole_owner(tmp_path):
            assert time.monotonic() - began > 0.3
    assert not (tmp_path / "owner.json").exists()


def test_a_dead_owner_is_replaced(tmp_path: Path) -> None:
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    state = {"host": socket.gethostname(), "pid": int(dead.stdout), "job": None, "group": None}
    (tmp_path / "owner.json").write_text(json.dumps(state))
    with publish.sole_owner(tmp_path) as owner:
        assert json.loads(owner.read_text())["pid"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


def test_an_owner_whose_children_live_is_not_dead(tmp_path: Path) -> None:
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(0.7)"], start_new_session=True) as child:
        state = {"host": socket.gethostname(), "pid": int(dead.stdout), "job": None, "group": child.pid}
        (tmp_path / "owner.json").write_text(json.dumps(state))
        with publish.sole_owner(tmp_path):
            assert child.poll() is not None  # its state: ended, not collected
