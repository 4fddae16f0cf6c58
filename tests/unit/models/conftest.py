"""A saved model."""

from __future__ import annotations

from pathlib import Path

import pytest

from longshort.models import load
from tests.support.models import ARCHITECTURE


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model = load.from_scratch(ARCHITECTURE, vocabulary=257, separator=256, length=128, seed=0)
    model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"
