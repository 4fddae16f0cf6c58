"""The commit of a result, what is said where there is none, and its environment."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

import pytest

from longshort.records import provenance


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("GIT_CONFIG_GLOBAL", "GIT_CONFIG_SYSTEM"):
        monkeypatch.setenv(name, "/dev/null")
    git = ["git", "-C", str(tmp_path), "-c", "user.name=x", "-c", "user.email=x"]
    subprocess.run([*git, "init", "--quiet"], check=True)
    (tmp_path / "pyproject.toml").touch()
    subprocess.run([*git, "add", "pyproject.toml"], check=True)
    subprocess.run([*git, "commit", "--quiet", "--message=x"], check=True)
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    for cached in (provenance.commit, provenance._commit):
        monkeypatch.setattr(provenance, cached.__name__, cached.__wrapped__)
    return tmp_path


def test_a_repository_of_another_owner_has_no_commit_and_says_so(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(provenance.commit()) == 40 and provenance.unknown_commit() is None
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")  # git's own tests have it
    assert provenance.commit() == "unknown"
    said = provenance.unknown_commit()
    assert said is not None and "dubious ownership" in said and f"--add safe.directory {repository}`" in said


def test_edited_source_is_not_that_of_its_commit(repository: Path) -> None:
    (repository / "results.csv").touch()  # which git does not track
    clean = provenance.commit()
    (repository / "pyproject.toml").write_text("edited")
    assert len(clean) == 40 and provenance.commit() == f"{clean}-dirty"


def test_what_lies_outside_a_repository_has_no_commit(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "ROOT", repository / "gone")
    assert provenance.commit() == "unknown"
    assert "take a git checkout" in str(provenance.unknown_commit())


def test_the_commit_of_a_repository_around_an_unpacked_source_is_not_its_own(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (repository / "unpacked").mkdir()
    (repository / "unpacked/pyproject.toml").touch()
    monkeypatch.setattr(provenance, "ROOT", repository / "unpacked")
    assert provenance.commit() == "unknown" and "pyproject.toml" in str(provenance.unknown_commit())


def test_an_environment_is_known_by_its_lock_and_its_libraries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two whose locks differ may give other numbers, whatever the versions of what is named here."""
    assert "lock=none" not in provenance.environment()
    named = {part.partition("=")[0] for part in provenance.environment().split()}
    assert named == {"lock", "python", *provenance.LIBRARIES}
    (tmp_path / "envs").mkdir()
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    versions = [f"python={platform.python_version()}", f"torch={version('torch')}"]
    assert provenance.environment.__wrapped__().split()[:3] == ["lock=none", *versions]
    (tmp_path / "envs/requirements.lock").write_text("abc")  # whose SHA-256 stands in FIPS 180
    assert provenance.environment.__wrapped__().split()[:3] == ["lock=ba7816bf8f01", *versions]
