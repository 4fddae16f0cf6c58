"""What the engine reruns after a change, and what it does not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml

from tests.conftest import planned, run_snakemake

RESULTS = {"study": 1, "metrics": 1, "tables": 1, "plots": 1}


def edit(project: Path, file: str, old: str, new: str) -> None:
    path = project / file
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_nothing_after_nothing_or_a_touch(finished_copy: Path) -> None:
    assert planned(finished_copy) == {}
    for path in [*finished_copy.glob("src/**/*.py"), *finished_copy.glob("config/**/*"), finished_copy / "Snakefile"]:
        os.utime(path)
    assert planned(finished_copy) == {}


def test_nothing_after_another_notation_or_a_comment(finished_copy: Path) -> None:
    path = finished_copy / "config" / "studies" / "tiny.yaml"
    study = dict(reversed(yaml.safe_load(path.read_text()).items()))
    study["alignment"]["alpha"] = "1e0"
    study["training"]["micro_batch"] = 2
    path.write_text("# another order\n" + yaml.safe_dump(study))
    edit(finished_copy, "src/longshort/training/trainer.py", "import argparse", "# why\nimport argparse")
    edit(
        finished_copy,
        "src/longshort/alignment/schedules.py",
        "return step / (steps - 1)",
        "return (step / (steps - 1))",
    )
    assert planned(finished_copy) == {}


@pytest.mark.parametrize(
    ("file", "old", "new", "jobs"),
    [
        ("src/longshort/results/plots.py", "import argparse", "import argparse\nimport abc", {"plots": 1}),
        ("src/longshort/results/tables.py", "import argparse", "import argparse\nimport abc", {"tables": 1}),
        (
            "src/longshort/evaluation/misalignment.py",
            "import numpy as np",
            "import numpy as np\nimport abc",
            {"misalignment": 5, "metrics": 1, "tables": 1, "plots": 1},
        ),
        (
            "src/longshort/alignment/divergences/symmetric_kl.py",
            "import Tensor",
            "import Tensor, nn",
            {"train": 3, "perplexity": 3, "misalignment": 3, "longbench_e": 3, "metrics": 1, "tables": 1, "plots": 1},
        ),
        (
            "config/arms.yaml",
            "    alignment: {hidden: {alpha: 1.0, layers: [0.5]}}",
            "    alignment: {hidden: {alpha: 0.9, layers: [0.5]}}",
            {"specification": 1, "train": 1, "perplexity": 1, "misalignment": 1, "longbench_e": 1, **RESULTS},
        ),
        (
            "config/studies/tiny.yaml",
            "seeds:\n- 0",
            "seeds:\n- 0\n- 1",
            {"specification": 4, "train": 4, "perplexity": 4, "misalignment": 4, "longbench_e": 4, **RESULTS},
        ),
        ("config/studies/tiny.yaml", "- hidden+output\n", "", RESULTS),
    ],
    ids=["plots", "tables", "one-evaluation", "one-divergence", "one-arm", "a-seed", "an-arm-removed"],
)
def test_only_what_is_invalidated(finished_copy: Path, file: str, old: str, new: str, jobs: dict[str, int]) -> None:
    before = (finished_copy / file).read_text()
    edit(finished_copy, file, old, new)
    assert planned(finished_copy) == jobs
    (finished_copy / file).write_text(before)
    assert planned(finished_copy) == {}


def test_other_items_are_measured_anew(finished_copy: Path) -> None:
    edit(
        finished_copy,
        "src/longshort/evaluation/standin.py",
        '"--seed", type=int, default=0',
        '"--seed", type=int, default=1',
    )
    assert planned(finished_copy) == {"longbench_stand_in": 1, "longbench_e": 5, "metrics": 1, "tables": 1, "plots": 1}
    run = (finished_copy / "results/tiny/arms/constant/seed-0").resolve().relative_to(finished_copy)
    numbers = next((finished_copy / run).glob("longbench_e/*/2-6.parquet")).relative_to(finished_copy)
    run_snakemake(finished_copy, str(numbers))
    assert "numbers in" in (finished_copy / numbers).with_suffix(".log").read_text()
