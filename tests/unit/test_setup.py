"""The set-up says in one sentence what the machine lacks, and leaves nothing behind."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.project import ROOT


def script(folder: Path, name: str, text: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / name).chmod(0o755)
    return folder / name


def set_up(tmp_path: Path, python: str, path: str) -> str:
    shutil.copytree(ROOT / "envs", tmp_path / "envs")
    done = subprocess.run(
        ["bash", "envs/setup.sh", python],
        cwd=tmp_path,
        env={**os.environ, "PATH": path, "LC_ALL": "C"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and not (tmp_path / ".venv").exists()
    assert len(done.stderr.splitlines()) == 1
    return done.stderr


def test_no_python(tmp_path: Path) -> None:
    assert "there is no 'python9' here; install Python 3.11" in set_up(tmp_path, "python9", os.environ["PATH"])


def test_an_old_python(tmp_path: Path) -> None:
    """The last one that is too old, asked in its own words."""
    told = f'exec "{sys.executable}" -c "import sys; sys.version_info = (3, 10, 9); $2"'
    old = script(tmp_path / "bin", "python3", f'case "$1" in --version) echo Python 3.10.9;; -c) {told};; esac')
    assert "is Python 3.10.9; Python 3.11 or newer is needed" in set_up(tmp_path, str(old), os.environ["PATH"])


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("df", "echo header; echo /dev/x 9000 8900 100 99% /", "has 100 MiB free"),
        ("python", 'case "$2" in *venv*) exit 1;; esac; exit 0', "comes without venv"),
    ],
)
def test_a_full_disk_and_a_python_without_venv(tmp_path: Path, name: str, text: str, said: str) -> None:
    fake = script(tmp_path / "bin", name, text)
    python = str(fake) if name == "python" else sys.executable
    assert said in set_up(tmp_path, python, f"{fake.parent}:{os.environ['PATH']}")
