"""A study that `longshort new` wrote, to its tables."""

from __future__ import annotations

from pathlib import Path

import pandas
import pytest
import yaml

from longshort.data.tokenizers import byte_tokenizer
from longshort.models import load
from tests.support.models import ARCHITECTURE
from tests.support.project import TINY, longshort, make_project, run_snakemake


@pytest.mark.wide
def test_a_study_of_ones_own_model_and_texts_reaches_its_tables(tmp_path: Path) -> None:
    project = make_project(tmp_path / "project", TINY)
    model = load.from_scratch(ARCHITECTURE, vocabulary=257, separator=256, length=128, seed=0)
    model.save_pretrained(project / "model")
    byte_tokenizer().save_pretrained(project / "model")
    asked = ["--model", "model", "--corpus", "corpus", "--device", "cpu", "--arms", "baseline,constant"]
    longshort(project, "new", "mine", *asked, "--train-length", "32", "--test-length", "256")
    file = project / "config/studies/mine.yaml"
    study = yaml.safe_load(file.read_text())
    assert study["model"]["rope"] == {"kind": "yarn", "factor": 2}
    study["seeds"], study["checkpoints"] = [0], [study["training"]["steps"]]  # the rest is as it was written
    file.write_text(yaml.safe_dump(study))
    run_snakemake(project, "tables", study="mine")
    table = pandas.read_parquet(project / "results/mine/tables/main.parquet")
    shown = table[table["column"] == "perplexity@256"].set_index("arm")["mean"]
    assert {"(base)", "(extended base)", "baseline", "constant"} == set(shown.index) and shown.between(1, 1000).all()
