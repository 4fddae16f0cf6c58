"""A study of the real model by one command, as docs/your-own-model.md has it."""

from __future__ import annotations

import json
from pathlib import Path
from pydoc_data.topics import topics

import pytest
import yaml

from tests.support.project import longshort

pytestmark = pytest.mark.real


def test_a_study_of_it_is_written_checked_and_planned(project: Path, real_folder: Path) -> None:
    (project / "texts").mkdir()
    for name, text in topics.items():
        (project / "texts" / f"{name}.txt").write_text(text)
    asked = ["--model", str(real_folder), "--corpus", "texts", "--device", "cpu", "--memory", "20"]
    said = " ".join(longshort(project, "new", "mine", *asked, "--test-length", "1024").stdout.split())
    assert "30 blocks, 8,192 positions (max_position_embeddings)" in said and "a tokenizer with BOS" in said
    study = yaml.safe_load((project / "config/studies/mine.yaml").read_text())
    assert study["model"]["layers"] == 30 and study["model"]["rope"] is None
    assert study["lengths"]["test"] == 1024 and study["training"]["precision"] == "fp32"
    assert "5 arms x 3 seeds" in longshort(project, "check", "--study", "mine").stdout
    planned = json.loads(longshort(project, "plan", "--study", "mine", "--json").stdout)
    assert planned["cost"]["device_hours"] > 1
