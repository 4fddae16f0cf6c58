"""A project with the tiny study, as the current folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from longshort.models import load
from tests.support.models import ARCHITECTURE


@pytest.fixture
def config(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(project)
    return project / "config"


@pytest.fixture
def folder(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(project)
    return project


@pytest.fixture
def model(folder: Path) -> Path:
    made = load.from_scratch(ARCHITECTURE, vocabulary=257, separator=256, length=128, seed=0)
    made.save_pretrained(folder / "model")
    return folder / "model"
