"""Tokenizer, items and tasks of the evaluations: LongBench-E from the standard library, tasks of lm_eval."""

from __future__ import annotations

import sysconfig
import zipfile
from pathlib import Path
from typing import Any

import pytest

from longshort.evaluation import prompts, standin
from tests.support.harness import write_tasks
from tests.support.longbench import REVISION, tiny_llama


@pytest.fixture
def tokenizer() -> Any:
    from longshort.data.tokenizers import byte_tokenizer

    return byte_tokenizer()


@pytest.fixture
def official_zip(folder: Path, tmp_path: Path) -> Path:
    """A data.zip as the dataset repository has it, inside the cache that the hub's client keeps."""
    snapshot = tmp_path / "datasets--THUDM--LongBench" / "snapshots" / REVISION
    snapshot.mkdir(parents=True)
    with zipfile.ZipFile(snapshot / "data.zip", "w") as file:
        for task in prompts.TASKS:
            file.write(folder / "longbench-e-3" / f"{task}_e.jsonl", f"data/{task}_e.jsonl")
            file.writestr(f"data/{task}.jsonl", "{}")  # LongBench itself, which is not read
    return snapshot / "data.zip"


@pytest.fixture(scope="module")
def documents() -> list[tuple[str, str]]:
    root = Path(sysconfig.get_paths()["stdlib"])
    # The tables among them end in lines that the code tasks cannot ask for.
    files = [*sorted(root.glob("*.py"))[::5], *sorted(root.glob("encodings/cp*.py"))]
    return [(path.name, path.read_text(encoding="utf-8")) for path in files]


@pytest.fixture(scope="module")
def folder(documents: list[tuple[str, str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of prepared data, where the items of the stand-in lie."""
    data = tmp_path_factory.mktemp("data")
    standin.write(standin.build(documents, items_per_task=3), data / "longbench-e-3")
    return data


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_llama()


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Tasks of lm_eval, and a cache of their own for what is made of them."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    return write_tasks(tmp_path / "tasks")
