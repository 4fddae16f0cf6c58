"""The folder of the real model: made once, by one process, and again if it is not as it was made."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest

from tests.support import real_model

pytestmark = pytest.mark.real


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def convert(gguf: Path, out: Path) -> None:
    """Another one in its place would have found the folder there."""
    out.mkdir()
    (out / "config.json").write_text("{}")
    with (real_model.cache() / "made").open("a") as made:
        made.write("once\n")


def test_two_processes_at_once_make_one_folder() -> None:
    both = [multiprocessing.get_context("fork").Process(target=real_model.folder, args=(convert,)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0]
    folder, made = real_model.folder(convert), real_model.cache() / "made"
    assert made.read_text() == "once\n"
    (folder / "config.json").write_text("{ }")
    assert real_model.folder(convert) == folder and (folder / "config.json").read_text() == "{}"
    assert made.read_text() == "once\nonce\n"


def test_a_missing_package_is_named_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(real_model, "PACKAGE", "no-such-package")
    with pytest.raises(
        RuntimeError, match="no-such-package, which holds .* is not installed: install it .* REAL_MODEL=no"
    ):
        real_model.folder(convert)


def test_another_file_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(real_model, "GGUF_SHA256", "f" * 64)
    with pytest.raises(RuntimeError, match="holds another model"):
        real_model.folder(convert)
    assert list(real_model.cache().glob("*/*")) == []
