"""The model, and English text that comes with Python."""

from __future__ import annotations

from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import pytest

from tests.support import real_model

# Prose of the language reference, of more than 1,024 tokens each, in every Python that the project runs on.
ENGLISH = ("assignment", "compound", "execmodel", "attribute-access")


@pytest.fixture(scope="session")
def real_folder() -> Path:
    return real_model.folder()


@pytest.fixture(scope="module")
def tokenizer(real_folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(real_folder)


@pytest.fixture(scope="module")
def model(real_folder: Path) -> Any:
    """Not to be changed: all tests of a module share it."""
    from longshort.models import load

    return load.load(real_folder).eval()


@pytest.fixture(scope="module")
def english(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    """A data folder whose test split holds the texts."""
    from datasets import Dataset

    folder = tmp_path_factory.mktemp("english")
    texts = [topics[name] for name in ENGLISH]
    ids = [tokenizer(text, add_special_tokens=False).input_ids for text in texts]
    assert min(map(len, ids)) > 1024
    rows = {"name": list(ENGLISH), "text": texts, "input_ids": ids}
    Dataset.from_dict(rows).save_to_disk(str(folder / "test"))
    return folder
